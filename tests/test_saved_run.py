"""A run that an earlier version wrote: later ones go on with it."""

import os
import tarfile

import jax
import numpy as np
import pytest
from flax import nnx
from tiny_run import losses, settings

import bagpiper_jax as bp
from bagpiper_jax.store import Checkpoints
from bagpiper_jax.training.loop import train

# three steps of `tiny`, checkpoints every second one, without the last: version 0.1.0, jax 0.10.2
ARCHIVE = os.path.join(os.path.dirname(__file__), "data", "run_0.1.tar.xz")
SETTINGS = ("--config.steps=3", "--config.save_every=2", "--config.keep=3")


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
