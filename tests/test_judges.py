"""Judges of open answers: their forms and prompts, AIR-Bench's scores, endpoints that fail."""

import asyncio
import hashlib
import json
import re

import pytest
from benchmark_data import AIR, Scripted, make_air_bench, make_llm
from misbehaving_endpoint import Misbehaving

from bagpiper_jax.errors import UserError
from bagpiper_jax.evaluation.benchmarks import judges
from bagpiper_jax.evaluation.benchmarks.air_bench import air_bench_chat, air_bench_figures
from bagpiper_jax.evaluation.benchmarks.llm import ask_all, default_llm_config, llm_from
from bagpiper_jax.evaluation.benchmarks.scores import repeated
from bagpiper_jax.evaluation.text_metrics import paired_difference
from bagpiper_jax.evaluation.workdir import to_json
from bagpiper_jax.simulation.client import BadAnswer

pytestmark = pytest.mark.usefixtures("no_proxy")


def test_forms_of_judgements():
    assert judges.read_pair(" 8 7\n") == (8, 7)
    for bad in ("8", "8 11", "8, 7", "8.5 7", "the first: 8 7", ""):
        with pytest.raises(BadAnswer):
            judges.read_pair(bad)
    assert judges.SCALE.read("Good.\nRating: 4") == 4 and judges.SCALE.read("**Rating: 5**") == 5
    for bad in ("Rating: 6", "4 of it", "", "Rating: 3.5", "Rating: -1"):
        with pytest.raises(BadAnswer):
            judges.SCALE.read(bad)
    with pytest.raises(BadAnswer):
        judges.BINARY.read("Rating: 2")


def test_values_with_braces_are_filled_in_as_they_are():
    filled = judges.SCALE.fill("{prediction}?", "{0}", "{question}")
    assert "Question: {prediction}?" in filled and "Answer to rate: {question}" in filled


def test_prompts_from_files(tmp_path):
    file = tmp_path / "judge.txt"
    file.write_text("[R] {reference} [M] {prediction} [Q] {question} Rating:")
    rubric = judges.rubric_from(str(file), 5)
    assert rubric.fill("q", "r", "p") == "[R] r [M] p [Q] q Rating:"
    assert rubric.label()["source"] == str(file)
    file.write_text("{reference} {question}")
    with pytest.raises(UserError, match="prediction"):
        judges.rubric_from(str(file), 5)
    with pytest.raises(UserError, match="cannot be read"):
        judges.rubric_from(str(tmp_path / "none"), 5)


def scores_by_position(first, second):
    return lambda prompt: f"{first} {second}"


def test_swapped_positions_cancel_a_bias(tmp_path):
    data = str(make_air_bench(tmp_path / "Chat"))
    with Misbehaving(always=scores_by_position(9, 3)) as server:
        figures, items = air_bench_chat(
            Scripted(["an answer"] * 5), data, llm=make_llm(server, tmp_path)
        )
        assert len(server.requests) == 5 * 2 * 3
    assert figures["model"]["score"].value == pytest.approx(6)
    assert figures["reference"]["score"].value == pytest.approx(6)
    assert figures["wins"].value == 0 and items[0]["judge"][0]["texts"] == ["9 3", "9 3"]


def test_air_bench_scores_and_weights(tmp_path):
    """Mixed audio is one of four categories, however many questions it has."""
    tasks = [*AIR, "speech_and_sound_QA", "speech_dialogue_QA"]
    data = str(make_air_bench(tmp_path / "Chat", tasks))
    points = {"speech": 10, "sound": 8, "music": 6, "speech_and_sound": 4, "speech_and_music": 2}
    marks = [points[c] for c in (*points, "speech_and_sound", "speech")]

    def judge(prompt):
        answers = re.findall(r"Answer\]\n(.*)\n\[The End", prompt)
        return " ".join(a.removeprefix("worth ") if "worth" in a else "5" for a in answers)

    with Misbehaving(always=judge) as server:
        model = Scripted([f"worth {mark}" for mark in marks])
        llm = make_llm(server, tmp_path)
        figures, items = air_bench_chat(model, data, llm=llm, judgements=2)
    prompt = server.requests[0][-1]["messages"][0]["content"][0]["text"]
    assert "[Detailed Audio Description]\ndescription" in prompt
    assert figures["model"]["by_category"]["speech"].value == 10
    assert figures["score"].value == pytest.approx((10 + 8 + 6 + (4 + 2) / 2) / 4)
    assert figures["model"]["samples"]["sd"] == pytest.approx(0)
    assert figures["reference"]["score"].value == pytest.approx(5)
    assert figures["wins"].value == pytest.approx(4 / 7)
    assert figures["llm"]["name"] == "judge-2026-01-01" and figures["llm"]["pinned"]
    sent = [m["messages"][0]["content"][0]["text"] for *_, m in server.requests]
    assert set(items[0]["judge_prompts"]) < set(sent)
    first, second = (p.index("worth 10") for p in items[0]["judge_prompts"])
    assert first > second  # the reference goes first, and then the answer
    sha = hashlib.sha256(judges.PAIR_PROMPT.encode()).hexdigest()
    assert figures["judge_prompts"]["pair"]["sha256"] == sha[:16]
    assert [p["value"] for p in figures["published"]] == [6.57]
    stored = json.loads(json.dumps(to_json(items)))
    assert to_json(air_bench_figures(stored, 1)["model"]) == to_json(figures["model"])


def test_a_judge_that_breaks_the_form_is_asked_again_and_then_left_out(tmp_path):
    data = str(make_air_bench(tmp_path / "Chat", AIR[:2]))

    def judge(prompt):
        return "I would say eight." if "reference 0" in prompt else "5 5"

    with Misbehaving(always=judge) as server:
        figures, items = air_bench_chat(
            Scripted(["an answer"] * 2), data, llm=make_llm(server, tmp_path), judgements=1
        )
        assert len(server.requests) == 2 * 3 + 2  # three tries each
    assert figures["judge_failed"] == 1 and set(figures["model"]["by_category"]) == {"sound"}
    assert items[0]["judge"][0]["model"] is None
    assert "two whole numbers" in items[0]["judge"][0]["texts"][0]
    with Misbehaving(always="no") as server, pytest.raises(UserError, match="no two scores"):
        llm = make_llm(server, tmp_path, **{"model.name": "other"})
        air_bench_chat(Scripted(["an answer"] * 2), data, llm=llm)


def test_the_judges_noise_is_told(tmp_path):
    data = str(make_air_bench(tmp_path / "Chat", AIR[:1]))
    answers = [f"{n} {n}" for n in (4, 6, 8, 4, 6, 8)]  # by sample, of either order
    with Misbehaving(answers) as server:
        llm = make_llm(server, tmp_path, **{"model.concurrency": 1})
        for _ in range(2):  # the second time from what is kept, sample by sample
            figures, _ = air_bench_chat(Scripted(["an answer"]), data, llm=llm)
        assert len(server.requests) == 6
    assert figures["model"]["samples"] == {"mean": 6, "sd": 2, "values": [4, 6, 8]}


def test_an_endpoint_that_is_down_keeps_what_was_answered(tmp_path):
    data = str(make_air_bench(tmp_path / "Chat", AIR[:2]))
    down = [(503, {}, "down")] * 2
    with Misbehaving(["5 5", *down], always="5 5") as server:
        llm = make_llm(server, tmp_path, **{"model.concurrency": 1, "retry.attempts": 2})
        model = Scripted(["an answer"] * 2)
        with pytest.raises(UserError, match="run it again.*answers.sqlite"):
            air_bench_chat(model, data, llm=llm, judgements=1)
        asked = len(server.requests)
        figures, _ = air_bench_chat(model, data, llm=llm, judgements=1)
        assert len(server.requests) == asked + 3  # the first answer is not asked for twice
    assert figures["score"].value == 5


def test_judges_are_asked_from_a_notebook_too(tmp_path):
    """There a loop runs already in the thread that asks."""

    async def cell():
        return ask_all(make_llm(server, tmp_path), [("good?", 0), ("bad?", 0)], str, "answers")

    with Misbehaving(always=lambda prompt: f"{prompt} yes") as server:
        said = asyncio.run(cell())
    assert [one.value for one in said] == ["good? yes", "bad? yes"]


@pytest.mark.parametrize(
    "name, pinned",
    [
        ("gpt-4-0125-preview", True),
        ("gpt-4o-2024-08-06", True),
        ("gemini-2.0-flash-001", True),
        ("gemini-2.5-flash-preview-05-20", True),
        ("claude-3-7-sonnet@20250219", True),
        ("gemini-2.5-flash", False),
        ("gpt-4.1", False),
        ("gpt-4-32k", False),
        ("Llama-3.1-405B-Instruct", False),
    ],
)
def test_figures_tell_a_judge_whose_name_is_an_alias(name, pinned):
    c = default_llm_config()
    c.model.name = name
    label = llm_from(c).label()
    assert (label["name"], label["pinned"]) == (name, pinned)


def test_settings_of_the_judge(tmp_path):
    with Misbehaving() as server:
        for change, told in (
            ({"model.structured": "schema"}, "structured"),
            ({"cache": ""}, "cache"),
            ({"budget_usd": 1.0, "model.price": None}, "price"),
        ):
            with pytest.raises(UserError, match=told):
                make_llm(server, tmp_path, **change)
        with pytest.raises(UserError, match="once at least"):
            judges.grouped(make_llm(server, tmp_path), ["x"], str, 0, "x")


def test_scores_given_several_times_can_be_compared_in_pairs():
    first = repeated([[4, 6], [10, 10], [2, 2]], highest=10)
    assert first["score"][:1] == (17 / 3,) and first["samples"]["values"] == [16 / 3, 6]
    other = repeated([[6, 6], [10, 10], [3, 3]], highest=10)
    found = paired_difference(first["score"].sums, other["score"].sums)
    assert found.value == pytest.approx(2 / 3) and found.count == 3
