"""What a prepared set holds, counted: `index.npy`, `quarantine.jsonl` and, last, `dataset.json`."""

from __future__ import annotations

import collections
import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from bagpiper_jax.files import write_json, write_text, write_whole
from bagpiper_jax.input_pipeline.prepared import (
    DATASET_FILE,
    FORMAT,
    INDEX_FILE,
    QUARANTINE_FILE,
)
from bagpiper_jax.input_pipeline.records import TASKS
from bagpiper_jax.preparation.example import DOMAINS
from bagpiper_jax.preparation.shards import DIGEST, Plan, shard_file


def write_report(
    plan: Plan,
    notes: Sequence[dict[str, Any]],
    apart: Sequence[frozenset[int]],
    duplicates: Sequence[frozenset[int]],
) -> None:
    """Writes index, quarantine and statistics of shards that are all in place.

    Args:
      plan: of the set.
      notes: of each shard, from `read_notes`; their quarantine tells of all that is there.
      apart: records of each shard whose items were quarantined after they were made.
      duplicates: records of each shard that were left out.
    """
    good = [
        [number for number in range(len(made["item"])) if number not in repeated]
        for made, repeated in zip(notes, apart, strict=True)
    ]
    kept = [
        [number for number in numbers if number not in later]
        for numbers, later in zip(good, duplicates, strict=True)
    ]
    index = _index(notes, kept)
    path = os.path.join(plan.out, INDEX_FILE)
    write_whole(path, lambda partial: _save(partial, index))
    quarantine = [line for made in notes for line in made["quarantine"]]
    lines = (json.dumps(line, ensure_ascii=False) + "\n" for line in quarantine)
    write_text(os.path.join(plan.out, QUARANTINE_FILE), "".join(lines))
    summary = plan.summary()
    info = {
        "format": FORMAT,
        "name": plan.name,
        "fingerprint": _fingerprint(summary, notes, kept),
        "counts": _counts(notes, good, kept),
        "quarantine": _tally(line["kind"] for line in quarantine),
        "tasks": _tasks(index),
        "hours": _hours(notes, kept),
        "loudness_lufs": _loudness(notes, kept),
        "domains": DOMAINS,
        "shards": [
            {
                "file": shard_file(plan, shard),
                "records": len(numbers),
                "bytes": os.path.getsize(os.path.join(plan.out, shard_file(plan, shard))),
            }
            for shard, numbers in enumerate(kept)
        ],
        "assets": plan.assets,
        "options": plan.options.decisive(),
        "plan": summary,
    }
    write_json(os.path.join(plan.out, DATASET_FILE), info)


def _save(path: str, index: dict[str, np.ndarray]) -> None:
    columns = [(name, column.dtype) for name, column in index.items()]
    table = np.zeros(len(index["shard"]), np.dtype(columns, align=True))
    for name, column in index.items():
        table[name] = column
    with open(path, "wb") as f:
        np.save(f, table)


def _index(notes, kept) -> dict[str, np.ndarray]:
    """Columns [N] of all records, in the order of the shards."""
    counts = [len(numbers) for numbers in kept]
    offsets = [np.arange(count, dtype=np.int32) for count in counts]
    index = {
        "shard": np.repeat(np.arange(len(kept), dtype=np.int32), counts),
        "offset": np.concatenate(offsets),
        "seconds": np.array(_column("seconds", notes, kept), np.float32),
    }
    sizes = _column("sizes", notes, kept)
    for task in TASKS:
        pairs = np.array([size.get(task, (-1, -1)) for size in sizes], np.int32).reshape(-1, 2)
        index[f"rows/{task}"], index[f"windows/{task}"] = pairs.T.copy()
    domains = [DOMAINS.index(domain) for domain, _, _ in _column("labels", notes, kept)]
    index["domain"] = np.array(domains, np.uint8)
    return index


def _column(name: str, notes, kept) -> list:
    return [made[name][n] for made, numbers in zip(notes, kept, strict=True) for n in numbers]


def _counts(notes, good, kept) -> dict[str, Any]:
    """Every item and every record in exactly one place."""
    items = {"in": sum(made["items"] for made in notes)}
    items["quarantined"] = sum(len(made["quarantine"]) for made in notes)
    items["kept"] = _num_items(notes, kept)
    items["duplicates"] = _num_items(notes, good) - items["kept"]
    made_records, out = sum(map(len, good)), sum(map(len, kept))
    dropped = collections.Counter()
    for made in notes:
        dropped.update(made["dropped"])
    in_pause, in_sound = (sum(made["cuts"][k] for made in notes) for k in (0, 1))
    return {
        "items": items,
        "records": {"made": made_records, "duplicates": made_records - out, "out": out},
        "cutting": {
            "items": sum(made["cut_items"] for made in notes),
            "cuts_in_pauses": in_pause,
            "cuts_in_sound": in_sound,
            "trimmed": sum(made["trimmed"] for made in notes),
            "pieces_dropped": dict(sorted(dropped.items())),
        },
    }


def _num_items(notes, records) -> int:
    pairs = zip(notes, records, strict=True)
    return sum(len({made["item"][n] for n in numbers}) for made, numbers in pairs)


def _tasks(index) -> dict[str, dict[str, int]]:
    """Records that serve each task, and the rows that they take."""
    able = {task: index[f"rows/{task}"] for task in TASKS}
    return {
        task: {"records": int((rows >= 0).sum()), "rows": int(rows[rows >= 0].sum(dtype=np.int64))}
        for task, rows in able.items()
    }


def _hours(notes, kept) -> dict[str, Any]:
    seconds, labels = (_column(name, notes, kept) for name in ("seconds", "labels"))
    hours: dict[str, Any] = {
        "found": round(sum(made["found_seconds"] for made in notes) / 3600, 4),
        "total": round(sum(seconds) / 3600, 4),
    }
    for position, name in enumerate(("domain", "language", "licence")):
        by = collections.Counter()
        for label, duration in zip(labels, seconds, strict=True):
            by[label[position] or "unknown"] += duration
        hours[f"by_{name}"] = {k: round(v / 3600, 4) for k, v in sorted(by.items())}
    return hours


def _loudness(notes, kept) -> dict[str, float]:
    """Percentiles over clips."""
    values = [value for clips in _column("loudness", notes, kept) for value in clips]
    if not values:
        return {}
    points = (5, 50, 95)
    return {f"p{p}": round(float(v), 2) for p, v in zip(points, np.percentile(values, points))}


def _fingerprint(summary: dict[str, Any], notes, kept) -> str:
    digest = hashlib.sha256(json.dumps(summary, sort_keys=True).encode())
    for made, numbers in zip(notes, kept, strict=True):
        for n in numbers:
            digest.update(made["digests"][n * DIGEST : (n + 1) * DIGEST])
    return digest.hexdigest()[:16]


def _tally(kinds: Iterable[str]) -> dict[str, int]:
    return dict(sorted(collections.Counter(kinds).items()))
