"""A training on a prepared data set, stopped and gone on with, ends as one without a break."""

import json
import os

import jax
import numpy as np
import pytest
from prepared_twin import make_set
from tiny_run import copy_assets, settings

from bagpiper_jax.errors import UserError
from bagpiper_jax.release import load_assets
from bagpiper_jax.store import Checkpoints
from bagpiper_jax.training import loop

TASKS = ("text_to_audio", "audio_to_text", "text_only")


@pytest.fixture
def on_set(finished, tmp_path, monkeypatch):
    """Settings of a run on a set in memory, that stands for the directory it names."""
    assets = load_assets(finished[0])
    clips = make_set("clips", 40, assets.tokenizer)
    monkeypatch.setattr(loop, "open_prepared", lambda directory, assets: clips)
    sets = tuple((str(tmp_path), task, 1.0) for task in TASKS)

    def make(*overrides, sets=sets):
        asked = [f"--config.data.sets={sets!r}", "--config.data.corpus=", *overrides]
        return settings("--config.steps=4", "--config.save_every=2", *asked)

    return make, clips


def test_stopped_and_resumed(finished, on_set, tmp_path, monkeypatch):
    """With two micro-batches a step: the position counts steps, whatever they are made of."""
    make, clips = on_set
    halves = ("--config.compute.accumulation=2", "--config.mesh.fsdp=1")
    whole, parts = str(tmp_path / "whole"), str(tmp_path / "parts")
    for workdir in (whole, parts):
        copy_assets(finished[0], workdir)
    want = loop.train(make(*halves), whole)
    monkeypatch.setattr(loop.hosts, "should_stop", lambda done, _: done == 2)
    loop.train(make(*halves), parts)
    monkeypatch.undo()
    monkeypatch.setattr(loop, "open_prepared", lambda directory, assets: clips)
    with Checkpoints(parts, keep=2) as checkpoints:
        assert checkpoints.latest_step == 2
    resumed = []
    resume = loop.PackedRecords.resume
    monkeypatch.setattr(
        loop.PackedRecords, "resume", lambda self, at: resumed.append(at) or resume(self, at)
    )
    got = loop.train(make(*halves), parts, must_resume=True)
    jax.tree.map(np.testing.assert_array_equal, got, want)
    assert [sorted(at["sources"]) for at in resumed] == [sorted(f"clips/{t}" for t in TASKS)]
    with open(os.path.join(parts, "config.json"), encoding="utf-8") as f:
        assert json.load(f)["data"]["sets"][0] == [str(tmp_path), TASKS[0], 1.0]


def test_bad_sets(finished, on_set, tmp_path):
    make, _ = on_set
    given = [f"--config.init_from={finished[0]}"]
    for sets, message in (
        (((str(tmp_path), "dictation", 1.0),), "task 'dictation' is none of"),
        (((str(tmp_path), "text_only"),), r"must hold \(directory, task, weight\)"),
        ((("nowhere", "text_only", 1.0),), r"data\.sets: there is no nowhere"),
    ):
        with pytest.raises(UserError, match=message):
            make(sets=sets)
    with pytest.raises(UserError, match=r"no set for the tasks of the mixture"):
        one = ((str(tmp_path), "text_only", 1.0),)
        loop.train(make(*given, sets=one), str(tmp_path / "run"))
    with pytest.raises(UserError, match=r"data\.tokenizer: name the one that data\.sets"):
        loop.train(make(), str(tmp_path / "run"))
    with pytest.raises(UserError, match=r"init_from: there is no nowhere"):
        loop.train(make("--config.init_from=nowhere"), str(tmp_path / "run"))
