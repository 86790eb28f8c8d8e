"""What a run keeps: checkpoints by the settings, and of a state no second copy."""

import os

import jax
import numpy as np
import pytest
from tiny_run import copy_assets, settings

from bagpiper_jax.store import Checkpoints
from bagpiper_jax.training import loop


@pytest.mark.parametrize(
    "keep,keep_every,left",
    [(1, 4, {4, 6}), (1, 0, {6}), (2, 0, {5, 6}), (2, 3, {3, 5, 6}), (3, 2, {2, 4, 5, 6})],
)
def test_the_last_checkpoints_and_those_of_every_nth_step_stay(keep, keep_every, left, tmp_path):
    """Across a restart too, which counts those that it finds."""
    for steps in ((1, 2, 3, 4), (5, 6)):
        with Checkpoints(str(tmp_path), keep=keep, keep_every=keep_every) as checkpoints:
            for step in steps:
                value = np.full(3, step, np.float32)
                checkpoints.save(step, {"a": value}, {"step": value}, {"batches": step})
    assert set(map(int, os.listdir(tmp_path / "checkpoints"))) == left


@pytest.mark.parametrize("frozen", [(), ("audio_tower", "model.layers")])
def test_a_step_takes_the_memory_of_the_state_before(frozen, finished, tmp_path, monkeypatch):
    """All its arrays are donated, those of frozen parts too; and the run keeps what it is told."""
    workdir = str(tmp_path / "run")
    copy_assets(finished[0], workdir)
    make, gone = loop.make_train_step, []

    def made(*arguments, **settings):
        step = make(*arguments, **settings)

        def watched(state, batch):
            out = step(state, batch)
            gone.append([leaf.is_deleted() for leaf in jax.tree.leaves(state)])
            return out

        return watched

    monkeypatch.setattr(loop, "make_train_step", made)
    saves = ("--config.save_every=2", "--config.keep=1", "--config.keep_every=2")
    start = (f"--config.init_from={finished[0]}", f"--config.frozen={frozen!r}")
    run = settings("--config.steps=5", "--config.mesh.tensor=1", *saves, *start)
    state = loop.train(run, workdir)
    assert [len(step) for step in gone] == [len(jax.tree.leaves(state))] * 5
    # on CPU a save holds the very arrays, which the next step then copies
    assert all(map(all, (gone[0], gone[1], gone[3])))
    assert sorted(os.listdir(os.path.join(workdir, "checkpoints"))) == ["2", "4", "5"]
