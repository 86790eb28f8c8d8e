"""The unit of work: one output shard, from source parts that are fixed before anything starts.

What a shard holds is a function of the plan and its number alone, so it is the same whoever makes
it, in whatever order. First every shard is made on its own (`make_shard`: staged records and notes
of them), then, once ids and digests of all are known, it is finished (`finish_shard`: without
items whose id, and records whose content, came before). Each file appears only when it is whole.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import msgpack
import numpy as np

from bagpiper_jax.errors import UserError
from bagpiper_jax.files import write_whole
from bagpiper_jax.input_pipeline.prepared import FORMAT
from bagpiper_jax.preparation.decode import Rejected
from bagpiper_jax.preparation.isolated import Isolated
from bagpiper_jax.preparation.item import Damaged, Source
from bagpiper_jax.preparation.options import Options, fingerprints

MOST_SHARDS = 1024
WORK = ".preparing"  # in the output directory, until the set is finished
_WRITER = "group_size:1"  # every record can be read alone
DIGEST = 16


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is made of what; it pickles, and is the same on every machine.

    Attributes:
      name: of the set.
      out: its directory.
      sources: to read.
      options: of the preparation.
      shards: (source, part) numbers of each shard, in order.
      assets: `fingerprints` of tokenizer and codec.
      stamps: of the sources.
    """

    name: str
    out: str
    sources: tuple[Source, ...]
    options: Options
    shards: tuple[tuple[tuple[int, str], ...], ...]
    assets: dict[str, Any]
    stamps: tuple[str, ...]

    def summary(self) -> dict[str, Any]:
        """What an earlier run must agree with for this one to go on with it; JSON-ready."""
        parts = hashlib.sha256(json.dumps(self.shards).encode()).hexdigest()
        return {
            "format": FORMAT,
            "name": self.name,
            "sources": {s.name: t for s, t in zip(self.sources, self.stamps, strict=True)},
            "parts": parts,
            "shards": len(self.shards),
            "options": self.options.decisive(),
            "assets": self.assets,
        }

    @property
    def num_parts(self) -> int:
        return sum(map(len, self.shards))


def plan_shards(sources: Iterable[Source], out: str, options: Options, name: str) -> Plan:
    """Deals the parts of all sources out to shards, in order.

    Raises:
      UserError: no source, two of one name, a source that is not there, or no tokenizer or codec.
    """
    sources = tuple(sources)
    names = [source.name for source in sources]
    if not sources:
        raise UserError("name a source to prepare")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"two sources are called {twice}: give them names of their own")
    parts = [(number, part) for number, s in enumerate(sources) for part in s.parts()]
    if not parts:
        raise UserError(f"there is nothing to prepare in {', '.join(names)}")
    count = min(options.shards or MOST_SHARDS, len(parts))
    edges = [len(parts) * shard // count for shard in range(count + 1)]
    shards = tuple(tuple(parts[a:b]) for a, b in zip(edges, edges[1:], strict=False))
    stamps = tuple(source.stamp() for source in sources)
    return Plan(name, os.path.abspath(out), sources, options, shards, fingerprints(options), stamps)


def shard_file(plan: Plan, shard: int) -> str:
    """Name of a finished shard in the set's directory."""
    return f"records-{shard:05d}-of-{len(plan.shards):05d}.arrayrecord"


def _paths(plan: Plan, shard: int) -> tuple[str, str, str]:
    """Staged records, notes and finished shard."""
    work = os.path.join(plan.out, WORK, f"{shard:05d}")
    return f"{work}.arrayrecord", f"{work}.notes", os.path.join(plan.out, shard_file(plan, shard))


def read_notes(plan: Plan, shard: int) -> dict[str, Any] | None:
    """Notes of a made shard; None where it is not made yet."""
    staged, notes, finished = _paths(plan, shard)
    if not (os.path.exists(staged) or os.path.exists(finished)):
        return None
    try:
        with open(notes, "rb") as f:
            return msgpack.unpackb(f.read(), raw=False)
    except FileNotFoundError:
        return None


def make_shard(
    plan: Plan,
    shard: int,
    isolated: Isolated,
    progress: Callable[[float, int], None] = lambda seconds, parts: None,
) -> None:
    """Prepares the items of a shard's parts, unless that is done.

    Args:
      plan: of the whole set.
      shard: which one.
      isolated: where parts are read and items prepared.
      progress: called with seconds of audio and with parts that are done.
    """
    if read_notes(plan, shard) is not None:
        return
    staged, notes, _ = _paths(plan, shard)
    taken: dict[str, Any] = {
        name: [] for name in ("ids", "item", "sizes", "seconds", "loudness", "labels", "quarantine")
    }
    taken |= {
        "items": 0,
        "trimmed": 0,
        "cuts": [0, 0],
        "cut_items": 0,
        "found_seconds": 0.0,
        "digests": [],
    }
    taken["dropped"] = collections.Counter()

    def write(path: str) -> None:
        with _records_file(path) as put:
            for source, part, entry in _entries(plan, shard, isolated, progress):
                _take(plan, source, part, entry, isolated, taken, put, progress)

    _write_own(staged, write)
    taken["digests"] = b"".join(taken["digests"])
    packed = msgpack.packb(taken)
    _write_own(notes, lambda path: _write_bytes(path, packed))


def _entries(plan: Plan, shard: int, isolated, progress) -> Iterator[tuple[int, str, Any]]:
    for source, part in plan.shards[shard]:
        for entry in isolated.read(plan.sources[source], part):
            yield source, part, entry
        progress(0.0, 1)


def _take(plan, source: int, part: str, entry, isolated: Isolated, taken, put, progress) -> None:
    """Adds what becomes of an entry to the shard."""
    taken["items"] += 1
    try:
        if isinstance(entry, Damaged):
            raise Rejected("entry", entry.reason)
        prefix = plan.sources[source].name + "/"
        done = isolated.prepare(entry, prefix, lambda seconds: progress(seconds, 0))
    except Rejected as e:
        taken["quarantine"].append(_told(plan, source, part, entry.id, e.kind, e.reason))
        return
    number = len(taken["ids"])
    taken["ids"].append((source, part, entry.id))
    for made in done.records:
        put(made.data)
        taken["item"].append(number)
        taken["digests"].append(made.digest)
        taken["sizes"].append(made.sizes)
        taken["seconds"].append(made.seconds)
        taken["loudness"].append(made.loudness)
        taken["labels"].append((made.domain, made.language, made.licence))
    taken["dropped"].update(e.kind for e in done.dropped)
    taken["cuts"] = [a + b for a, b in zip(taken["cuts"], done.cuts, strict=True)]
    taken["trimmed"] += done.trimmed > 0
    taken["cut_items"] += bool(sum(done.cuts))
    taken["found_seconds"] += done.seconds


def _told(plan: Plan, source: int, part: str, name: str, kind: str, reason: str) -> dict[str, str]:
    """A line of the quarantine, without what no file can hold: half of a surrogate pair, and
    control characters."""
    told = {"id": name, "source": plan.sources[source].name, "part": part}
    return {
        key: "".join(c if c.isprintable() else "\ufffd" for c in str(value))[:500]
        for key, value in (told | {"kind": kind, "reason": reason}).items()
    }


def set_repeated_apart(plan: Plan, notes: Sequence[dict[str, Any]]) -> list[frozenset[int]]:
    """Quarantines, in the notes, items whose id an earlier part of their source has.

    Within a part the source itself tells of them. Ids name records: two would have one name.

    Returns:
      the records of such items, by shard.
    """
    seen: set[tuple[int, str]] = set()
    apart = []
    for made in notes:
        items = set()
        for number, (source, part, name) in enumerate(made["ids"]):
            if (source, name) in seen:
                items.add(number)
                reason = f"an earlier part has the id {name}"
                made["quarantine"].append(_told(plan, source, part, name, "entry", reason))
            seen.add((source, name))
        apart.append(frozenset(r for r, number in enumerate(made["item"]) if number in items))
    return apart


def finish_shard(plan: Plan, shard: int, left_out: frozenset[int]) -> None:
    """Gives a made shard its place, without the records of the given numbers."""
    from array_record.python.array_record_module import ArrayRecordReader

    staged, _, finished = _paths(plan, shard)
    if os.path.exists(finished):
        return
    if not left_out:
        os.replace(staged, finished)
        return

    def write(path: str) -> None:
        reader = ArrayRecordReader(staged, options="readahead_buffer_size:0")
        with _records_file(path) as put:
            for number in range(reader.num_records()):
                if number not in left_out:
                    put(reader.read([number])[0])
        reader.close()

    _write_own(finished, write)
    os.remove(staged)


def find_duplicates(
    digests: Sequence[bytes], left_out: Sequence[frozenset[int]]
) -> list[frozenset[int]]:
    """Records, by shard, whose digest an earlier record has.

    Args:
      digests: those of each shard's records, joined.
      left_out: records of each shard that do not count, neither as earlier nor as later ones.
    """
    counts = [len(joined) // DIGEST for joined in digests]
    edges = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
    counting = np.ones(edges[-1], bool)
    for edge, numbers in zip(edges, left_out, strict=False):
        counting[[edge + number for number in numbers]] = False
    places = np.flatnonzero(counting)
    keys = np.frombuffer(b"".join(digests), "<u8").reshape(-1, 2)[places]
    order = np.lexsort((keys[:, 1], keys[:, 0]))  # stable: of equal ones the earliest is first
    same = (keys[order[1:]] == keys[order[:-1]]).all(1)
    later = np.sort(places[order[1:][same]])
    cuts = np.searchsorted(later, edges)
    return [
        frozenset((later[a:b] - edge).tolist())
        for a, b, edge in zip(cuts, cuts[1:], edges, strict=False)
    ]


@contextlib.contextmanager
def _records_file(path: str) -> Iterator[Callable[[bytes], None]]:
    """An ArrayRecord file to write; gives a function that adds a record."""
    from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

    count = 0

    def put(data: bytes) -> None:
        nonlocal count
        writer.write(data)
        count += 1

    try:
        writer = ArrayRecordWriter(path, _WRITER)
        try:
            yield put
        finally:
            writer.close()
        reader = ArrayRecordReader(path)
        there = reader.num_records()
        reader.close()
    except (RuntimeError, ValueError) as e:
        raise UserError(f"cannot write {path}: {e}") from e
    if there != count:
        raise UserError(f"cannot write {path}: {there} of {count} records are in it")


def _write_own(path: str, write: Callable[[str], None]) -> None:
    """`write_whole`, first under a name that no other process uses, here or elsewhere."""
    own = f"{path}.{os.uname().nodename}-{os.getpid()}"
    write_whole(own, write)
    os.replace(own, path)


def _write_bytes(path: str, data: bytes) -> None:
    with open(path, "wb") as f:
        f.write(data)
