"""Each variant of an ablation differs from the base as it says; tables tell what runs reached."""

import json
import os
import shlex
import shutil
import sys
from pathlib import Path

import pytest

from bagpiper_jax.evaluation import config as measuring
from bagpiper_jax.evaluation.text_metrics import Interval
from bagpiper_jax.modeling.flops import step_flops
from bagpiper_jax.release import MINI
from bagpiper_jax.training.config import claim_workdir, flat_settings, load_config

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


@pytest.fixture
def calls(monkeypatch):
    """Commands in place of which settings are written as they write them: (command, arguments)."""
    made = []

    def call(command, *arguments):
        made.append((command, arguments))
        *given, _, workdir = arguments
        if command == "train":
            claim_workdir(workdir, load_config(given))
            return
        path = given[0].removeprefix("--config=")
        config = measuring.load_config(path)
        evaluators = {i.name: {"use": i.use, **i.settings} for i in config.evaluators}
        results = {"seed": config.seed, "audio": config.audio, "evaluators": evaluators}
        os.makedirs(workdir)
        (Path(workdir) / "results.json").write_text(json.dumps(results))

    monkeypatch.setattr(ablations, "_call", call)
    monkeypatch.setattr(ablations, "write_tables", lambda *_: "")
    return made


def run_main(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["run.py", *map(str, arguments)])
    return ablations.main()


def test_every_run_is_trained_once_and_after_what_it_starts_from(tmp_path, monkeypatch, calls):
    for _ in range(2):  # the second time there is nothing left to do
        assert run_main(monkeypatch, "--out", tmp_path, "--only", "warmup", "delay") == 0
    made = [(command, os.path.relpath(a[-1], tmp_path), a) for command, a in calls]
    trained = [workdir for command, workdir, _ in made if command == "train"]
    assert trained[:4] == ["text-0", "not_warmed-0", "text-0", "warmup-0"]
    assert trained[4] == "warmed-0"
    assert trained[5:] == ["base-0", "parallel-0", "base-1", "parallel-1", "base-2", "parallel-2"]
    starts = {w: a for command, w, a in made if command == "train"}
    assert f"--config.init_from={tmp_path / 'warmup-0'}" in starts["warmed-0"]
    measured = [workdir for command, workdir, _ in made if command == "evaluate"]
    assert measured == [f"{w}/evaluation" for w in trained if w not in ("text-0", "warmup-0")]


def edit(path, **values):
    """Changes settings in a JSON file, of sections too: `data__workers=2`."""
    whole = json.loads(path.read_text())
    for key, value in values.items():
        *sections, last = key.split("__")
        part = whole
        for section in sections:
            part = part[section]
        part[last] = value
    path.write_text(json.dumps(whole))


def test_a_run_of_another_clone_is_done(tmp_path, monkeypatch, calls):
    chosen = ("--out", tmp_path, "--only", "warmup")
    assert run_main(monkeypatch, *chosen) == 0
    there = len(calls)
    corpus = "/another/clone/data/mini"
    edit(tmp_path / "warmed-0" / "config.json", init_from="/elsewhere/warmup-0", save_every=7)
    edit(tmp_path / "text-0" / "config.json", data__corpus=corpus, data__workers=2, keep_every=9)
    assert run_main(monkeypatch, *chosen) == 0
    assert len(calls) == there


@pytest.mark.parametrize(
    ("file", "values", "told"),
    [
        ("warmed-0/config.json", {"steps": 300}, "warmed-0: steps=300 (not 480)"),
        ("warmed-0/config.json", {"init_from": ""}, "warmed-0: init_from= (not "),
        ("text-0/config.json", {"data__profile": "words"}, "text-0: data.profile=words (not scene"),
        ("warmed-0/evaluation/results.json", {"seed": 2}, "evaluation: seed=2 (not 1)"),
        (
            "warmed-0/evaluation/results.json",
            {"evaluators__understanding__scenes": 20, "audio": {"cfg": 3.0}},
            "understanding.scenes=20 (not 300)",
        ),
    ],
)
def test_a_run_of_other_settings_is_told_before_anything_runs(
    tmp_path, monkeypatch, calls, capsys, file, values, told
):
    assert run_main(monkeypatch, "--out", tmp_path, "--only", "warmup") == 0
    edit(tmp_path / file, **values)
    calls.clear()
    assert run_main(monkeypatch, "--out", tmp_path, "--only", "delay", "warmup") == 2
    error = capsys.readouterr().err
    assert not calls and error.count("\n") == 1
    assert "warmed-0 was made with other settings (" in error or "text-0" in file
    assert told in error and "delete it, or name another --out" in error


@pytest.mark.parametrize("seeds", ["0", "-1", "two"])
def test_a_number_of_seeds_is_one_or_more(monkeypatch, calls, capsys, seeds):
    with pytest.raises(SystemExit):
        run_main(monkeypatch, "--seeds", seeds)
    assert f"'{seeds}' must be a whole number from 1 on" in capsys.readouterr().err


GROUPS = [f"string {i}" for i in range(40)]


def put(out, variant, seed, errors, asked=1):
    """A measured run: 40 strings of 10 words with as many errors each, 6 minutes of training."""
    workdir = out / f"{variant}-{seed}"
    (workdir / "evaluation").mkdir(parents=True)
    value = errors / 10
    figure = {"value": value, "low": value - 0.01, "high": value + 0.02, "count": 40}
    results = {
        "seed": asked,
        "understanding": {"wer": {"digits": figure}},
        "cfg_sweep": [{"wer": figure}],
    }
    (workdir / "evaluation" / "results.json").write_text(json.dumps(results))
    # some strings are harder than others, in all runs alike
    tops = [errors + (-1) ** i for i in range(40)]
    sums = {"wer/digits": {"groups": GROUPS, "tops": tops, "bottoms": [10.0] * 40}}
    (workdir / "evaluation" / "understanding.sums.json").write_text(json.dumps(sums))
    trained(out, variant, seed, (12, 6, 6, 6, 6, 600))


def trained(out, variant, seed, seconds, **last):
    """A run's log: the seconds of a step, over 10 steps a line; what its last line has besides."""
    workdir = out / f"{variant}-{seed}"
    config = settings("pretraining", "base")
    claim_workdir(str(workdir), config)
    shutil.copy(Path(MINI) / "model.json", workdir)
    flops = step_flops(config.shapes, rows=4, length=512, windows=24, frozen=()).total
    lines = [
        {"step": 10 * (i + 1), "model_flops_per_second": flops / each}
        for i, each in enumerate(seconds)
    ]
    lines[-1] |= last
    (workdir / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))


def tabulated(out, **changes):
    chosen = {"delay": ablations.ABLATIONS["delay"]._replace(**changes)}
    text = table.write_tables(str(out), chosen, {"delay": "bagpiper train"}, {})
    assert (out / "ablations.md").read_text() == text
    return text, json.loads((out / "ablations.json").read_text())["delay"]


def test_minutes_of_a_training_are_its_flops_over_its_speed(tmp_path):
    trained(tmp_path, "base", 0, (6, 12))
    workdir = str(tmp_path / "base-0")
    assert table.minutes(workdir) == pytest.approx({10: 1.0, 20: 3.0})
    (tmp_path / "base-0" / "metrics.jsonl").write_text('{"step": 10}')
    assert table.minutes(workdir) == {}


def test_hours_are_those_of_all_trainings_without_pauses(tmp_path):
    trained(tmp_path, "text", 0, (9, 6, 6, 6))  # 40 steps of 6 s
    trained(tmp_path, "warmup", 0, (9, 3, 3, 6000, 3))  # 50 of 3 s and a pause
    trained(tmp_path, "warmed", 0, (12, 12))
    trained(tmp_path, "not_warmed", 0, (12, 12, 1800))
    trained(tmp_path, "base", 0, (12, 12))
    of = lambda variant: table.hours(str(tmp_path), variant, 0, pretraining.STARTS)  # noqa: E731
    hours = {variant: of(variant) for variant in ("base", "not_warmed", "warmed")}
    seconds = {"base": 240, "not_warmed": 240 + 360, "warmed": 240 + 150 + 240}
    assert hours == pytest.approx({v: s / 3600 for v, s in seconds.items()}, abs=6e-4)
    (tmp_path / "text-0" / "metrics.jsonl").unlink()
    assert of("warmed") is None


def test_a_token_of_audio_costs_what_the_end_of_the_log_says(tmp_path):
    costs = {"ce/stream0": 9.0, "ce/audio": 0.45, "ce/stream1": 1.0624, "ce/stream2": 2.5}
    trained(tmp_path, "base", 0, (6, 6), **costs, **{"targets/audio": 20.0})
    assert table.stream_costs(str(tmp_path / "base-0")) == [0.45, 1.062, 2.5]
    trained(tmp_path, "text", 0, (6, 6), **costs, **{"targets/audio": 0.0})
    assert table.stream_costs(str(tmp_path / "text-0")) is None
    assert table.costs_cells([[0.4, 1.0], None, [0.5, 1.5]]) == ["0.45", "1.25"]


def test_a_table_has_the_seeds_that_all_variants_have(tmp_path):
    for seed in (0, 2, 3):
        put(tmp_path, "base", seed, 1 + seed)
    text, data = tabulated(tmp_path)
    base, parallel = (line for line in text.splitlines() if line.startswith(("| base", "| par")))
    # seed 3 is not in the plan
    assert "| 2 | 0.10 | 20.0 ± 14.1 % | – | 20.0 ± 14.1 % | – |" in base
    assert parallel.startswith("| parallel | 0 | – | – | – |") and " − base" not in text
    assert data["seeds"] == [0, 2] and data["differences"]["parallel"]["heard strings, WER"] == []
    put(tmp_path, "parallel", 1, 5)
    put(tmp_path, "parallel", 2, 5)
    text, data = tabulated(tmp_path)
    base, parallel = (
        line for line in text.splitlines() if line.startswith(("| base |", "| parallel |"))
    )
    assert "| 1 | 0.10 | 30.0 % (29.0–32.0)" in base
    assert "| 1 | 0.10 | 50.0 % (49.0–52.0)" in parallel
    assert [f["value"] for f in data["figures"]["base"]["heard strings, WER"]] == [0.3]
    assert data["hours"] == {"base": [0.1], "parallel": [0.1]}
    assert text.endswith("\n```\nbagpiper train\n```\n")


def test_differences_are_taken_in_pairs_of_the_same_items(tmp_path):
    put(tmp_path, "base", 0, 3)
    put(tmp_path, "parallel", 0, 5)
    put(tmp_path, "base", 1, 3)
    put(tmp_path, "parallel", 1, 2, asked=2)  # about other items
    text, data = tabulated(tmp_path)
    first, second = (line for line in text.splitlines() if line.startswith("| parallel − base"))
    # each string differs by two words of ten: whatever is drawn, so do all
    assert first.startswith("| parallel − base | 0 | **+20.0 (+20.0 to +20.0)** | – |")
    assert second.startswith("| parallel − base | 1 | – | – |")
    found = data["differences"]["parallel"]["heard strings, WER"]
    assert found == [{"value": 0.2, "low": 0.2, "high": 0.2, "count": 40}, None]
    cell = table.difference_cell
    assert cell(Interval(-0.012, -0.05, 0.03, 40)) == "−1.2 (−5.0 to +3.0)"
    assert cell(Interval(-0.012, -0.05, -0.01, 40)) == "**−1.2 (−5.0 to −1.0)**"


def test_the_commands_below_a_table_are_those_that_are_run(tmp_path, monkeypatch, calls):
    monkeypatch.chdir(DIRECTORY.parents[1])
    for name in ("delay", "warmup"):
        assert run_main(monkeypatch, "--out", tmp_path / name, "--only", name, "--seeds", "2") == 0
    ran = {shlex.join(["bagpiper", command, *given]) for command, given in calls}
    told = {
        n: ablations.recipe(str(tmp_path / n), ablations.ABLATIONS[n]) for n in ("delay", "warmup")
    }
    assert told["delay"].startswith(
        "bagpiper train --config=experiments/ablations/pretraining.py:VARIANT --config.seed=SEED "
    )
    assert len(told["delay"].splitlines()) == 2
    made = {
        line.replace("VARIANT", variant).replace("SEED", str(seed))
        for recipe in told.values()
        for line in recipe.splitlines()
        for variant in ("base", "parallel")
        for seed in range(2)
    }
    assert made == ran


def test_every_columns_evaluator_is_measured():
    from bagpiper_jax.config_file import read_config_file

    for ablation in ablations.ABLATIONS.values():
        config = read_config_file(
            ["--config", f"{DIRECTORY / 'measure.py'}:{ablation.world}"], "bagpiper evaluate"
        )
        assert {column.evaluator for column in ablation.columns} <= set(config.evaluators)
