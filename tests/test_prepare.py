"""Whole preparations: processes, restarts, counts and files."""

import argparse
import dataclasses
import hashlib
import json
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import time
import types

import pytest
from sound_sources import Files, Listed, encoded, sound, write_corpus

from bagpiper_jax.errors import UserError
from bagpiper_jax.input_pipeline.prepared import open_prepared
from bagpiper_jax.input_pipeline.records import TASKS, sizes
from bagpiper_jax.preparation import command
from bagpiper_jax.preparation import prepare as prepare_lib
from bagpiper_jax.preparation.decode import Rejected
from bagpiper_jax.preparation.isolated import Isolated
from bagpiper_jax.preparation.item import Audio, Item
from bagpiper_jax.preparation.options import Options, load_tools
from bagpiper_jax.preparation.prepare import prepare

OPTIONS = Options(timeout=300)  # the machine may be busy


def contents(directory):
    """SHA-256 of every file."""
    digests = {}
    for name in sorted(os.listdir(directory)):
        with open(os.path.join(directory, name), "rb") as f:
            digests[name] = hashlib.file_digest(f, "sha256").hexdigest()
    return digests


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def prepared(corpus, tmp_path_factory):
    """A set made in one process; it must not change."""
    out = tmp_path_factory.mktemp("one") / "set"
    return prepare([corpus], out, OPTIONS, name="tones", workers=1, quiet=True)


def test_everything_is_in_one_place(prepared):
    """24 files, three of them copies of others in another shard; four entries are no good."""
    info = prepared.info
    items = {"in": 28, "kept": 21, "duplicates": 3, "quarantined": 4}
    assert info["counts"]["items"] == items
    assert info["counts"]["records"] == {"made": 24, "duplicates": 3, "out": 21}
    assert info["quarantine"] == {"empty": 1, "entry": 1, "missing": 1, "unreadable": 1}
    with open(os.path.join(prepared.directory, "quarantine.jsonl"), encoding="utf-8") as f:
        lines = {line["id"]: line for line in map(json.loads, f)}
    assert set(lines) == {"broken.wav", "empty.wav", "gone.wav", "without.wav"}
    assert lines["without.wav"]["reason"] == "it has no caption"
    assert lines["broken.wav"]["source"] == "files"
    assert [shard["records"] for shard in info["shards"]] == [4, 3, 4, 3, 4, 3, 0]
    assert not any(name.startswith(".") for name in os.listdir(prepared.directory))


def test_ids_that_an_earlier_part_has(tmp_path):
    """They are quarantined, and their content is nobody's duplicate."""
    items = [Item(name, caption=text) for name, text in ("aA", "bB", "aC", "cC", "aA", "dB")]
    out = tmp_path / "set"
    made = prepare([Listed(tuple(items), per_part=2)], out, OPTIONS, workers=1, quiet=True)
    assert [made[i].id for i in range(len(made))] == ["listed/a", "listed/b", "listed/c"]
    assert [made[i].caption for i in range(3)] == ["A", "B", "C"]
    assert made.info["counts"]["items"] == {"in": 6, "quarantined": 2, "kept": 3, "duplicates": 1}
    assert made.info["counts"]["records"] == {"made": 4, "duplicates": 1, "out": 3}
    assert made.info["quarantine"] == {"entry": 2}
    with open(out / "quarantine.jsonl", encoding="utf-8") as f:
        told = [(line["part"], line["id"], line["reason"]) for line in map(json.loads, f)]
    assert told == [(part, "a", "an earlier part has the id a") for part in ("2", "4")]


def test_the_index_tells_of_each_record(prepared):
    tools = load_tools(OPTIONS)
    again = pickle.loads(pickle.dumps(prepared))
    assert len(again) == 21 and len({again[i].id for i in range(21)}) == 21
    for i in range(21):
        record = again[i]
        assert again.seconds[i] == pytest.approx(record.clips[0].num_samples / 16_000)
        assert prepared.info["domains"][again.domains[i]] == record.domain == "sound"
        for task in TASKS:
            able = task in record.tasks()
            expected = sizes(record, task, tools.config, tools.tokenizer) if able else (-1, -1)
            assert (again.rows(task)[i], again.windows(task)[i]) == expected
    hours = again.info["hours"]
    assert hours["total"] == pytest.approx(float(again.seconds.sum()) / 3600, abs=1e-3)
    assert hours["by_licence"] == {"CC0-1.0": hours["total"]}
    with pytest.raises(IndexError):
        again[21]
    with pytest.raises(ValueError, match="none of"):
        again.rows("song")


@pytest.mark.slow
def test_processes_and_beam_make_the_same_bytes(corpus, prepared, tmp_path):
    expected = contents(prepared.directory)
    pool = prepare([corpus], tmp_path / "pool", OPTIONS, name="tones", workers=3, quiet=True)
    assert contents(pool.directory) == expected and pool.fingerprint == prepared.fingerprint
    beam = prepare(
        [corpus], tmp_path / "beam", OPTIONS, name="tones", beam_options=["--runner=DirectRunner"]
    )
    assert contents(beam.directory) == expected


def test_what_is_finished_is_not_done_again(corpus, prepared, monkeypatch):
    monkeypatch.setattr(prepare_lib, "make_shard", lambda *_: pytest.fail("it is there"))
    before = contents(prepared.directory)
    again = prepare([corpus], prepared.directory, OPTIONS, name="tones", workers=1, quiet=True)
    assert again.fingerprint == prepared.fingerprint and contents(prepared.directory) == before


def test_an_earlier_run_that_was_told_otherwise(corpus, prepared, tmp_path, monkeypatch):
    out = prepared.directory
    other = dataclasses.replace(OPTIONS, keep="mel", deduplicate=False)
    with pytest.raises(UserError, match=r"changed since \(options.deduplicate, options.keep\)"):
        prepare([corpus], out, other, name="tones", workers=1)
    with pytest.raises(UserError, match=r"changed since \(name, parts, shards\)"):
        prepare([dataclasses.replace(corpus, per_part=3)], out, OPTIONS, workers=1, name="x")
    monkeypatch.setattr(type(corpus), "stamp", lambda self: "another")
    with pytest.raises(UserError, match=r"told otherwise, or .* changed since \(sources.files\)"):
        prepare([corpus], out, OPTIONS, name="tones", workers=1)
    monkeypatch.undo()
    (tmp_path / "mine.txt").write_text("not yours")
    with pytest.raises(UserError, match="not empty"):
        prepare([corpus], tmp_path, OPTIONS, workers=1)
    assert os.listdir(tmp_path) == ["mine.txt"] and ".preparing" not in os.listdir(out)


def test_sources_in_another_order(tmp_path):
    """Shards know a source by its number: going on would read one twice and the other never."""
    a, b = (Listed((Item("1", caption=f"Text {name}."),), name=name) for name in "ab")
    prepare([a, b], tmp_path / "set", OPTIONS, workers=1, quiet=True)
    with pytest.raises(UserError, match=r"changed since \(sources\)"):
        prepare([b, a], tmp_path / "set", OPTIONS, workers=1, quiet=True)


def test_what_cannot_be_prepared(tmp_path):
    item = Item("a", caption="A tone.")
    for sources, message in (
        ([], "name a source"),
        ([Listed(())], "nothing to prepare"),
        ([Listed((item,)), Listed((item,))], "two sources are called listed"),
    ):
        with pytest.raises(UserError, match=message):
            prepare(sources, tmp_path / "set", OPTIONS)


@pytest.fixture(scope="module")
def made(corpus, tmp_path_factory):
    """A set all of whose shards are made and none is finished."""
    out = tmp_path_factory.mktemp("made") / "set"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare_lib, "_finish", lambda plan: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            prepare([corpus], out, OPTIONS, name="tones", workers=1, quiet=True)
    assert os.listdir(out) == [".preparing"]
    return out


@pytest.mark.parametrize("moment", [0, 2, 5, 8, 10, 11, 12])
def test_interrupted_while_it_finishes(corpus, prepared, made, tmp_path, monkeypatch, moment):
    """Stopped before any of the 13 moments when a file gets its name, it ends the same."""
    out = str(tmp_path / "set")
    shutil.copytree(made, out)
    replace, count = os.replace, iter(range(1000))

    def stop(source, target):
        if next(count) == moment:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        prepare([corpus], out, OPTIONS, name="tones", workers=1, quiet=True)
    with pytest.raises(UserError, match="no finished prepared data set"):
        open_prepared(out)
    monkeypatch.setattr(os, "replace", replace)
    monkeypatch.setattr(prepare_lib, "make_shard", lambda *_: pytest.fail("it is made"))
    prepare([corpus], out, OPTIONS, name="tones", workers=1, quiet=True)
    assert contents(out) == contents(prepared.directory)


def test_two_preparations_do_not_meet(corpus, made, tmp_path, monkeypatch):
    out = str(tmp_path / "set")
    shutil.copytree(made, out)
    finish = prepare_lib._finish

    def meanwhile(plan):
        with pytest.raises(UserError, match="another preparation is at work"):
            prepare([corpus], out, OPTIONS, name="tones", workers=1, quiet=True)
        finish(plan)

    monkeypatch.setattr(prepare_lib, "_finish", meanwhile)
    prepare([corpus], out, OPTIONS, name="tones", workers=1, quiet=True)


def test_damaged_sets_are_told(prepared, tmp_path):
    damages = {
        "dataset.json": ("", "is damaged"),
        "index.npy": ("PK", "is damaged"),
        "records-00000-of-00007.arrayrecord": ("x", "is missing or damaged"),
    }
    for number, (name, (content, message)) in enumerate(damages.items()):
        directory = tmp_path / str(number)
        shutil.copytree(prepared.directory, directory)
        (directory / name).write_text(content)
        with pytest.raises(UserError, match=message):
            broken = open_prepared(directory)
            broken.rows("text_only")
            broken[0]
    with pytest.raises(UserError, match="no finished prepared data set"):
        open_prepared(tmp_path)


class Bomb:
    """Does something to the process that unpickles it last, of so many."""

    def __init__(self, after, function, *args):
        self._after, self._call = after, (function, args)

    def __reduce__(self):
        function, args = self._call
        return (Bomb, (self._after - 1, function, *args)) if self._after else self._call


@dataclasses.dataclass(frozen=True)
class Bombs:
    """A source two of whose items end, or stop, whatever process looks at them."""

    name: str = "bombs"

    def parts(self):
        return ["0", "1"]

    def stamp(self):
        return ""

    def read(self, part):
        # the process that reads hands it over to the one that has it decoded
        bomb = Bomb(1, os._exit, 3) if part == "0" else Bomb(1, time.sleep, 3600)
        yield Item(f"good-{part}", (Audio(data=encoded(sound(1, int(part)))),), f"Tone {part}.")
        yield Item(f"bad-{part}", caption="x", provenance={"bomb": bomb})
        yield Item(f"last-{part}", (Audio(data=encoded(sound(1, 9 + int(part)))),), f"Last {part}.")
        if part == "1":
            raise OSError("the disk is gone")


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_file_that_kills_or_hangs_costs_that_file_only(tmp_path, workers):
    options = Options(timeout=20)
    done = prepare([Bombs()], tmp_path / "set", options, workers=workers, quiet=True)
    ids = [done[i].id for i in range(len(done))]
    assert ids == ["bombs/good-0", "bombs/last-0", "bombs/good-1", "bombs/last-1"]
    assert done.info["quarantine"] == {"died": 1, "entry": 1, "hung": 1}
    with open(tmp_path / "set" / "quarantine.jsonl", encoding="utf-8") as f:
        told = {line["id"]: line["reason"] for line in map(json.loads, f)}
    assert told == {
        "bad-0": "the process that decoded it died (exit code 3)",
        "bad-1": "no progress within 20 s",
        "1": "its reading ended early: OSError: the disk is gone",
    }


@dataclasses.dataclass(frozen=True)
class Falling:
    """A source whose reading goes wrong after two items, as the part's name says."""

    name: str = "falling"

    def parts(self):
        return ["well", "dies", "hangs", "raises", "not at all"]

    def read(self, part):
        yield Item("a", caption="One.")
        yield Item("b", caption="Two.")
        if part == "dies":
            os._exit(4)
        if part == "hangs":
            time.sleep(3600)
        if part == "raises":
            raise OSError("the disk is gone")
        if part == "not at all":
            raise UserError("source falling: no such part")
        yield Item("c", caption="Three.")


def test_reading_that_dies_or_hangs_costs_the_rest_of_its_part():
    source, told = Falling(), {}
    with Isolated(Options(timeout=5)) as isolated:
        for part in source.parts()[:-1]:
            *items, told[part] = isolated.read(source, part)
            assert [item.id for item in items] == ["a", "b"], part
        with pytest.raises(UserError, match="no such part"):
            list(isolated.read(source, "not at all"))
        left = isolated.read(source, "well")
        assert next(left).id == "a"
        assert [entry.id for entry in isolated.read(source, "well")] == ["a", "b", "c"]
    assert told.pop("well") == Item("c", caption="Three.")
    assert {(part, entry.id, entry.reason) for part, entry in told.items()} == {
        ("dies", "dies", "its reading ended early: the process that read it died (exit code 4)"),
        ("hangs", "hangs", "its reading ended early: no progress within 5 s"),
        ("raises", "raises", "its reading ended early: OSError: the disk is gone"),
    }


@pytest.mark.slow
def test_more_than_500_damaged_files(tmp_path):
    """One process reads them all, in less than a gigabyte; not one kills or holds it."""
    from damaged_audio import damaged_files

    with Isolated(OPTIONS) as isolated:
        count = kept = 0
        for count, (name, data, must) in enumerate(damaged_files(), start=1):
            path = tmp_path / f"clip{os.path.splitext(name)[1]}"
            path.write_bytes(data)
            audio = Audio(path=str(path)) if count % 2 else Audio(data=data)
            try:
                isolated.prepare(Item(name, (audio,), "A sound."), "")
                assert not must, name
                kept += 1
            except Rejected as e:
                assert e.kind not in ("died", "hung", "memory", "failed"), (name, e.reason)
            if count == 1:
                process = isolated._decoding.process.pid
        assert count > 500 and kept < count / 4
        assert isolated._decoding.process.pid == process, "it was never started anew"
        with open(f"/proc/{process}/status", encoding="ascii") as f:
            peak = next(int(line.split()[1]) for line in f if line.startswith("VmHWM"))
        assert peak < 1 << 20, "kB"


PREPARE = """
import sys
from bagpiper_jax.preparation.options import Options
from bagpiper_jax.preparation.prepare import prepare
from sound_sources import Files
source, options = Files(sys.argv[1], per_part=1), Options(timeout=300)
prepare([source], sys.argv[2], options, name="tones", workers=2, quiet=True)
"""


@pytest.mark.slow
def test_ten_kills(tmp_path):
    """SIGKILL at random moments of a preparation; then it ends, byte for byte."""
    write_corpus(tmp_path / "corpus", 40)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}

    def start(out):
        command = [sys.executable, "-c", PREPARE, tmp_path / "corpus", out]
        return subprocess.Popen(command, env=environment)

    def files():
        return {name for _, _, names in os.walk(tmp_path / "killed") for name in names}

    assert start(tmp_path / "undisturbed").wait(900) == 0
    moments = random.Random(0)
    for _ in range(10):
        before, deadline = files(), time.monotonic() + 300
        process = start(tmp_path / "killed")
        while files() == before and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(moments.uniform(0, 0.1))
        assert process.poll() is None, "it ended, or failed, before it could be killed"
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (tmp_path / "killed" / "dataset.json").exists()
    assert start(tmp_path / "killed").wait(900) == 0
    assert contents(tmp_path / "killed") == contents(tmp_path / "undisturbed")


def test_the_command(prepared, corpus, monkeypatch, capsys):
    sources = types.ModuleType("bagpiper_jax.preparation.sources")
    sources.open_source = lambda spec: Files(spec)
    monkeypatch.setitem(sys.modules, "bagpiper_jax.preparation.sources", sources)
    parser = argparse.ArgumentParser()
    command.add_prepare_parser(parser.add_subparsers())
    told = ["prepare", "--source", corpus.directory, "--out", prepared.directory]
    args = parser.parse_args([*told, "--name", "tones", "--timeout", "300"])
    args.command(args)
    said = capsys.readouterr().out
    assert "28 items = 21 kept + 3 duplicates + 4 quarantined; 21 records" in said
    assert "quarantined: empty 1, entry 1, missing 1, unreadable 1; each in" in said
    args = parser.parse_args([*told, "--workers", "0"])
    with pytest.raises(UserError, match="--workers"):
        args.command(args)
