"""Each variant of an ablation differs from the base as it says; tables tell what runs reached."""

import json
import os
import sys
from pathlib import Path

import pytest

from bagpiper_jax.training.config import flat_settings, load_config

DIRECTORY = Path(__file__).parents[1] / "experiments" / "ablations"
sys.path.insert(0, str(DIRECTORY))

import dialogues  # noqa: E402
import pretraining  # noqa: E402
import run as ablations  # noqa: E402
import table  # noqa: E402

CHANGED = {
    "base": set(),
    "parallel": {"model_changes.vocab.stream_delay"},
    "flat": {"model_changes.vocab.codec_weight"},
    "no_dropout": {"data.cfg_dropout"},
    "listen_more": {"data.mixture.text_to_audio", "data.mixture.audio_to_text"},
    "with_text": {"data.mixture.text_to_audio", "data.mixture.text_only"},
    "encoder_trained": {"init_from", "init_parts"},
    "encoder_frozen": {"init_from", "init_parts", "frozen"},
    "text": {
        "data.profile",
        "steps",
        "data.mixture.text_to_audio",
        "data.mixture.audio_to_text",
        "data.mixture.text_only",
    },
    "warmup": {"init_from", "frozen", "steps", "optimizer.final_ratio"},
    "warmed": {"init_from", "steps"},
    "not_warmed": {"init_from"},
}


def settings(file, variant, *more):
    return load_config(["--config", f"{DIRECTORY / file}.py:{variant}", *more])


def test_variants_differ_from_the_base_in_what_they_ablate():
    assert CHANGED.keys() == pretraining.VARIANTS.keys()
    base = flat_settings(settings("pretraining", "base"))
    for variant, changed in CHANGED.items():
        start = ["--config.init_from=runs/start"] if variant in pretraining.STARTS else []
        mine = flat_settings(settings("pretraining", variant, *start))
        assert {k for k in {*base, *mine} if base.get(k) != mine.get(k)} == changed, variant
    budget = lambda *names: sum(settings("pretraining", n).steps for n in names)  # noqa: E731
    assert budget("warmup", "warmed") == budget("not_warmed") == budget("base")


def test_dialogues_differ_in_the_task_alone():
    runs = {v: flat_settings(settings("dialogues", v)) for v in dialogues.TASKS}
    for variant, mine in runs.items():
        task = f"data.mixture.{variant}"
        assert mine[task] == 1.0 and mine["init_from"]
        differing = {k for k in mine if mine[k] != runs["request"].get(k)}
        assert differing <= {task, "data.windows"}


@pytest.mark.parametrize("file", ["pretraining", "dialogues"])
def test_an_unknown_variant_is_told(file):
    from bagpiper_jax.errors import UserError

    with pytest.raises(UserError, match="no variant 'paralel': choose one of"):
        settings(file, "paralel")


def test_every_run_is_trained_once_and_after_what_it_starts_from(tmp_path, monkeypatch):
    calls = []

    def call(command, *arguments):
        workdir = arguments[arguments.index("--workdir") + 1]
        calls.append((command, os.path.relpath(workdir, tmp_path), arguments))
        os.makedirs(workdir, exist_ok=True)
        if command == "evaluate":
            (Path(workdir) / "results.json").write_text("{}")

    monkeypatch.setattr(ablations, "_call", call)
    monkeypatch.setattr(ablations, "write_tables", lambda *_: "")
    for _ in range(2):  # the second time there is nothing left to do
        monkeypatch.setattr(
            sys, "argv", ["run.py", "--out", str(tmp_path), "--only", "warmup", "delay"]
        )
        assert ablations.main() == 0
    trained = [workdir for command, workdir, _ in calls if command == "train"]
    assert trained[:4] == ["text-0", "not_warmed-0", "text-0", "warmup-0"]
    assert trained[4] == "warmed-0"
    assert trained[5:] == ["base-0", "parallel-0", "base-1", "parallel-1", "base-2", "parallel-2"]
    starts = {w: a for command, w, a in calls if command == "train"}
    assert f"--config.init_from={tmp_path / 'warmup-0'}" in starts["warmed-0"]
    measured = [workdir for command, workdir, _ in calls if command == "evaluate"]
    assert measured == [f"{w}/evaluation" for w in trained if w not in ("text-0", "warmup-0")]


def test_tables_of_one_seed_and_of_several(tmp_path):
    def put(variant, seed, value):
        workdir = tmp_path / f"{variant}-{seed}"
        (workdir / "evaluation").mkdir(parents=True)
        figure = {"value": value, "low": value - 0.01, "high": value + 0.02, "count": 50}
        results = {"understanding": {"wer": {"digits": figure}}, "cfg_sweep": [{"wer": figure}]}
        (workdir / "evaluation" / "results.json").write_text(json.dumps(results))
        lines = [{"step": 10, "tokens_per_second": 100.0}, {"step": 30, "tokens_per_second": 50.0}]
        (workdir / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
        (workdir / "config.json").write_text(json.dumps({"data": {"batch_tokens": 900}}))

    for seed, value in enumerate((0.1, 0.2, 0.3)):
        put("base", seed, value)
    put("parallel", 0, 0.5)
    chosen = {"delay": ablations.ABLATIONS["delay"]}
    text = table.write_tables(str(tmp_path), chosen)
    base, parallel = (line for line in text.splitlines() if line.startswith(("| base", "| par")))
    assert "| 3 | 0.12 | 20.0 ± 10.0 % | 20.0 ± 10.0 % | – |" in base  # (9,000 + 36,000) / 100 s
    assert "| 1 | 0.12 | 50.0 % (49.0–52.0)" in parallel
    data = json.loads((tmp_path / "ablations.json").read_text())
    assert [f["value"] for f in data["delay"]["base"]["heard strings, WER"]] == [0.1, 0.2, 0.3]
    assert (tmp_path / "ablations.md").read_text() == text


def test_every_columns_evaluator_is_measured():
    from bagpiper_jax.config_file import read_config_file

    for ablation in ablations.ABLATIONS.values():
        config = read_config_file(
            ["--config", f"{DIRECTORY / 'measure.py'}:{ablation.world}"], "bagpiper evaluate"
        )
        assert {column.evaluator for column in ablation.columns} <= set(config.evaluators)
