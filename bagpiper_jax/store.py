"""The one module that calls Orbax: weights, optimizer and input position of a run."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import glob
import logging
import math
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts
from orbax.checkpoint import multihost, type_handlers

from bagpiper_jax.errors import UserError
from bagpiper_jax.files import discard, is_full
from bagpiper_jax.trees import dotted, mismatches, nested


class Checkpoints:
    """Asynchronous checkpoints of a run in `workdir/checkpoints`; a context manager.

    A checkpoint holds three items: `weights`, `optimizer` (with the step) and `input` (the number
    of batches read). It appears under its step only when it is whole.
    """

    def __init__(
        self,
        workdir: str,
        *,
        keep: int,
        keep_every: int = 0,
        timeout: int = 1200,
        hosts: Sequence[str] = (),
    ):
        """Opens the directory, makes it if needed.

        Args:
          workdir: of the run.
          keep: last checkpoints that stay.
          keep_every: checkpoints of these steps stay for good; 0: none.
          timeout: seconds that the processes of a run wait for each other's writes.
          hosts: names of the processes, for messages.

        Raises:
          UserError: the directory cannot be made.
        """
        self._directory = os.path.abspath(os.path.join(workdir, "checkpoints"))
        self._failed = False
        self._hosts = hosts
        self._timeout = timeout
        _silence_doubles()
        kept = [ocp.checkpoint_managers.LatestN(keep)]
        if keep_every:
            kept.append(ocp.checkpoint_managers.EveryNSteps(keep_every))
        options = ocp.CheckpointManagerOptions(
            preservation_policy=ocp.checkpoint_managers.AnyPreservationPolicy(kept),
            async_options=ocp.options.AsyncOptions(timeout_secs=timeout),
            create=True,
        )
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
                self._discard_partial()

    def _discard_partial(self) -> None:
        """Removes half-written checkpoints, until none has come back for a second.

        Writes of a save that has failed go on in threads of tensorstore, which nobody can join and
        which make their directories anew.
        """
        away = 0
        for _ in range(100):
            partial = glob.glob(f"{glob.escape(self._directory)}/*.orbax-checkpoint-tmp*")
            for path in partial:
                discard(path)
            away = 0 if partial else away + 1
            if away == 10:
                return
            time.sleep(0.1)

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

        def start():
            if len(self._hosts) > 1:  # Orbax's own wait has another, fixed time
                wait_for_all(f"save of step {step}", self._timeout)
            self._manager.save(step, args=items, force=True)

        self._guard(start)

    def check(self) -> None:
        """Tells of a save that failed behind the training's back.

        Raises:
          UserError: it could not be written.
        """
        # Orbax's own check does not see what its finalizing thread has met: waiting for it raises
        if not self._manager.is_saving_in_progress():
            self._guard(self._manager.wait_until_finished)

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
            path = os.path.join(self._directory, str(step))
            wrong = _mismatches(os.path.join(path, "weights"), weights)
            if wrong:
                raise UserError(f"checkpoint {path} is of another model: {wrong}") from e
            raise UserError(
                f"checkpoint {path} cannot be restored "
                f"({type(e).__name__}): delete it to resume from the one before"
            ) from e
        return out["weights"], out["optimizer"], out["input"]

    def _guard(self, action) -> None:
        try:
            action()
        except Exception as e:  # a full disk surfaces as OSError or as TensorStore's ValueError
            self._failed = True
            late = late_hosts(str(e), self._hosts)
            if late:
                raise UserError(f"the checkpoint in {self._directory} is not whole: {late}") from e
            reason = " ".join(str(e).split())[:160]
            raise UserError(
                f"cannot write the checkpoint to {self._directory} ({reason}): free some space and "
                "start again, the run resumes from its last whole checkpoint"
            ) from e


def wait_for_all(name: str, timeout: float) -> None:
    """Returns when every process of a run has called it; `name` must be a new one each time.

    Raises:
      Exception: of the coordination service, where one is missing after `timeout` seconds.
    """
    multihost.get_barrier_sync_fn()(key=name, timeout_ms=int(1000 * timeout))


def late_hosts(message: str, hosts: Sequence[str]) -> str:
    """Who a barrier waited for in vain, from its error; empty if the message is of another kind.

    Args:
      message: of JAX's coordination service.
      hosts: names by process.
    """
    found = re.search(r"timed out task names:\s*((?:\d+\s+)+)", message)
    if not found:
        return ""
    late = [int(number) for number in found.group(1).split()]
    names = [hosts[task] if task < len(hosts) else f"process {task}" for task in late]
    return f"no sign of {', '.join(names)}: look at their logs, then start all processes again"


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
    """Shapes to restore into. Those that lie nowhere yet come to one device: the devices they were
    saved from need not be here."""
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

    def placed(leaf):
        leaf = ocp.utils.to_shape_dtype_struct(leaf)
        if getattr(leaf, "sharding", None) is not None:
            return leaf
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here)

    return jax.tree.map(placed, tree)


def has_checkpoint(workdir: str) -> bool:
    """Whether a run has a whole checkpoint to go on from."""
    directory = os.path.join(workdir, "checkpoints")
    return os.path.isdir(directory) and any(name.isdigit() for name in os.listdir(directory))


def restore_weights(workdir: str, params: Any, step: int | None = None) -> Any:
    """Weights alone of a run's checkpoint, in the shapes, types and shardings of `params`.

    Args:
      step: of the checkpoint; None: the latest.

    Raises:
      UserError: there is no such checkpoint, or it is of another model.
    """
    path = os.path.join(_checkpoint(workdir, step), "weights")
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            return checkpointer.restore(path, _abstract(params))
    except Exception as e:
        wrong = _mismatches(path, params) or type(e).__name__
        raise UserError(f"the weights in {path} do not fit the model: {wrong}") from e


def _mismatches(path: str, wanted: Any) -> str:
    """What keeps the arrays of an item from filling a tree; empty if nothing, or unreadable."""
    try:
        return "; ".join(mismatches(dotted(wanted), _open_item(path)))
    except Exception:  # what is damaged is told by whoever asks
        return ""


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
    _silence_doubles()
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
        causes = [cause for cause in _causes(e) if isinstance(cause, UserError)]
        if causes:
            raise causes[0] from e
        reason = " ".join(str(e).split())[:160]
        mend = ": free some space" if any(map(is_full, _causes(e))) else ""
        raise UserError(f"cannot write {directory} ({reason}){mend}") from e


def _causes(error: BaseException | None) -> list[BaseException]:
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found


def open_sliced(workdir: str, item: str = "weights") -> dict[str, SlicedArray]:
    """The arrays of an item of the latest checkpoint, by dotted path; none is read yet.

    Raises:
      UserError: there is no checkpoint, or not this item in it, or it is damaged.
    """
    directory = _checkpoint(workdir)
    path = os.path.join(directory, item)
    if not os.path.isdir(path):
        raise UserError(f"{directory} holds no {item}")
    try:
        return _open_item(path)
    except Exception as e:  # Orbax and TensorStore raise many kinds for a damaged checkpoint
        raise UserError(f"{path} is damaged ({type(e).__name__}): copy it again") from e


def _open_item(path: str) -> dict[str, SlicedArray]:
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


def _checkpoint(workdir: str, step: int | None = None) -> str:
    """Directory of a whole checkpoint, the latest or that of a step."""
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
