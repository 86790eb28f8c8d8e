"""The stages from recordings to judged dialogues, with counts that add up and runs that resume."""

import os
import signal
import subprocess
import sys
import time

import misbehaving_endpoint as fake
import numpy as np
import pytest
import soundfile
from misbehaving_endpoint import KEY, Misbehaving
from simulation_runs import (
    CONFIG,
    make_clips,
    rows_of,
    run,
    set_environment,
)

from bagpiper_jax.errors import UserError
from bagpiper_jax.json_lines import Journal, write_rows


@pytest.fixture(autouse=True)
def key(monkeypatch):
    set_environment(monkeypatch)


@pytest.fixture
def clips(tmp_path):
    return make_clips(tmp_path)


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
    lines += '{"id": "raw", "audio": "clip.raw"}\n{"id": "pipe", "audio": "pipe.wav"}\n'
    (clips / "clip.raw").write_bytes(bytes(range(256)))
    os.mkfifo(clips / "pipe.wav")
    lines += '{"id": "bare"}\n{"id": "clip0", "audio": "0.flac"}\n[1]\n{"audio": "0.flac"}\n{"id"\n'
    (clips / "clips.jsonl").write_text(lines)
    target = tmp_path / "captions.jsonl"
    with Misbehaving() as server:
        summary = run("caption", clips / "clips.jsonl", target, server, tmp_path)
        assert len(server.requests) == 3  # nothing is paid for what cannot be heard
    assert (summary["in"], summary["out"], summary["quarantined"]) == (14, 3, 11)
    reasons = {row["id"]: row["reason"] for row in rows_of(tmp_path / "captions.quarantined.jsonl")}
    assert "cannot be read" in reasons["broken"] and "cannot be read" in reasons["missing"]
    assert "longer than 31 s" in reasons["long"] and "lasts 0.001 s" in reasons["short"]
    assert reasons["bare"] == "the row names no audio"
    assert "cannot be read" in reasons["raw"] and "no regular file" in reasons["pipe"]
    assert "twice" in reasons["line 11"] and "no JSON object" in reasons["line 12"]
    assert "no id" in reasons["line 13"] and "no JSON" in reasons["line 14"]


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
        deadline = time.monotonic() + 180
        while len(server.requests) < 8 and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(how)
        _, told = process.communicate(timeout=120)
        assert process.returncode != 0
        answered = len(server.requests) - server.under_way
        if how == signal.SIGINT:
            assert "KeyboardInterrupt" in told and "%|" in told  # the bar, with its time left
        kept = len(Journal(f"{target}.partial"))
        assert 4 <= kept < 24
        (tmp_path / "config.py").write_text(config.read_text())
        subprocess.run(command, check=True, capture_output=True, timeout=180)
        # two were under way; all others are asked for exactly once
        assert 24 <= len(server.requests) <= 24 + 2
        assert answered >= kept
    assert [row["id"] for row in rows_of(target)] == [f"n{i}" for i in range(24)]


def test_a_full_disk_stops_the_stage_in_one_line(clips, tmp_path, monkeypatch):
    write_rows(clips / "bare.jsonl", [{"id": "bare"}])

    def full(self, key, value):
        raise UserError("cannot write it: No space left on device")

    monkeypatch.setattr(Journal, "add", full)
    for name in ("bare.jsonl", "clips.jsonl"):
        with Misbehaving() as server, pytest.raises(UserError, match="stopped: .* No space left"):
            run("caption", clips / name, tmp_path / f"out_{name}", server, tmp_path)


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
