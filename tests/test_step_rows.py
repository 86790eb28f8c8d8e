"""Worker processes of the input, where the training that reads from them is killed."""

import os
import subprocess
import sys
import time

import numpy as np

from bagpiper_jax.input_pipeline.batch import Batch
from bagpiper_jax.input_pipeline.step_rows import host_batches


class Rows:
    """Endless rows that tell which process makes them."""

    def __len__(self):
        return 1_000_000

    def __getitem__(self, number):
        return Batch(*(np.full(4, os.getpid()) for _ in Batch._fields))


def read_one():
    batches = host_batches(Rows(), 2, np.arange(2), 0, workers=1)
    print(next(batches).tokens[0, 0], flush=True)
    time.sleep(1000)


def test_workers_do_not_outlive_a_training_that_is_killed():
    here = os.path.dirname(__file__)
    env = os.environ | {"PYTHONPATH": os.pathsep.join([os.path.dirname(here), here])}
    training = subprocess.Popen(
        [sys.executable, "-c", "import test_step_rows; test_step_rows.read_one()"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=env,
    )
    worker = int(training.stdout.readline())
    assert worker != training.pid
    training.kill()
    try:
        training.communicate(timeout=30)  # until all that hold its output have ended
    except subprocess.TimeoutExpired:
        os.kill(worker, 9)
        raise
