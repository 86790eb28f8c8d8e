"""Parquet and WebDataset tars."""

import io
import json
import subprocess
import sys
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from source_files import audio_file, read_all

from bagpiper_jax.errors import UserError
from bagpiper_jax.preparation.item import Damaged, Item
from bagpiper_jax.preparation.sources import open_source, parquet, webdataset

AUDIO = pa.struct([("bytes", pa.binary()), ("path", pa.string())])  # datasets.Audio


A, B = audio_file(1), audio_file(2, "WAV", rate=44_100)


def write_table(path, columns, **options):
    pq.write_table(pa.table(columns), path, **options)
    return open_source(str(path))


def test_captioned_audio_as_hugging_face_writes_it(tmp_path):
    columns = {
        "audio": pa.array([{"bytes": A, "path": "a.flac"}, {"bytes": B, "path": None}], AUDIO),
        "text": ["One.", "Two."],
        "license": ["CC0-1.0", None],
        "snr": [1.5, 2.5],
        "embedding": [[0.0] * 8] * 2,
        "cover": pa.array([{"bytes": b"PNG", "path": "c.png"}] * 2, AUDIO),
    }
    kinds = {"audio": {"_type": "Audio"}, "cover": {"_type": "Image"}}
    features = {"info": {"features": kinds}}
    table = pa.table(columns).replace_schema_metadata({"huggingface": json.dumps(features)})
    pq.write_table(table, tmp_path / "train-00000-of-00001.parquet")
    one, two = read_all(open_source({"path": str(tmp_path), "name": "set", "domain": "speech"}))
    assert (one.id, two.id) == ("train-00000-of-00001.parquet#0", "train-00000-of-00001.parquet#1")
    assert [i.audios[0].data for i in (one, two)] == [A, B]
    assert (one.caption, two.caption) == ("One.", "Two.")
    assert (one.licence, two.licence, one.domain) == ("CC0-1.0", "", "speech")
    file = "train-00000-of-00001.parquet"
    assert one.provenance == {"source": "set", "file": file, "row": 0, "fields": {"snr": 1.5}}


@pytest.mark.parametrize("form", ["lists", "structs", "json"])
def test_dialogues_with_embedded_audio(tmp_path, form):
    turns = [
        ["user", "text", "Make rain."],
        ["assistant", "text", "Rain."],
        ["assistant", "audio", "out/b.wav"],
        ["user", "audio", "a.flac"],
        ["assistant", "audio", ""],
        ["user", "audio", "1"],
    ]
    named = [dict(zip(("role", "modality", "content"), turn, strict=True)) for turn in turns]
    messages = {"lists": turns, "structs": named, "json": json.dumps(turns)}[form]
    columns = {
        "id": ["d0"],
        "question": pa.array([{"bytes": A, "path": "a.flac"}], AUDIO),
        "answers": pa.array([[{"bytes": B, "path": "out/b.wav"}]], pa.list_(AUDIO)),
        "messages": [messages],
    }
    (item,) = read_all(write_table(tmp_path / "sft.parquet", columns))
    assert item.id == "d0" and [a.data for a in item.audios] == [A, B]
    assert [m[2] for m in item.messages if m[1] == "audio"] == [1, 0, 0, 1]
    assert item.messages[1] == ("assistant", "text", "Rain.")


def test_plain_bytes_and_paths_in_a_column(tmp_path):
    (tmp_path / "a.flac").write_bytes(A)
    columns = {"flac": [A, B], "file": ["a.flac", "../a.flac"], "thumb": [b"x", b"y"]}
    write_table(tmp_path / "t.parquet", columns)
    spec = {"path": f"{tmp_path}/t.parquet"}
    found = read_all(open_source({**spec, "columns": {"audio": "flac"}}))
    assert [item.audios[0].data for item in found] == [A, B]
    one, two = read_all(open_source({**spec, "columns": {"audio": "file"}}))
    assert one.audios[0].path.endswith("a.flac") and "outside" in two.reason
    assert all("no audio" in entry.reason for entry in read_all(open_source(spec)))


def test_row_groups_are_parts_and_rows_number_the_table(tmp_path, monkeypatch):
    count = 25
    columns = {
        "audio": pa.array([{"bytes": audio_file(n), "path": ""} for n in range(count)], AUDIO),
        "caption": [f"{n}" for n in range(count)],
    }
    source = write_table(tmp_path / "t.parquet", columns, row_group_size=10)
    assert source.parts() == ["0:t.parquet#0", "0:t.parquet#1", "0:t.parquet#2"]
    assert [i.id for i in read_all(source)] == [f"t.parquet#{n}" for n in range(count)]
    last = list(source.read("0:t.parquet#2"))
    assert [i.caption for i in last] == ["20", "21", "22", "23", "24"]
    monkeypatch.setattr(parquet, "_BATCH_BYTES", 1)  # row by row
    assert [i.audios[0].data for i in read_all(source)] == [audio_file(n) for n in range(count)]


def test_damaged_rows(tmp_path, monkeypatch):
    (tmp_path / "beside.flac").write_bytes(A)
    cells = [
        {"bytes": A, "path": ""},
        {"bytes": b"", "path": "x.wav"},
        {"bytes": None, "path": "../x.wav"},
        {"bytes": None, "path": "beside.flac"},
        None,
        {"bytes": A * 30, "path": ""},
    ]
    texts = pa.array([b"One.", b"b", b"c", b"d", b"e", b"f"], pa.binary())
    columns = {"audio": pa.array(cells, AUDIO), "caption": texts.cast(pa.string())}
    monkeypatch.setattr(parquet, "MAX_AUDIO_BYTES", len(A) * 29)
    good, empty, escape, beside, none, large = read_all(
        write_table(tmp_path / "t.parquet", columns)
    )
    assert isinstance(good, Item) and isinstance(beside, Item)
    assert beside.audios[0].path.endswith("beside.flac")
    for entry, reason in (
        (empty, "empty"),
        (escape, "outside"),
        (none, "no audio"),
        (large, "too large"),
    ):
        assert isinstance(entry, Damaged) and reason in entry.reason
    assert [e.id for e in (empty, escape, none, large)] == [f"t.parquet#{n}" for n in (1, 2, 4, 5)]
    monkeypatch.setattr(parquet, "MAX_AUDIO_BYTES", 10)
    (group,) = read_all(open_source(str(tmp_path)))
    assert "too large" in group.reason


def test_text_that_is_no_utf8_damages_its_row_alone(tmp_path):
    raw = pa.array([b"One.", b"\xff\xfe", b"Three."], pa.binary())
    texts = pa.StringArray.from_buffers(3, raw.buffers()[1], raw.buffers()[2])
    cells = pa.array([{"bytes": A, "path": ""}] * 3, AUDIO)
    source = write_table(tmp_path / "t.parquet", {"audio": cells, "caption": texts})
    one, two, three = read_all(source)
    assert (one.caption, three.caption) == ("One.", "Three.")
    assert isinstance(two, Damaged) and "cell" in two.reason


def test_tables_that_cannot_be_read(tmp_path):
    columns = {"audio": pa.array([{"bytes": A, "path": ""}] * 4, AUDIO), "caption": ["x"] * 4}
    write_table(tmp_path / "a.parquet", columns, row_group_size=2)
    data = bytearray((tmp_path / "a.parquet").read_bytes())
    (tmp_path / "b.parquet").write_bytes(data[:-20])
    (tmp_path / "c.parquet").touch()
    found = read_all(open_source(str(tmp_path)))
    assert [isinstance(e, Item) for e in found] == [True] * 4 + [False] * 2
    assert found[4].id == "b.parquet#group-0@after--1" and "further" in found[4].reason
    other = {"path": f"{tmp_path}/a.parquet", "columns": {"audio": "speech"}}
    assert "no column speech" in read_all(open_source(other))[0].reason
    source = open_source(str(tmp_path / "a.parquet"))
    (tmp_path / "a.parquet").unlink()
    with pytest.raises(UserError, match="there is no table"):
        source.parts()


def write_tar(path, members, mode="w", end=True):
    with tarfile.open(path, mode) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    if not end:
        size = sum(512 + -(-len(data) // 512) * 512 for _, data in members)
        with open(path, "r+b") as file:
            file.truncate(size)
    return open_source(str(path))


SAMPLES = [
    ("s/000.flac", A),
    ("s/000.json", json.dumps({"text": "One.", "domain": "music", "bpm": 90}).encode()),
    ("s/000.cls", b"7"),
    ("s/001.txt", b"Two.\n"),
    ("s/001.wav", B),
]


@pytest.mark.parametrize(
    ("name", "mode"), [("t.tar", "w"), ("t.tar.gz", "w:gz"), ("t.tgz", "w:gz")]
)
def test_members_of_one_key_are_one_entry(tmp_path, name, mode):
    one, two = read_all(write_tar(tmp_path / name, SAMPLES, mode))
    assert (one.id, one.caption, one.domain) == (f"{name}:s/000", "One.", "music")
    assert one.audios[0].data == A
    assert one.provenance == {
        "source": "t",
        "file": name,
        "key": "s/000",
        "not_read": "cls",
        "fields": {"bpm": 90},
    }
    assert (two.id, two.caption, two.audios[0].data) == (f"{name}:s/001", "Two.", B)


def test_keys_that_recur_in_other_tars(tmp_path):
    for name in ("a/0.tar", "b/0.tar"):
        (tmp_path / name).parent.mkdir()
        write_tar(tmp_path / name, SAMPLES)
    found = read_all(open_source(f"{tmp_path}/*/0.tar"))
    assert [item.id for item in found] == [
        f"{tar}:s/00{n}" for tar in ("a/0.tar", "b/0.tar") for n in range(2)
    ]


def test_dialogues_in_a_tar(tmp_path):
    turns = [
        ["user", "audio", "q.user.flac"],
        ["assistant", "text", "Louder."],
        ["assistant", "audio", "assistant.wav"],
        ["user", "audio", 0],
        ["user", "audio", ""],
    ]
    members = [
        ("q.user.flac", A),
        ("q.assistant.wav", B),
        ("q.json", json.dumps({"messages": turns}).encode()),
    ]
    (item,) = read_all(write_tar(tmp_path / "t.tar", members))
    assert [a.data for a in item.audios] == [A, B]
    assert [m[2] for m in item.messages if m[1] == "audio"] == [0, 1, 0, 0]


def test_damaged_entries_of_a_tar(tmp_path, monkeypatch):
    monkeypatch.setattr(webdataset, "MAX_AUDIO_BYTES", 100_000)
    path = tmp_path / "t.tar"
    members = [
        ("alone.txt", b"no audio"),
        ("broken.wav", A),
        ("broken.json", b"{"),
        ("list.wav", A),
        ("list.json", b"[]"),
        ("zero.wav", b""),
        ("large.wav", bytes(100_001)),
        ("text.wav", A),
        ("text.txt", b"\xff"),
        ("good.wav", A),
        ("other.wav", A),
        ("good.wav", A),
    ]
    write_tar(path, members)
    with tarfile.open(path, "a") as tar:
        link = tarfile.TarInfo("link.wav")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
        tar.addfile(tarfile.TarInfo("twice.wav"), io.BytesIO())
        folder = tarfile.TarInfo("folder")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
    found = read_all(open_source(str(path)))
    told = {e.id: e.reason for e in found if isinstance(e, Damaged)}
    assert [e.id for e in found if isinstance(e, Item)] == ["t.tar:good", "t.tar:other"]
    reasons = {
        "t.tar:alone": "no audio",
        "t.tar:broken": "no JSON",
        "t.tar:list": "no mapping",
        "t.tar:zero": "empty",
        "t.tar:large": "too large",
        "t.tar:text": "UTF-8",
        "t.tar:link": "link",
        "t.tar:twice": "empty",
        "t.tar:good@8": "has the id t.tar:good",
    }
    assert set(told) == set(reasons)
    for name, reason in reasons.items():
        assert reason in told[name]


def test_a_tar_that_ends_too_early_is_told(tmp_path):
    path = tmp_path / "t.tar"
    whole = read_all(write_tar(path, SAMPLES))
    data = path.read_bytes()
    for cut in (0, 100, 512, 700, 5000, len(A) + 2000):
        path.write_bytes(data[:cut])
        found = read_all(open_source(str(path)))
        assert isinstance(found[-1], Damaged) and "further" in found[-1].reason, cut
        assert all(entry in whole for entry in found[:-1])
    # at the border of two members nothing but the missing mark tells
    found = read_all(write_tar(path, SAMPLES, end=False))
    assert found[0] == whole[0] and isinstance(found[-1], Damaged)
    second = write_tar(tmp_path / "u.tar", SAMPLES[:2])
    (tmp_path / "u.tar").write_bytes((tmp_path / "u.tar").read_bytes() + data)
    assert "behind" in read_all(second)[-1].reason


def test_a_damaged_header_in_the_middle_is_told(tmp_path):
    source = write_tar(tmp_path / "t.tar", SAMPLES)
    data = bytearray((tmp_path / "t.tar").read_bytes())
    at = data.index(b"s/001.txt")
    data[at + 3] ^= 255
    (tmp_path / "t.tar").write_bytes(data)
    found = read_all(source)
    assert isinstance(found[-1], Damaged) and "header" in found[-1].reason


def test_an_enormous_header_costs_no_memory(tmp_path):
    """A header that states 700 GB of names, and a member of 8 EB, in a file of some kB."""
    for kind in (tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.REGTYPE):
        info = tarfile.TarInfo("s.wav")
        info.type, info.size = kind, 700 * 2**30 if kind != tarfile.REGTYPE else 2**63 - 1
        (tmp_path / "t.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(20_000))
        code = (
            "import sys, resource;"
            "from bagpiper_jax.preparation.sources import open_source;"
            "resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30));"
            "s = open_source(sys.argv[1]);"
            "found = [e for p in s.parts() for e in s.read(p)];"
            "assert len(found) == 1 and 'reason' in vars(found[0]), found"
        )
        subprocess.run([sys.executable, "-c", code, str(tmp_path / "t.tar")], check=True)
