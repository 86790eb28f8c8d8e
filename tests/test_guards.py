"""What must not pass unseen in a long training: stalls, divergence, hosts that disagree."""

import itertools
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import types

import jax
import numpy as np
import pytest
from tiny_run import copy_assets, losses, settings

from bagpiper_jax.errors import UserError
from bagpiper_jax.input_pipeline.batch import Batch
from bagpiper_jax.store import Checkpoints, late_hosts
from bagpiper_jax.training import feed, hosts, trace
from bagpiper_jax.training.loop import train
from bagpiper_jax.training.metrics import MetricsLog
from bagpiper_jax.training.speed import Speed
from bagpiper_jax.trees import dotted

FIXED = {"tokens_per_second": 1.0, "mfu": 0.1}


def test_a_host_that_sees_other_checkpoints_is_named_before_any_is_read(finished, monkeypatch):
    def gathered(text):  # the other host's disk shows no checkpoint yet
        return [text, text.replace('"last checkpoint": 6', '"last checkpoint": null')]

    monkeypatch.setattr(hosts, "_gathered_texts", gathered)
    monkeypatch.setattr(hosts, "host_names", lambda: ["a/0", "b/1"])
    monkeypatch.setattr(Checkpoints, "restore", None)
    with pytest.raises(UserError, match=r"^b/1 has other .* a/0 \(last checkpoint\): give all"):
        train(settings(), finished[0])


def test_a_run_that_diverged_ends_with_its_batch(finished, tmp_path):
    workdir = str(tmp_path / "run")
    copy_assets(finished[0], workdir)
    run = settings("--config.steps=30", "--config.optimizer.peak_lr=1e30", "--config.log_every=5")
    with pytest.raises(UserError, match="not finite: lower optimizer.peak_lr") as error:
        train(run, workdir)
    path = str(error.value).rsplit(" in ", 1)[1]
    with np.load(path) as saved:
        assert sorted(saved) == sorted(Batch._fields)
        assert saved["tokens"].shape[:2] == (2, 768) and saved["tokens"].any()


def test_a_stalled_input_is_said_and_then_ends_the_run(monkeypatch, capsys):
    monkeypatch.setattr(feed, "_LOOK_EVERY", 0.01)
    monkeypatch.setattr(feed, "_SAY_AFTER", 0.05)
    monkeypatch.setattr(feed, "_STOP_AFTER", 0.2)

    def stuck():
        yield 1
        time.sleep(3)

    with feed.Ahead(stuck) as ahead:
        assert ahead.next() == 1
        with pytest.raises(UserError, match="gave no batch"):
            ahead.next()
    assert "waiting for input: no batch for" in capsys.readouterr().err


def test_what_the_input_raises_reaches_the_loop_and_threads_end():
    def broken():
        yield 1
        raise UserError("this clip is damaged")

    with feed.Ahead(broken) as ahead:
        assert ahead.next() == 1
        with pytest.raises(UserError, match="this clip is damaged"):
            ahead.next()
    with feed.Ahead(lambda: iter(itertools.count()), depth=1) as ahead:
        assert ahead.next() == 0
    assert not ahead._thread.is_alive()


def test_the_host_stays_one_step_ahead(tmp_path):
    """It waits for the step before the last one, not for the last one, nor for more batches."""
    waited = []

    class Metric:
        def __init__(self, step):
            self.step = step

        def block_until_ready(self):
            waited.append(self.step)

    with MetricsLog(None, start=0, steps=9, speed=Speed(1.0, 1.0)) as log:
        for step in range(4):
            log.keep_up()
            log.add({"loss": Metric(step)}, 0.0)
    assert waited == [0, 1]


def test_hosts_with_other_rows_are_named():
    rows = Batch(*(np.arange(4).reshape(2, 2) for _ in Batch._fields))
    mine = feed.checksums(rows, np.array([1, 3]), 4)
    assert (mine[[0, 2]] == -1).all() and (mine[[1, 3]] >= 0).all()
    other = feed.checksums(rows, np.array([0, 1]), 4)
    with pytest.raises(UserError, match="step 7: row 1 of the batch differs between a/0, b/1"):
        feed.check_agreement(np.stack([mine, other]), ["a/0", "b/1"], 7)
    feed.check_agreement(np.stack([mine, mine]), ["a/0", "b/1"], 7)


def test_the_host_that_a_barrier_waits_for_is_named():
    """The message of jaxlib 0.10.2."""
    message = (
        "DEADLINE_EXCEEDED: Barrier timed out. Id: x1::0. This usually happens because a task "
        "triggered the barrier too early or too slowly.\n# of tasks that reached the barrier: "
        "1/3.\nThe first task at the barrier: 0. Some timed out task names:\n1\n2\n\n\nRPC: /xla"
    )
    said = late_hosts(message, ["a/0", "b/1"])
    assert said.startswith("no sign of b/1, process 2:")
    assert late_hosts("disk full", ["a/0"]) == ""


def test_a_save_that_failed_ends_the_run_at_the_next_step(finished, tmp_path, monkeypatch):
    """Not at the next save, and not at the end."""
    workdir = str(tmp_path / "run")
    copy_assets(finished[0], workdir)
    results = iter([None, UserError("the disk is full")])

    def check(self):
        if result := next(results):
            raise result

    monkeypatch.setattr(Checkpoints, "check", check)
    with pytest.raises(UserError, match="the disk is full"):
        train(settings("--config.save_every=6"), workdir)
    assert list(losses(workdir)) == [1]


ABSENT = """
import os, sys, time
import numpy as np
from bagpiper_jax.errors import UserError
from bagpiper_jax.store import Checkpoints
from bagpiper_jax.training import hosts

address, process, workdir = sys.argv[1:]
hosts.connect(address, 2, int(process))
names = hosts.host_names()
with Checkpoints(workdir, keep=1, timeout=3, hosts=names) as checkpoints:
    if process == "1":
        time.sleep(60)  # it does not come
    try:
        hosts.barrier("start", names, timeout=2)
    except UserError as e:
        print(e, flush=True)
    try:
        checkpoints.save(1, {"a": np.zeros(3)}, {"step": np.zeros(())}, {"batches": 1})
        checkpoints.wait()
    except UserError as e:
        print(e, flush=True)
    os._exit(0)  # the other one is not waited for
"""


@pytest.mark.slow
def test_a_host_that_does_not_come_is_named(tmp_path):
    """Two processes; one stays away from a barrier, and from a checkpoint."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    start = lambda i: [sys.executable, "-c", ABSENT, address, str(i), str(tmp_path)]  # noqa: E731
    with subprocess.Popen(start(1), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as absent:
        try:
            waiting = subprocess.run(start(0), capture_output=True, text=True, timeout=120)
        finally:
            absent.kill()
    lines = waiting.stdout.splitlines()
    barrier, save = (line for line in lines if "Gloo" not in line and "no sign" in line)
    assert re.match("at the barrier 'start': no sign of .*/1: look at their logs", barrier)
    assert re.match("the checkpoint in .* is not whole: no sign of .*/1: look at", save)


def test_resume_alone_never_starts(tmp_path, finished):
    empty = str(tmp_path / "none")
    with pytest.raises(UserError, match="holds no run to resume"):
        train(settings(), empty, must_resume=True)
    assert not os.path.exists(empty)
    started = str(tmp_path / "started")
    copy_assets(finished[0], started)
    with pytest.raises(UserError, match="holds no run to resume"):
        train(settings(), started, must_resume=True)


def test_another_mesh_goes_on_with_the_same_run(finished, tmp_path):
    """Steps 1–3 on fsdp 2 × tensor 4, the rest on replica 2 × tensor 4, unrolled in two."""
    workdir, state = finished
    other = str(tmp_path / "run")
    shutil.copytree(workdir, other)
    shutil.rmtree(os.path.join(other, "checkpoints", "6"))
    with Checkpoints(other, keep=2) as checkpoints:
        assert checkpoints.latest_step == 3
    again = train(settings("--config.mesh.replica=2", "--config.mesh.fsdp=1"), other)
    theirs = dotted(state.params)
    for path, mine in dotted(again.params).items():
        np.testing.assert_allclose(mine, theirs[path], rtol=1e-4, atol=1e-5, err_msg=path)


def test_weights_and_biases_gets_the_numbers(monkeypatch, finished, tmp_path):
    """With a module that stands for wandb: one run for a workdir, whatever the number of starts."""
    calls = []

    class Run:
        def log(self, scalars, step):
            calls.append((step, sorted(scalars)))

        def finish(self):
            calls.append("finish")

    module = types.ModuleType("wandb")
    module.init = lambda **settings: calls.append(settings) or Run()
    monkeypatch.setitem(sys.modules, "wandb", module)
    speed = Speed(1e9, 1e12)
    for start in (0, 1):
        with MetricsLog(str(tmp_path), start=start, steps=2, speed=speed, wandb="audio") as log:
            log._put(start + 1, {"loss": 1.0, "ce/stream0": 1.0, "ce/stream1": 1.0} | FIXED)
    first, second = (call for call in calls if isinstance(call, dict))
    assert first == second and first["project"] == "audio" and first["resume"] == "allow"
    assert [call[0] for call in calls if isinstance(call, tuple)] == [1, 2]
    assert calls.count("finish") == 2
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"bagpiper_jax\[wandb\]"):
        MetricsLog(str(tmp_path), start=0, steps=2, speed=speed, wandb="audio")


def test_a_copy_that_nobody_asked_for_ends_a_run_which_leaves_its_trace(
    finished, tmp_path, monkeypatch
):
    workdir = str(tmp_path / "run")
    copy_assets(finished[0], workdir)
    add = MetricsLog.add

    def copying(self, metrics, waited):
        add(self, metrics | {"loss": metrics["loss"] * np.float32(2)}, waited)

    monkeypatch.setattr(MetricsLog, "add", copying)
    monkeypatch.setattr(trace, "_STEPS", range(0, 5))
    with pytest.raises(jax.errors.JaxRuntimeError, match="Disallowed host-to-device transfer"):
        train(settings(), workdir, profile=True)
    assert list((tmp_path / "run" / "profile").rglob("*.xplane.pb"))


def test_a_trace_is_written_however_few_of_its_steps_there_are(tmp_path, capsys):
    state = jax.numpy.zeros(3)
    for steps, traced in ((10, False), (11, True), (17, True)):
        directory = tmp_path / str(steps)
        with trace.Trace(str(directory)) as profile:
            for step in range(steps):
                profile.before(step, state)
        assert bool(list(directory.rglob("*.xplane.pb"))) == traced
        said = capsys.readouterr().err
        assert ("--profile: no trace, this start had no more than 10 steps" in said) != traced
    with trace.Trace(None) as profile:
        for step in range(20):
            profile.before(step, state)
    assert capsys.readouterr().err == ""


def test_lines_of_steps_that_come_again_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 3}\n{"step": 2, "loss": 2}\n{"step": 3, "lo')
    with MetricsLog(str(tmp_path), start=1, steps=2, speed=Speed(1.0, 1.0)):
        pass
    assert path.read_text() == '{"step": 1, "loss": 3}\n'
