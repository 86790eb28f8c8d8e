"""One process of a run fails, hangs or is gone: the others end soon, and say who and why."""

import os
import re
import shutil
import socket
import time

import numpy as np
import pytest
import soundfile
from tiny_run import copy_assets, settings
from two_processes import together, train_arguments

from bagpiper_jax.errors import UserError
from bagpiper_jax.release import load_assets
from bagpiper_jax.store import Checkpoints
from bagpiper_jax.store import runs as store
from bagpiper_jax.training import failure_watch
from bagpiper_jax.training.loop import make_source


class Shared:
    """The key-value store of the coordination service."""

    def __init__(self):
        self.values = {}

    def key_value_set(self, key, value):
        assert key not in self.values
        self.values[key] = value

    def key_value_try_get(self, key):
        return self.values[key]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize(
    "error,said,code",
    [
        (UserError("the disk is full"), "the disk is full", 2),
        (RuntimeError("Gloo failed: Connection closed by peer [::1]"), "another process is", 2),
        (ZeroDivisionError("by zero"), "ZeroDivisionError: by zero", 1),
        (KeyboardInterrupt(), "interrupted", 130),
    ],
)
def test_who_leaves_says_why_and_the_others_follow(error, said, code, monkeypatch, capsys):
    codes = []

    def leave(code, seconds):
        codes.append(code)
        raise SystemExit  # ends the thread, or what the test calls

    monkeypatch.setattr(failure_watch, "_exit", leave)
    monkeypatch.setattr(failure_watch, "_POLL", 0.01)
    shared = Shared()
    first, second = failure_watch.FailureWatch(shared, 0), failure_watch.FailureWatch(shared, 1)
    time.sleep(0.1)
    assert not codes
    with pytest.raises(SystemExit):
        first.fail(error)
    second._thread.join(timeout=10)  # it hears, without being asked
    first.close()
    heard = capsys.readouterr().err
    assert codes == [code, 2]
    assert re.search(rf"^bagpiper: {said}", heard, re.M)
    assert re.search(rf"^bagpiper: {socket.gethostname()}/0 has ended: {said}", heard, re.M)
    assert ("Traceback" in heard or "ZeroDivisionError: by zero\n" in heard) == (code == 1)


def test_a_save_that_takes_long_is_said(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(store, "_SAY_AFTER", 0.2)
    with Checkpoints(str(tmp_path), keep=1) as checkpoints:
        checkpoints.save(7, {"a": np.zeros(3)}, {"step": np.zeros(())}, {"batches": 7})
        checkpoints.wait()
        assert "has taken" not in capsys.readouterr().err
        ends = time.monotonic() + 1
        under_way = lambda: time.monotonic() < ends  # noqa: E731
        monkeypatch.setattr(checkpoints._manager, "is_saving_in_progress", under_way)
        checkpoints.wait()
    said = capsys.readouterr().err.splitlines()
    assert 1 <= len(said) <= 3  # ever more seldom
    assert re.fullmatch(r"the save of step 7 has taken \d+ s so far", said[0])


SCRIPT = """
import errno, os, signal, sys, time
import numpy as np
from bagpiper_jax.errors import UserError
from bagpiper_jax.store import Checkpoints
from bagpiper_jax.store import runs
from bagpiper_jax.training import hosts

address, process, workdir, kind, timeout = sys.argv[1:]
watch = hosts.connect(address, 2, int(process))
names = hosts.host_names()
runs._SAY_AFTER = 2.0
if process == "1" and kind in ("full", "hangs"):
    from orbax.checkpoint._src.checkpointers import async_checkpointer

    def commit(*args, **kwargs):
        if kind == "full":
            raise OSError(errno.ENOSPC, "No space left on device")
        time.sleep(1000)

    async_checkpointer._background_wait_for_commit_futures = commit
try:
    if kind == "ends":
        if process == "1":
            raise UserError("clip.wav cannot be read")
        hosts.gathered(np.zeros(3))
    if kind == "killed":
        for step in range(1000):
            if process == "1" and step == 10:
                os.kill(os.getpid(), signal.SIGKILL)
            hosts.gathered(np.zeros(3))
    with Checkpoints(workdir, keep=1, timeout=int(timeout), hosts=names) as checkpoints:
        checkpoints.save(1, {"a": np.zeros(3)}, {"step": np.zeros(())}, {"batches": 1})
        while True:
            checkpoints.check()
            time.sleep(0.1)
except Exception as e:
    watch.fail(e)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind,timeout,other",
    [
        # in a collective, or in a save, with one that fails: long before any time is over
        ("ends", 1000, "/1 has ended: clip.wav cannot be read"),
        ("full", 1000, "/1 has ended: cannot write the checkpoint to .*No space left on device"),
        # gloo tells of its connections; TPUs would wait for the heartbeats
        ("killed", 1000, "another process is gone .* by peer"),
        # with one that hangs: when the time for a save is over, once, not later
        ("hangs", 10, "the checkpoint in .* is not whole: no sign of .*/1: look at their logs"),
    ],
)
def test_one_of_two(kind, timeout, other, tmp_path):
    make = lambda address, i: ["-c", SCRIPT, address, str(i), str(tmp_path), kind, str(timeout)]  # noqa: E731
    codes, logs, seconds = together(make, limit=90)
    assert codes == [2, -9 if kind == "killed" else 2], logs
    assert re.search(rf"^bagpiper: .*{other}", logs[0], re.M), logs[0]
    assert not any("Traceback" in log or "stack trace" in log for log in logs), logs
    if kind == "hangs":
        waits = r"the save of step 1 has taken \d+ s so far: the part of this host is written, "
        assert re.search(waits, logs[0])
        assert "so far\n" in logs[1]  # its own is not
        assert re.search(r"^bagpiper: .*/0 has ended: .*no sign of", logs[1], re.M)


@pytest.mark.slow
def test_a_corpus_that_one_host_cannot_read_ends_both(tmp_path):
    broken = tmp_path / "corpus"
    broken.mkdir()

    def make(address, i):
        own = [f"--config.data.corpus={broken}"] * i
        return ["-m", "bagpiper_jax.cli", *train_arguments(address, i, tmp_path / "r", *own)]

    codes, logs, _ = together(make, limit=90)
    assert codes == [2, 2], logs
    assert "Traceback" not in logs[0]
    assert re.search(r"^bagpiper: .*/1 has ended: .*corpus", logs[0], re.M), logs[0]
    assert re.search(r"^bagpiper: .*corpus", logs[1], re.M), logs[1]


@pytest.mark.slow
def test_a_corpus_that_differs_by_a_clip_ends_both(finished, tmp_path):
    """A clip that is heard in the first row is played backwards on one host."""
    run, workdir, corpus = settings(), tmp_path / "run", tmp_path / "corpus"
    copy_assets(finished[0], workdir)
    shutil.copytree(run.data.corpus, corpus)
    row = make_source(run, load_assets(workdir)).planned_row(0)
    clip = next(e.clips[0] for p in row if p.task != "text_only" for e in p.scene.events)
    path = str(corpus / "audio" / f"{clip}.ogg")
    wav, rate = soundfile.read(path, dtype="float32")
    soundfile.write(path, wav[::-1], rate, format="OGG", subtype="VORBIS")

    def make(address, i):
        own = [f"--config.data.corpus={corpus}"] * i
        return ["-m", "bagpiper_jax.cli", *train_arguments(address, i, workdir, *own)]

    codes, logs, _ = together(make, limit=600)
    assert codes == [2, 2], logs
    for log in logs:  # each finds out, or the other tells it
        told = r"^bagpiper: .*step 0: row 0 of the batch differs between \S+/0, \S+/1: do they"
        assert re.search(told, log, re.M), log
    assert not os.path.exists(workdir / "checkpoints" / "6")
