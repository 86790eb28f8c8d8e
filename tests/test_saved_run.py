"""Runs that earlier versions wrote: later ones go on with them."""

import json
import os
import tarfile

import jax
import numpy as np
import pytest
from flax import nnx
from saved_run_on_set import DATA, on_set
from tiny_run import losses, settings

import bagpiper_jax as bp
from bagpiper_jax.release import load_assets, load_weights, weight_shapes
from bagpiper_jax.store import Checkpoints
from bagpiper_jax.training import loop
from bagpiper_jax.training.loop import train
from bagpiper_jax.trees import dotted

# three steps of `tiny`, checkpoints every second one, without the last: version 0.1.0, jax 0.10.2
ARCHIVE = os.path.join(DATA, "run_0.1.tar.xz")
SETTINGS = ("--config.steps=3", "--config.save_every=2", "--config.keep=3")
# seven steps on a prepared set, checkpoint of the fifth alone: 2026-11-29, jax 0.10.2
ON_SET = os.path.join(DATA, "run_on_set.tar.xz")


@pytest.fixture
def workdir(tmp_path):
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    return str(tmp_path / "run")


def test_it_goes_on_to_its_last_step(workdir):
    """Step 3 and not 4, though it saves every second one, with the loss that was written then."""
    wanted = losses(workdir)
    state = train(settings(*SETTINGS, "--config.optimizer.warmup_steps=1"), workdir)
    assert int(state.step) == 3
    with Checkpoints(workdir, keep=3) as checkpoints:
        assert checkpoints.latest_step == 3
    assert losses(workdir) == pytest.approx(wanted, rel=1e-4)


def test_its_weights_load_alone(workdir):
    model = bp.load(workdir)
    leaves = jax.tree.leaves(nnx.state(model, nnx.Param))
    assert all(np.isfinite(leaf).all() for leaf in leaves)
    # they have moved from the start: the norms' weights from one
    assert np.abs(np.asarray(model.model.norm.weight[...]) - 1).max() > 1e-3


def test_one_on_a_prepared_set_goes_on_where_it_stood(tmp_path, monkeypatch):
    """With moments in bf16, and frozen parts that have none; its set lies elsewhere now."""
    with tarfile.open(ON_SET) as archive:
        archive.extractall(tmp_path, filter="data")
    workdir = str(tmp_path / "run")
    wanted = losses(workdir)
    assert list(wanted) == [1, 2, 3, 4, 5, 6, 7]
    before = dotted(load_weights(workdir, weight_shapes(load_assets(workdir).config)))
    with open(f"{workdir}/checkpoints/5/input/metadata", encoding="utf-8") as f:
        saved = json.load(f)
    assert saved["batches"] == 5 and saved["data"]["window"] == 1
    resume, resumed = loop.PackedRecords.resume, []
    monkeypatch.setattr(
        loop.PackedRecords, "resume", lambda self, at: resumed.append(at) or resume(self, at)
    )
    run = on_set(str(tmp_path / "set"))
    state = train(run, workdir, must_resume=True)
    assert resumed == [saved["data"]] and int(state.step) == 7
    assert losses(workdir) == pytest.approx(wanted, rel=1e-4)
    for path, after in dotted(state.params).items():
        assert np.array_equal(after, before[path]) is path.startswith(run.frozen), path
    moments = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim]
    trained = [path for path in before if not path.startswith(run.frozen)]
    assert len(moments) == 2 * len(trained)
    assert {leaf.dtype for leaf in moments} == {jax.numpy.dtype("bfloat16")}
