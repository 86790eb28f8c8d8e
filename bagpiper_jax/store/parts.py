"""Arrays of a checkpoint that are read and written by parts, whole on no host."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import math
import os
import threading
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts
from orbax.checkpoint import type_handlers

from bagpiper_jax.errors import UserError
from bagpiper_jax.files import is_full
from bagpiper_jax.store.failures import causes, silence_doubles
from bagpiper_jax.trees import nested


@dataclasses.dataclass(frozen=True)
class SlicedArray:
    """An array that is read, or made, by parts.

    Attributes:
      shape, dtype: of the whole.
      cut: (a tuple of slices, one per axis) → that part.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    cut: Callable[[tuple[slice, ...]], np.ndarray]

    # what Orbax asks of an array
    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * np.dtype(self.dtype).itemsize


_CHUNK_BYTES = 1 << 20


def _chunks(array: SlicedArray) -> list[int]:
    """Shape of a chunk, which is read whole: one layer, then the other axes halved in turn.

    So a device of a mesh that splits those axes reads little besides its own.
    """
    shape, item = list(array.shape), np.dtype(array.dtype).itemsize
    free = range(len(shape))
    if len(shape) > 2 and array.nbytes > _CHUNK_BYTES:
        shape[0], free = 1, free[1:]
    while item * math.prod(shape) > _CHUNK_BYTES:
        even = [i for i in free if shape[i] % 2 == 0]
        if not even:
            break
        # the axis that has been halved the least
        axis = min(even, key=lambda i: (array.shape[i] // shape[i], -shape[i]))
        shape[axis] //= 2
    return shape


class _SlicedHandler(type_handlers.NumpyHandler):
    """Writes the arrays of one item, one at a time, by as many rows as a chunk has."""

    def __init__(self, progress: Callable[[int], None], stopped: threading.Event):
        super().__init__(deepcopy_host_arrays=False)
        self._progress, self._stopped = progress, stopped
        self._one_at_a_time: asyncio.Lock | None = None

    async def _open_and_write(self, value, tspec, ts_context):
        if self._one_at_a_time is None:  # a lock belongs to a loop, which each item has its own of
            self._one_at_a_time = asyncio.Lock()
        chunks = _chunks(value)
        tspec["metadata"] |= {"compressor": None, "chunks": chunks}  # weights hardly shrink
        async with self._one_at_a_time:
            store = await ts.open(ts.Spec(tspec), create=True, open=True, context=ts_context)
            under_way = None  # a part is cut while the one before it is written
            for start in range(0, value.shape[0], chunks[0]):
                if self._stopped.is_set():
                    raise RuntimeError("stopped")
                index = (slice(start, min(start + chunks[0], value.shape[0])),)
                part = value.cut(index + (slice(None),) * (value.ndim - 1))
                if under_way is not None:
                    await under_way
                under_way = store[index].write(part)
                self._progress(part.nbytes)
            await under_way


def write_sliced(
    workdir: str,
    items: Mapping[str, Mapping[str, SlicedArray]],
    progress: Callable[[int], None] = lambda _: None,
) -> None:
    """Writes a checkpoint of step 0, as a run has them, without holding it.

    Args:
      workdir: directory without checkpoints.
      items: "weights", "codec" → dotted path → array of at least one axis.
      progress: called with the bytes written since the last call.

    Raises:
      UserError: it cannot be written, or what is to be written cannot be read.
    """
    directory = os.path.abspath(os.path.join(workdir, "checkpoints"))
    silence_doubles()
    stopped, lock = threading.Event(), threading.Lock()

    def report(num_bytes: int) -> None:  # each item is written by a thread of its own
        with lock:
            progress(num_bytes)

    handlers, arguments = {}, {}
    for name, arrays in items.items():
        handler = (SlicedArray, _SlicedHandler(report, stopped))
        # without OCDBT: that holds what it writes until the end
        handlers[name] = ocp.PyTreeCheckpointHandler(
            type_handler_registry=type_handlers.create_type_handler_registry(handler),
            use_ocdbt=False,
        )
        arguments[name] = ocp.args.PyTreeSave(nested(arrays))
    try:
        manager = ocp.CheckpointManager(directory, item_handlers=handlers)
        try:
            manager.save(0, args=ocp.args.Composite(**arguments), force=True)
            manager.wait_until_finished()
        except BaseException:
            stopped.set()  # else closing would wait for all the rest to be written
            with contextlib.suppress(Exception):
                manager.close()
            raise
        manager.close()
    except UserError:
        raise
    except Exception as e:  # Orbax wraps what its threads raise
        told = [cause for cause in causes(e) if isinstance(cause, UserError)]
        if told:
            raise told[0] from e
        reason = " ".join(str(e).split())[:160]
        mend = ": free some space" if any(map(is_full, causes(e))) else ""
        raise UserError(f"cannot write {directory} ({reason}){mend}") from e


def open_sliced(workdir: str, item: str = "weights") -> dict[str, SlicedArray]:
    """The arrays of an item of the latest checkpoint, by dotted path; none is read yet.

    Raises:
      UserError: there is no checkpoint, or not this item in it, or it is damaged.
    """
    directory = checkpoint_path(workdir)
    path = os.path.join(directory, item)
    if not os.path.isdir(path):
        raise UserError(f"{directory} holds no {item}")
    try:
        return open_item(path)
    except Exception as e:  # Orbax and TensorStore raise many kinds for a damaged checkpoint
        raise UserError(f"{path} is damaged ({type(e).__name__}): copy it again") from e


def open_item(path: str) -> dict[str, SlicedArray]:
    """The arrays of an item in a checkpoint's directory, by dotted path; none is read yet."""
    with ocp.PyTreeCheckpointer() as checkpointer:
        tree = checkpointer.metadata(path).item_metadata.tree
    names = [".".join(map(str, keys)) for keys, _ in _leaves(tree)]
    return {name: _opened(path, name) for name in names}


def _leaves(tree: Any, path: tuple = ()):
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from _leaves(value, (*path, key))
    else:
        yield path, tree


def _opened(path: str, name: str) -> SlicedArray:
    if os.path.exists(os.path.join(path, "manifest.ocdbt")):
        base = {"driver": "file", "path": f"{path}/"}
        kvstore = {"driver": "ocdbt", "base": base, "path": f"{name}/"}
    else:
        kvstore = {"driver": "file", "path": os.path.join(path, name, "")}
    # what Orbax writes has all its chunks: a missing one is damage, not zeros
    spec = {"driver": "zarr", "kvstore": kvstore, "fill_missing_data_reads": False}
    store = ts.open(spec, read=True).result()

    def cut(index: tuple[slice, ...]) -> np.ndarray:
        try:
            return store[index].read().result()
        except Exception as e:  # TensorStore raises many kinds
            raise UserError(f"{os.path.join(path, name)} is damaged: copy it again") from e

    return SlicedArray(tuple(store.shape), store.dtype.numpy_dtype, cut)


def checkpoint_path(workdir: str, step: int | None = None) -> str:
    """Directory of a whole checkpoint of a run, the latest or that of a step.

    Raises:
      UserError: there is none.
    """
    directory = os.path.abspath(os.path.join(workdir, "checkpoints"))
    if not os.path.isdir(directory):
        raise UserError(f"{workdir} holds no checkpoints")
    with ocp.CheckpointManager(directory) as manager:
        steps = sorted(manager.all_steps())
    if not steps:
        raise UserError(f"{workdir} holds no whole checkpoint yet")
    if step is not None and step not in steps:
        raise UserError(
            f"{workdir} has no checkpoint of step {step}, only of {', '.join(map(str, steps))}"
        )
    return os.path.join(directory, str(steps[-1] if step is None else step))
