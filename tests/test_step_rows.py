"""Worker processes of the input, where the training that reads from them is killed."""

import os
import signal
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


def read_through_sigterm():
    signal.signal(signal.SIGTERM, lambda *_: None)  # as a training, which ends its step first
    batches = host_batches(Rows(), 2, np.arange(2), 0, workers=1)
    first = next(batches).tokens[0, 0]
    os.killpg(os.getpgid(0), signal.SIGTERM)
    time.sleep(1)
    for _ in range(100):  # more than were made ahead
        assert next(batches).tokens[0, 0] == first
    print("all came")


def start(function, **settings):
    """A process of its own that calls a function of this module."""
    here = os.path.dirname(__file__)
    env = os.environ | {"PYTHONPATH": os.pathsep.join([os.path.dirname(here), here])}
    code = f"import test_step_rows; test_step_rows.{function}()"
    return subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, env=env, **settings
    )


def test_workers_go_on_through_a_sigterm_to_all_processes_of_a_job():
    training = start("read_through_sigterm", start_new_session=True)
    assert training.communicate(timeout=120)[0] == b"all came\n" and training.returncode == 0


def test_workers_do_not_outlive_a_training_that_is_killed():
    training = start("read_one", stderr=subprocess.DEVNULL)
    worker = int(training.stdout.readline())
    assert worker != training.pid
    training.kill()
    try:
        training.communicate(timeout=30)  # until all that hold its output have ended
    except subprocess.TimeoutExpired:
        os.kill(worker, 9)
        raise
