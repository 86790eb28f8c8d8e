"""Filters of manifests: what each removes and keeps, the report, and counts that add up."""

import argparse
import json
import os
import pathlib

import numpy as np
import pytest
import soundfile

from bagpiper_jax.errors import UserError
from bagpiper_jax.json_lines import write_rows
from bagpiper_jax.preparation.filters import commands, sound, text
from bagpiper_jax.preparation.filters import run as work
from bagpiper_jax.preparation.filters.rows import Verdict, caption_of, read_clip

MINI = pathlib.Path(__file__).parents[1] / "data" / "mini" / "audio"
PROSE = (
    "The recording opens with a woman who greets her guest in a small room; her voice is low and "
    "warm, a clock ticks behind her, and at the end a heavy wooden door falls shut nearby."
)
GERMAN = (
    "Die Aufnahme beginnt mit einer Frau, die ihren Gast in einem kleinen Zimmer begrüßt; ihre "
    "Stimme ist tief und warm, und am Ende fällt eine schwere Tür ins Schloss."
)


def noise(path, seconds, rate=16_000, level=0.1):
    rng = np.random.default_rng(0)
    soundfile.write(path, level * rng.standard_normal(int(seconds * rate)), rate)


def verdicts(function, rows, directory=".", **options):
    found = list(function(iter(rows), str(directory), **options))
    assert len(found) == len(rows)
    return found


def captions(*texts):
    return [{"id": str(i), "caption": text} for i, text in enumerate(texts)]


def test_the_caption_of_a_dialogue_has_no_thoughts():
    messages = [
        ["user", "text", "Make it."],
        ["assistant", "text", "<think>\nLet me see.\n</think>\n\nA bell rings."],
        ["assistant", "audio", "a.wav"],
    ]
    assert caption_of({"messages": messages}) == "A bell rings."
    assert caption_of({"messages": [["assistant", "text", "A. <think>cut off"]]}) == "A."
    assert caption_of({"caption": "B."}) == "B." and caption_of({"id": "c"}) == ""


def test_duration(tmp_path):
    for name, seconds in (("short", 0.2), ("right", 2.0), ("long", 31.0)):
        noise(tmp_path / f"{name}.wav", seconds, 8_000)
    (tmp_path / "broken.wav").write_bytes(b"RIFF and nothing")
    names = ("short", "right", "long", "broken", "missing")
    rows = [{"id": n, "audio": f"{n}.wav", "seconds": 2.0} for n in names] + [{"id": "bare"}]
    found = verdicts(sound.duration, rows, tmp_path)
    assert [v.keep for v in found] == [False, True, False, False, False, False]
    assert [v.value for v in found[:3]] == [0.2, 2.0, 31.0]
    assert found[0].reason == "lasts 0.2 s, not 0.5 to 30.5 s"
    assert found[3].reason == found[4].reason == "cannot be read as audio"
    assert found[5].reason == "the row names no audio"
    assert verdicts(sound.duration, rows[:1], tmp_path, min_seconds=0.1)[0].keep


def test_recordings_that_no_header_tells_of_and_those_of_dialogues(tmp_path):
    noise(tmp_path / "a.wav", 2.0)
    data = bytearray((tmp_path / "a.wav").read_bytes())
    data[24:28] = bytes(4)
    (tmp_path / "0_hz.wav").write_bytes(data)
    (tmp_path / "a.raw").write_bytes(bytes(range(256)))
    os.mkfifo(tmp_path / "pipe.wav")
    rows = [{"id": n, "audio": n} for n in ("0_hz.wav", "a.raw", "pipe.wav")]
    turns = [["user", "text", "Noise."], ["assistant", "audio", "a.wav"]]
    rows.append({"id": "dialogue", "messages": turns})
    for messages in (5, "audio", [["assistant", "text"], 5]):  # a stranger's row
        assert caption_of({"messages": messages}) == ""
        with pytest.raises(UserError, match="names no audio"):
            read_clip({"messages": messages}, str(tmp_path))
    found = verdicts(sound.duration, rows, tmp_path)
    assert [v.reason for v in found] == ["cannot be read as audio"] * 3 + [""]
    assert found[3] == (True, 2.0, "")
    for row in rows[:3]:
        with pytest.raises(UserError):
            read_clip(row, str(tmp_path))
    assert len(read_clip(rows[3], str(tmp_path))) == 32_000


def test_language():
    found = verdicts(text.language, captions(PROSE, GERMAN, " "))
    assert [v.keep for v in found] == [True, False, False]
    assert [v.value for v in found] == ["en", "de", None]
    assert "written in de" in found[1].reason and found[2].reason == "no caption"
    assert verdicts(text.language, captions(GERMAN), allowed=("en", "de"))[0].keep
    assert not verdicts(text.language, captions(PROSE), min_probability=1.1)[0].keep


@pytest.mark.parametrize(
    ("caption", "keep"),
    [
        (PROSE, True),
        (PROSE + " the bell rings" * 3, True),
        (PROSE + " the bell rings" * 6, False),
        (PROSE + " ha" * 6, False),
        (PROSE + "\n" + PROSE, False),
        ("no, no, no, no", True),
        ("", True),
    ],
)
def test_repetition(caption, keep):
    assert verdicts(text.repetition, captions(caption))[0].keep == keep


def test_measures_of_repetition():
    words = "a b c d e f g h i j".split()
    assert text.repeated_share(words * 2) == 0.5
    assert text.repeated_share([*words, "x"]) == 0 and text.repeated_share([]) == 0
    assert text.longest_loop("x y x y x y z".split()) == 3
    assert text.longest_loop(["x"] * 5) == 5
    assert (text.longest_loop(["x"]), text.longest_loop([])) == (1, 0)


def test_near_duplicates_keep_the_first():
    rng = np.random.default_rng(0)
    words = [f"w{i}" for i in range(400)]
    base = " ".join(rng.choice(words, 200))
    touched = base.split()
    touched[100] = "other"
    half = " ".join([*base.split()[:100], *rng.choice(words, 100)])
    rows = captions(base, half, " ".join(touched), base.upper() + "!", "short one", "short one")
    found = verdicts(text.near_duplicates, [*rows, *captions("", "")])
    assert [(v.keep, v.reason) for v in found[6:]] == [(True, "no caption")] * 2
    found = found[:6]
    assert [v.keep for v in found] == [True, True, False, False, True, False]
    assert found[2].reason == "nearly the caption of 0" and found[3].value == 1.0
    # the estimate is near the truth: 5 of about 200 shingles differ on each side
    assert found[2].value == pytest.approx(191 / 201, abs=0.1)
    assert verdicts(text.near_duplicates, rows, threshold=0.99)[2].keep


class Ears:
    """Stands for Whisper: hears what the level of a clip says."""

    def __init__(self, texts):
        self.texts, self.made = texts, 0

    def __call__(self, max_new_tokens):
        assert max_new_tokens >= 200
        self.made += 1
        return self

    def transcribe_all(self, wavs):
        for wav in wavs:
            yield self.texts[round(float(np.abs(wav).max()) * 10)]


@pytest.mark.parametrize("batch", (1, 2, 32))
def test_agreement_of_caption_and_speech(batch, tmp_path, monkeypatch):
    texts = {
        1: "Turn off the fan, quickly!",
        2: "something else entirely is heard here",
        3: "and then he said turn off the fan quickly and left",
    }
    ears = Ears(texts)
    monkeypatch.setattr(sound, "Whisper", ears)
    monkeypatch.setattr(sound, "BATCH", batch)
    for level in texts:
        wav = np.zeros(16_000)
        wav[100] = level / 10
        soundfile.write(tmp_path / f"{level}.wav", wav, 16_000)
    (tmp_path / "broken.wav").write_bytes(b"none")
    caption = 'A man shouts "Turn off the fan, quickly!"'
    rows = [
        {"id": "same", "audio": "1.wav", "caption": caption},
        {"id": "other", "audio": "2.wav", "caption": caption, "domain": "speech"},
        {"id": "part", "audio": "3.wav", "caption": caption},
        {"id": "music", "audio": "2.wav", "caption": caption, "domain": "music"},
        {"id": "german", "audio": "2.wav", "caption": caption, "language": "de-AT"},
        {"id": "silent", "audio": "2.wav", "caption": "Rain falls."},
        {"id": "broken", "audio": "broken.wav", "caption": caption},
        {"id": "last", "audio": "1.wav", "caption": caption},
    ]
    found = dict(zip((r["id"] for r in rows), verdicts(sound.transcript_agreement, rows, tmp_path)))
    assert {name for name, v in found.items() if not v.keep} == {"other", "broken"}
    assert [found[n].value for n in ("same", "part", "last")] == [0, 0, 0]
    assert found["other"].value >= 1 and "word error rate" in found["other"].reason
    assert [found[n].reason for n in ("music", "german", "silent")] == [
        "another domain",
        "another language",
        "little or no speech is quoted",
    ]
    assert "cannot be read" in found["broken"].reason
    assert ears.made == 1


def test_what_was_left_out_of_a_caption_is_no_error_but_what_is_wrong_is():
    said = "one two three four five six seven eight".split()
    assert sound.agreement(said[2:6], said) == 0
    assert sound.agreement("three four nine six".split(), said) == 0.25
    assert sound.agreement(said, said[:4]) == 0.5
    assert sound.agreement(said, []) == 1
    assert sound.agreement(["ten"], said) >= 1


def test_dnsmos_tells_speech_from_speech_in_noise(tmp_path):
    wav, rate = soundfile.read(MINI / "allison-digit-eight.ogg")
    soundfile.write(tmp_path / "clean.wav", wav, rate)
    loud = np.random.default_rng(0).standard_normal(len(wav)) * np.std(wav)
    soundfile.write(tmp_path / "noisy.wav", np.clip(wav + loud, -1, 1), rate)
    rows = [{"id": n, "audio": f"{n}.wav"} for n in ("clean", "noisy", "missing")]
    rows.append({"id": "music", "audio": "noisy.wav", "domain": "music"})
    clean, noisy, missing, music = verdicts(sound.dnsmos, rows, tmp_path, min_overall=2.0)
    assert clean.keep and not noisy.keep and clean.value > noisy.value + 0.5
    assert "below 2" in noisy.reason and "cannot be read" in missing.reason
    assert music == (True, None, "another domain")


@pytest.mark.slow
def test_whisper_agrees_with_a_true_caption(tmp_path):
    names = ("eight", "five", "four", "nine")
    clips = [soundfile.read(MINI / f"allison-digit-{name}.ogg") for name in names]
    soundfile.write(tmp_path / "a.wav", np.concatenate([c for c, _ in clips]), clips[0][1])
    rows = [
        {"id": "true", "audio": "a.wav", "caption": 'She says "Eight five four nine."'},
        {"id": "false", "audio": "a.wav", "caption": 'She says "Please hold the line."'},
    ]
    true, false = verdicts(sound.transcript_agreement, rows, tmp_path)
    assert true.keep and true.value <= 0.25 and not false.keep


FIRST = ("duration", "repetition")


@pytest.fixture
def manifest(tmp_path):
    folder = tmp_path / "clips"
    folder.mkdir()
    noise(folder / "a.wav", 1.0)
    noise(folder / "b.wav", 0.1)
    rows = [
        {"id": "good", "audio": "a.wav", "caption": PROSE, "extra": {"kept": [1]}},
        {"id": "short", "audio": "b.wav", "caption": PROSE},
        {"id": "loop", "audio": "a.wav", "caption": PROSE + " and on" * 9},
        {"id": "short loop", "audio": "b.wav", "caption": "and on " * 9},
    ]
    write_rows(folder / "in.jsonl", rows)
    with open(folder / "in.jsonl", "a") as file:
        file.write('{"id": "cut\n{"id": "good", "audio": "a.wav"}\n')
    return folder / "in.jsonl"


def test_the_report_adds_up_and_says_what_each_removed(manifest, tmp_path):
    target = tmp_path / "out" / "kept.jsonl"
    filters = [(name, work.thresholds(name)) for name in FIRST]
    report = work.run_filters(str(manifest), str(target), filters, progress=False)
    assert (report["in"], report["out"], report["removed"], report["unreadable"]) == (6, 1, 3, 2)
    length, loops = report["filters"]
    assert (length["filter"], length["in"], length["out"], length["removed"]) == (FIRST[0], 4, 2, 2)
    assert (loops["in"], loops["out"], loops["removed"]) == (2, 1, 1)
    assert length["measured"] == {"least": 0.1, "median": 0.55, "most": 1.0}
    assert [e["id"] for e in length["examples"]] == ["short", "short loop"]
    assert loops["thresholds"] == {"max_share": 0.3, "max_loop": 4}
    assert json.loads((tmp_path / "out" / "kept.report.json").read_text()) == report

    [row] = [json.loads(line) for line in target.read_text().splitlines()]
    assert row["id"] == "good" and row["extra"] == {"kept": [1]}
    assert row["filters"] == {"duration": 1.0, "repetition": 0.0}
    assert os.path.samefile(target.parent / row["audio"], manifest.parent / "a.wav")
    lines = (tmp_path / "out" / "kept.removed.jsonl").read_text().splitlines()
    removed = {r["id"]: r for r in map(json.loads, lines)}
    assert {name: r["filter"] for name, r in removed.items()} == {
        "short": "duration",
        "short loop": "duration",
        "loop": "repetition",
        "line 5": "unreadable",
        "line 6": "unreadable",
    }
    assert removed["loop"]["reason"] == "the same words 9 times in a row"
    assert removed["loop"]["row"]["caption"].startswith(PROSE)
    shown = work.table(report)
    assert "6 in = 1 out + 3 removed + 2 unreadable" in shown and "loop: the same words" in shown


def test_the_order_of_the_config_is_the_order_of_the_filters(manifest, tmp_path):
    filters = [(name, work.thresholds(name)) for name in reversed(FIRST)]
    report = work.run_filters(str(manifest), str(tmp_path / "o.jsonl"), filters, progress=False)
    assert [(f["filter"], f["in"], f["removed"]) for f in report["filters"]] == [
        ("repetition", 4, 2),
        ("duration", 2, 1),
    ]


def command(*argv, rest=()):
    parser = argparse.ArgumentParser()
    commands.add_filter_parser(parser.add_subparsers())
    args = parser.parse_args(["filter", "--quiet", *argv])
    args.rest = rest
    commands.run(args)


CONFIG = """
from bagpiper_jax.preparation.filters.run import default_config

def get_config():
    c = default_config()
    c.filters = ("duration", "repetition")
    return c
"""


def test_the_command_with_a_config_and_an_override(manifest, tmp_path, capsys):
    config = tmp_path / "config.py"
    config.write_text(CONFIG)
    target = tmp_path / "out.jsonl"
    argv = ("--in", str(manifest), "--out", str(target), "--config", str(config))
    command(*argv, rest=("--config.duration.min_seconds=0.05",))
    assert "6 in = 2 out + 2 removed + 2 unreadable" in capsys.readouterr().out
    kept = [json.loads(line)["id"] for line in target.read_text().splitlines()]
    assert kept == ["good", "short"]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"filters": ("duration", "beauty")}, "no filters beauty"),
        ({"filters": "duration"}, "a tuple of names"),
        ({"beauty": {}}, "no filters beauty"),
    ],
)
def test_configs_that_name_what_does_not_exist(change, match):
    config = work.default_config().unlock()
    config.update(change) if "beauty" in change else setattr(config, "filters", None)
    if "filters" in change:
        with config.ignore_type():
            config.filters = change["filters"]
    with pytest.raises(UserError, match=match):
        work.filters_from(config)


def test_unknown_thresholds_are_refused():
    config = work.default_config().unlock()
    config.dnsmos.min_beauty = 1
    with pytest.raises(UserError, match="dnsmos must have no keys but .*min_overall"):
        work.filters_from(config)


def test_the_default_lists_all_filters():
    listed = work.filters_from(work.default_config())
    assert [name for name, _ in listed] == list(work.FILTERS)
    assert dict(listed)["transcript_agreement"]["max_wer"] == 0.5


def test_an_output_is_not_its_own_input(manifest):
    with pytest.raises(UserError, match="is the input"):
        work.run_filters(str(manifest), str(manifest), [])


def test_a_run_that_fails_leaves_nothing_half_done(manifest, tmp_path, monkeypatch):
    def broken(rows, directory):
        yield next(text.repetition(rows, directory))
        raise UserError("the disk is full")

    monkeypatch.setitem(work.FILTERS, "broken", broken)
    target = tmp_path / "out.jsonl"
    with pytest.raises(UserError, match="disk is full"):
        work.run_filters(str(manifest), str(target), [("broken", {})], progress=False)
    assert [p.name for p in tmp_path.iterdir()] == ["clips"]


def test_what_an_interrupted_run_has_found_is_not_looked_for_again(tmp_path, monkeypatch):
    """A slow filter that looks rows ahead, stopped in the middle; then one recording changes."""
    for i in range(6):
        noise(tmp_path / f"{i}.wav", 0.5)
    rows = [{"id": str(i), "audio": f"{i}.wav", "caption": PROSE} for i in range(6)]
    write_rows(tmp_path / "all.jsonl", rows)
    looked: list[str] = []

    def slow(rows, directory, *, limit=4):
        rows, stop = list(rows), len(looked) < 3
        for row in rows:
            if stop and len(looked) == 3:
                raise KeyboardInterrupt
            looked.append(row["id"])
            keep = int(row["id"]) < limit
            yield Verdict(keep, float(row["id"]), "" if keep else "too high")

    monkeypatch.setitem(work.FILTERS, "dnsmos", slow)
    told = str(tmp_path / "all.jsonl"), str(tmp_path / "good.jsonl"), [("dnsmos", {"limit": 4})]
    with pytest.raises(KeyboardInterrupt):
        work.run_filters(*told, progress=False)
    assert looked == ["0", "1", "2"] and not os.path.exists(told[1])
    noise(tmp_path / "1.wav", 0.6)
    report = work.run_filters(*told, progress=False)
    assert looked[3:] == ["1", "3", "4", "5"]
    assert (report["in"], report["out"], report["removed"]) == (6, 4, 2)
    with open(told[1], encoding="utf-8") as f:
        kept = [json.loads(line) for line in f]
    assert [(row["id"], row["filters"]["dnsmos"]) for row in kept] == [
        (str(i), float(i)) for i in range(4)
    ]
    assert not os.path.exists(told[1] + ".partial")
