"""`PreparedSet`: random access to the records of a prepared data set, and its index.

A set is a directory: `dataset.json` (what it holds, how it was made), `index.npy` (a table of the
sizes of every record, all that planning needs; processes share it) and ArrayRecord shards of group
size 1.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
from typing import Any

import numpy as np

from bagpiper_jax.errors import UserError
from bagpiper_jax.input_pipeline.records import TASKS, Record

FORMAT = "bagpiper-prepared-1"
DATASET_FILE, INDEX_FILE, QUARANTINE_FILE = "dataset.json", "index.npy", "quarantine.jsonl"


@dataclasses.dataclass(frozen=True)
class _Shard:
    """What `ArrayRecordDataSource` calls a file instruction: all of a shard."""

    filename: str
    take: int
    examples_in_shard: int
    skip: int = 0


class PreparedSet:
    """A prepared data set; see `open_prepared`.

    Record i is the i-th of the shards in order. It pickles as its directory and `dataset.json`
    alone: index and shards are opened in each process when they are first asked for.

    Attributes:
      directory: of the set.
      info: contents of `dataset.json`.
      name: of the set.
      fingerprint: of its records in order, and of what its sizes depend on.
    """

    def __init__(self, directory: str | os.PathLike, info: dict[str, Any]):
        self.directory = os.fspath(directory)
        self.info = info
        self.name: str = info["name"]
        self.fingerprint: str = info["fingerprint"]
        self._length = sum(shard["records"] for shard in info["shards"])

    def __getstate__(self):
        return {"directory": self.directory, "info": self.info}

    def __setstate__(self, state):
        self.__init__(**state)

    def __len__(self) -> int:
        return self._length

    def __repr__(self) -> str:  # Grain compares and prints sources
        return f"PreparedSet({self.name!r}, records={len(self)}, {self.fingerprint})"

    def __getitem__(self, i: int) -> Record:
        """Record i; threads may ask at the same time.

        Raises:
          IndexError: i is not in [0, len).
          UserError: its shard is missing or damaged.
        """
        i = int(i)
        if not 0 <= i < len(self):
            raise IndexError(f"record {i} of {len(self)}")
        try:
            return Record.from_bytes(self._records[i])
        except (RuntimeError, ValueError) as e:  # ArrayRecord raises either, as the damage is
            shard = self.info["shards"][self._column("shard")[i]]["file"]
            path = os.path.join(self.directory, shard)
            raise UserError(f"{path} is missing or damaged: prepare the data again ({e})") from e

    def rows(self, task: str) -> np.ndarray:
        """Rows that each record takes under a task, int32 [N]; −1 where it cannot serve it."""
        return self._column(f"rows/{_checked(task)}")

    def windows(self, task: str) -> np.ndarray:
        """Mel windows, in whole encoder blocks, under a task, int32 [N]; −1 where it cannot."""
        return self._column(f"windows/{_checked(task)}")

    @property
    def seconds(self) -> np.ndarray:
        """Audio of each record, float32 [N]."""
        return self._column("seconds")

    @property
    def domains(self) -> np.ndarray:
        """Domain of each record, a number in `info["domains"]`, uint8 [N]."""
        return self._column("domain")

    @functools.cached_property
    def _records(self):
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        shards = [
            _Shard(os.path.join(self.directory, shard["file"]), shard["records"], shard["records"])
            for shard in self.info["shards"]
            if shard["records"]
        ]
        return ArrayRecordDataSource(shards)

    @functools.cached_property
    def _index(self) -> np.ndarray:
        path = os.path.join(self.directory, INDEX_FILE)
        try:  # an empty table cannot be mapped
            index = np.load(path, mmap_mode="r" if len(self) else None, allow_pickle=False)
        except FileNotFoundError:
            raise UserError(f"there is no {path}: prepare the data again") from None
        except (OSError, ValueError, EOFError) as e:
            raise UserError(f"{path} is damaged: prepare the data again ({e})") from e
        if index.shape != (len(self),) or not index.dtype.names:
            raise UserError(f"{path} does not belong to its {DATASET_FILE}: prepare the data again")
        return index

    def _column(self, name: str) -> np.ndarray:
        if name not in self._index.dtype.names:
            path = os.path.join(self.directory, INDEX_FILE)
            raise UserError(f"{path} has no {name}: prepare the data again")
        return self._index[name]


def open_prepared(
    directory: str | os.PathLike, assets: dict[str, Any] | None = None
) -> PreparedSet:
    """Opens what `bagpiper data prepare` wrote.

    Args:
      directory: of the set.
      assets: `fingerprints` of the tokenizer and codec that it will be used with.

    Raises:
      UserError: it is no prepared data set, an unfinished one, or one of another format, or it was
        prepared with another tokenizer, codec or layout.
    """
    path = os.path.join(directory, DATASET_FILE)
    try:
        with open(path, encoding="utf-8") as f:
            info = json.load(f)
        if info["format"] != FORMAT:
            raise UserError(f"{path} is of format {info['format']}, not {FORMAT}: prepare again")
        theirs, prepared = info["assets"], PreparedSet(directory, info)
    except OSError as e:
        raise UserError(
            f"{directory} is no finished prepared data set: there is no {DATASET_FILE}; "
            "run bagpiper data prepare"
        ) from e
    except (ValueError, KeyError, TypeError) as e:
        raise UserError(f"{path} is damaged: prepare the data again ({e})") from e
    for name, mine in (assets or {}).items():
        if theirs.get(name) != mine and not (name == "codec" and theirs.get(name) is None):
            raise UserError(
                f"{directory} was prepared with another {name.replace('_', ' ')} than the model "
                "has: name the one it was prepared with, or prepare it again with --model"
            )
    return prepared


def _checked(task: str) -> str:
    if task not in TASKS:
        raise ValueError(f"task {task!r} is none of {TASKS}")
    return task
