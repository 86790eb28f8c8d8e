"""The committed mini corpus: the table is complete and true to the audio files."""

from __future__ import annotations

import csv
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

MINI = Path(__file__).parent.parent / "data" / "mini"
COLUMNS = "id kind label text voice split synthetic seconds source title author licence".split()
LICENCES = {"CC0-1.0", "CC-BY-3.0", "CC-BY-SA-3.0", "MIT-Festival", "Apache-2.0"}
DIGITS = set("zero one two three four five six seven eight nine".split())
LETTERS = set("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
SPEECH = {"digit", "letter", "phrase"}


@pytest.fixture(scope="module")
def rows() -> list[dict[str, str]]:
    with open(MINI / "clips.tsv", newline="", encoding="utf-8") as f:
        return list(csv.DictReader(f, delimiter="\t", quoting=csv.QUOTE_NONE))


@pytest.fixture(scope="module")
def audio(rows) -> dict[str, np.ndarray]:
    decoded = {}
    for row in rows:
        wav, rate = sf.read(MINI / "audio" / f"{row['id']}.ogg", dtype="float32", always_2d=True)
        assert (rate, wav.shape[1]) == (16000, 1), row["id"]
        decoded[row["id"]] = wav[:, 0]
    return decoded


def test_table_is_sorted_unique_and_has_the_columns(rows):
    ids = [r["id"] for r in rows]
    assert list(rows[0]) == COLUMNS
    assert ids == sorted(set(ids))
    assert all(None not in r and None not in r.values() for r in rows)


def test_every_file_is_listed_and_every_listed_file_exists(rows):
    files = {p.name for p in (MINI / "audio").iterdir()}
    assert files == {f"{r['id']}.ogg" for r in rows}


def test_lengths_are_those_of_the_decoded_audio(rows, audio):
    for row in rows:
        assert row["seconds"] == f"{len(audio[row['id']]) / 16000:.3f}", row["id"]


def test_no_clip_is_silent_or_clipped(audio):
    for clip_id, wav in audio.items():
        assert np.isfinite(wav).all(), clip_id
        assert 0.05 < np.abs(wav).max() < 0.999, clip_id
        assert np.sqrt(np.mean(wav**2)) > 0.003, clip_id


def test_sound_fills_speech_clips_and_their_levels_agree(rows, audio):
    """Silence at the ends is short, and active levels lie within a few dB of each other."""
    for row in rows:
        if row["kind"] not in SPEECH:
            continue
        wav = audio[row["id"]]
        power = np.mean(wav[: len(wav) // 160 * 160].reshape(-1, 160) ** 2, axis=1)
        level = 10 * np.log10(power[power > power.max() * 1e-3].mean())
        assert -27.0 < level < -21.0, (row["id"], level)
        loud = np.flatnonzero(power > power.max() * 1e-4)
        assert loud[0] <= 25 and len(power) - loud[-1] <= 30, row["id"]


def test_fields_follow_the_kind(rows):
    for row in rows:
        assert row["split"] in {"train", "test"} and row["synthetic"] in {"0", "1"}, row
        if row["kind"] in SPEECH:
            assert row["voice"] and row["text"] and row["label"] == row["text"], row
        else:
            assert row["kind"] in {"sound", "music"}, row
            assert row["label"] and not row["text"] and not row["voice"], row
    for row in rows:
        if row["kind"] == "phrase":
            assert set(row["text"]) <= set("abcdefghijklmnopqrstuvwxyz' "), row["text"]
            assert len(row["text"].split()) <= 8


def test_every_clip_is_attributed_under_a_free_licence(rows):
    for row in rows:
        assert all(row[c] for c in ("source", "title", "author", "licence")), row["id"]
        assert row["licence"] in LICENCES, row["id"]
    notice = (MINI / "LICENSES.md").read_text(encoding="utf-8")
    for package in {r["source"].split(":")[0] for r in rows}:
        assert package in notice
    for licence in {r["licence"] for r in rows}:
        assert licence in notice


def test_size_and_seconds(rows):
    real = sum(float(r["seconds"]) for r in rows if r["synthetic"] == "0")
    size = sum(p.stat().st_size for p in MINI.rglob("*") if p.is_file())
    assert real >= 600
    assert size <= 6_000_000


def test_each_voice_says_all_digits_and_letters(rows):
    said = defaultdict(lambda: defaultdict(set))
    for row in rows:
        said[row["voice"]][row["kind"]].add(row["text"])
    said.pop("")
    assert len(said) >= 5
    for voice, kinds in said.items():
        assert kinds["digit"] == DIGITS, voice
        assert kinds["letter"] == LETTERS, voice
        assert len(kinds["phrase"]) >= 20, voice
        assert kinds["phrase"] <= said["allison"]["phrase"], voice


def test_held_out_voice_and_takes(rows):
    splits, takes = defaultdict(set), defaultdict(set)
    for row in rows:
        if row["voice"]:
            splits[row["voice"]].add(row["split"])
        elif row["kind"] == "sound":
            takes[row["label"], row["split"]].add(row["id"])
    assert {"test"} in splits.values()
    assert all(len(s) == 1 for s in splits.values())
    held_out = [label for label, split in takes if split == "test"]
    assert len(held_out) >= 10
    assert all(takes.get((label, "train")) for label in held_out)
    assert len({label for label, _ in takes}) >= 30
