"""Scenes: determinism, what is held out, true captions, and audio that holds what the plan says."""

import dataclasses
import os
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import soundfile

from bagpiper_jax.errors import UserError
from bagpiper_jax.input_pipeline.scenes import (
    Corpus,
    captions,
    parse_caption,
    plan_scene,
    render_scene,
    splits,
    train_captions,
    truth,
)
from bagpiper_jax.input_pipeline.scenes.corpus import COLUMNS, SAMPLE_RATE
from bagpiper_jax.input_pipeline.scenes.scene import MAX_SAMPLES, SPELLED

ROOT = Path(__file__).parents[1]
COUNTS = {"train": 2000, "dev": 500, "test_a": 500, "test_b": 300}
DIGITS = captions.NUMBERS[:10]


@pytest.fixture(scope="module")
def corpus():
    return Corpus.load(ROOT / "data" / "mini")


@pytest.fixture(scope="module")
def plans(corpus):
    return {
        split: [plan_scene(corpus, 7, i, split, "mixed") for i in range(count)]
        for split, count in COUNTS.items()
    }


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A corpus of tones and noise with the table of the real one."""
    directory = tmp_path_factory.mktemp("tiny")
    (directory / "audio").mkdir()
    rng = np.random.default_rng(0)
    rows = []

    def add(kind, label, text, voice, split, seconds):
        name = f"c{len(rows):03}"
        time = np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
        wav = 0.2 * np.sin(2 * np.pi * (200 + 10 * len(rows)) * time)
        wav += 0.02 * rng.standard_normal(len(time))
        soundfile.write(
            directory / "audio" / f"{name}.ogg",
            wav.astype(np.float32),
            SAMPLE_RATE,
            format="OGG",
            subtype="OPUS",
        )
        rows.append(
            [
                name,
                kind,
                label or text,
                text,
                voice,
                split,
                "0",
                f"{seconds:.3f}",
                "",
                "",
                "",
                "CC0-1.0",
            ]
        )

    for voice, split in (("allison", "train"), ("slt", "train"), ("awb", "test")):
        for token in DIGITS:
            add("digit", "", token, voice, split, 0.3)
        for token in "ABCDE":
            add("letter", "", token, voice, split, 0.25)
        add("phrase", "", "good morning", voice, split, 0.6)
    for label in ("a gong", "rain", "a large dog"):
        add("sound", label, "", "", "train", 0.5)
        add("sound", label, "", "", "test", 0.5)
    add("music", "slow organ music", "", "", "train", 1.0)
    write_table(directory, rows)
    return directory


def write_table(directory, rows, columns=COLUMNS):
    lines = ["\t".join(row) for row in [list(columns), *rows]]
    (directory / "clips.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def read_rows(directory):
    lines = (directory / "clips.tsv").read_text(encoding="utf-8").splitlines()
    return [line.split("\t") for line in lines[1:]]


def strings(scenes):
    return {e.text for scene in scenes for e in scene.events if e.kind in SPELLED}


def combinations(scenes):
    return {
        frozenset(e.label or e.kind for e in scene.events)
        for scene in scenes
        if len(scene.events) > 1
    }


def clip_ids(scenes):
    ids = {clip for scene in scenes for event in scene.events for clip in event.clips}
    return ids | {scene.bed.clip for scene in scenes if scene.bed}


def test_same_in_any_order_and_in_another_process(tiny):
    corpus = Corpus.load(tiny)
    keys = [(split, i) for split in splits.SPLITS for i in (0, 1, 5, 12)]
    scenes = {key: plan_scene(corpus, 3, key[1], key[0]) for key in reversed(keys)}
    assert [plan_scene(corpus, 3, i, split) for split, i in keys] == [scenes[k] for k in keys]
    assert len({scene.key for scene in scenes.values()}) == len(keys)
    code = (
        "import sys, zlib\n"
        "from bagpiper_jax.input_pipeline.scenes import Corpus, plan_scene, render_scene\n"
        "c = Corpus.load(sys.argv[1])\n"
        f"for split, i in {keys}:\n"
        "    s = plan_scene(c, 3, i, split)\n"
        "    print(s.caption, zlib.crc32(render_scene(c, s).tobytes()))\n"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "99"}
    output = subprocess.run(
        [sys.executable, "-c", code, str(tiny)],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
        env=environment,
    ).stdout
    expected = [
        f"{scenes[k].caption} {zlib.crc32(render_scene(corpus, scenes[k]).tobytes())}" for k in keys
    ]
    assert output.splitlines() == expected


def test_seed_index_split_and_profile_each_change_the_scene(tiny):
    corpus = Corpus.load(tiny)
    base = plan_scene(corpus, 0, 1, "train", "scene")
    for other in (
        (1, 1, "train", "scene"),
        (0, 3, "train", "scene"),
        (0, 1, "dev", "scene"),
        (0, 1, "train", "spelling"),
    ):
        assert plan_scene(corpus, *other).caption != base.caption


def test_nothing_held_out_is_trained_on(corpus, plans):
    train = plans["train"]
    held_out_clips = {c.id for c in corpus.clips.values() if c.split == "test"}
    for split in ("dev", "test_a", "test_b"):
        assert not strings(train) & strings(plans[split])
    for split in ("dev", "test_a"):
        assert not {s.template for s in train} & {s.template for s in plans[split]}
        assert not clip_ids(plans[split]) & held_out_clips
    assert not strings(plans["dev"]) & strings(plans["test_a"])
    assert not clip_ids(train) & held_out_clips
    assert clip_ids(plans["test_b"]) <= held_out_clips
    assert {splits.string_home(text) for text in strings(train)} == {"train"}
    assert {splits.combination_home(names) for names in combinations(train)} == {"train"}


@pytest.mark.parametrize("split", ["dev", "test_a"])
def test_every_evaluation_scene_holds_something_held_out(plans, split):
    by_combination = 0
    for scene in plans[split]:
        spelled = [e.text for e in scene.events if e.kind in SPELLED]
        home = splits.combination_home([e.label or e.kind for e in scene.events])
        assert {splits.string_home(text) for text in spelled} <= {split}
        assert home in ({"train", split} if spelled else {split})
        by_combination += home == split
    assert by_combination > len(plans[split]) // 50


def test_held_out_shares():
    homes = [splits.string_home(f"{a} {b} {c}") for a in DIGITS for b in DIGITS for c in DIGITS]
    assert 50 < homes.count("dev") + homes.count("test_a") < 120
    assert min(homes.count("dev"), homes.count("test_a")) > 20
    assert splits.combination_home(["a", "b"]) == splits.combination_home(["b", "a"])
    assert splits.combination_home(["a"]) == "train"


def test_captions_are_read_back_exactly(corpus, plans):
    with_length = 0
    for scene in plans["train"] + plans["dev"] + plans["test_a"] + plans["test_b"]:
        parsed = parse_caption(scene.caption, corpus.event_labels)
        if parsed.seconds is not None:
            with_length += 1
            assert abs(parsed.seconds - scene.seconds) <= 0.25
        assert dataclasses.replace(parsed, seconds=None) == truth(scene), scene.caption
        assert 12 <= len(scene.caption.split()) <= 52, scene.caption
        assert scene.caption[0].isupper() or scene.caption[0] == '"'
        assert scene.caption.endswith(".") and "{" not in scene.caption
    assert 0.42 < with_length / sum(COUNTS.values()) < 0.58


def test_parse_takes_the_longest_label_and_leaves_quotes_alone():
    text = 'A woman says "a bell and a crash" while a cymbal crash can be heard, then A Bell rings.'
    parsed = parse_caption(text, ["a crash", "a cymbal crash", "a bell", "a bell tower"])
    assert parsed.quotes == ["a bell and a crash"]
    assert parsed.events == {"speech:a woman", "a cymbal crash", "a bell"}
    assert parsed.speech == [("a woman", "a bell and a crash")]


def test_parse_of_broken_text():
    parsed = parse_caption('A woman says "two a woman says about many seconds', ["a bell"])
    assert (parsed.quotes, parsed.speech, parsed.seconds) == ([], [], None)
    assert parse_caption("", []).events == set()


@pytest.mark.parametrize(
    "seconds, words",
    [
        (0.3, "half a second"),
        (1.2, "one second"),
        (1.3, "one and a half seconds"),
        (2.75, "three seconds"),
        (7.99, "eight seconds"),
    ],
)
def test_seconds_in_words(seconds, words):
    assert captions.seconds_in_words(seconds) == words
    parsed = parse_caption(f"It lasts about {words}.", [])
    assert abs(parsed.seconds - seconds) <= 0.25


def test_timing(plans):
    overlaps = 0
    for scenes in plans.values():
        for scene in scenes:
            assert scene.num_samples % 320 == 0 and scene.num_samples <= MAX_SAMPLES
            assert sum(scene.groups) == len(scene.events) <= 3
            onsets = [e.onset for e in scene.events]
            assert onsets == sorted(onsets) and onsets[0] >= 0.05 * SAMPLE_RATE
            for i, event in enumerate(scene.events):
                assert event.parts[0].onset == event.onset
                assert event.parts[-1].onset + event.parts[-1].length == event.offset
                assert event.offset <= scene.num_samples
                for before in scene.events[:i]:
                    if before.offset > event.onset:
                        overlaps += 1
                        assert not (before.voice and event.voice)
                        assert event.offset <= before.offset
                    else:
                        assert event.onset - before.offset >= 0.1 * SAMPLE_RATE
                for one, two in zip(event.parts, event.parts[1:]):
                    gap = two.onset - one.onset - one.length
                    assert 0.02 * SAMPLE_RATE <= gap + 1 and gap <= 0.12 * SAMPLE_RATE
    assert overlaps > 100


def test_profiles(corpus, plans):
    spelling, world = plans["train"][::2], plans["train"][1::2]
    crowded = [plan_scene(corpus, 7, i, "train", "crowded") for i in range(300)]
    for scene in spelling:
        assert [e.kind in SPELLED for e in scene.events] == [True]
        assert (scene.bed, scene.room, scene.noise) == (None, "none", "clean")
        assert scene.seconds < 5
    total = len(world)
    assert 0.25 < sum(s.bed is not None for s in world) / total < 0.35
    assert 0.65 < sum(s.room == "none" for s in world) / total < 0.75
    assert 0.55 < sum(s.noise == "clean" for s in world) / total < 0.65
    assert {len(s.events) for s in world} == {1, 2, 3}
    together = lambda scenes: sum(2 in s.groups for s in scenes) / len(scenes)  # noqa: E731
    assert together(spelling) == 0 and 0.1 < together(world) < 0.3 and together(crowded) > 0.6
    voices = [e.voice for s in plans["train"] for e in s.events if e.voice]
    assert 0.35 < voices.count("allison") / len(voices) < 0.45
    assert set(voices) == set(corpus.voices["train"])
    assert {e.label for s in world for e in s.events if e.label} == set(
        corpus.labels["train", "sound"]
    )


def test_terse_profile_says_the_words_and_nothing_else(corpus):
    scenes = [plan_scene(corpus, 7, i, "train", "words") for i in range(300)]
    for scene in scenes:
        (event,) = scene.events
        assert scene.caption == f'"{event.text}"'
        assert splits.string_home(event.text) == "train"
        assert parse_caption(scene.caption, corpus.event_labels).quotes == [event.text]
    assert {len(s.events[0].text.split()) for s in scenes} == {1, 2, 3}
    assert {s.events[0].kind for s in scenes} == {"digits", "letters"}
    assert {s.events[0].voice for s in scenes} == set(corpus.voices["train"])


def test_list_profile_names_what_is_heard_in_order(corpus):
    scenes = [plan_scene(corpus, 7, i, "train", "list") for i in range(300)]
    for scene in scenes:
        names = [e.label or f'"{e.text}"' for e in scene.events]
        assert scene.caption == ", ".join(names + ([scene.bed.label] if scene.bed else []))
        found = parse_caption(scene.caption, corpus.event_labels)
        assert found.quotes == [e.text for e in scene.events if e.voice]
        assert all(splits.string_home(e.text) == "train" for e in scene.events if e.kind in SPELLED)
    kinds = {e.kind for s in scenes for e in s.events}
    assert kinds == {*SPELLED, "phrase", "sound"}
    assert {len(s.events) for s in scenes} == {1, 2}
    assert {s.room for s in scenes} == set(captions.ROOMS)
    assert {s.noise for s in scenes} == set(captions.NOISES)
    assert any(s.bed for s in scenes) and not all(s.bed for s in scenes)


def test_audio_is_what_the_plan_says(corpus, plans):
    def level(wav):
        return float(np.sqrt(np.mean(np.square(wav)))) if len(wav) else 0.0

    for scene in plans["train"][:40] + plans["test_a"][:20] + plans["test_b"][:20]:
        wav = render_scene(corpus, scene)
        assert wav.dtype == np.float32 and wav.shape == (scene.num_samples,)
        assert np.abs(wav).max() <= 1 and np.array_equal(wav, render_scene(corpus, scene))
        floor = 10 ** (scene.noise_db / 20)
        for event in scene.events:
            frames = wav[event.onset : event.offset]
            frames = frames[: len(frames) // 160 * 160].reshape(-1, 160)
            assert max(map(level, frames)) > 2 * floor, scene.caption
        if scene.bed is None:
            silence = wav[: scene.events[0].onset]
            assert 0.8 * floor < level(silence) < 1.25 * floor


def test_room_bed_and_soft_limit(corpus, plans):
    scene = next(s for s in plans["train"] if s.events[0].kind == "digits" and s.room == "none")
    dry = render_scene(corpus, scene)
    hall = render_scene(corpus, dataclasses.replace(scene, room="large hall"))
    tail = slice(scene.events[-1].offset, None)
    assert np.square(hall[tail]).sum() > 10 * np.square(dry[tail]).sum()
    loud = [dataclasses.replace(e, gain_db=30.0) for e in scene.events]
    limited = render_scene(corpus, dataclasses.replace(scene, events=tuple(loud)))
    assert 0.9 < np.abs(limited).max() <= 1
    bed = next(s.bed for s in plans["train"] if s.bed)
    music = render_scene(corpus, dataclasses.replace(scene, bed=bed)) - dry
    assert 0.003 < np.sqrt(np.mean(music**2)) < 0.05


def test_small_corpora_fall_back(tiny):
    """Three labels leave few held-out combinations; every split still gets its scenes."""
    corpus = Corpus.load(tiny)
    for split in splits.SPLITS:
        scenes = [plan_scene(corpus, 0, i, split, "scene") for i in range(200)]
        assert all(s.events and s.num_samples <= MAX_SAMPLES for s in scenes)
        assert all(
            truth(s)
            == dataclasses.replace(parse_caption(s.caption, corpus.event_labels), seconds=None)
            for s in scenes
        )


def test_train_captions(tiny):
    corpus = Corpus.load(tiny)
    texts = train_captions(corpus, 1, 20)
    assert texts == [plan_scene(corpus, 1, i).caption for i in range(20)]
    assert len(set(texts)) == 20


def test_levels_and_trimming(tiny):
    corpus = Corpus.load(tiny)
    for id, wav in corpus.audio.items():
        assert wav.dtype == np.int16 and np.abs(wav).max() <= 0.5 * 32768
        assert len(wav) == corpus.clips[id].num_samples


@pytest.mark.parametrize(
    "mend, words",
    [
        ("directory", "no corpus at"),
        ("column", "lacks the column(s) voice"),
        ("file", "c003.ogg is missing"),
        ("kind", "kind 'noise'"),
        ("audio", "cannot be decoded"),
        ("sounds", "no sound with split train"),
        ("voices", "no voice with 5 digits or letters"),
    ],
)
def test_bad_corpora_are_told_in_one_line(tiny, tmp_path, mend, words):
    rows = read_rows(tiny)
    (tmp_path / "audio").mkdir()
    for row in rows:
        os.link(tiny / "audio" / f"{row[0]}.ogg", tmp_path / "audio" / f"{row[0]}.ogg")
    columns = list(COLUMNS)
    audio = tmp_path / "audio" / "c003.ogg"
    if mend == "column":
        rows, columns = [row[:4] + row[5:] for row in rows], columns[:4] + columns[5:]
    elif mend == "file":
        audio.unlink()
    elif mend == "audio":
        audio.unlink()
        audio.write_bytes(b"not audio")
    elif mend == "kind":
        rows[0][1] = "noise"
    elif mend == "sounds":
        rows = [row for row in rows if row[1] != "sound"]
    elif mend == "voices":
        rows = [row for row in rows if row[1] not in ("digit", "letter")]
    if mend != "directory":
        write_table(tmp_path, rows, columns)
    with pytest.raises(UserError) as error:
        Corpus.load(tmp_path)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_bad_requests(tiny, tmp_path):
    corpus = Corpus.load(tiny)
    with pytest.raises(UserError, match="unknown split 'valid'"):
        plan_scene(corpus, 0, 0, "valid")
    with pytest.raises(UserError, match="unknown profile 'speech'"):
        plan_scene(corpus, 0, 0, "train", "speech")
    known = [clip for clip in corpus.clips.values() if clip.split == "train"]
    seen = Corpus(known, corpus.audio)
    with pytest.raises(UserError, match="no voice of split test"):
        plan_scene(seen, 0, 0, "test_b")
