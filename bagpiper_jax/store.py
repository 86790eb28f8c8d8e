"""The one module that calls Orbax: weights, optimizer and input position of a run."""

from __future__ import annotations

import asyncio
import dataclasses
import glob
import logging
import math
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts
from orbax.checkpoint import type_handlers

from bagpiper_jax.errors import UserError
from bagpiper_jax.trees import nested


class Checkpoints:
    """Asynchronous checkpoints of a run in `workdir/checkpoints`; a context manager.

    A checkpoint holds three items: `weights`, `optimizer` (with the step) and `input` (the number
    of batches read). It appears under its step only when it is whole.
    """

    def __init__(self, workdir: str, *, keep: int):
        """Opens the directory, makes it if needed.

        Raises:
          UserError: the directory cannot be made.
        """
        self._directory = os.path.abspath(os.path.join(workdir, "checkpoints"))
        self._failed = False
        _silence_doubles()
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True)
        try:
            self._manager = ocp.CheckpointManager(self._directory, options=options)
        except OSError as e:
            raise UserError(f"cannot write checkpoints to {self._directory}: {e.strerror}") from e

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind, *_):
        try:
            self.wait()
        except UserError:
            if kind is None:  # else the first error is the one to tell
                raise
        finally:
            self._manager.close()
            if self._failed:
                for partial in glob.glob(f"{glob.escape(self._directory)}/*.orbax-checkpoint-tmp*"):
                    shutil.rmtree(partial, ignore_errors=True)

    @property
    def latest_step(self) -> int | None:
        return self._manager.latest_step()

    def save(self, step: int, weights: Any, optimizer: Any, position: dict[str, Any]) -> None:
        """Starts saving; the arrays are copied before this returns.

        Raises:
          UserError: this save, or the one before, could not be written.
        """
        items = ocp.args.Composite(
            weights=ocp.args.StandardSave(weights),
            optimizer=ocp.args.StandardSave(optimizer),
            input=ocp.args.JsonSave(position),
        )
        self._guard(lambda: self._manager.save(step, args=items, force=True))

    def wait(self) -> None:
        """Returns when what was started is on disk.

        Raises:
          UserError: it could not be written.
        """
        self._guard(self._manager.wait_until_finished)

    def restore(self, weights: Any, optimizer: Any) -> tuple[Any, Any, dict[str, Any]]:
        """Latest checkpoint in the shapes and shardings of the arguments.

        Returns:
          (weights, optimizer, input position).

        Raises:
          UserError: the checkpoint is damaged or is of another model.
        """
        items = ocp.args.Composite(
            weights=ocp.args.StandardRestore(_abstract(weights)),
            optimizer=ocp.args.StandardRestore(_abstract(optimizer)),
            input=ocp.args.JsonRestore(),
        )
        step = self.latest_step
        try:
            out = self._manager.restore(step, args=items)
        except Exception as e:  # Orbax raises many kinds for a damaged checkpoint
            raise UserError(
                f"checkpoint {self._directory}/{step} cannot be restored "
                f"({type(e).__name__}): delete it to resume from the one before"
            ) from e
        return out["weights"], out["optimizer"], out["input"]

    def _guard(self, action) -> None:
        try:
            action()
        except Exception as e:  # a full disk surfaces as OSError or as TensorStore's ValueError
            self._failed = True
            reason = " ".join(str(e).split())[:160]
            raise UserError(
                f"cannot write the checkpoint to {self._directory} ({reason}): free some space and "
                "start again, the run resumes from its last whole checkpoint"
            ) from e


def _silence_doubles() -> None:
    """Orbax and TensorStore print tracebacks of failed writes, which `_guard` tells in one line."""
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    previous = sys.unraisablehook
    if getattr(previous, "skips_closed_loops", False):
        return

    def hook(unraisable):
        # writes that are still under way when a save fails find their event loop closed
        if "Event loop is closed" not in str(unraisable.exc_value):
            previous(unraisable)

    hook.skips_closed_loops = True
    sys.unraisablehook = hook


def _abstract(tree: Any) -> Any:
    return jax.tree.map(ocp.utils.to_shape_dtype_struct, tree)


def restore_weights(workdir: str, params: Any, item: str = "weights") -> Any:
    """One item alone of a run's latest checkpoint.

    Args:
      workdir: of the run.
      params: arrays or shapes; what is restored has their types and shardings.
      item: "weights" or, of a converted checkpoint, "codec".

    Raises:
      UserError: there is no checkpoint, or it is of another model.
    """
    path = os.path.join(_latest(workdir), item)
    if not os.path.isdir(path):
        raise UserError(f"{workdir} holds no {item}")
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            return checkpointer.restore(path, _abstract(params))
    except Exception as e:
        raise UserError(f"the {item} in {path} do not fit the model ({type(e).__name__})") from e


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


_CHUNK_BYTES = 64 << 20


class _SlicedHandler(type_handlers.NumpyHandler):
    """Writes arrays chunk by chunk, one array at a time."""

    def __init__(self, progress: Callable[[int], None]):
        super().__init__(deepcopy_host_arrays=False)
        self._progress = progress
        self._one_at_a_time: asyncio.Lock | None = None

    async def _open_and_write(self, value, tspec, ts_context):
        if self._one_at_a_time is None:
            self._one_at_a_time = asyncio.Lock()
        tspec["metadata"]["compressor"] = None  # weights hardly shrink
        async with self._one_at_a_time:
            store = await ts.open(ts.Spec(tspec), create=True, open=True, context=ts_context)
            step = store.chunk_layout.write_chunk.shape[0]
            for start in range(0, value.shape[0], step):
                index = (slice(start, min(start + step, value.shape[0])),)
                part = value.cut(index + (slice(None),) * (value.ndim - 1))
                await store[index].write(part)
                self._progress(part.nbytes)


def write_sliced(
    workdir: str,
    items: Mapping[str, Mapping[str, SlicedArray]],
    progress: Callable[[int], None] = lambda _: None,
) -> None:
    """Writes a checkpoint of step 0, as a run has them, without holding it.

    Args:
      workdir: directory; its `checkpoints` must not be there yet.
      items: "weights", "codec" → dotted path → array of at least one axis.
      progress: called with the bytes written since the last call.

    Raises:
      UserError: it is there already, or cannot be written; nothing is left then.
    """
    directory = os.path.abspath(os.path.join(workdir, "checkpoints"))
    if os.path.exists(directory):
        raise UserError(f"{directory} is there already: choose another directory")
    _silence_doubles()
    registry = type_handlers.create_type_handler_registry((SlicedArray, _SlicedHandler(progress)))
    # without OCDBT: that holds what it writes until the end
    handlers = {
        name: ocp.PyTreeCheckpointHandler(type_handler_registry=registry, use_ocdbt=False)
        for name in items
    }
    arguments = {}
    for name, arrays in items.items():
        how = {path: _chunked(array) for path, array in arrays.items()}
        arguments[name] = ocp.args.PyTreeSave(nested(arrays), save_args=nested(how))
    try:
        with ocp.CheckpointManager(directory, item_handlers=handlers) as manager:
            manager.save(0, args=ocp.args.Composite(**arguments), force=True)
            manager.wait_until_finished()
    except BaseException as e:
        shutil.rmtree(directory, ignore_errors=True)
        if isinstance(e, UserError) or not isinstance(e, Exception):
            raise
        reason = " ".join(str(e).split())[:160]
        raise UserError(f"cannot write {directory} ({reason}): free some space") from e


def _chunked(array: SlicedArray) -> ocp.SaveArgs:
    if array.nbytes <= _CHUNK_BYTES:
        return ocp.SaveArgs()
    return ocp.SaveArgs(chunk_byte_size=_CHUNK_BYTES, shard_axes=(0,))


def open_sliced(workdir: str, item: str = "weights") -> dict[str, SlicedArray]:
    """The arrays of an item of the latest checkpoint, by dotted path; none is read yet.

    Raises:
      UserError: there is no checkpoint, or not this item in it, or it is damaged.
    """
    directory = _latest(workdir)
    path = os.path.join(directory, item)
    if not os.path.isdir(path):
        raise UserError(f"{directory} holds no {item}")
    try:
        with ocp.PyTreeCheckpointer() as checkpointer:
            tree = checkpointer.metadata(path).item_metadata.tree
        names = [".".join(map(str, keys)) for keys, _ in _leaves(tree)]
        return {name: _opened(path, name) for name in names}
    except Exception as e:  # Orbax and TensorStore raise many kinds for a damaged checkpoint
        raise UserError(f"{path} is damaged ({type(e).__name__}): copy it again") from e


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
    store = ts.open({"driver": "zarr", "kvstore": kvstore}, read=True).result()
    dtype = store.dtype.numpy_dtype
    return SlicedArray(tuple(store.shape), dtype, lambda index: store[index].read().result())


def _latest(workdir: str) -> str:
    """Directory of the latest whole checkpoint."""
    directory = os.path.abspath(os.path.join(workdir, "checkpoints"))
    if not os.path.isdir(directory):
        raise UserError(f"{workdir} holds no checkpoints")
    with ocp.CheckpointManager(directory) as manager:
        step = manager.latest_step()
    if step is None:
        raise UserError(f"{workdir} holds no whole checkpoint yet")
    return os.path.join(directory, str(step))
