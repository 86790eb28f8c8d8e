"""What a process feeds its devices: its rows of each step's batch, made ahead, on the mesh."""

from __future__ import annotations

import contextlib
import queue
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator

import jax
import numpy as np
from jax.sharding import NamedSharding

from bagpiper_jax.errors import UserError
from bagpiper_jax.input_pipeline.batch import Batch

_LOOK_EVERY = 1.0  # seconds between looks at whether the run is to end
_SAY_AFTER = 60.0  # seconds without a batch until it is said
_STOP_AFTER = 1800.0  # and until the run stops


def own_rows(sharding: NamedSharding, rows: int, micro_batches: int) -> np.ndarray:
    """Numbers of the rows of a step's batch that this process's devices hold.

    Args:
      sharding: of the batch, [A, B, …].
      rows: A · B.
      micro_batches: A.

    Raises:
      UserError: the rows cannot be dealt out evenly.
    """
    per_micro = rows // micro_batches
    shards = sharding.shard_shape((1, sharding.mesh.size))[1]
    parts = sharding.mesh.size // shards
    if rows % micro_batches or per_micro % parts:
        raise UserError(
            f"a batch of {rows} rows (data.batch_tokens / data.length) does not divide into "
            f"{micro_batches} micro-batches (compute.accumulation) for {parts} groups of devices "
            "(mesh.replica x mesh.fsdp): raise mesh.tensor or choose another accumulation"
        )
    spans = sharding.addressable_devices_indices_map((micro_batches, per_micro)).values()
    own = sorted({r for span in spans for r in range(*span[1].indices(per_micro))})
    return (np.arange(micro_batches)[:, None] * per_micro + np.array(own)).reshape(-1)


def place(batch: Batch, sharding: NamedSharding, rows: int, micro_batches: int, mine) -> Batch:
    """This process's rows of a batch → global arrays [A, B, …]."""
    per_micro = rows // micro_batches
    own = mine[: len(mine) // micro_batches]  # the same in every micro-batch
    at = {int(row): i for i, row in enumerate(own)}

    def make(field: np.ndarray) -> jax.Array:
        local = field.reshape(micro_batches, len(own), *field.shape[1:])

        def part(index):
            span = range(*index[1].indices(per_micro))
            return local[:, at[span[0]] : at[span[-1]] + 1]

        shape = (micro_batches, per_micro, *field.shape[1:])
        with jax.transfer_guard("allow"):
            return jax.make_array_from_callback(shape, sharding, part)

    return Batch(*map(make, batch))


class Ahead:
    """An iterator that a thread runs ahead of; a context manager.

    Where nothing comes for a minute it says so, and where nothing comes for half an hour it ends
    the run: a data worker that died would otherwise leave the training waiting without a word.
    """

    def __init__(self, make: Callable[[], Iterator], depth: int = 2):
        self._items: queue.Queue = queue.Queue(depth)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(make,), daemon=True)
        self._thread.start()

    def _run(self, make) -> None:
        iterator = iter(())
        try:
            iterator = make()
            for item in iterator:
                if not self._put(item):
                    return
            self._put(StopIteration())
        except BaseException as e:  # it is raised where the item is asked for
            self._put(e)
        finally:
            if hasattr(iterator, "close"):  # Grain's ends its workers
                iterator.close()

    def _put(self, item) -> bool:
        while not self._closed.is_set():
            with contextlib.suppress(queue.Full):
                self._items.put(item, timeout=0.2)
                return True
        return False

    def __enter__(self) -> Ahead:
        return self

    def __exit__(self, *_):
        self._closed.set()
        self._thread.join(timeout=30)

    def next(self, unless: Callable[[], bool] = lambda: False):
        """The next item; None where it has not come yet and `unless()` holds.

        Raises:
          UserError: nothing came for half an hour.
          StopIteration: there are no more; else whatever the iterator raised.
        """
        since, say_at = time.monotonic(), _SAY_AFTER
        while True:
            try:
                item = self._items.get(timeout=_LOOK_EVERY)
            except queue.Empty:
                if unless():
                    return None
                waited = time.monotonic() - since
                if waited > _STOP_AFTER:
                    raise UserError(
                        f"the input pipeline gave no batch for {waited / 60:.0f} minutes: a data "
                        "worker may have died (try data.workers=0), or the disk hangs"
                    ) from None
                if waited > say_at:
                    say_at += _SAY_AFTER
                    print(f"waiting for input: no batch for {waited:.0f} s", file=sys.stderr)
                continue
            if isinstance(item, BaseException):
                raise item
            return item


def checksums(batch: Batch, mine: np.ndarray, rows: int) -> np.ndarray:
    """CRC of this process's rows at their numbers in the step's batch, else −1; int32 [rows]."""
    sums = np.full(rows, -1, np.int32)
    for place_, row in enumerate(mine):
        crc = 0
        for field in batch:
            crc = zlib.crc32(np.ascontiguousarray(field[place_]), crc)
        sums[row] = crc & 0x7FFFFFFF  # what is gathered is of 32 bits
    return sums


def check_agreement(by_host: np.ndarray, hosts: list[str], step: int) -> None:
    """Raises where hosts hold the same row with other contents.

    Args:
      by_host: `checksums` of every host, [hosts, rows].
      hosts: their names.
      step: for the message.

    Raises:
      UserError: with the step, the row and the hosts.
    """
    for row in range(by_host.shape[1]):
        held = {host: crc for host, crc in zip(hosts, by_host[:, row], strict=True) if crc >= 0}
        if len(set(held.values())) > 1:
            raise UserError(
                f"step {step}: row {row} of the batch differs between {', '.join(held)}: do they "
                "have the same corpus, tokenizer and version?"
            )
