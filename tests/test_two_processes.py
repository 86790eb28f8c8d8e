"""Two processes train as one run: told to end, diverged, or started with other settings."""

import json
import os
import re
import shutil
import signal
import time

import numpy as np
import pytest
from tiny_run import copy_assets, losses, settings
from two_processes import together, train_arguments

from bagpiper_jax.release import load_assets, load_weights, weight_shapes
from bagpiper_jax.store import Checkpoints
from bagpiper_jax.training import loop
from bagpiper_jax.trees import dotted

pytestmark = pytest.mark.slow

# what a training does when it has diverged; to write the batch takes seconds
GIVE_UP = """
import sys, time
import numpy as np
from bagpiper_jax.input_pipeline.batch import Batch
from bagpiper_jax.training import hosts, loop

address, process, workdir = sys.argv[1:]
watch = hosts.connect(address, 2, int(process))
write = loop._save_batch
loop._save_batch = lambda *arguments: (time.sleep(10), write(*arguments))
rows = [Batch(*(np.full(3, row) for _ in Batch._fields)) for row in range(40)]
try:
    loop._give_up(rows, 2, list(range(1, 21)), workdir, hosts.host_names())
except Exception as e:
    watch.fail(e)
"""


@pytest.fixture
def workdir(finished, tmp_path):
    copy_assets(finished[0], str(tmp_path / "run"))
    return str(tmp_path / "run")


def weights(workdir):
    return dotted(load_weights(workdir, weight_shapes(load_assets(workdir).config)))


def assert_near(mine, wanted, before, **tolerance):
    """Weights as they should be, and not because they stand still."""
    for path in wanted:
        np.testing.assert_allclose(mine[path], wanted[path], err_msg=path, **tolerance)
    assert max(np.abs(wanted[path] - before[path]).max() for path in wanted) > 1e-3


def test_sigterm_to_one_saves_and_ends_both(finished, workdir, tmp_path, monkeypatch):
    """And one process, of eight devices on another mesh, goes on with what they saved."""
    # a large eps: Adam divides the rounding of tiny gradients by itself
    gentle = ("--config.optimizer.eps=1e-3", "--config.optimizer.peak_lr=1e-3")
    long = ("--config.steps=100000", "--config.save_every=100000", *gentle)

    def terminate(processes):
        log = os.path.join(workdir, "metrics.jsonl")
        deadline = time.monotonic() + 900
        while not (os.path.exists(log) and len(losses(workdir)) > 2):
            assert time.monotonic() < deadline, "no step was done"
            time.sleep(0.1)
        processes[1].send_signal(signal.SIGTERM)

    make = lambda address, i: [  # noqa: E731
        *("-m", "bagpiper_jax.cli"),
        *train_arguments(address, i, workdir, *long),
    ]
    codes, logs, _ = together(make, 900, terminate)
    assert codes == [0, 0], logs
    assert not any("Traceback" in log for log in logs), logs
    done = max(losses(workdir))
    with Checkpoints(workdir, keep=1) as checkpoints:
        assert checkpoints.latest_step == done < 100_000

    before, last, alone = weights(workdir), done + 3, str(tmp_path / "alone")
    copy_assets(finished[0], alone)
    monkeypatch.setattr(loop.hosts, "should_stop", lambda step, _: step == last)
    loop.train(settings(*long), workdir, must_resume=True)
    loop.train(settings(*long), alone)
    ours, theirs = losses(workdir), losses(alone)
    assert list(ours) == list(theirs) == list(range(1, last + 1))
    assert ours == pytest.approx(theirs, rel=1e-5)
    with open(f"{workdir}/checkpoints/{last}/input/metadata", encoding="utf-8") as f:
        assert json.load(f) == {"batches": last}
    assert_near(weights(workdir), weights(alone), before, rtol=0, atol=1e-5)


def test_two_processes_go_on_with_a_run_of_one(finished, tmp_path):
    """Steps 1–3 on eight devices of one process, 4–6 on one device of each of two."""
    workdir = str(tmp_path / "run")
    shutil.copytree(finished[0], workdir)
    shutil.rmtree(os.path.join(workdir, "checkpoints", "6"))
    before = weights(workdir)
    make = lambda address, i: [  # noqa: E731
        *("-m", "bagpiper_jax.cli"),
        *(*train_arguments(address, i, workdir), "--resume"),
    ]
    codes, logs, _ = together(make, 900)
    assert codes == [0, 0], logs
    ours, theirs = losses(workdir), losses(finished[0])
    assert list(ours) == [1, 2, 3, 4, 5, 6]
    assert ours == pytest.approx(theirs, rel=1e-4)
    with open(f"{workdir}/checkpoints/6/input/metadata", encoding="utf-8") as f:
        assert json.load(f) == {"batches": 6}
    # as for another mesh: three steps of Adam at 0.01 magnify rounding
    assert_near(weights(workdir), weights(finished[0]), before, rtol=1e-4, atol=1e-5)


def test_a_run_that_diverged_leaves_its_batch_before_any_process_ends(tmp_path):
    make = lambda address, i: ["-c", GIVE_UP, address, str(i), str(tmp_path)]  # noqa: E731
    codes, logs, _ = together(make, 900)
    assert codes == [2, 2], logs
    for log in logs:
        told = re.search(r"^bagpiper: \d+ steps had a loss .* batch is in (\S+)$", log, re.M)
        assert told, log
        with np.load(told.group(1)) as saved:  # of the last step that was skipped
            assert saved["tokens"][:, 0].tolist() == [38, 39]


def test_a_host_with_other_settings_is_named(tmp_path):
    changes = ("--config.log_every=5", "--config.optimizer.peak_lr=0.5", "--config.data.workers=1")

    def make(address, i):
        own = changes if i else ()
        return ["-m", "bagpiper_jax.cli", *train_arguments(address, i, tmp_path / "run", *own)]

    codes, logs, _ = together(make, 900)
    assert codes == [2, 2], logs
    said = r"^bagpiper: \S+/1 has other settings than \S+/0 \(log_every, optimizer.peak_lr\): start"
    assert all(re.search(said, log, re.M) for log in logs), logs
    assert not os.listdir(tmp_path)
