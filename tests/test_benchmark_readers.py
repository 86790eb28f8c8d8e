"""Readers of the benchmarks: files in the released forms, and damaged ones."""

import json
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from benchmark_data import (
    AIR,
    MMAU,
    WORDS,
    make_air_bench,
    make_librispeech,
    make_mmau,
    tone,
    write_wav,
)

from bagpiper_jax.errors import UserError
from bagpiper_jax.evaluation.benchmarks.item import choose, load_clip
from bagpiper_jax.evaluation.benchmarks.readers.air_bench import read_air_bench_chat
from bagpiper_jax.evaluation.benchmarks.readers.audio_bench import read_audio_bench
from bagpiper_jax.evaluation.benchmarks.readers.librispeech import read_librispeech
from bagpiper_jax.evaluation.benchmarks.readers.mmau import read_mmau
from bagpiper_jax.evaluation.benchmarks.readers.seed_tts import read_seed_tts


def one_line(error, *parts):
    text = str(error.value)
    assert "\n" not in text and all(part in text for part in parts), text


def edit(file, change):
    rows = json.loads(file.read_text())
    change(rows)
    file.write_text(json.dumps(rows))


def test_mmau(tmp_path):
    items = read_mmau(str(make_mmau(tmp_path)))
    assert [i.key for i in items] == ["q0", "q1", "q2", "q3"]
    assert [(i.question, list(i.choices), i.answer, i.category) for i in items] == [
        row[:4] for row in MMAU
    ]
    assert items[1].extra["difficulty"] == "hard"
    assert items == read_mmau(str(tmp_path / "mmau-test-mini.json"))
    wav, cut = load_clip(items[2].audio)
    assert cut == 0 and wav == pytest.approx(tone(2), abs=1e-4)


@pytest.mark.parametrize(
    "change, told",
    [
        (lambda rows: rows[2].pop("question"), ("entry 3", "'question'", "fetch")),
        (lambda rows: rows[1].update(answer="a cow"), ("entry 2", "'a cow'")),
        (lambda rows: rows[1].update(id="q0"), ("entry 2", "q0", "twice")),
        (lambda rows: rows[0].pop("answer"), ("entry 1", "withheld")),
        (lambda rows: rows[0].update(choices="Man"), ("entry 1", "'choices'")),
        (lambda rows: rows[3].update(audio_id="./no.wav"), ("entry 4", "no.wav", "fetch")),
        (lambda rows: rows.insert(1, "text"), ("entry 2", "object")),
        (lambda rows: rows.clear(), ("list of objects",)),
    ],
)
def test_damaged_mmau(change, told, tmp_path):
    file = make_mmau(tmp_path) / "mmau-test-mini.json"
    edit(file, change)
    with pytest.raises(UserError) as error:
        read_mmau(str(tmp_path))
    one_line(error, str(file), *told)


EMPTY_WAV = (
    b"RIFF$\0\0\0WAVEfmt \x10\0\0\0\1\0\1\0\x80>\0\0\0}\0\0\2\0\x10\0data\0\0\0\0"  # no samples
)


@pytest.mark.parametrize("damage", [b"", b"no sound at all", b"RIFF", EMPTY_WAV])
def test_damaged_recordings_are_named(damage, tmp_path):
    (make_mmau(tmp_path) / "test-mini-audios" / "q1.wav").write_bytes(damage)
    with pytest.raises(UserError) as error:
        read_mmau(str(tmp_path))
    one_line(error, "entry 2", "q1.wav", "fetch")


def test_no_json(tmp_path):
    with pytest.raises(UserError) as error:
        read_mmau(str(tmp_path))
    one_line(error, "no file", "mmau-test-mini.json")
    (tmp_path / "mmau-test-mini.json").write_text('[{"id": ')
    with pytest.raises(UserError) as error:
        read_mmau(str(tmp_path))
    one_line(error, "JSON", "fetch")


def test_air_bench(tmp_path):
    items = read_air_bench_chat(str(make_air_bench(tmp_path / "Chat")))
    assert [i.category for i in items] == [task.removesuffix("_QA") for task in AIR]
    assert items[1].answer == "reference 1" and items[1].extra["meta_info"] == "description 1"
    assert os.path.relpath(items[1].audio, tmp_path) == "Chat/sound_QA_set/1.wav"


@pytest.mark.parametrize(
    "change, told",
    [
        (lambda rows: rows[1].update(meta_info=None), ("entry 2", "'meta_info'")),
        (lambda rows: rows[1].update(task_name="smell_QA"), ("entry 2", "'smell_QA'")),
        (lambda rows: rows[4].update(dataset_name="x"), ("entry 5", "x/4.wav", "taken out")),
    ],
)
def test_damaged_air_bench(change, told, tmp_path):
    folder = make_air_bench(tmp_path / "Chat")
    edit(folder / "Chat_meta.json", change)
    with pytest.raises(UserError) as error:
        read_air_bench_chat(str(folder))
    one_line(error, "Chat_meta.json", *told)


def test_librispeech(tmp_path):
    make_librispeech(tmp_path)
    for path in (".", "LibriSpeech", "LibriSpeech/test-clean"):
        items = read_librispeech(str(tmp_path / path))
        assert [(i.key, i.answer) for i in items] == [
            (f"61-70968-000{n}", words) for n, words in enumerate(WORDS)
        ]


def test_damaged_librispeech(tmp_path):
    with pytest.raises(UserError) as error:
        read_librispeech(str(tmp_path))
    one_line(error, "trans.txt", "unpack")
    chapter = make_librispeech(tmp_path) / "LibriSpeech/test-clean/61/70968"
    (chapter / "61-70968-0001.flac").unlink()
    with pytest.raises(UserError) as error:
        read_librispeech(str(tmp_path))
    one_line(error, "61-70968.trans.txt, line 2", "0001.flac", "unpack")
    (chapter / "61-70968.trans.txt").write_text("61-70968-0000\n")
    with pytest.raises(UserError) as error:
        read_librispeech(str(tmp_path))
    one_line(error, "line 1", "UTTERANCE WORDS")


def test_seed_tts(tmp_path):
    write_wav(tmp_path / "wavs" / "c.wav", 0)
    (tmp_path / "meta.lst").write_text(
        "a|What the prompt says.|prompt-wavs/a.wav|Say this.\n\n"
        "c|Prompt.|prompt-wavs/c.wav|Say that.|wavs/c.wav\nb|Two fields.\n"
        "d.wav|Three fields.|prompt-wavs/d.wav\n"
    )
    items = read_seed_tts(str(tmp_path))
    assert [(i.key, i.answer) for i in items] == [
        ("a", "Say this."),
        ("c", "Say that."),
        ("b", "Two fields."),
        ("d", "Three fields."),
    ]
    assert items[0].audio == "" and items[1].audio == str(tmp_path / "wavs" / "c.wav")
    assert items[0].extra["prompt_wav"] == "prompt-wavs/a.wav"


@pytest.mark.parametrize(
    "text, told",
    [
        ("a|b|c|d\nalone\n", ("line 2", "fields are 1")),
        ("a|x|y|\n", ("line 1",)),
        ("a|x\na|y\n", ("line 2", "twice")),
        ("a|x|y|z|gone.wav\n", ("line 1", "gone.wav")),
        ("\n", ("no lines",)),
    ],
)
def test_damaged_seed_tts(text, told, tmp_path):
    (tmp_path / "meta.lst").write_text(text)
    with pytest.raises(UserError) as error:
        read_seed_tts(str(tmp_path))
    one_line(error, "meta.lst", "seed-tts-eval", *told)


def rows_of(folder, count=3, **more):
    rows = []
    for i in range(count):
        write_wav(folder / f"{i}.wav", i)
        audio = {"bytes": (folder / f"{i}.wav").read_bytes(), "path": f"{i}.wav"}
        rows.append({"context": audio, "instruction": f"Q{i}?", "answer": f"A{i}", **more})
    return rows


def test_audio_bench_as_parquet(tmp_path):
    folder = tmp_path / "clotho_aqa_test" / "data"
    folder.mkdir(parents=True)
    table = pa.Table.from_pylist(rows_of(tmp_path, other_attributes={"x": 1}))
    pq.write_table(table, folder / "test-00000-of-00001.parquet", row_group_size=2)
    items = read_audio_bench(str(tmp_path), "clotho_aqa_test")
    assert [(i.key, i.question, i.answer) for i in items] == [
        (f"clotho_aqa_test/{n}", f"Q{n}?", f"A{n}") for n in range(3)
    ]
    for n in (2, 0, 1):
        assert load_clip(items[n].audio)[0] == pytest.approx(tone(n), abs=1e-4)


def test_audio_bench_as_arrow_with_nested_columns(tmp_path):
    folder = tmp_path / "alpaca_audio_test"
    folder.mkdir()
    rows = [
        {
            "context": {"audio": row["context"], "text": None},
            "speech_instruction": f"say {n}",
            "answer": {"text": row["answer"], "audio": None},
        }
        for n, row in enumerate(rows_of(tmp_path))
    ]
    table = pa.Table.from_pylist(rows)
    with pa.ipc.new_stream(folder / "data-00000-of-00001.arrow", table.schema) as stream:
        stream.write_table(table, max_chunksize=2)
    items = read_audio_bench(str(tmp_path), "alpaca_audio_test")
    assert [(i.answer, i.extra["asked"]) for i in items] == [
        ("A0", "say 0"),
        ("A1", "say 1"),
        ("A2", "say 2"),
    ]
    assert load_clip(items[2].audio)[0] == pytest.approx(tone(2), abs=1e-4)


def test_damaged_audio_bench(tmp_path):
    with pytest.raises(UserError) as error:
        read_audio_bench(str(tmp_path), "clotho_aqa_test")
    one_line(error, "clotho_aqa_test", "no .parquet", "fetch")
    folder = tmp_path / "clotho_aqa_test"
    folder.mkdir()
    file = folder / "a.parquet"
    for change, told in (
        (lambda row: row.pop("answer"), ("no column answer",)),
        (lambda row: row.update(answer=" "), ("row 0", "answer holds no text")),
        (lambda row: row.update(context={"bytes": None, "path": "gone.wav"}), ("no recording",)),
    ):
        rows = rows_of(tmp_path, 1)
        change(rows[0])
        pq.write_table(pa.Table.from_pylist(rows), file)
        with pytest.raises(UserError) as error:
            read_audio_bench(str(tmp_path), "clotho_aqa_test")
        one_line(error, str(file), "fetch", *told)
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(UserError) as error:
        read_audio_bench(str(tmp_path), "clotho_aqa_test")
    one_line(error, str(file), "cannot be read")


def test_long_recordings_are_heard_to_30_s(tmp_path):
    write_wav(tmp_path / "long.wav", 1, seconds=32.5)
    wav, cut = load_clip(str(tmp_path / "long.wav"))
    assert len(wav) == 30 * 16_000 and cut == pytest.approx(2.5)


def test_choose_draws_by_seed_and_keeps_the_order():
    items = list(range(100))
    picked = choose(items, 10, seed=1)
    assert picked == sorted(picked) and len(set(picked)) == 10
    assert picked != items[:10] and picked != choose(items, 10, seed=2)
    assert picked == choose(items, 10, seed=1) and choose(items, 0, 1) == items
    with pytest.raises(UserError):
        choose(items, -1, 1)
