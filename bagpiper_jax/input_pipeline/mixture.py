"""Which examples a training reads, and in which proportions: sets × tasks, weighted by tokens."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Protocol

import numpy as np

from bagpiper_jax.errors import UserError
from bagpiper_jax.input_pipeline.packing import RowShape
from bagpiper_jax.input_pipeline.records import Record

# arXiv 2602.05220
DEFAULT_MIXTURE = {"text_to_audio": 2.0, "audio_to_text": 1.0, "text_only": 1.0}
_CHUNK = 1 << 22  # examples that are surveyed at a time, for memory


class Examples(Protocol):
    """What is asked of a set of records; `prepared.PreparedSet` is one. It must pickle."""

    name: str
    fingerprint: str

    def __len__(self) -> int: ...

    def __getitem__(self, i: int) -> Record: ...

    def rows(self, task: str) -> np.ndarray:
        """Rows of each record under the task, int32 [N]; −1 where it cannot serve it."""
        ...

    def windows(self, task: str) -> np.ndarray:
        """Mel windows of each record, in whole encoder blocks, int32 [N]."""
        ...


@dataclasses.dataclass(frozen=True)
class Source:
    """The records of a set under one task.

    Attributes:
      examples: the set.
      task: one of `records.TASKS`.
      weight: its share of all tokens, in proportion to the other sources' weights.
    """

    examples: Examples
    task: str
    weight: float

    @property
    def name(self) -> str:
        return f"{self.examples.name}/{self.task}"

    @property
    def identity(self) -> str:
        """What its order depends on, with the seed: neither its directory nor its name."""
        return f"{self.examples.fingerprint}/{self.task}"


@dataclasses.dataclass(frozen=True)
class Survey:
    """What the rows of a plan can hold of a source.

    An example with more mel windows than a row is left out; one with more positions is cut at the
    end of the row.

    Attributes:
      served: examples that go into rows, the cut ones among them.
      tokens: positions that they take in an epoch.
      cut: examples that lose their end.
      left_out: examples that could serve the task and find no row with so many mel windows.
      unable: examples that cannot serve the task.
    """

    served: int = 0
    tokens: int = 0
    cut: int = 0
    left_out: int = 0
    unable: int = 0


def survey(source: Source, shape: RowShape) -> Survey:
    """Counts what fits; reads the sizes of all examples once, 5 ns for each."""
    counts: Counter = Counter()
    rows, windows = source.examples.rows(source.task), source.examples.windows(source.task)
    for at in range(0, len(rows), _CHUNK):
        part, part_windows = rows[at : at + _CHUNK], windows[at : at + _CHUNK]
        able = part > 0
        served = able & (part_windows <= shape.windows)
        counts["served"] += int(served.sum())
        counts["tokens"] += int(np.minimum(part[served], shape.length).sum(dtype=np.int64))
        counts["cut"] += int((served & (part > shape.length)).sum())
        counts["left_out"] += int((able & ~served).sum())
        counts["unable"] += int((~able).sum())
    return Survey(**counts)


def spread(
    sets: Iterable[tuple[Examples, str, float]], mixture: Mapping[str, float] | None = None
) -> list[Source]:
    """Sources whose tasks share the tokens as the mixture says.

    Args:
      sets: (set, task, weight); a task's share is divided among its sets by their weights.
      mixture: share of tokens by task; DEFAULT_MIXTURE if None.

    Raises:
      UserError: a task of the mixture without a set, or a set whose task the mixture lacks.
    """
    mixture = DEFAULT_MIXTURE if mixture is None else mixture
    wanted = {task for task, weight in mixture.items() if weight > 0}
    sets = [(examples, task, weight) for examples, task, weight in sets if weight > 0]
    totals: Counter = Counter()
    for _, task, weight in sets:
        totals[task] += weight
    if lacking := sorted(wanted - set(totals)):
        raise UserError(f"config key data.sets: no set for the tasks of the mixture {lacking}")
    if unmixed := sorted(set(totals) - wanted):
        raise UserError(f"config key data.mixture: give the tasks {unmixed} of data.sets a share")
    return [Source(e, task, mixture[task] * weight / totals[task]) for e, task, weight in sets]
