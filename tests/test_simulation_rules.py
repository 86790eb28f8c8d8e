"""The rules that requests, traces and verdicts must keep, and what is sent."""

import dataclasses
import io
import subprocess
import sys

import misbehaving_endpoint as fake
import pytest
import soundfile
from misbehaving_endpoint import Misbehaving
from simulation_runs import (
    CONFIG,
    make_clips,
    rows_of,
    run,
    set_environment,
)

from bagpiper_jax.errors import UserError
from bagpiper_jax.json_lines import read_lines, write_rows
from bagpiper_jax.simulation.config import load_settings
from bagpiper_jax.simulation.dimensions import DIMENSIONS, NAMES


@pytest.fixture(autouse=True)
def key(monkeypatch):
    set_environment(monkeypatch)


@pytest.fixture
def clips(tmp_path):
    return make_clips(tmp_path)


def captioned(tmp_path, caption="A man says “Hello there, old friend!” in a room.", **more):
    path = tmp_path / "captioned.jsonl"
    write_rows(path, [{"id": "a", "audio": "a.wav", "caption": caption, **more}])
    return path


GENERATION = ("--config.requests.directions=('text_to_audio',)",)
ONE = (*GENERATION, "--config.requests.levels=('realistic',)")
LONG = fake.REQUEST["request"]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (LONG.replace("old friend", "my friend"), "must be quoted word for word"),
        (LONG.replace("“Hello there, old friend!”", "hello to a friend"), "word for word"),
        (LONG + " Then he answers “Get out of here now!”", "it is not what is said"),
        ("A woman says “Hello there, old friend!”", "the request has 3 words"),
        (LONG + " very" * 60, "words beside quoted speech, not 15 to 80"),
        (LONG + " It follows the caption.", "must not say 'caption'"),
        (LONG.replace("a woman", "S1"), "must not say 'S1'"),
    ],
)
def test_requests_that_break_a_rule_are_written_again(bad, reason, tmp_path):
    target = tmp_path / "requests.jsonl"
    with Misbehaving([fake.PERSONA, {"request": bad}]) as server:
        summary = run("requests", captioned(tmp_path), target, server, tmp_path, *ONE)
        told = server.requests[2][3]["messages"][1]["content"][0]["text"]
    assert summary["out"] == 1 and reason in told.split("was refused: ")[1]
    assert rows_of(target)[0]["request"] == LONG


def test_long_speech_does_not_count_as_words(tmp_path):
    speech = "Well " + " ".join(["so it goes on"] * 30) + "."
    request = LONG.replace("Hello there, old friend!", speech)
    target = tmp_path / "requests.jsonl"
    with Misbehaving([fake.PERSONA, {"request": request}]) as server:
        source = captioned(tmp_path, f'Somebody says "{speech}" slowly.')
        run("requests", source, target, server, tmp_path, *ONE)
        assert len(server.requests) == 2
        prompt = server.requests[1][3]["messages"][1]["content"][0]["text"]
    assert f'"{speech}"' in prompt and rows_of(target)[0]["request"] == request


def test_questions_quote_only_what_occurs(tmp_path):
    bad = {"request": "Why does the man shout “Never come back” at the end of the recording?"}
    rest = ("--config.requests.directions=('audio_to_text',)", ONE[1])
    target = tmp_path / "requests.jsonl"
    with Misbehaving([fake.PERSONA, bad]) as server:
        run("requests", captioned(tmp_path), target, server, tmp_path, *rest)
    [row] = rows_of(target)
    assert row["request"] == fake.QUESTION["request"] and row["level"] == "realistic"
    assert row["source_id"] == "a" and row["persona"] == fake.PERSONA


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"user_intent": "Short."}, "user_intent must be a sentence"),
        ({"generation_plan": fake.PART + " </think>"}, "must not hold the tag"),
        ({"inferred_details": "The caption says that it is quiet."}, "not from a caption"),
        ({"user_intent": "She must say “leave this house right now” first."}, "nobody says"),
    ],
)
def test_traces_that_break_a_rule_are_written_again(change, reason, tmp_path):
    source = captioned(tmp_path, request=LONG, direction="text_to_audio")
    target = tmp_path / "traces.jsonl"
    with Misbehaving([fake.PLAN | change]) as server:
        run("traces", source, target, server, tmp_path)
        told = server.requests[1][3]["messages"][1]["content"][0]["text"]
    assert reason in told.split("was refused: ")[1]
    assert rows_of(target)[0]["trace"] == fake.PLAN


def test_stages_refuse_rows_that_lack_what_they_need(tmp_path):
    source = captioned(tmp_path, request=LONG, direction="sideways")
    with Misbehaving() as server:
        for stage, reason in (
            ("traces", "direction is none of"),
            ("assemble", "direction is none of"),
            ("judge", "no messages"),
        ):
            target = tmp_path / f"{stage}.jsonl"
            summary = run(stage, source, target, server, tmp_path)
            assert (summary["out"], summary["quarantined"]) == (0, 1)
            assert reason in next(iter(summary["reasons"]))
        assert not server.requests


DIALOGUE = {
    "id": "d",
    "audio": "a.wav",
    "direction": "text_to_audio",
    "messages": [
        ["user", "text", LONG],
        ["assistant", "text", "…"],
        ["assistant", "audio", "a.wav"],
    ],
}


def verdict(**scores):
    return fake.VERDICT | {k: {"reason": "So.", "score": v} for k, v in scores.items()}


ALL_THREE = dict.fromkeys(NAMES, 3)


@pytest.mark.parametrize(
    ("scores", "passed"),
    [
        ({}, True),
        ({"cleanliness": 3}, True),
        ({"cleanliness": 2}, False),  # one too low
        (ALL_THREE, False),  # none too low, the mean is
        (ALL_THREE | dict.fromkeys(NAMES[:9], 4), True),  # 60 / 17 = 3.53
        (ALL_THREE | dict.fromkeys(NAMES[:8], 4), False),  # 59 / 17 = 3.47
    ],
)
def test_the_pass_rule(scores, passed, tmp_path):
    write_rows(tmp_path / "in.jsonl", [DIALOGUE])
    target = tmp_path / "judged.jsonl"
    with Misbehaving([verdict(**scores)]) as server:
        summary = run("judge", tmp_path / "in.jsonl", target, server, tmp_path)
    assert (summary["out"], summary["rejected"]) == ((1, 0) if passed else (0, 1))
    [row] = rows_of(target if passed else tmp_path / "judged.rejected.jsonl")
    assert row["judge"]["passed"] == passed
    assert row["judge"]["scores"]["cleanliness"] == scores.get("cleanliness", 4)
    assert row["judge"]["low"] == ({"cleanliness": ["So."]} if scores == {"cleanliness": 2} else {})


def test_seventeen_dimensions_are_told_to_the_judge(tmp_path):
    assert {g: len(names) for g, names in DIMENSIONS.items()} == {
        "request": 5,
        "alignment": 5,
        "caption": 4,
        "training_value": 3,
    }
    assert len(set(NAMES)) == 17
    write_rows(tmp_path / "in.jsonl", [DIALOGUE])
    with Misbehaving() as server:
        run("judge", tmp_path / "in.jsonl", tmp_path / "out.jsonl", server, tmp_path)
        prompt = server.requests[0][3]["messages"][1]["content"][0]["text"]
    for names in DIMENSIONS.values():
        for name, meaning in names.items():
            assert f"- {name}: {meaning}." in prompt
    assert "[user] " + LONG in prompt and "[assistant] (the recording)" in prompt


@pytest.mark.parametrize("score", (0, 6, 3.5, "4", None))
def test_scores_out_of_range_are_no_verdict(score, tmp_path):
    write_rows(tmp_path / "in.jsonl", [DIALOGUE])
    bad = fake.VERDICT | {"cleanliness": {"reason": "So.", "score": score}}
    if score == "4":
        bad = {k: v for k, v in fake.VERDICT.items() if k != "cleanliness"}
    with Misbehaving([bad]) as server:
        run("judge", tmp_path / "in.jsonl", tmp_path / "out.jsonl", server, tmp_path)
        assert len(server.requests) == 2


def test_votes_are_asked_for_apart_and_their_median_counts(tmp_path):
    write_rows(tmp_path / "in.jsonl", [DIALOGUE])
    target = tmp_path / "out.jsonl"
    script = [verdict(cleanliness=s) for s in (1, 5, 3)]
    with Misbehaving(script) as server:
        run("judge", tmp_path / "in.jsonl", target, server, tmp_path, "--config.judge.votes=3")
        assert len(server.requests) == 3
    [row] = rows_of(target)
    assert row["judge"]["scores"]["cleanliness"] == 3
    assert len(row["provenance"]["simulation"][-1]["votes"]) == 3


def test_a_judge_that_hears_gets_the_recording(clips, tmp_path):
    write_rows(clips / "in.jsonl", [DIALOGUE | {"audio": "0.flac"}])
    with Misbehaving() as server:
        target = tmp_path / "out.jsonl"
        run("judge", clips / "in.jsonl", target, server, tmp_path, "--config.judge.audio=True")
        assert fake.heard(server.requests[0][3])[:4] == b"RIFF"


@pytest.mark.parametrize("structured", ("json", "none"))
def test_endpoints_without_schemas_are_told_them(structured, clips, tmp_path):
    with Misbehaving() as server:
        rest = f"--config.captioner.structured={structured}"
        target = tmp_path / "captions.jsonl"
        run("caption", clips / "clips.jsonl", target, server, tmp_path, rest)
        body = server.requests[0][3]
    assert '"speech_activity"' in body["messages"][1]["content"][0]["text"].split("JSON schema:")[1]
    kind = body.get("response_format", {}).get("type")
    assert kind == ("json_object" if structured == "json" else None)


def test_audio_is_sent_as_the_settings_say(clips, tmp_path):

    target = tmp_path / "captions.jsonl"
    one = "--config.captioner.concurrency=1"
    with Misbehaving() as server:
        run("caption", clips / "clips.jsonl", target, server, tmp_path, one)
        rest = ("--config.audio.sample_rate=16000", "--config.audio.mono=True")
        run("caption", clips / "clips.jsonl", target, server, tmp_path, one, *rest)
        sent = [soundfile.info(io.BytesIO(fake.heard(r[3]))) for r in server.requests]
    assert [(s.samplerate, s.channels) for s in sent[:3]] == [(16000, 1), (44100, 2), (8000, 1)]
    # the first one is the same WAV as before: its answer is kept
    assert [(s.samplerate, s.channels) for s in sent[3:]] == [(16000, 1)] * 2
    assert all(s.duration == pytest.approx(1.0) for s in sent)


def test_configs_that_do_not_load_are_told(tmp_path):
    with pytest.raises(UserError, match="there is no config file"):
        load_settings(str(tmp_path / "none.py"))
    bad = tmp_path / "bad.py"
    text = CONFIG.format(api="openai", url="http://127.0.0.1:1", cache="c")
    bad.write_text(text.replace("return c", "c.captioner.api_key = 'x'; return c"))
    with pytest.raises(UserError, match="unknown config keys: captioner.api_key"):
        load_settings(str(bad))
    bad.write_text(text)
    with pytest.raises(UserError, match="does not load.*nmae"):
        load_settings(str(bad), ["--config.captioner.nmae=x"])
    settings = load_settings(str(bad), ["--config.captioner.name=other"])
    assert settings.captioner.name == "other" and settings.writer.name == "hearing"


def test_the_default_settings_hold(monkeypatch):
    from bagpiper_jax.simulation.config import default_config, settings_from

    settings = settings_from(default_config())
    assert dataclasses.asdict(settings.judge) == {
        "min_score": 3,
        "min_mean": 3.5,
        "votes": 1,
        "audio": False,
    }
    assert (settings.requests.min_words, settings.requests.max_words) == (15, 80)
    assert settings.captioner.key_env == "GEMINI_API_KEY"


def test_the_parser_and_light_imports_need_no_sdk():
    program = (
        "import sys, argparse; from bagpiper_jax.simulation import commands\n"
        "from bagpiper_jax.preparation.filters import commands as filters\n"
        "parsers = argparse.ArgumentParser().add_subparsers()\n"
        "commands.add_simulate_parser(parsers); filters.add_filter_parser(parsers)\n"
        "heavy = {'jax', 'openai', 'google.genai', 'pydantic', 'torch', 'tensorflow'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_lines_of_a_manifest(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_bytes(b'\n{"id": "a"}\n\xff\xfe\n{"id": ""}\n' + b"[" * 100_000 + b'\n{"id": "b"}')
    with open(path, "ab") as file:
        file.write(b'\n{"id": "c", "caption": "\\uD83D"}\n{"id": "d", "caption": "\\ud83d\\ude00"}')
    lines = list(read_lines(path))
    assert [(line.number, line.row) for line in lines if line.row] == [
        (2, {"id": "a"}),
        (6, {"id": "b"}),
        (8, {"id": "d", "caption": "\U0001f600"}),
    ]
    assert [line.number for line in lines if line.problem] == [3, 4, 5, 7]
    with pytest.raises(UserError, match="cannot read"):
        list(read_lines(tmp_path / "none.jsonl"))
