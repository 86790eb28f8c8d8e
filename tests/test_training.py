"""Training runs: resume to the last bit, whole checkpoints only, settings that are wrong."""

import dataclasses
import filecmp
import itertools
import os
import signal
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest
from tiny_run import CONFIG, TINY, copy_assets, losses, settings

from bagpiper_jax.cli import main
from bagpiper_jax.errors import UserError
from bagpiper_jax.input_pipeline.step_rows import host_batches
from bagpiper_jax.release import (
    CODEC_FILE,
    TOKENIZER_FILE,
    load_assets,
    load_weights,
    save_release,
    weight_shapes,
)
from bagpiper_jax.samples import SceneSamples
from bagpiper_jax.store import Checkpoints
from bagpiper_jax.training import loop
from bagpiper_jax.training.config import claim_workdir, load_config
from bagpiper_jax.training.loop import make_source, train
from bagpiper_jax.training.metrics import MetricsLog
from bagpiper_jax.training.optimizer import decayed


def test_loss_falls_and_every_step_is_logged(finished):
    workdir, state = finished
    curve = losses(workdir)
    assert sorted(curve) == [1, 2, 3, 4, 5, 6] and int(state.step) == 6
    assert curve[6] < curve[1] - 0.1
    assert os.listdir(os.path.join(workdir, "metrics"))  # TensorBoard events


def test_a_killed_run_resumes_to_the_last_bit(finished, tmp_path):
    """SIGKILL after the checkpoint of step 3; the rest equals the undisturbed run exactly."""
    workdir, state = finished
    other = str(tmp_path / "run")
    copy_assets(workdir, other)
    code = (
        "import sys, time; from bagpiper_jax.training.config import load_config\n"
        "from bagpiper_jax.training.loop import train\n"
        "hold = lambda run: lambda *_: time.sleep(1000)\n"
        "train(load_config(sys.argv[2:]), sys.argv[1], hold)"
    )
    held = [*TINY, "--config.sample_every=3"]
    process = subprocess.Popen([sys.executable, "-c", code, other, "--config", CONFIG, *held])
    saved = os.path.join(other, "checkpoints", "3")
    deadline = time.monotonic() + 240
    while not os.path.isdir(saved) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert os.path.isdir(saved), "the first checkpoint never came"
    with Checkpoints(other, keep=2) as checkpoints:
        assert checkpoints.latest_step == 3 and max(losses(other)) == 3
    resumed = train(settings(), other)
    ours, theirs = losses(other), losses(workdir)
    assert {s: ours[s] for s in (4, 5, 6)} == {s: theirs[s] for s in (4, 5, 6)}
    jax.tree.map(np.testing.assert_array_equal, resumed, state)


def test_samples_are_written_while_it_trains(finished, tmp_path, capsys):
    workdir, _ = finished
    other = str(tmp_path / "run")
    copy_assets(workdir, other)
    run = settings("--config.steps=3", "--config.sample_every=2")
    state = train(run, other, SceneSamples)
    assert int(state.step) == 3 and np.isfinite(losses(other)[3])
    said = "".join(capsys.readouterr())
    assert "[2] caption/0: " in said and "[3] caption/2: " in said


def test_sigterm_saves_and_ends(finished, tmp_path):
    workdir, _ = finished
    run = settings("--config.save_every=100", "--config.steps=100")
    other = str(tmp_path / "run")
    copy_assets(workdir, other)

    def terminate(run):
        return lambda *_: os.kill(os.getpid(), signal.SIGTERM)

    run = dataclasses.replace(run, sample_every=2)
    train(run, other, terminate)
    with Checkpoints(other, keep=2) as checkpoints:
        assert checkpoints.latest_step == 3  # the signal came after step 2


def test_sigterm_while_nothing_comes_saves_what_is_done(finished, tmp_path, monkeypatch):
    run = settings("--config.save_every=100", "--config.steps=100")
    workdir, two_done = str(tmp_path / "run"), threading.Event()
    copy_assets(finished[0], workdir)
    write = MetricsLog.write

    def written(self, step):
        if step == 2:
            two_done.set()
        return write(self, step)

    def stalled(*arguments):
        yield from itertools.islice(host_batches(*arguments), 2)
        two_done.wait()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(3)

    monkeypatch.setattr(MetricsLog, "write", written)
    monkeypatch.setattr(loop, "host_batches", stalled)
    assert int(train(run, workdir).step) == 2
    with Checkpoints(workdir, keep=2) as checkpoints:
        assert checkpoints.latest_step == 2


def test_sigterm_waits_for_the_last_checkpoint(finished, tmp_path, monkeypatch):
    """It comes while the checkpoint of the last step is written."""
    workdir, killed = str(tmp_path / "run"), []
    copy_assets(finished[0], workdir)
    leave = Checkpoints.__exit__

    def leaving(self, *error):
        os.kill(os.getpid(), signal.SIGTERM)
        leave(self, *error)

    monkeypatch.setattr(Checkpoints, "__exit__", leaving)
    before = signal.signal(signal.SIGTERM, lambda *_: killed.append(True))
    try:
        train(settings("--config.steps=3"), workdir)
    finally:
        signal.signal(signal.SIGTERM, before)
    monkeypatch.undo()
    assert not killed
    with Checkpoints(workdir, keep=2) as checkpoints:
        assert checkpoints.latest_step == 3


def test_batches_do_not_depend_on_workers_or_start(finished):
    assets = load_assets(finished[0])
    run, rows = settings(), np.arange(2)
    plain = host_batches(make_source(run, assets), 2, rows, 0, workers=0)
    first = [next(plain) for _ in range(3)]
    with_worker = host_batches(make_source(run, assets), 2, rows, 1, workers=1)
    for want in first[1:]:
        got = next(with_worker)
        jax.tree.map(np.testing.assert_array_equal, want, got)


def test_finished_run_does_nothing_more(finished):
    workdir, state = finished
    again = train(settings(), workdir)
    jax.tree.map(np.testing.assert_array_equal, again, state)


def test_release_round_trip(finished, tmp_path):
    workdir, state = finished
    assets = load_assets(workdir)
    out = str(tmp_path / "release")
    save_release(out, state.params, assets)
    shapes = weight_shapes(assets.config)
    loaded = load_weights(out, shapes)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2**-8), loaded, state.params)
    jax.tree.map(np.testing.assert_array_equal, load_weights(workdir, shapes), state.params)
    assert not [f for f in os.listdir(out) if f.endswith(".tmp")]


def test_release_of_a_mean(finished, tmp_path, capsys):
    """Of a run and a release of it moved by one; what belongs to another tokenizer is refused."""
    workdir, state = finished
    moved, out = str(tmp_path / "moved"), str(tmp_path / "mean")
    assets = load_assets(workdir)
    save_release(moved, jax.tree.map(lambda x: x + 1, state.params), assets, np.float32)
    assert main(["release", workdir, out, "--average", moved]) == 0
    shapes = weight_shapes(assets.config)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b + 0.5, rtol=2**-8, atol=1e-6),
        load_weights(out, shapes),
        state.params,
    )
    with open(os.path.join(moved, TOKENIZER_FILE), "ab") as f:
        f.write(b"\0")
    assert main(["release", workdir, str(tmp_path / "no"), "--average", moved]) == 2
    assert "has another tokenizer than" in capsys.readouterr().err
    assert not os.path.exists(tmp_path / "no")


def test_release_of_an_earlier_step(finished, tmp_path, capsys):
    workdir, state = finished
    shapes = weight_shapes(load_assets(workdir).config)
    kept = sorted(map(int, os.listdir(os.path.join(workdir, "checkpoints"))))
    assert len(kept) == 2
    out = [str(tmp_path / str(step)) for step in kept]
    for step, directory in zip(kept, out, strict=True):
        assert main(["release", workdir, directory, "--step", str(step)]) == 0
    loaded = [load_weights(directory, shapes) for directory in out]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2**-8), loaded[1], state.params)
    moved = jax.tree.map(lambda a, b: float(abs(a - b).max()), *loaded)
    assert max(jax.tree.leaves(moved)) > 1e-4  # a step of training between the two
    assert main(["release", workdir, str(tmp_path / "no"), "--step", "1234567"]) == 2
    assert f"no checkpoint of step 1234567, only of {kept[0]}, {kept[1]}" in capsys.readouterr().err
    assert main(["release", out[0], str(tmp_path / "no"), "--step", "1"]) == 2
    assert "is a release" in capsys.readouterr().err and not os.path.exists(tmp_path / "no")


def test_start_from_a_run_takes_its_weights_and_assets(finished, tmp_path):
    workdir, state = finished
    other = str(tmp_path / "run")
    started = train(settings(f"--config.init_from={workdir}", "--config.steps=3"), other)
    assert int(started.step) == 3
    for name in (TOKENIZER_FILE, CODEC_FILE):
        assert filecmp.cmp(os.path.join(other, name), os.path.join(workdir, name), shallow=False)
    assert losses(other)[1] < losses(workdir)[1] - 0.1


def test_truncated_or_foreign_weights_are_refused(finished, tmp_path):
    workdir, state = finished
    assets = load_assets(workdir)
    out = str(tmp_path / "release")
    save_release(out, state.params, assets)
    path = os.path.join(out, "model.safetensors")
    with open(path, "r+b") as f:
        f.truncate(os.path.getsize(path) // 2)
    with pytest.raises(UserError, match="damaged or truncated"):
        load_weights(out, weight_shapes(assets.config))
    save_release(out, {**state.params, "extra": np.zeros(3)}, assets)
    with pytest.raises(UserError, match="extra is unexpected"):
        load_weights(out, weight_shapes(assets.config))
    params = dict(state.params)
    del params["stream_emb"]
    save_release(out, params, assets)
    with pytest.raises(UserError, match="stream_emb is missing"):
        load_weights(out, weight_shapes(assets.config))


def test_workdir_of_another_config_is_refused(finished):
    workdir, _ = finished
    with pytest.raises(UserError, match=r"\(optimizer\.peak_lr\)"):
        claim_workdir(workdir, settings("--config.optimizer.peak_lr=0.5", "--config.keep=5"))


def test_what_no_number_depends_on_may_change(finished):
    workdir, _ = finished
    free = ("data.workers=3", "log_every=9", "save_every=9", "sample_every=9", "keep=9")
    claim_workdir(workdir, settings(*(f"--config.{change}" for change in free)))


def test_norms_and_biases_do_not_decay(finished):
    """Layers are stacked, so that their scales have two axes like a matrix."""
    _, state = finished
    flags = {
        ".".join(str(key.key) for key in path): (flag, leaf.ndim)
        for (path, flag), leaf in zip(
            jax.tree_util.tree_leaves_with_path(decayed(state.params)),
            jax.tree.leaves(state.params),
            strict=True,
        )
    }
    for name, (flag, _) in flags.items():
        plain = any(part in name for part in ("norm", "bias", "scale", "ln_post", "stream_emb"))
        assert flag is not plain, name
    assert flags["model.layers.input_layernorm.weight"] == (False, 2)
    assert flags["model.layers.mlp.up_proj.kernel"] == (True, 3)


@pytest.mark.parametrize(
    "override,message",
    [
        ("--config.optimizer.peak_lrr=1.0", "peak_lrr"),
        ("--config.steps=0", "steps must be positive"),
        ("--config.steps=many", "steps"),
        ("--config.data.mixture.text_to_audio=-9.0", "mixture"),
        ("--config.data.mixture.text_only=-0.5", "mixture"),
        ("--config.data.mixture.text_only=nan", "mixture"),
        ("--config.seed=-1", "seed must be 0 or more, not -1"),
        ("--config.data.workers=-1", r"data\.workers must be 0 or more"),
        ("--config.data.cfg_dropout=7.0", r"data\.cfg_dropout must be from 0 to 1, not 7"),
        ("--config.optimizer.warmup_steps=-1", r"optimizer\.warmup_steps must be 0 or more"),
        ("--config.optimizer.clip=0.0", r"optimizer\.clip must be positive"),
        ("--config.optimizer.peak_lr=nan", r"optimizer\.peak_lr must be positive, not nan"),
        ("--config.optimizer.peak_lr=inf", r"optimizer\.peak_lr must be positive, not inf"),
        ("--config.optimizer.b2=1.0", r"optimizer\.b2 must be from 0 to less than 1"),
        ("--config.keep_every=-3", "keep_every must be 0 or more"),
        ("--config.keep_every=4", "keep_every must be a multiple of save_every, not 4 of 3"),
        (
            "--config.compute.attention=splash",
            r"compute\.attention: splash is for tpu devices, not",
        ),
        ("--config.compute.attention=cudnn", r"compute\.attention: cudnn .* choose auto or xla"),
        ("--config.optimizer.warmup_steps=60", "warmup_steps"),
        ("--config.model=8b", "no model preset"),
        ("--config.data.windows=11", "multiple of 2"),
        ("--config.data.profile=speech", r"data\.profile"),
        ("--config.data.corpus=nowhere", r"data\.corpus: there is no nowhere"),
        ("--config.init_from=nowhere", r"init_from: there is no nowhere"),
        ("config.steps=10", "Settings are given as --config.KEY=VALUE"),
    ],
)
def test_wrong_settings_are_told_by_key(override, message, tmp_path):
    with pytest.raises(UserError, match=message) as error:
        train(settings(*override.split()), str(tmp_path))
    assert "\n" not in str(error.value)
    assert not os.listdir(tmp_path)  # the right settings find it free


def test_misspelled_key_in_a_config_file(tmp_path):
    with open(CONFIG, encoding="utf-8") as f:
        text = f.read().replace("c.optimizer.clip", "c.optimizer.clipp")
    path = tmp_path / "wrong.py"
    path.write_text(text)
    with pytest.raises(UserError, match=r"optimizer\.clipp"):
        load_config(["--config", str(path)])
    with pytest.raises(UserError, match="there is no stage 'foo': choose one of words"):
        load_config(["--config", f"{CONFIG}:foo"])
    with pytest.raises(UserError, match="no config file"):
        load_config(["--config", str(tmp_path / "none.py")])


def test_full_disk_is_told_and_leaves_no_half_checkpoint(finished, tmp_path):
    """A limit on file sizes stands for the full disk: writes fail in the middle."""
    workdir, _ = finished
    other = str(tmp_path / "run")
    copy_assets(workdir, other)
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
        "from bagpiper_jax.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    arguments = ["train", "--workdir", other, "--config", CONFIG, *TINY]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 2, done.stderr[-2000:]
    assert "cannot write the checkpoint" in done.stderr
    assert "Traceback" not in done.stderr
    assert os.listdir(os.path.join(other, "checkpoints")) == []
    with Checkpoints(other, keep=2) as checkpoints:
        assert checkpoints.latest_step is None
