"""The stages from recordings to judged dialogues, with counts that add up and runs that resume."""

import argparse
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import soundfile

pytest.importorskip("openai")
pytest.importorskip("google.genai")

import misbehaving_endpoint as fake  # noqa: E402
from misbehaving_endpoint import KEY, Misbehaving  # noqa: E402

from bagpiper_jax.errors import UserError  # noqa: E402
from bagpiper_jax.json_lines import Journal, read_lines, write_rows  # noqa: E402
from bagpiper_jax.simulation import commands  # noqa: E402
from bagpiper_jax.simulation.config import load_settings  # noqa: E402
from bagpiper_jax.simulation.dimensions import DIMENSIONS, NAMES  # noqa: E402

CONFIG = """
from bagpiper_jax.simulation.config import default_config

def get_config():
    c = default_config()
    for model in (c.captioner, c.writer, c.judge_model):
        model.api = {api!r}
        model.name = "hearing"
        model.base_url = {url!r}
        model.key_env = "HEARING_KEY"
        model.price = {{"text": 1.0, "audio": 2.0, "output": 10.0}}
        model.max_tokens = 1000
    c.cache = {cache!r}
    c.retry.first_s = 0.01
    c.retry.max_s = 0.02
    return c
"""


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("HEARING_KEY", KEY)
    for name in [n for n in os.environ if n.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)


@pytest.fixture
def clips(tmp_path):
    """A manifest of three good clips (mono and stereo, two rates) in a directory of its own."""
    folder = tmp_path / "clips"
    folder.mkdir()
    rng = np.random.default_rng(0)
    rows = []
    for i, (rate, channels) in enumerate([(16_000, 1), (44_100, 2), (8_000, 1)]):
        name = f"{i}.flac"
        soundfile.write(folder / name, 0.1 * rng.standard_normal((rate, channels)), rate)
        rows.append({"id": f"clip{i}", "audio": name, "domain": "speech"})
    write_rows(folder / "clips.jsonl", rows)
    return folder


def run(stage, source, target, server, tmp_path, *rest, api="openai", **flags):
    config = tmp_path / "config.py"
    url = server.url + ("/v1" if api == "openai" else "")
    config.write_text(CONFIG.format(api=api, url=url, cache=str(tmp_path / "cache.sqlite")))
    parser = argparse.ArgumentParser()
    commands.add_simulate_parser(parser.add_subparsers())
    argv = ["simulate", stage, "--in", str(source), "--out", str(target), "--quiet"]
    args = parser.parse_args([*argv, "--config", str(config), *flags.get("options", ())])
    args.rest = rest
    commands.run(args)
    return json.loads(target.with_suffix("").with_suffix(".summary.json").read_text())


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("api", ("openai", "gemini"))
def test_from_recordings_to_judged_dialogues(api, clips, tmp_path, capsys):
    out = tmp_path / "out"
    with Misbehaving() as server:
        source = clips / "clips.jsonl"
        for stage, count in (
            ("caption", 3),
            ("requests", 12),
            ("traces", 12),
            ("assemble", 12),
            ("judge", 12),
        ):
            target = out / f"{stage}.jsonl"
            summary = run(stage, source, target, server, tmp_path, api=api)
            assert summary["in"] == summary["out"] == count, stage
            assert summary["quarantined"] == summary["rejected"] == 0
            assert not os.path.exists(f"{target}.partial")
            source = target
        sent = fake.heard(server.requests[0][3])
    assert sent[:4] == b"RIFF"
    captions, judged = rows_of(out / "caption.jsonl"), rows_of(out / "judge.jsonl")
    assert [row["id"] for row in captions] == ["clip0", "clip1", "clip2"]
    assert 'S1 says "Hello there, old friend!"' in captions[0]["caption"]
    assert "S1 speaks from 0.10s to 0.90s." in captions[0]["caption"]
    assert [row["id"] for row in judged[:4]] == [
        f"clip0/{direction}/{level}"
        for direction in ("audio_to_text", "text_to_audio")
        for level in ("realistic", "imaginary")
    ]
    understanding, generation = judged[0]["messages"], judged[2]["messages"]
    assert [m[:2] for m in understanding] == [
        ["user", "audio"],
        ["user", "text"],
        ["assistant", "text"],
    ]
    assert [m[:2] for m in generation] == [
        ["user", "text"],
        ["assistant", "text"],
        ["assistant", "audio"],
    ]
    caption = captions[0]["caption"]
    thought = "\n\n".join(
        f"{i}. {name}: {fake.PART}"
        for i, name in enumerate(
            ("User Intent", "Inferred Details", "Audio Quality", "Generation Plan"), 1
        )
    )
    assert generation[1][2] == f"<think>\n{thought}\n</think>\n\n{caption}"
    assert understanding[2][2].startswith(f"Caption of the audio: {caption}\n\n<think>\n- User")
    assert understanding[2][2].endswith("</think>\n\n" + fake.ANSWER["answer"])
    # paths still lead to the recording, from another directory
    for row in judged:
        [path] = [m[2] for m in row["messages"] if m[1] == "audio"]
        assert os.path.samefile(out / path, clips / os.path.basename(row["audio"]))
    trail = judged[2]["provenance"]["simulation"]
    assert [e["stage"] for e in trail] == ["caption", "requests", "traces", "assemble", "judge"]
    assert trail[0]["input"] == "clip0" and trail[0]["usd"] == pytest.approx(0.000664)
    for entry in (trail[0], trail[1], trail[1]["persona"], trail[2], trail[4]):
        assert (
            entry["model"] == "hearing" and entry["sha256"] and entry["time"] and entry["version"]
        )
    printed = capsys.readouterr()
    texts = [*printed, *(p.read_text("latin-1") for p in tmp_path.rglob("*") if p.is_file())]
    assert not [text for text in texts if KEY in text]


def test_in_is_out_plus_quarantined(clips, tmp_path):
    (clips / "silent_header.wav").write_bytes(b"RIFF")
    soundfile.write(clips / "long.wav", np.zeros(8000 * 40), 8000)
    soundfile.write(clips / "short.wav", np.zeros(10), 8000)
    lines = (clips / "clips.jsonl").read_text()
    lines += '{"id": "broken", "audio": "silent_header.wav"}\n{"id": "long", "audio": "long.wav"}\n'
    lines += '{"id": "short", "audio": "short.wav"}\n{"id": "missing", "audio": "no.wav"}\n'
    lines += '{"id": "bare"}\n{"id": "clip0", "audio": "0.flac"}\n[1]\n{"audio": "0.flac"}\n{"id"\n'
    (clips / "clips.jsonl").write_text(lines)
    target = tmp_path / "captions.jsonl"
    with Misbehaving() as server:
        summary = run("caption", clips / "clips.jsonl", target, server, tmp_path)
        assert len(server.requests) == 3  # nothing is paid for what cannot be heard
    assert (summary["in"], summary["out"], summary["quarantined"]) == (12, 3, 9)
    reasons = {row["id"]: row["reason"] for row in rows_of(tmp_path / "captions.quarantined.jsonl")}
    assert "cannot be read" in reasons["broken"] and "cannot be read" in reasons["missing"]
    assert "longer than 31 s" in reasons["long"] and "lasts 0.001 s" in reasons["short"]
    assert reasons["bare"] == "the row names no audio"
    assert "twice" in reasons["line 9"] and "no JSON object" in reasons["line 10"]
    assert "no id" in reasons["line 11"] and "no JSON" in reasons["line 12"]


def test_bad_answers_are_quarantined_and_asked_for_anew_on_demand(clips, tmp_path):
    target = tmp_path / "captions.jsonl"
    args = ("caption", clips / "clips.jsonl", target)
    with Misbehaving(["nonsense"] * 3) as server:
        one = "--config.captioner.concurrency=1"
        summary = run(*args, server, tmp_path, one)
        assert (summary["out"], summary["quarantined"]) == (2, 1)
        [bad] = rows_of(tmp_path / "captions.quarantined.jsonl")
        assert bad["id"] == "clip0" and bad["reason"].count("Invalid JSON") == 3
        count = len(server.requests)
        # a second run costs nothing and says the same
        assert run(*args, server, tmp_path, one)["paid_now"]["requests"] == 0
        assert len(server.requests) == count
        summary = run(*args, server, tmp_path, one, options=["--ask-again"])
        assert (summary["out"], summary["quarantined"]) == (3, 0)
        assert len(server.requests) == count + 1
    assert [row["id"] for row in rows_of(target)] == ["clip0", "clip1", "clip2"]


def test_a_dead_endpoint_stops_the_stage_and_the_next_run_goes_on(clips, tmp_path):
    target = tmp_path / "captions.jsonl"
    args = ("caption", clips / "clips.jsonl", target)
    rest = ("--config.captioner.concurrency=1", "--config.retry.attempts=2")
    with Misbehaving(["ok"], always=(500, {}, {"error": {"message": "down"}})) as server:
        with pytest.raises(UserError, match="2 rows in a row had no answer.*1 of 3 are done"):
            run(*args, server, tmp_path, *rest, "--config.retry.give_up_after=2")
        assert not target.exists()
        server.always = None
        summary = run(*args, server, tmp_path, *rest)
        assert summary["out"] == 3 and summary["paid_now"]["requests"] == 2


def test_rows_without_an_answer_are_tried_by_the_next_run(clips, tmp_path):
    target = tmp_path / "captions.jsonl"
    args = ("caption", clips / "clips.jsonl", target)
    rest = ("--config.captioner.concurrency=1", "--config.retry.attempts=1")
    with Misbehaving(["reset"]) as server:
        summary = run(*args, server, tmp_path, *rest)
        assert (summary["out"], summary["quarantined"]) == (2, 1)
        summary = run(*args, server, tmp_path, *rest)
        assert (summary["out"], summary["quarantined"]) == (3, 0)
        assert summary["paid_now"]["requests"] == 1


def test_a_budget_stops_cleanly(clips, tmp_path):
    target = tmp_path / "captions.jsonl"
    args = ("caption", clips / "clips.jsonl", target)
    with Misbehaving() as server:
        with pytest.raises(UserError, match="budget of .* of 3 are done.*same command"):
            run(*args, server, tmp_path, "--config.budget_usd=0.0125")
        paid = len(server.requests)
        assert paid < 3
        summary = run(*args, server, tmp_path, "--config.budget_usd=1.0")
        assert summary["out"] == 3 and len(server.requests) == 3
    assert summary["paid_in_all"]["hearing"]["requests"] == 3


@pytest.mark.parametrize("how", (signal.SIGINT, signal.SIGKILL))
def test_nothing_that_was_answered_is_lost(how, clips, tmp_path):
    """A run is ended in the middle; the next one asks only for what is missing."""
    rng = np.random.default_rng(1)
    rows = []
    for i in range(24):
        soundfile.write(clips / f"n{i}.wav", 0.1 * rng.standard_normal(8000), 8000)
        rows.append({"id": f"n{i}", "audio": f"n{i}.wav"})
    write_rows(clips / "many.jsonl", rows)
    target = tmp_path / "captions.jsonl"
    program = (
        "import sys; from bagpiper_jax.simulation.config import load_settings\n"
        "from bagpiper_jax.simulation.captioner import CAPTION_STAGE\n"
        "from bagpiper_jax.simulation.stage import run_stage\n"
        "run_stage(CAPTION_STAGE, *sys.argv[1:3], load_settings(sys.argv[3]))"
    )
    config = tmp_path / "config.py"
    with Misbehaving(delay=0.1) as server:
        cache = str(tmp_path / "cache.sqlite")
        config.write_text(CONFIG.format(api="openai", url=server.url + "/v1", cache=cache))
        source = str(clips / "many.jsonl")
        config.write_text(
            config.read_text().replace("model.max", "model.concurrency = 2; model.max")
        )
        command = [sys.executable, "-c", program, source, str(target), str(config)]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 60
        while len(server.requests) < 8 and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(how)
        _, told = process.communicate(timeout=30)
        assert process.returncode != 0
        answered = len(server.requests) - server.under_way
        if how == signal.SIGINT:
            assert "KeyboardInterrupt" in told and "%|" in told  # the bar, with its time left
        kept = len(Journal(f"{target}.partial"))
        assert 4 <= kept < 24
        (tmp_path / "config.py").write_text(config.read_text())
        subprocess.run(command, check=True, capture_output=True, timeout=60)
        # two were under way; all others are asked for exactly once
        assert 24 <= len(server.requests) <= 24 + 2
        assert answered >= kept
    assert [row["id"] for row in rows_of(target)] == [f"n{i}" for i in range(24)]


def test_two_processes_do_not_share_an_output(clips, tmp_path):
    target = tmp_path / "captions.jsonl"
    with Misbehaving() as server, Journal(f"{target}.partial"):
        with pytest.raises(UserError, match="another process writes"):
            run("caption", clips / "clips.jsonl", target, server, tmp_path)


def test_a_journal_forgets_only_the_line_that_a_kill_cut(tmp_path):
    path = tmp_path / "rows.partial"
    with Journal(path) as journal:
        for i in range(3):
            journal.add(str(i), {"value": "é" * i})
    whole = path.read_bytes()
    for cut in range(1, len(whole)):
        path.write_bytes(whole[:cut])
        with Journal(path) as journal:
            assert len(journal) == whole[:cut].count(b"\n")
            journal.add("new", 1)
            assert journal.get("new") == 1
            assert [journal.get(str(i)) for i in range(len(journal) - 1)] == [
                {"value": "é" * i} for i in range(len(journal) - 1)
            ]


def test_changed_rows_and_settings_are_worked_on_again(clips, tmp_path):
    """What lies in a journal counts only for the same row and the same sampling."""
    target = tmp_path / "captions.jsonl"
    args = ("caption", clips / "clips.jsonl", target)
    stop = "--config.budget_usd=0.0125"
    with Misbehaving() as server:
        with pytest.raises(UserError, match="budget"):
            run(*args, server, tmp_path, stop, "--config.captioner.concurrency=1")
        before = len(server.requests)
        summary = run(*args, server, tmp_path, "--config.captioner.temperature=0.1")
        assert summary["out"] == 3 and summary["paid_now"]["requests"] == 3
        assert len(server.requests) == before + 3
    sampling = [r["provenance"]["simulation"][0]["sampling"] for r in rows_of(target)]
    assert {s["temperature"] for s in sampling} == {0.1}


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
    import io

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
    lines = list(read_lines(path))
    assert [(line.number, line.row) for line in lines if line.row] == [
        (2, {"id": "a"}),
        (6, {"id": "b"}),
    ]
    assert [line.number for line in lines if line.problem] == [3, 4, 5]
    with pytest.raises(UserError, match="cannot read"):
        list(read_lines(tmp_path / "none.jsonl"))
