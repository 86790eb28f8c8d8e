"""Manifests and folders."""

import gzip
import json
import os

import pytest
from source_files import by_id, read_all, write_audio

from bagpiper_jax.errors import UserError
from bagpiper_jax.preparation.item import Audio, Damaged, Item
from bagpiper_jax.preparation.sources import entries, folder, jsonl, open_source


@pytest.fixture
def manifest(tmp_path):
    """Writes lines beside two recordings and gives the source."""
    write_audio(tmp_path / "audio" / "a.flac", channels=2, rate=44_100)
    write_audio(tmp_path / "audio" / "b.wav")

    def write(*lines, name="set.jsonl", **options):
        text = [line if isinstance(line, str) else json.dumps(line) for line in lines]
        (tmp_path / name).write_text("\n".join(text) + "\n", encoding="utf-8")
        return open_source({"path": str(tmp_path / name), **options})

    return write


def test_captions_and_dialogues_of_the_published_form(manifest, tmp_path):
    source = manifest(
        {
            "id": "pre_und_speech_0",
            "audio": "audio/a.flac",
            "domain": "speech",
            "direction": "audio_to_text",
            "seconds": 5.33,
            "sample_rate": 44100,
            "channels": 2,
            "caption": "A man speaks.",
        },
        {
            "id": "post_gen_sound_0",
            "audio": "audio/b.wav",
            "domain": "sound",
            "messages": [
                ["user", "text", "Rain, please."],
                ["assistant", "text", "<think>\n…\n</think>\n\nRain."],
                ["assistant", "audio", "audio/b.wav"],
            ],
            "model_answer": "x" * 5000,
        },
    )
    pair, dialogue = read_all(source)
    assert pair == Item(
        id="pre_und_speech_0",
        audios=(Audio(path=os.path.realpath(tmp_path / "audio/a.flac")),),
        caption="A man speaks.",
        domain="speech",
        provenance={
            "source": "set",
            "file": "set.jsonl",
            "offset": 0,
            "fields": {
                "direction": "audio_to_text",
                "seconds": 5.33,
                "sample_rate": 44100,
                "channels": 2,
            },
        },
    )
    assert dialogue.caption == "" and dialogue.domain == "sound"
    assert [m[:2] for m in dialogue.messages] == [
        ("user", "text"),
        ("assistant", "text"),
        ("assistant", "audio"),
    ]
    assert dialogue.messages[2][2] == 0
    assert [os.path.basename(a.path) for a in dialogue.audios] == ["b.wav"]
    assert "fields" not in dialogue.provenance, "long text is not kept twice"


def test_a_recording_named_twice_is_held_once(manifest):
    turns = [
        {"role": "user", "modality": "audio", "content": "audio/a.flac"},
        {"role": "user", "modality": "audio", "content": "audio/b.wav"},
        {"role": "user", "modality": "audio", "content": "audio/a.flac"},
        {"role": "assistant", "modality": "text", "content": "The first is louder."},
    ]
    (item,) = read_all(manifest({"messages": turns}))
    assert [m[2] for m in item.messages[:3]] == [0, 1, 0] and len(item.audios) == 2


def test_spans_names_and_defaults(manifest):
    source = manifest(
        {"key": "k", "wav": "audio/b.wav", "sentence": "Hi.", "start": 0.05, "stop": 0.1},
        {"audio_filepath": "audio/b.wav", "text": "Ho.", "offset": 0.1, "duration": 0.05},
        {"audio": "audio/b.wav", "text": "Hu.", "duration": 0.2, "language": "pt-BR"},
        columns={"caption": "sentence"},
        domain="speech",
        language="en",
        licence="CC0-1.0",
    )
    first, second, third = read_all(source)
    assert (first.id, first.caption) == ("k", "Hi.")
    assert (first.audios[0].start, first.audios[0].stop) == (0.05, 0.1)
    assert second.id.startswith("set.jsonl@")
    assert second.audios[0].start == 0.1 and second.audios[0].stop == pytest.approx(0.15)
    assert (third.audios[0].start, third.audios[0].stop) == (0.0, None)
    assert [i.language for i in (first, second, third)] == ["en", "en", "pt-BR"]
    assert {i.domain for i in (first, second, third)} == {"speech"}
    assert first.licence == "CC0-1.0"


GOOD = {"audio": "audio/b.wav", "caption": "Fine."}
BAD = {
    '{"audio": "audio/b.wav"': "no JSON",
    "[1, 2]": "not a mapping",
    "[" * 100_000: "JSON",
    '{"caption": "no audio"}': "has no audio",
    json.dumps({**GOOD, "audio": "audio/none.wav"}): "No such file",
    json.dumps({**GOOD, "audio": "audio"}): "no regular file",
    json.dumps({**GOOD, "audio": "empty.wav"}): "is empty",
    json.dumps({**GOOD, "audio": "../outside.wav"}): "outside",
    json.dumps({**GOOD, "audio": "audio/../../outside.wav"}): "outside",
    json.dumps({**GOOD, "audio": "link.wav"}): "outside",
    json.dumps({**GOOD, "audio": "linked/outside.wav"}): "outside",
    json.dumps({**GOOD, "audio": "loop.wav"}): "cannot be read",
    json.dumps({**GOOD, "audio": "/etc/passwd"}): "absolute",
    json.dumps({**GOOD, "audio": "http://x/y.wav"}): "no path",
    json.dumps({**GOOD, "audio": "a\0.wav"}): "no path",
    json.dumps({**GOOD, "audio": "a" * 5000}): "cannot be read",
    json.dumps({**GOOD, "audio": 7}): "not by a path",
    json.dumps({**GOOD, "caption": ["x"]}): "not text",
    '{"audio": "audio/b.wav", "caption": "\\ud800"}': "Unicode",
    json.dumps({**GOOD, "id": 1.5}): "id",
    json.dumps({**GOOD, "id": "a\nb"}): "control",
    json.dumps({**GOOD, "domain": "noise"}): "none of",
    json.dumps({**GOOD, "language": "english please"}): "BCP 47",
    '{"audio": "audio/b.wav", "start": NaN}': "seconds",
    '{"audio": "audio/b.wav", "start": 1e999}': "seconds",
    json.dumps({**GOOD, "start": -1}): "seconds",
    json.dumps({**GOOD, "start": 10**400}): "seconds",
    json.dumps({**GOOD, "start": 2, "stop": 1}): "not after",
    json.dumps({**GOOD, "messages": []}): "messages",
    json.dumps({**GOOD, "messages": [["user", "text"]]}): "message 0",
    json.dumps({**GOOD, "messages": [["robot", "text", "x"]]}): "role",
    json.dumps({**GOOD, "messages": [["user", "image", "x"]]}): "modality",
    json.dumps({**GOOD, "messages": [["user", "text", 3]]}): "not text",
    json.dumps({**GOOD, "messages": [["user", "audio", "../outside.wav"]]}): "outside",
    json.dumps({**GOOD, "messages": [["user", "audio", 4]]}): "recording 4",
}


@pytest.fixture
def traps(tmp_path):
    """Paths that lead out of the manifest's folder."""
    inside = tmp_path / "inside"
    write_audio(inside / "audio" / "b.wav")
    outside = write_audio(tmp_path / "outside.wav")
    (inside / "empty.wav").touch()
    (inside / "link.wav").symlink_to(outside)
    (inside / "linked").symlink_to(tmp_path)
    (inside / "loop.wav").symlink_to("loop.wav")
    return inside


def test_each_kind_of_damage_is_told_and_its_neighbours_are_read(traps):
    lines = [line for bad in BAD for line in (json.dumps(GOOD), bad)]
    (traps / "set.jsonl").write_text("\n".join(lines), encoding="utf-8")
    found = read_all(open_source(str(traps / "set.jsonl")))
    assert len(found) == 2 * len(BAD) and len({entry.id for entry in found}) == len(found)
    assert all(isinstance(item, Item) for item in found[::2])
    for entry, (line, reason) in zip(found[1::2], BAD.items(), strict=True):
        assert isinstance(entry, Damaged), line[:80]
        assert reason in entry.reason and len(entry.reason) < 400, (line[:80], entry.reason)
        assert "\n" not in entry.reason


def test_a_pipe_beside_the_manifest_does_not_hang(traps):
    os.mkfifo(traps / "pipe.wav")
    (traps / "set.jsonl").write_text('{"audio": "pipe.wav"}\n')
    (entry,) = read_all(open_source(str(traps / "set.jsonl")))
    assert "no regular file" in entry.reason


def test_absolute_paths_and_another_root_where_they_are_allowed(traps, tmp_path):
    outside = str(tmp_path / "outside.wav")
    (traps / "set.jsonl").write_text(json.dumps({"audio": outside}) + "\n")
    path = str(traps / "set.jsonl")
    assert isinstance(read_all(open_source(path))[0], Damaged)
    (item,) = read_all(open_source({"path": path, "absolute": True}))
    assert item.audios[0].path == os.path.realpath(outside)
    (traps / "set.jsonl").write_text('{"audio": "outside.wav"}\n')
    (item,) = read_all(open_source({"path": path, "audio_root": str(tmp_path)}))
    assert item.audios[0].path == os.path.realpath(outside)
    for key in ("audio_root", "within"):
        with pytest.raises(UserError, match=f"{key} names .*none, which is no folder"):
            open_source({"path": path, key: str(tmp_path / "none")})


def test_paths_may_go_up_as_far_as_they_are_allowed(traps, tmp_path):
    """As in the manifests of `simulate` whose output lies in another folder than the recordings."""
    path = str(traps / "set.jsonl")
    for name, within, good in (
        ("../outside.wav", str(tmp_path), True),
        ("../outside.wav", str(traps), False),
        (f"../../{tmp_path.name}/outside.wav", str(tmp_path), True),
        ("../../elsewhere.wav", str(tmp_path), False),
    ):
        (traps / "set.jsonl").write_text(json.dumps({"audio": name}) + "\n")
        (entry,) = read_all(open_source({"path": path, "within": within}))
        assert isinstance(entry, Item) is good, name
        if not good:
            assert "lies outside" in entry.reason


def test_an_id_that_is_taken_is_told(manifest):
    a, b, c = read_all(manifest({**GOOD, "id": "x"}, {**GOOD, "id": "x"}, {**GOOD, "id": "y"}))
    assert (a.id, c.id) == ("x", "y") and isinstance(b, Damaged)
    assert b.id != "x" and "has the id x" in b.reason


def test_texts_without_audio_only_where_they_are_asked_for(manifest):
    assert isinstance(read_all(manifest({"text": "A caption."}))[0], Damaged)
    (item,) = read_all(manifest({"text": "A caption."}, text_only=True))
    assert item.caption == "A caption." and not item.audios


@pytest.mark.parametrize("size", [1, 7, 40, 100, 1000])
def test_parts_hold_every_line_once(manifest, monkeypatch, size):
    lines = [{**GOOD, "id": f"n{n}", "caption": "x" * (n * 7 % 50)} for n in range(60)]
    source = manifest(*lines)
    whole = [entry.id for entry in read_all(source)]
    monkeypatch.setattr(jsonl, "PART_BYTES", size)
    assert len(source.parts()) > 4
    assert [entry.id for entry in read_all(source)] == whole == [f"n{n}" for n in range(60)]


def test_an_endless_line_costs_no_memory(manifest, monkeypatch, tmp_path):
    monkeypatch.setattr(jsonl, "MAX_TEXT_BYTES", 1000)
    for size in (10_000, 700, 30_000):
        monkeypatch.setattr(jsonl, "PART_BYTES", size)
        source = manifest(GOOD, '{"audio": "' + "a" * 20_000 + '"}', {**GOOD, "id": "last"})
        first, long, last = read_all(source)
        assert isinstance(first, Item) and last.id == "last"
        assert "longer than" in long.reason


def test_compressed_manifests_and_cut_ones(manifest, tmp_path):
    manifest(*[{**GOOD, "id": f"n{n}"} for n in range(500)])
    data = gzip.compress((tmp_path / "set.jsonl").read_bytes())
    (tmp_path / "set.jsonl.gz").write_bytes(data)
    source = open_source(str(tmp_path / "set.jsonl.gz"))
    assert [entry.id for entry in read_all(source)] == [f"n{n}" for n in range(500)]
    (tmp_path / "set.jsonl.gz").write_bytes(data[: len(data) // 2])
    found = read_all(source)
    assert isinstance(found[-1], Damaged) and "further" in found[-1].reason
    assert all(isinstance(entry, Item) for entry in found[:-1])


def test_no_utf8_a_byte_order_mark_and_blank_lines(tmp_path):
    write_audio(tmp_path / "audio" / "b.wav")
    good = json.dumps(GOOD).encode()
    (tmp_path / "set.jsonl").write_bytes(b"\xef\xbb\xbf" + good + b"\r\n\n  \n\xff" + good + b"\n")
    first, second = read_all(open_source(str(tmp_path / "set.jsonl")))
    assert isinstance(first, Item) and "UTF-8" in second.reason


def test_folder(tmp_path):
    root = tmp_path / "corpus"
    write_audio(root / "a.wav")
    (root / "a.txt").write_text("\ufeffA dog barks.\n", encoding="utf-8")
    write_audio(root / "deep" / "er" / "b.flac")
    (root / "deep/er/b.json").write_text(
        json.dumps({"id": "named", "text": "Music.", "domain": "music", "start": 0.1, "bpm": 90})
    )
    write_audio(root / "deep" / "c.ogg")
    write_audio(root / "deep" / "d.wav")
    turns = [["user", "audio", "d.wav"], ["assistant", "audio", "c.ogg"]]
    (root / "deep/d.json").write_text(json.dumps({"messages": turns}))
    (root / ".hidden").mkdir()
    write_audio(root / ".hidden" / "x.wav")
    source = open_source({"path": str(root), "domain": "sound", "licence": "MIT"})
    found = by_id(source)
    assert set(found) == {"a.wav", "named", "deep/c.ogg", "deep/d.wav"}
    assert found["a.wav"].caption == "A dog barks." and found["a.wav"].domain == "sound"
    assert found["a.wav"].audios == (Audio(path=os.path.realpath(root / "a.wav")),)
    named = found["named"]
    assert (named.caption, named.domain, named.audios[0].start) == ("Music.", "music", 0.1)
    assert named.provenance["fields"] == {"bpm": 90} and named.licence == "MIT"
    assert found["deep/c.ogg"].caption == ""
    dialogue = found["deep/d.wav"]
    assert [m[2] for m in dialogue.messages] == [0, 1]
    assert [os.path.basename(a.path) for a in dialogue.audios] == ["d.wav", "c.ogg"]


def test_damage_in_a_folder(tmp_path):
    root = tmp_path / "corpus"
    for name in ("escape.wav", "json.wav", "list.wav", "blank.wav", "latin.wav"):
        write_audio(root / name)
    (root / "json.json").write_text('{"text": ')
    (root / "list.json").write_text("[1]")
    (root / "blank.txt").write_text(" \n")
    (root / "latin.txt").write_bytes("é".encode("latin-1"))
    (root / "escape.json").write_text('{"messages": [["user", "audio", "../secret.wav"]]}')
    (root / "zero.wav").touch()
    (root / "alone.txt").write_text("no recording")
    (root / "cover.jpg").write_bytes(b"x")
    write_audio(tmp_path / "secret.wav")
    (root / "link.wav").symlink_to(tmp_path / "secret.wav")
    (root / "gone.wav").symlink_to(root / "nowhere.wav")
    with open(os.fsencode(root) + b"/\xff.wav", "wb") as file:
        file.write(b"RIFF")
    (root / "folder").symlink_to(tmp_path, target_is_directory=True)
    for name in ("told.wav", "waits.wav", "endless.wav"):
        write_audio(root / name)
    (tmp_path / "secret.txt").write_text("a stranger's file")
    (root / "told.txt").symlink_to(tmp_path / "secret.txt")
    os.mkfifo(root / "waits.json")
    (root / "endless.txt").symlink_to("/dev/zero")
    found = by_id(open_source(str(root)))
    reasons = {
        "escape.wav": "outside",
        "json.wav": "no JSON",
        "list.wav": "no mapping",
        "blank.wav": "empty",
        "latin.wav": "UTF-8",
        "zero.wav": "is empty",
        "alone.txt": "no recording beside",
        "cover.jpg": "no recording and no text",
        "link.wav": "outside",
        "gone.wav": "cannot be read",
        "\\udcff.wav": "UTF-8",
        "folder": "is a link to a folder",
        "told.wav": "outside",
        "waits.wav": "no regular file",
        "endless.wav": "outside",
    }
    assert set(found) == set(reasons)
    for name, reason in reasons.items():
        assert isinstance(found[name], Damaged) and reason in found[name].reason, found[name]


def test_a_large_folder_is_read_in_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(folder, "PART_FILES", 7)
    for number in range(30):
        (tmp_path / f"{number:02d}.wav").write_bytes(b"RIFF")
        (tmp_path / f"{number:02d}.txt").write_text("x")
    source = open_source({"kind": "folder", "path": str(tmp_path)})
    assert len(source.parts()) == 5
    assert [entry.id for entry in read_all(source)] == [f"{n:02d}.wav" for n in range(30)]


def test_a_folder_that_vanishes_is_told(tmp_path):
    write_audio(tmp_path / "sub" / "a.wav")
    source = open_source(str(tmp_path))
    (part,) = source.parts()
    (tmp_path / "sub" / "a.wav").unlink()
    (tmp_path / "sub").rmdir()
    (entry,) = source.read(part)
    assert isinstance(entry, Damaged) and entry.id == "sub"


def test_texts_that_are_too_large(tmp_path, monkeypatch):
    monkeypatch.setattr(entries, "MAX_TEXT_BYTES", 10)
    write_audio(tmp_path / "a.wav")
    (tmp_path / "a.txt").write_text("x" * 11)
    (entry,) = read_all(open_source(str(tmp_path)))
    assert "larger" in entry.reason


def test_ids_tell_manifests_of_one_name_apart(tmp_path):
    for name in ("x", "y"):
        write_audio(tmp_path / name / "audio" / "b.wav")
        (tmp_path / name / "set.jsonl").write_text(json.dumps(GOOD) + "\n")
    found = by_id(open_source(f"{tmp_path}/*/set.jsonl"))
    assert set(found) == {"x/set.jsonl@0", "y/set.jsonl@0"}
