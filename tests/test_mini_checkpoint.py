"""The checkpoint that comes with the package: small, whole, and able to hear and to speak."""

import json
import os
import re

import numpy as np
import pytest

import bagpiper_jax as bp
from bagpiper_jax.cli import main
from bagpiper_jax.evaluation.figures import committed
from bagpiper_jax.input_pipeline.scenes import Corpus, parse_caption, plan_scene, render_scene
from bagpiper_jax.release import MINI

CORPUS = os.path.join(os.path.dirname(__file__), "..", "data", "mini")


@pytest.fixture(scope="module")
def pipe():
    return bp.Pipeline.load()


def test_it_is_small_and_brings_its_figures():
    sizes = {name: os.path.getsize(os.path.join(MINI, name)) for name in os.listdir(MINI)}
    assert sum(sizes.values()) < 12e6
    assert {"sampling.json", "sampling_trials.json", "metrics.jsonl", "results.json"} <= set(sizes)
    with open(os.path.join(MINI, "results.json"), encoding="utf-8") as file:
        results = json.load(file)
    assert results["understanding"]["scenes"] >= 500 and len(results["cfg_sweep"]) == 4
    for start in ("audio", "caption"):
        cycle = results[f"cycle_from_{start}"]
        assert cycle["start"] == start and cycle["scenes"] >= 500
        assert [found["round"] for found in cycle["rounds"]] == [1, 2, 3]
    assert results["understanding"]["control"] and results["rendering"]["control"]
    assert results["sampling_source"] == "chosen on development scenes"
    (evaluation,) = committed(MINI)  # of these weights, by their digest
    assert evaluation.results == results


def test_it_reads_strings_that_it_was_not_trained_on(pipe):
    corpus = Corpus.load(CORPUS)
    scenes = [plan_scene(corpus, 3, i, "dev", "spelling") for i in range(8)]
    captions = pipe.describe_batch([render_scene(corpus, scene) for scene in scenes])
    written = [parse_caption(caption, corpus.event_labels).quotes for caption in captions]
    right = sum(quotes == [s.events[0].text] for s, quotes in zip(scenes, written, strict=True))
    assert right >= 6, written


def test_it_speaks_for_as_long_as_it_takes(capsys, tmp_path):
    out = str(tmp_path / "out.wav")
    assert main(["render", 'A woman says "four two". The recording is clean.', "-o", out]) == 0
    seconds = float(re.search(r"([\d.]+) s", capsys.readouterr().out)[1])
    assert 0.8 < seconds < 4
    wav = bp.Pipeline.load().render('A woman says "four two". The recording is clean.')
    assert len(wav) == round(seconds * 16_000) and np.abs(wav).max() > 0.05
