"""Slow proofs: a run killed again and again, and a run of two processes, end as one undisturbed."""

import contextlib
import glob
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import pytest
from tiny_run import CONFIG, TINY, copy_assets, losses

from bagpiper_jax.release import load_assets, load_weights, weight_shapes
from bagpiper_jax.training.assets import run_shapes
from bagpiper_jax.training.config import load_config
from bagpiper_jax.training.loop import initial_params
from bagpiper_jax.training.step import make_model, run_mesh
from bagpiper_jax.trees import dotted

pytestmark = pytest.mark.slow
LONG = [*TINY, "--config.steps=60", "--config.save_every=1", "--config.log_every=1"]
AXES = ("replica", "fsdp", "tensor")
POD = os.path.join(os.path.dirname(CONFIG), "local_pod.py")


def command(workdir, *overrides):
    arguments = ["train", "--config", CONFIG, *LONG, *overrides, "--workdir", workdir]
    return [sys.executable, "-m", "bagpiper_jax.cli", *arguments]


def weights(workdir):
    return dotted(load_weights(workdir, weight_shapes(load_assets(workdir).config)))


def weights_at_step_0(overrides):
    run = load_config(["--config", CONFIG, *LONG, *overrides])
    model = make_model(run, run_shapes(run))
    params = dotted(initial_params(run, model, run_mesh(run, jax.devices())))
    return {path: np.asarray(value) for path, value in params.items()}


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """Programs are compiled once for all starts."""
    cache = str(tmp_path_factory.mktemp("cache"))
    settings = {"JAX_COMPILATION_CACHE_DIR": cache}
    settings["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    return os.environ | settings


@pytest.fixture(scope="module")
def undisturbed(finished, environment, tmp_path_factory):
    workdir = str(tmp_path_factory.mktemp("undisturbed"))
    copy_assets(finished[0], workdir)
    subprocess.run(command(workdir), env=environment, check=True, stderr=subprocess.DEVNULL)
    return workdir


class Kill(NamedTuple):
    """Seconds from start to what it waited for; whether it met a save, or came before a step."""

    seconds: float
    in_save: bool
    before_step: bool


def unfinished(workdir):
    """Checkpoints that are not whole, with the time of their last change: some are left over."""
    found = set()
    for path in glob.glob(f"{workdir}/checkpoints/*.orbax-checkpoint-tmp*"):
        with contextlib.suppress(FileNotFoundError):  # it has become whole
            found.add((path, os.stat(path).st_mtime_ns))
    return found


def logged(workdir):
    path = Path(workdir, "metrics.jsonl")
    return path.read_bytes() if path.exists() else b""


def start_and_kill(arguments, environment, workdir, *, after="step", moment):
    """Starts a run, kills it `moment` seconds after its start, a step, or the start of a save."""
    log, left = logged(workdir), unfinished(workdir)
    due = {
        "start": lambda: True,
        "step": lambda: not log.startswith(logged(workdir)),  # a start drops lines, and adds none
        "save": lambda: bool(unfinished(workdir) - left),
    }[after]
    since = time.monotonic()
    process = subprocess.Popen(arguments, env=environment, stderr=subprocess.DEVNULL)
    while not due():
        assert process.poll() is None, "it ended, or failed, before it could be killed"
        assert time.monotonic() < since + 900, f"no {after} in a quarter of an hour"
        time.sleep(0.005)
    seconds = time.monotonic() - since
    time.sleep(moment)
    assert process.poll() is None, "it ended, or failed, before it could be killed"
    process.send_signal(signal.SIGKILL)
    process.wait()
    return Kill(seconds, bool(unfinished(workdir) - left), log.startswith(logged(workdir)))


def test_twenty_kills(undisturbed, environment, tmp_path):
    """SIGKILL at random moments of a run that saves all the time; then it ends, bit by bit.

    By turns after a step, in a save, and anywhere from the start of the process to its first step:
    while it imports, restores, compiles.
    """
    workdir = str(tmp_path / "run")
    copy_assets(undisturbed, workdir)
    moments = random.Random(0)
    longest = {"step": 0.5, "save": 0.05}
    kills = []
    for i in range(20):
        after = ("step", "save", "start")[i % 3]
        moment = moments.uniform(0, longest[after])
        kills.append(
            start_and_kill(command(workdir), environment, workdir, after=after, moment=moment)
        )
        if after == "step":
            longest["start"] = kills[-1].seconds
    assert any(kill.in_save for kill in kills), kills
    assert any(kill.before_step for kill in kills), kills
    subprocess.run(command(workdir), env=environment, check=True, stderr=subprocess.DEVNULL)
    ours, theirs = weights(workdir), weights(undisturbed)
    for path in theirs:
        np.testing.assert_array_equal(ours[path], theirs[path], err_msg=path)
    steps = [json.loads(line)["step"] for line in logged(workdir).splitlines()]
    assert steps == list(range(1, 61))  # every batch once, and in its place
    assert losses(workdir) == losses(undisturbed)


def test_kills_and_other_meshes(undisturbed, environment, tmp_path):
    """Each start on another mesh, or with other micro-batches: the same weights to 1e-5."""
    # a large eps: Adam divides the rounding of tiny gradients by itself
    gentle = ["--config.optimizer.eps=1e-3", "--config.optimizer.peak_lr=1e-3"]
    alone, workdir = str(tmp_path / "alone"), str(tmp_path / "run")
    for place in (alone, workdir):
        copy_assets(undisturbed, place)
    subprocess.run(command(alone, *gentle), env=environment, check=True, stderr=subprocess.DEVNULL)
    mesh = lambda r, f, t: [f"--config.mesh.{a}={n}" for a, n in zip(AXES, (r, f, t), strict=True)]  # noqa: E731
    moments = random.Random(1)
    halves = "--config.compute.accumulation=2"
    for change in (mesh(2, 1, 4), mesh(1, 2, 1), [*mesh(1, 1, 4), halves]):
        arguments, moment = command(workdir, *gentle, *change), moments.uniform(0, 0.5)
        start_and_kill(arguments, environment, workdir, moment=moment)
    last = command(workdir, *gentle, *mesh(1, 1, 1))
    subprocess.run(last, env=environment, check=True, stderr=subprocess.DEVNULL)
    ours, theirs, start = weights(workdir), weights(alone), weights_at_step_0(gentle)
    for path in theirs:
        np.testing.assert_allclose(ours[path], theirs[path], rtol=0, atol=1e-5, err_msg=path)
    moved = max(np.abs(np.asarray(theirs[path]) - start[path]).max() for path in theirs)
    assert moved > 1e-3  # they do not agree by standing still
    assert list(losses(workdir)) == list(range(1, 61))


def test_two_processes_are_one_run(undisturbed, environment, tmp_path):
    """Two processes of four devices under gloo: the curve and weights of one with eight."""
    workdir = str(tmp_path / "pod")
    copy_assets(undisturbed, workdir)
    arguments = ["--config", CONFIG, *LONG, "--config.save_every=20", "--workdir", workdir]
    pod = [sys.executable, POD, "--processes", "2", "--devices", "4", "--", *arguments]
    done = subprocess.run(pod, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    ours, theirs = losses(workdir), losses(undisturbed)
    assert sorted(ours) == sorted(theirs)
    np.testing.assert_allclose([ours[s] for s in ours], [theirs[s] for s in ours], rtol=1e-4)
    final = weights(undisturbed)
    for path, mine in weights(workdir).items():
        # 60 steps of Adam at 0.01 magnify rounding (4e-4 here)
        np.testing.assert_allclose(mine, final[path], rtol=1e-3, atol=1e-3, err_msg=path)
