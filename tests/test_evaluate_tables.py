"""Figures of evaluations: as rows of a table, as the plain section, compared in pairs."""

import numpy as np
import pytest
from probe_oracle import SEED, Oracle, tone_corpus
from scripted_model import ScriptedPipeline

from bagpiper_jax import files
from bagpiper_jax.cli import main
from bagpiper_jax.errors import UserError
from bagpiper_jax.evaluation import compare, mini_probes, report_sections, tables, workdir
from bagpiper_jax.evaluation import text_metrics as metrics
from bagpiper_jax.evaluation.context import Outcome
from bagpiper_jax.evaluation.figures import Evaluation


@pytest.fixture(scope="module")
def corpus():
    return tone_corpus()


def interval(value, low=0.0, high=1.0, count=9):
    return {"value": value, "low": low, "high": high, "count": count}


def test_figures_become_rows_with_their_controls():
    paper = {"model": "Bagpiper", "params": "8B", "value": 0.745, "source": "arXiv 2602.05220"}
    results = {
        "seed": 1,
        "listening": {
            "split": "dev",
            "not_asked": 9,
            "judged": True,
            "wer": {"digits": interval(0.1)},
            "distance": 2.5,
            "published": [paper],
            "control": {"wer": {"digits": interval(1.2)}},
        },
        "sweep": [
            {"cfg": 1.5, "wer": interval(0.3), "control": {"wer": interval(0.9)}},
            {"cfg": 2, "wer": interval(0.2)},
        ],
    }
    rows = [
        ("listening", "not_asked", "9", None),
        ("listening", "wer / digits", "0.100 [0.000, 1.000]", interval(1.2)),
        ("listening", "distance", "2.500", None),
        ("listening", "published / Bagpiper, 8B, arXiv 2602.05220", "0.745", None),
        ("sweep", "cfg 1.5 / wer", "0.300 [0.000, 1.000]", interval(0.9)),
        ("sweep", "cfg 2 / wer", "0.200 [0.000, 1.000]", None),
    ]
    found = list(tables.rows(results))
    assert [(r.name, r.label, tables.interval_text(r.value), r.control) for r in found] == rows
    assert all(tables.at(results[r.name], r.path) == r.value for r in found)
    text = tables.results_markdown(results)
    assert "| listening | published / Bagpiper, 8B, arXiv 2602.05220 | 0.745 |" in text


def test_an_evaluator_without_a_section_is_shown_with_figures_and_clips(tmp_path):
    figures = {"share": interval(0.25), "control": {"share": interval(0.5)}}
    items = [{"question": "is it <loud>?", "clip": "a"}, {"question": "unheard"}]
    outcome = Outcome(figures, items, {"a": np.zeros(1600, np.float32)})
    workdir.write_outcome(str(tmp_path), "asked", "questions", {}, outcome)
    text = report_sections.section(
        report_sections.Shown(
            "asked",
            "questions",
            [Evaluation("this run", {"asked": figures})],
            workdir.read_items(str(tmp_path), "asked"),
            workdir.clips_dir(str(tmp_path), "asked"),
            None,
            4,
        )
    )
    assert "0.250" in text and "0.500" in text and "is it &lt;loud&gt;?" in text
    assert text.count("<audio") == 1 and "Questions (asked)" in text


def measured(directory, wrong, seed=1, scenes=60, name="mini"):
    """The workdir of an evaluation of 60 scenes, of which every `wrong`-th has an error."""
    errors = [metrics.Errors(int(i % wrong == 0), 2) for i in range(scenes)]
    settings = {"scenes": scenes}
    chance = {"wer": metrics.word_error_rate([metrics.Errors(2, 2)] * scenes, seed=seed)}
    wer = metrics.word_error_rate(errors, seed=seed)
    outcome = Outcome({"wer": wer, "distance": 0.5, "control": chance})
    files.make_directory(directory)
    workdir.write_outcome(str(directory), "words", "understanding", settings, outcome)
    figures = workdir.read_outcome(str(directory), "words", "understanding", settings)
    results = {"checkpoint": name, "date": "2026-11-27", "seed": seed, "weights_sha256": "f" * 64}
    results |= {"evaluators": {"words": {"use": "understanding", **settings}}, "words": figures}
    files.write_json(directory / "results.json", results)
    return str(directory)


def test_runs_over_the_same_scenes_are_compared_in_pairs(tmp_path, capsys):
    good = measured(tmp_path / "a" / "good", 20)
    bad = measured(tmp_path / "bad", 2)
    other = measured(tmp_path / "b" / "good", 2, seed=2)
    out = str(tmp_path / "table")
    assert main(["evaluate", "--compare", good, bad, other, "--workdir", out]) == 0
    text = (tmp_path / "table" / "comparison.md").read_text()
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| words")]
    assert [row[1] for row in rows] == ["wer", "distance"]
    heads = text.splitlines()[4].split(" | ")[2:]
    assert heads == ["a/good", "bad", "b/good", "control of a/good |"]
    first, second, third, control = rows[0][2:]
    assert control == "1.000 [0.950, 1.000] |"
    assert first.startswith("0.025 [") and "Δ" not in first
    assert second.startswith("0.250 [") and "Δ +0.225 [" in second and second.endswith("*")
    assert third.startswith("0.250 [") and "Δ" not in third  # another seed: other scenes
    assert rows[1][2:] == ["0.500", "0.500", "0.500", " |"]
    page = (tmp_path / "table" / "comparison.html").read_text()
    assert "Δ +0.225" in page and capsys.readouterr().out.count("comparison.") == 2


def test_figures_that_are_a_list_have_no_control():
    figures = [{"cfg": 1.5, "wer": {"value": 0.1, "low": 0.0, "high": 0.2, "count": 9}}]
    (row,) = tables.rows_of("cfg_sweep", figures)
    assert row.control is None and row.label == "cfg 1.5 / wer"
    assert tables.at(figures, ("control", "0", "wer")) is None
    assert tables.at(figures, row.path) == figures[0]["wer"]


def test_a_comparison_needs_finished_evaluations(tmp_path):
    good = measured(tmp_path / "good", 20)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty has no results.json: let its evaluation end"):
        compare.compare([good, str(tmp_path / "empty")], str(tmp_path / "out"))
    with pytest.raises(UserError, match="named twice"):
        compare.compare([good, good], str(tmp_path / "out"))


def test_the_oracle_and_the_script_differ_in_pairs(corpus, tmp_path):
    """Real figures: a perfect and a broken listener over the same scenes."""
    found = {}
    for name, listener in (("oracle", Oracle(corpus, ("test_a",), 40)), ("script", None)):
        listener = listener or ScriptedPipeline()
        found[name], _ = mini_probes.understanding_probe(
            listener, corpus, listener.sampling["text"], split="test_a", count=40, seed=SEED
        )
    difference = metrics.paired_difference(
        found["oracle"]["wer"]["spelled"].sums, found["script"]["wer"]["spelled"].sums
    )
    assert difference.value == pytest.approx(found["script"]["wer"]["spelled"].value)
    assert difference.low > 0.5
