"""TFDS builders, each on a small tree of the form in which its set is published."""

import hashlib
import http.server
import io
import json
import os
import subprocess
import sys
import tarfile
import threading
from pathlib import Path

import numpy as np
import pytest
import soundfile

from bagpiper_jax.errors import UserError
from bagpiper_jax.preparation.item import Item
from bagpiper_jax.preparation.sources import open_source

DATA = Path(__file__).parents[1] / "data"
sys.path.append(str(DATA))

import audiocaps  # noqa: E402
import build_tfds  # noqa: E402
import clotho  # noqa: E402
import librispeech  # noqa: E402
import musiccaps  # noqa: E402
import recordings_builder  # noqa: E402


def write_audio(path, rate=16_000):
    path.parent.mkdir(parents=True, exist_ok=True)
    seed = int.from_bytes(hashlib.sha256(path.name.encode()).digest()[:4])
    wav = np.random.default_rng(seed).normal(0, 0.1, rate // 10)
    soundfile.write(path, wav, rate)
    return path.read_bytes()


def write_csv(path, *lines, encoding="utf-8"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding=encoding)


def read(built, dataset, split):
    """The items of a split, by id, as the preparation reads them."""
    spec = {"kind": "tfds", "path": dataset, "data_dir": str(built), "split": split}
    source = open_source(spec)
    items = [entry for part in source.parts() for entry in source.read(part)]
    assert all(isinstance(item, Item) for item in items)
    assert len({item.id for item in items}) == len(items)
    return {item.id: item for item in items}


def notes(item):
    return json.loads(item.provenance["fields"]["notes"])


def without_recording(builder):
    return builder.info.metadata["without_recording"]


def librispeech_tree(root):
    base = root / "LibriSpeech"
    write_csv(
        base / "SPEAKERS.TXT",
        "; ID  |SEX| SUBSET           |MINUTES| NAME",
        "84   | F | dev-clean        |  8.02 | Christie Nowak",
        "174  | M | dev-clean        |  8.04 | Peter Eastman",
    )
    for subset, speaker, chapter, texts in (
        ("dev-clean", 84, 121123, ("GO DO YOU HEAR", "BUT IN LESS THAN FIVE MINUTES")),
        ("dev-clean", 174, 50561, ("FORGOTTEN TOO",)),
        ("test-other", 367, 130732, ("LOBSTERS AND LOBSTERS",)),
    ):
        folder = base / subset / str(speaker) / str(chapter)
        keys = [f"{speaker}-{chapter}-{n:04d}" for n in range(len(texts))]
        for key in keys:
            write_audio(folder / f"{key}.flac")
        lines = [f"{key} {text}" for key, text in zip(keys, texts, strict=True)]
        write_csv(folder / f"{speaker}-{chapter}.trans.txt", *lines)
    return root


def test_librispeech_from_a_copy(tmp_path):
    copy = librispeech_tree(tmp_path / "copy")
    gone = copy / "LibriSpeech/dev-clean/174/50561/174-50561-0000.flac"
    kept = gone.read_bytes()
    gone.unlink()
    build = build_tfds.build("librispeech", str(tmp_path / "a"), str(copy))
    assert without_recording(build) == {"dev_clean": 1, "test_other": 0}
    assert set(read(tmp_path / "a", "libri_speech", "dev_clean")) == {
        "84-121123-0000",
        "84-121123-0001",
    }
    gone.write_bytes(kept)
    build_tfds.build("librispeech", str(tmp_path / "b"), str(copy))
    items = read(tmp_path / "b", "libri_speech", "dev_clean")
    assert set(items) == {"84-121123-0000", "84-121123-0001", "174-50561-0000"}
    item = items["174-50561-0000"]
    assert item.audios[0].data == kept and item.caption == "FORGOTTEN TOO"
    assert (item.domain, item.language, item.licence) == ("speech", "en", "CC-BY-4.0")
    assert notes(item) == {"speaker": "174", "chapter": "50561", "gender": "M"}
    assert set(read(tmp_path / "b", "libri_speech", "test_other")) == {"367-130732-0000"}


def test_the_order_follows_from_the_ids_and_shards_from_the_sizes(tmp_path, monkeypatch):
    copy = librispeech_tree(tmp_path / "copy")
    size = (copy / "LibriSpeech/dev-clean/84/121123/84-121123-0000.flac").stat().st_size
    monkeypatch.setattr(recordings_builder, "SHARD_BYTES", int(size * 2.2))
    files = []
    for name in ("a", "b"):
        builder = build_tfds.build("librispeech", str(tmp_path / name), str(copy), "dev_clean")
        found = sorted(Path(builder.data_dir).glob("*.array_record-*"))
        assert [f.name.rsplit("-", 3)[1:] for f in found] == [
            ["00000", "of", "00002"],
            ["00001", "of", "00002"],
        ]
        files.append([f.read_bytes() for f in found])
    assert files[0] == files[1]


@pytest.fixture
def server(tmp_path):
    """Serves a folder on the loopback address."""
    folder = tmp_path / "served"
    folder.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(folder))

        def log_message(self, *args):
            pass

    served = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=served.serve_forever, daemon=True)
    thread.start()
    yield folder, f"http://127.0.0.1:{served.server_port}/"
    served.shutdown()
    served.server_close()
    thread.join()


def test_librispeech_from_the_network(tmp_path, server, monkeypatch):
    folder, address = server
    librispeech_tree(tmp_path / "copy")
    with tarfile.open(folder / "dev-clean.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "copy/LibriSpeech/dev-clean", "LibriSpeech/dev-clean")
        tar.add(tmp_path / "copy/LibriSpeech/SPEAKERS.TXT", "LibriSpeech/SPEAKERS.TXT")
    monkeypatch.setattr(librispeech, "URL", address + "{}.tar.gz")
    build_tfds.build("librispeech", str(tmp_path / "built"), config="dev_clean")
    items = read(tmp_path / "built", "libri_speech/dev_clean", "dev_clean")
    assert len(items) == 3 and notes(items["84-121123-0000"])["gender"] == "F"


def test_the_sums_of_the_published_archives_are_known():
    known = librispeech.LibriSpeech.url_infos
    assert set(known) == {librispeech.URL.format(s) for s in librispeech.SUBSETS}
    assert known[librispeech.URL.format("dev-clean")].size == 337_926_286


def test_an_archive_that_leads_out_of_its_folder_is_refused(tmp_path):
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as tar:
        info = tarfile.TarInfo("../evil.txt")
        info.size = 1
        tar.addfile(info, io.BytesIO(b"x"))
    with pytest.raises(UserError, match="cannot be unpacked"):
        recordings_builder.unpack_tar(tmp_path / "a.tar.gz")
    (tmp_path / "b.tar.gz").write_bytes((tmp_path / "a.tar.gz").read_bytes()[:50])
    with pytest.raises(UserError, match="cannot be unpacked"):
        recordings_builder.unpack_tar(tmp_path / "b.tar.gz")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.tar.gz", "b.tar.gz"]


CAPS = {
    "train": ["91139,r1nicOVtvkQ,130,A woman talks nearby as water pours"],
    "val": [
        '97151,vfY_TJq7n_U,130,"Rustling, then a goat"',
        "97152,vfY_TJq7n_U,130,A goat bleats",
        "103549,tdWhHV3X25Q,60,Applause and laughter",
    ],
    "test": ["103541,6BJ455B1aAs,0,A rocket flies by", "103545,GOD8Bt5LfDE,100,Goats"],
}


def test_audiocaps(tmp_path):
    copy = tmp_path / "copy"
    for split, lines in CAPS.items():
        write_csv(copy / "dataset" / f"{split}.csv", ",".join(audiocaps.COLUMNS), *lines)
    audio = {
        "r1nicOVtvkQ_130": write_audio(copy / "train/r1nicOVtvkQ.wav"),
        "vfY_TJq7n_U_130": write_audio(copy / "val/vfY_TJq7n_U_130.flac"),
        "tdWhHV3X25Q_60": write_audio(copy / "val/YtdWhHV3X25Q.wav"),
        "6BJ455B1aAs_0": write_audio(copy / "test/Y6BJ455B1aAs_0.000_10.000.wav"),
    }
    os.mkfifo(copy / "test/GOD8Bt5LfDE.wav")
    builder = build_tfds.build("audiocaps", str(tmp_path / "built"), str(copy))
    assert without_recording(builder) == {"train": 0, "val": 0, "test": 1}
    items = {}
    for split in CAPS:
        items |= read(tmp_path / "built", "audio_caps", split)
    assert set(items) == {
        "r1nicOVtvkQ_130",
        "vfY_TJq7n_U_130.0",
        "vfY_TJq7n_U_130.1",
        "tdWhHV3X25Q_60",
        "6BJ455B1aAs_0",
    }
    for name, item in items.items():
        assert item.audios[0].data == audio[name.split(".")[0]] and item.domain == "sound"
    assert items["vfY_TJq7n_U_130.0"].caption == "Rustling, then a goat"
    assert items["vfY_TJq7n_U_130.1"].caption == "A goat bleats"
    assert notes(items["6BJ455B1aAs_0"]) == {"youtube_id": "6BJ455B1aAs", "start_time": 0}


def test_audiocaps_downloads_its_captions(tmp_path, server, monkeypatch):
    folder, address = server
    for split, lines in CAPS.items():
        write_csv(folder / f"{split}.csv", ",".join(audiocaps.COLUMNS), *lines)
    write_audio(tmp_path / "copy/91139.wav")
    monkeypatch.setattr(audiocaps, "URL", address + "{}.csv")
    builder = build_tfds.build("audiocaps", str(tmp_path / "built"), str(tmp_path / "copy"))
    assert without_recording(builder) == {"train": 0, "val": 2, "test": 2}
    assert set(read(tmp_path / "built", "audio_caps", "train")) == {"r1nicOVtvkQ_130"}


CLOTHO = "file_name,keywords,sound_id,sound_link,start_end_samples,manufacturer,license"


def clotho_tables(folder, split, name, licence):
    captions = ",".join(f"{split} caption {n}." for n in range(1, 6))
    header = ",".join(("file_name", *clotho.CAPTIONS))
    write_csv(folder / f"clotho_captions_{split}.csv", header, f"{name},{captions}")
    row = f'{name},rain;café,123,https://freesound.org/s/123,"[0, 4410]",José,{licence}'
    # as it was published, not in UTF-8
    write_csv(folder / f"clotho_metadata_{split}.csv", CLOTHO, row, encoding="cp1252")


LICENCE = "http://creativecommons.org/licenses/by/3.0/"
SAMPLING = "http://creativecommons.org/licenses/sampling+/1.0/"


def test_clotho_from_a_copy(tmp_path):
    copy = tmp_path / "copy"
    own = {}
    for split, licence in (("development", LICENCE), ("evaluation", SAMPLING)):
        clotho_tables(copy, split, "Rain on roof.wav", licence)
        own[split] = write_audio(copy / split / "Rain on roof.wav", rate=44_100 + len(own))
    builder = build_tfds.build("clotho", str(tmp_path / "built"), str(copy))
    assert without_recording(builder) == {"development": 0, "evaluation": 0}
    for split, licence in (("development", "CC-BY-3.0"), ("evaluation", SAMPLING)):
        items = read(tmp_path / "built", "clotho", split)
        assert list(items) == [f"Rain on roof.{n}" for n in range(5)]
        for number, item in enumerate(items.values(), 1):
            assert item.caption == f"{split} caption {number}."
            assert item.audios[0].data == own[split] and item.licence == licence
        assert notes(item)["manufacturer"] == "José" and notes(item)["sound_id"] == "123"


def test_clotho_from_the_network(tmp_path, server, monkeypatch):
    import py7zr

    folder, address = server
    for split in clotho.SPLITS:
        clotho_tables(folder, split, f"{split}.wav", LICENCE)
        write_audio(tmp_path / split / f"{split}.wav")
        with py7zr.SevenZipFile(folder / f"clotho_audio_{split}.7z", "w") as packed:
            packed.writeall(tmp_path / split, split)
    monkeypatch.setattr(clotho, "URL", address)
    build_tfds.build("clotho", str(tmp_path / "built"))
    for split in clotho.SPLITS:
        assert len(read(tmp_path / "built", "clotho", split)) == 5
    (tmp_path / "x.7z").write_bytes(b"7z\xbc\xaf\x27\x1c" + bytes(10))
    with pytest.raises(UserError, match="cannot be unpacked"):
        recordings_builder.unpack_7z(tmp_path / "x.7z")


MUSIC = (
    "ytid,start_s,end_s,audioset_positive_labels,aspect_list,caption,author_id,"
    "is_balanced_subset,is_audioset_eval"
)


def test_musiccaps(tmp_path):
    copy = tmp_path / "copy"
    write_csv(
        copy / "musiccaps-public.csv",
        MUSIC,
        '-0Gj8-vB1q4,30,40,"/m/0140xf","[\'low\', \'ballad\']","A ballad, sung.",4,False,True',
        "-0SdAVK79lg,30,40,/m/0155w,\"['guitar song']\",A guitar.,0,False,False",
        "-gone,0,10,/m/0155w,[],Gone.,0,False,False",
    )
    first = write_audio(copy / "wav" / "[-0Gj8-vB1q4]-[30-40].wav")
    second = write_audio(copy / "wav" / "-0SdAVK79lg.wav")
    builder = build_tfds.build("musiccaps", str(tmp_path / "built"), str(copy))
    assert without_recording(builder) == {"train": 1, "eval": 0}
    item = read(tmp_path / "built", "music_caps", "eval")["-0Gj8-vB1q4_30"]
    assert (item.caption, item.domain, item.audios[0].data) == ("A ballad, sung.", "music", first)
    assert notes(item)["aspects"] == "low, ballad"
    (item,) = read(tmp_path / "built", "music_caps", "train").values()
    assert (item.caption, item.audios[0].data) == ("A guitar.", second)


def test_musiccaps_downloads_its_captions(tmp_path, server, monkeypatch):
    folder, address = server
    write_csv(folder / "m.csv", MUSIC, "abc,0,10,/m/0155w,broken[,A guitar.,0,False,False")
    write_audio(tmp_path / "copy" / "abc_0_10.wav")
    monkeypatch.setattr(musiccaps, "URL", address + "m.csv")
    build_tfds.build("musiccaps", str(tmp_path / "built"), str(tmp_path / "copy"))
    assert set(read(tmp_path / "built", "music_caps", "train")) == {"abc_0"}


def test_the_mini_corpus_is_whole(tmp_path):
    builder = build_tfds.build("mini_corpus", str(tmp_path))
    assert without_recording(builder) == {"train": 0, "test": 0}
    train, test = (read(tmp_path, "mini_corpus", split) for split in ("train", "test"))
    assert (len(train), len(test)) == (623, 88)
    for item in (*train.values(), *test.values()):
        file = DATA / "mini" / "audio" / f"{item.id}.ogg"
        assert item.audios[0].data == file.read_bytes()
    captions = {name: train[name].caption for name in train}
    assert captions["allison-digit-eight"] == 'A woman says "eight".'
    assert captions["rms-letter-m"] == 'A synthetic male voice says the letter "M".'
    assert captions["sound-a_bass_drum-1"] == "The sound of a bass drum."
    assert captions["music-cold_day-1"] == "Music: dark bass-heavy electronic music."
    assert {i.domain for i in train.values()} == {"speech", "sound", "music"}
    assert notes(train["rms-letter-m"])["synthetic"] is True


@pytest.mark.parametrize(
    ("name", "table", "lines", "words"),
    [
        ("audiocaps", "train.csv", ["audiocap_id,youtube_id,caption", "1,a,x"], "start_time"),
        ("audiocaps", "train.csv", [",".join(audiocaps.COLUMNS), "1,a,soon,x"], "'soon'"),
        ("audiocaps", "train.csv", [",".join(audiocaps.COLUMNS), "1,a"], "row 2 has too few"),
        ("audiocaps", "train.csv", [",".join(audiocaps.COLUMNS), "1,b,0,x"], "none of the 1"),
        ("clotho", "clotho_captions_development.csv", ["file_name,caption_1"], "caption_2"),
        ("clotho", "other.csv", ["x"], "clotho_captions_SPLIT"),
        ("musiccaps", "musiccaps-public.csv", ["ytid,caption"], "start_s"),
        ("librispeech", "LibriSpeech/x", ["x"], "none of dev-clean"),
        ("librispeech", "LibriSpeech/dev-clean/1/2/1-2.trans.txt", ["1-2-3"], "key and transcript"),
        ("mini_corpus", "x.tsv", ["x"], "clips.tsv"),
    ],
)
def test_copies_that_are_not_as_published(tmp_path, name, table, lines, words):
    write_csv(tmp_path / "copy" / table, *lines)
    write_audio(tmp_path / "copy" / "a.wav")
    with pytest.raises(UserError, match=words) as caught:
        build_tfds.build(name, str(tmp_path / "built"), str(tmp_path / "copy"))
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "built").rglob("*.array_record*"))


def test_what_cannot_be_built(tmp_path):
    with pytest.raises(UserError, match="needs a copy"):
        build_tfds.build("audiocaps", str(tmp_path))
    with pytest.raises(UserError, match="no folder"):
        build_tfds.build("clotho", str(tmp_path), str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="dev_clear"):
        build_tfds.build("librispeech", str(tmp_path), config="dev_clear")


def test_the_command_line_needs_no_tensorflow(tmp_path):
    copy = librispeech_tree(tmp_path / "copy")
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import build_tfds;"
        "build_tfds.main(sys.argv[2:]);"
        "sys.exit(str({'tensorflow', 'torch', 'jax'} & set(sys.modules) or '') or 0)"
    )
    args = ["librispeech", "--from", str(copy), "--to", str(tmp_path / "built")]
    command = [sys.executable, "-c", code, str(DATA), *args]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "dev_clean: 3 clips, 0 without recording left out" in done.stdout
    done = subprocess.run(
        [*command[:4], "clotho", "--from", str(copy), "--to", str(tmp_path / "c")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and "build_tfds: clotho" in done.stderr.splitlines()[-1]
