"""The benchmarks with a scripted model and a local judge: choices, MMAU, AudioBench."""

import json
import re
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from benchmark_data import MMAU, RATE, Scripted, make_librispeech, make_llm, make_mmau, write_wav
from misbehaving_endpoint import Misbehaving

from bagpiper_jax.errors import UserError
from bagpiper_jax.evaluation import asr, tables
from bagpiper_jax.evaluation.benchmark_evaluators import mmau_mini
from bagpiper_jax.evaluation.benchmarks.audio_bench import audio_bench
from bagpiper_jax.evaluation.benchmarks.choices import official_match, strict_choice
from bagpiper_jax.evaluation.benchmarks.generation import Reply
from bagpiper_jax.evaluation.benchmarks.librispeech import librispeech
from bagpiper_jax.evaluation.benchmarks.mmau import mmau, mmau_figures
from bagpiper_jax.evaluation.benchmarks.published import published
from bagpiper_jax.evaluation.benchmarks.tts import librispeech_tts
from bagpiper_jax.evaluation.workdir import to_json

ANSWERS = [row[2] for row in MMAU]

pytestmark = pytest.mark.usefixtures("no_proxy")


# Answers and choices


def test_the_answer_is_what_follows_caption_and_plan():
    whole = "Caption of the audio: a cat, no dog.\n\n<think>\nIt is a cat.\n</think>\n\nA cat."
    assert Reply(whole).answer == "A cat."
    assert Reply("A cat. ").answer == "A cat."
    assert Reply("<think>It might be").answer == ""  # cut off before it came
    assert Reply("Caption of the audio: a cat, and").answer == ""


CHOICES = ["a man", "a woman", "an adult man", "a child"]


@pytest.mark.parametrize(
    "answer, choice",
    [
        ("A woman.", "a woman"),
        ("The voice is that of a woman", "a woman"),
        ("It is an adult man", "an adult man"),
        ("(B)", "a woman"),
        ("b", "a woman"),
        ("B. a woman", "a woman"),
        ("(B) a child", None),  # letter and text disagree
        ("E", None),
        ("a man or a woman", None),
        ("It is not a woman", None),
        ("I hear a child, so the answer is: a child", "a child"),
        ("A man speaks. Answer: (D)", "a child"),
        ("a dog", None),
        ("a womanly voice", None),
        ("", None),
    ],
)
def test_strict_choice(answer, choice):
    assert strict_choice(answer, CHOICES) == choice


def test_strict_choice_of_choices_that_look_like_letters():
    assert strict_choice("B", ["A", "C", "B", "D"]) == "B"  # the text goes before the letter
    assert strict_choice("C#", ["C", "C#", "D", "F"]) == "C#"


def test_strict_choice_of_choices_inside_each_other():
    genres = ["rock", "rock music of the sixties", "jazz"]
    assert strict_choice("I hear rock music of the sixties", genres) == genres[1]
    assert strict_choice("I hear rock", genres) == "rock"
    assert strict_choice("rock music of the sixties, some would say rock", genres) == genres[1]


def test_official_and_strict_rules_disagree_both_ways():
    right = "the first speaker is sad, the second is happy"
    wrong = "the first speaker is happy, the second is sad"
    assert official_match(right, wrong, [right, wrong])  # the same words
    assert strict_choice(wrong, [right, wrong]) == wrong
    assert not official_match("a woman", "a woman, an adult", CHOICES)  # words of another choice
    assert strict_choice("a woman, an adult", CHOICES) == "a woman"


@pytest.mark.parametrize(
    "truth, answer, choices, match",
    [
        ("Man", "man", ["Man", "Woman"], True),
        ("Man", "A man, surely", ["Man", "Woman"], True),
        ("Man", "man and woman", ["Man", "Woman"], False),
        ("Man", "", ["Man", "Woman"], False),
        ("Rock music", "rock", ["Rock music", "Jazz music"], False),
        ("nine", "nine", ["four", "nine", "fourteen", "fourteen"], True),
    ],
)
def test_official_match(truth, answer, choices, match):
    assert official_match(truth, answer, choices) is match


# MMAU


def test_mmau_of_a_perfect_and_of_a_broken_model(tmp_path):
    data = str(make_mmau(tmp_path))
    model = Scripted(ANSWERS)
    figures, items = mmau(model, data)
    assert figures["accuracy"]["official"]["all"].value == 1
    assert figures["accuracy"]["strict"]["all"].value == 1
    assert set(figures["accuracy"]["strict"]) == {
        *("all", "sound", "music", "speech"),
        *("easy", "medium", "hard"),
    }
    assert figures["agreement"].value == 1 and figures["undecided"] == 0
    assert figures["chance"] == pytest.approx((3 * 0.25 + 0.5) / 4)
    assert [p["value"] for p in figures["published"]] == [0.711, 0.690, 0.745]
    assert model.prompts[1] == (
        "What is heard?\nAnswer with the text of one of these choices:\na dog\na cat"
    )
    assert items[1]["prompt"] == model.prompts[1] and items[1]["output"] == "a cat"
    assert items[1]["verdicts"][0]["strict_choice"] == "a cat"
    for always in ("", "I cannot tell."):
        figures, _ = mmau(Scripted([always] * 4), data)
        assert figures["accuracy"]["official"]["all"].value == 0
        assert figures["accuracy"]["strict"]["all"].value == 0
        assert figures["undecided"] == 4


def test_mmau_of_a_blind_choice_is_at_chance(tmp_path):
    rng = np.random.default_rng(0)
    rows = [("Who?", ["Man", "Woman", "Child", "Robot"], "Man", "sound", "easy")] * 40
    data = str(make_mmau(tmp_path, rows))
    blind = Scripted(rng.choice(rows[0][1], 40))
    figures, _ = mmau(blind, data)
    for rule in ("official", "strict"):
        interval = figures["accuracy"][rule]["all"]
        assert interval.low < figures["chance"] == 0.25 < interval.high and interval.high < 0.6


def test_mmau_figures_can_be_made_again_from_stored_items(tmp_path):
    figures, items = mmau(Scripted(["Man", "a dog", "(B)", "calm"]), str(make_mmau(tmp_path)))
    assert figures["accuracy"]["strict"]["all"].value == 0.75
    assert figures["accuracy"]["official"]["all"].value == 0.5  # "(B)" is no word of the answer
    assert figures["agreement"].value == 0.75
    stored = json.loads(json.dumps(to_json(items)))
    assert to_json(mmau_figures(stored, seed=1)) == to_json(figures)


def test_recordings_that_cannot_be_heard_count_as_wrong(tmp_path):
    data = make_mmau(tmp_path)
    audio = data / "test-mini-audios"
    soundfile.write(audio / "q0.wav", np.zeros(8000), RATE)
    write_wav(audio / "q1.wav", 1, seconds=31)
    model = Scripted(ANSWERS)
    figures, items = mmau(model, str(data))
    assert model.heard == [1, 2, 3]
    assert "silent" in items[0]["problem"] and items[1]["seconds_cut"] == 1
    assert (figures["not_asked"], figures["cut_to_30_s"], figures["items"]) == (1, 1, 4)
    assert figures["accuracy"]["official"]["all"].value == 0.75


def test_a_question_that_does_not_fit_takes_no_other_with_it(tmp_path):
    class Short(Scripted):
        def chat_batch(self, conversations, **settings):
            if any("Which key" in c[-1].content for c in conversations):
                raise UserError("the prompt does not fit the context")
            return super().chat_batch(conversations, **settings)

    figures, items = mmau(Short(ANSWERS), str(make_mmau(tmp_path)))
    assert [bool(i["problem"]) for i in items] == [False, False, True, False]
    assert figures["accuracy"]["strict"]["all"].value == 0.75


def test_mmau_from_captions_alone(tmp_path):
    data = str(make_mmau(tmp_path))
    model = Scripted([f"One hears: {answer}." for answer in ANSWERS])

    def choose(prompt):
        return re.search("One hears: (.*)[.]", prompt)[1]

    with Misbehaving(always=choose) as server:
        llm = make_llm(server, tmp_path)
        figures, items = mmau(model, data, mode="caption", llm=llm)
        assert len(server.requests) == 12  # three answers to each of four
        bodies = [body for *_, body in server.requests]
        assert all([m["role"] for m in body["messages"]] == ["user"] for body in bodies)
        assert {body["model"] for body in bodies} == {"judge-2026-01-01"}
        assert model.prompts == [""] * 4  # the model was not told the question
        again, _ = mmau(model, data, mode="caption", llm=llm)
        assert len(server.requests) == 12 and to_json(again) == to_json(figures)
    assert figures["accuracy"]["strict"]["all"].value == 1
    assert figures["samples"]["strict"] == {"mean": 1, "sd": 0, "values": [1, 1, 1]}
    assert "Which key?" in items[2]["llm_prompt"] and "A minor." in items[2]["llm_prompt"]
    with pytest.raises(UserError, match="llm"):
        mmau(model, data, mode="caption")
    with pytest.raises(UserError, match="'closed'"):
        mmau(model, data, mode="closed")


def test_a_recording_that_was_not_heard_is_not_guessed_at(tmp_path):
    data = make_mmau(tmp_path)
    soundfile.write(data / "test-mini-audios" / "q0.wav", np.zeros(8000), RATE)
    replies = ["", "", "One hears: A minor.", "One hears: calm."]  # nothing is written of a cat

    def guess(prompt):
        heard = re.search("One hears: (.*)[.]", prompt)
        return heard[1] if heard else "Man" if "Who speaks?" in prompt else "a cat"

    with Misbehaving(always=guess) as server:
        llm = make_llm(server, tmp_path)
        figures, items = mmau(Scripted(replies), str(data), mode="caption", llm=llm, judgements=2)
        assert len(server.requests) == 3 * 2
    assert items[0]["llm_prompt"] == "" and "(nothing)" in items[1]["llm_prompt"]
    assert [v["answer"] for v in items[0]["verdicts"]] == ["", ""]
    assert figures["not_asked"] == 1 and figures["accuracy"]["official"]["all"].value == 0.75
    assert figures["samples"]["strict"]["values"] == [0.75, 0.75]


def test_where_nothing_could_be_asked_there_are_no_figures(tmp_path):
    data = make_mmau(tmp_path)
    for i in range(4):
        soundfile.write(data / "test-mini-audios" / f"q{i}.wav", np.zeros(8000), RATE)
    with pytest.raises(UserError, match=r"MMAU choices: none of 4 items.*q0\.wav.*silent"):
        mmau(Scripted(ANSWERS), str(data))


def test_open_answers_alone_are_judged(tmp_path):
    context = SimpleNamespace(pipeline=Scripted(ANSWERS), seed=1)
    settings = {"data": str(make_mmau(tmp_path)), "judged": True}
    with pytest.raises(UserError, match="judged is for mode 'open', not 'choices'"):
        mmau_mini(context, **settings)
    with pytest.raises(UserError, match="llm: .*need a language model"):
        mmau_mini(context, **settings, mode="open")


def test_open_mmau_is_judged(tmp_path):
    def judge(prompt):
        right = "Answer to rate: It seems to be" in prompt
        return f"Because.\nRating: {int(right)}"

    replies = ["It seems to be " + a for a in ANSWERS[:2]] + ["nothing"] * 2
    with Misbehaving(always=judge) as server:
        model = Scripted(replies)
        llm = make_llm(server, tmp_path)
        figures, items = mmau(model, str(make_mmau(tmp_path)), mode="open", llm=llm)
    assert model.prompts == [row[0] for row in MMAU]
    assert figures["judge"]["score"].value == 0.5 and figures["judge"]["samples"]["sd"] == 0
    assert [j["rating"] for j in items[0]["judge"]] == [1, 1, 1]
    assert f"Answer to rate: {replies[0]}\n" in items[0]["judge_prompt"]
    assert figures["judge_prompts"]["binary"]["source"] == "own wording"


# AudioBench


def write_audio_bench(folder, name, rows):
    (folder / name).mkdir()
    table = []
    for i, (question, answer, more) in enumerate(rows):
        write_wav(folder / f"{i}.wav", i)
        audio = {"bytes": (folder / f"{i}.wav").read_bytes(), "path": None}
        table.append({"context": audio, "instruction": question, "answer": answer, **more})
    pq.write_table(pa.Table.from_pylist(table), folder / name / "test.parquet")


def test_audio_bench(tmp_path):
    write_audio_bench(tmp_path, "clotho_aqa_test", [("Q0?", "yes", {}), ("Q1?", "no", {})])
    options = {"choices": "(A) tea (B) milk"}
    write_audio_bench(tmp_path, "dream_tts_mcq_test", [("What drink?", "(A) tea", options)])
    write_audio_bench(tmp_path, "librispeech_test_clean", [("", "he said twenty", {})])

    def judge(prompt):
        fields = dict(re.findall("(Reference answer|Answer to rate): (.*)", prompt))
        right = fields["Reference answer"] == fields["Answer to rate"]
        return f"Because.\nRating: {(5 if '5: ' in prompt else 1) if right else 0}"

    names = ["clotho_aqa_test", "dream_tts_mcq_test", "librispeech_test_clean"]
    with Misbehaving(always=judge) as server:
        llm = make_llm(server, tmp_path)
        for replies, score in ((["yes", "no"], 100), (["yes", "maybe"], 50), (["", ""], 0)):
            model = Scripted(replies)
            figures, items = audio_bench(model, str(tmp_path), datasets=names[:1], llm=llm)
            assert figures["score"].value == score
        for answer, score, rate in (
            ("(A) tea", 50, 1.0),
            ("He said 20.", 0, 0.0),
            ("", 0, 1.0),
        ):
            model = Scripted([answer, answer])
            figures, items = audio_bench(model, str(tmp_path), datasets=names, llm=llm)
            by_name = figures["datasets"]
            assert by_name["dream_tts_mcq_test"]["score"].value == 2 * score
            assert by_name["clotho_aqa_test"]["score"].value == 0
            assert figures["score"].value == score  # data sets count the same
            assert by_name["librispeech_test_clean"]["wer"]["normalised"].value == rate
    assert model.prompts[2] == "What drink?\nChoices:\n(A) tea (B) milk"
    assert "word for word" in model.prompts[3]
    assert figures["judge_prompts"]["scale"]["source"] == "own wording"
    assert "Question: Q0?\n" in items[0]["judge_prompt"] and "judge_prompt" not in items[-1]
    assert tables.results_markdown({"audio_bench": to_json(figures)})  # a prompt is no figure
    assert items[0]["judge"][0] == {"rating": 0, "score": 0, "text": "Because.\nRating: 0"}


def test_a_failed_judgement_counts_as_0_as_the_official_scripts_do(tmp_path):
    write_audio_bench(tmp_path, "clotho_aqa_test", [("Q0?", "yes", {}), ("Q1?", "no", {})])
    with Misbehaving(always=lambda p: "no idea" if "Q0" in p else "Rating: 5") as server:
        figures, _ = audio_bench(
            Scripted(["a", "b"]),
            str(tmp_path),
            datasets=["clotho_aqa_test"],
            llm=make_llm(server, tmp_path),
            judgements=1,
        )
    assert figures["score"].value == 50
    assert figures["datasets"]["clotho_aqa_test"]["judge_failed"] == 1


def test_audio_bench_says_what_it_needs(tmp_path):
    for settings, told in (
        ({"datasets": ["clotho"]}, "'clotho'.*clotho_aqa_test"),
        ({"datasets": []}, "empty"),
        ({"datasets": ["clotho_aqa_test"]}, "needs llm"),
    ):
        with pytest.raises(UserError, match=told):
            audio_bench(Scripted(), str(tmp_path), **settings)


def test_published_figures():
    assert published("tts_wer")[0]["value"] == 0.027
    assert all("2602.05220" in row["source"] for row in published("wer"))


@pytest.mark.slow
def test_the_mini_model_takes_part(tmp_path):
    from bagpiper_jax.inference.pipeline import Pipeline

    pipe = Pipeline.load()
    figures, items = mmau(pipe, str(make_mmau(tmp_path / "mmau")), count=1)
    assert figures["items"] == 1 and items[0]["output"] and not items[0]["problem"]
    data = str(make_librispeech(tmp_path / "libri"))
    figures, items = librispeech(pipe, data, count=1)
    assert items[0]["output"] and figures["wer"]["raw"].count == 1
    ears = asr.Whisper(max_new_tokens=224)
    figures, items, clips = librispeech_tts(pipe, data, ears, repeats=1, count=1, recordings=False)
    assert items[0]["seconds"] > 0 and figures["asr"] == asr.WHISPER and len(clips) == 1
