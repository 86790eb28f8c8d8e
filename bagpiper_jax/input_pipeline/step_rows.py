"""What a process reads: its rows of each step's batch, from any step on, made by worker processes.

Workers import this module and not `training`, so that what runs in them is free of jax. (Grain
itself imports it where it is installed, and starts no backend.)
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from typing import Protocol

import grain
import numpy as np
from absl import flags

from bagpiper_jax.input_pipeline.batch import Batch, stack_rows
from bagpiper_jax.processes import die_with_parent


class PackedRows(Protocol):
    """Packed rows (`Batch` without its leading axis) by number; it must pickle."""

    def __len__(self) -> int: ...

    def __getitem__(self, row: int) -> Batch: ...


class StepRows:
    """The rows of a source that this process needs, in the order of the steps."""

    def __init__(self, source: PackedRows, rows: int, mine: np.ndarray):
        """Of every `rows` rows of the source, those numbered `mine`."""
        self._source, self._rows, self._mine = source, rows, mine

    def __len__(self) -> int:
        return len(self._source) // self._rows * len(self._mine)

    def __getitem__(self, number: int) -> Batch:
        step, place = divmod(int(number), len(self._mine))
        return self._source[step * self._rows + int(self._mine[place])]

    def __repr__(self) -> str:  # Grain compares and prints sources
        return f"StepRows({self._source!r}, {self._rows}, {self._mine.tolist()})"


def host_batches(
    source: PackedRows, rows: int, mine: np.ndarray, start: int, workers: int
) -> Iterator[Batch]:
    """This process's rows of each step from step `start` on, in `workers` processes (0: here).

    Rows are random access, so the position is one number, on any number of hosts and workers.
    """
    dataset = grain.MapDataset.source(StepRows(source, rows, mine))
    dataset = dataset.batch(len(mine), drop_remainder=True, batch_fn=stack_rows)[start:]
    dataset = dataset.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=4))
    if workers:
        if not flags.FLAGS.is_parsed():  # Grain reads absl flags when it starts workers
            flags.FLAGS.mark_as_parsed()
        options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=4)
        dataset = dataset.mp_prefetch(options, worker_init_fn=start_worker)
    return iter(dataset)


def start_worker(*_) -> None:
    """Starts a data worker, which takes no core of the training and does not outlive it.

    SIGTERM to all processes of a job is for the training, which has steps to end and to save.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    one_blas_thread()
    die_with_parent()  # Grain's workers notice a parent that ends, not one that is killed


def one_blas_thread() -> None:
    """Threads of small matmuls would spin and take the training's cores."""
    import threadpoolctl

    threadpoolctl.threadpool_limits(1)
