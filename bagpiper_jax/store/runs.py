"""Checkpoints of a run: weights, optimizer and input position."""

from __future__ import annotations

import contextlib
import glob
import os
import re
import sys
import time
from collections.abc import Sequence
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import multihost

from bagpiper_jax.errors import UserError
from bagpiper_jax.files import discard
from bagpiper_jax.store.failures import silence_doubles
from bagpiper_jax.store.parts import checkpoint_path, open_item
from bagpiper_jax.trees import dotted, mismatches

_SAY_AFTER = 60.0  # seconds of a save until it is said


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
        self._broken: BaseException | None = None  # what a save met here, of several processes
        self._written = False  # whether this process's part of the save is
        self._step, self._since, self._said = 0, 0.0, 0.0
        silence_doubles()
        kept = [ocp.checkpoint_managers.LatestN(keep)]
        if keep_every:
            kept.append(ocp.checkpoint_managers.EveryNSteps(keep_every))
        options = ocp.CheckpointManagerOptions(
            preservation_policy=ocp.checkpoint_managers.AnyPreservationPolicy(kept),
            async_options=ocp.options.AsyncOptions(
                timeout_secs=timeout,
                barrier_sync_fn=self._meet if len(hosts) > 1 else None,
            ),
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
            told = contextlib.suppress(Exception) if self._failed else contextlib.nullcontext()
            with told:  # it raises again what was told
                self._manager.close()
            if self._failed and len(self._hosts) < 2:  # other hosts may still be writing there
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

        self.wait()  # Orbax would do it without a word

        def start():
            if len(self._hosts) > 1:  # Orbax's own wait has another, fixed time
                wait_for_all(f"save of step {step}", self._timeout)
            self._manager.save(step, args=items, force=True)

        self._step, self._since, self._said = step, time.monotonic(), _SAY_AFTER
        self._written = False
        self._guard(start)

    def check(self) -> None:
        """Tells of a save that failed behind the training's back, or that takes long.

        Raises:
          UserError: it could not be written.
        """
        # Orbax's own check does not see what its finalizing thread has met: waiting for it raises
        if not self._saving():
            self._guard(self._manager.wait_until_finished)

    def wait(self) -> None:
        """Returns when what was started is on disk.

        Raises:
          UserError: it could not be written.
        """
        while self._saving():
            time.sleep(0.05)
        self._guard(self._manager.wait_until_finished)

    def _saving(self) -> bool:
        """Whether a save is under way; says so where it takes long."""
        # once its barriers have failed, Orbax takes the save to be in progress for ever
        if self._broken is not None or not self._manager.is_saving_in_progress():
            return False
        seconds = time.monotonic() - self._since
        if seconds > self._said:
            self._said = 2 * seconds
            waits = ": the part of this host is written, another's is not" if self._written else ""
            print(
                f"the save of step {self._step} has taken {seconds:.0f} s so far{waits}",
                file=sys.stderr,
                flush=True,
            )
        return True

    def _meet(self, *, key: str, timeout_ms: int) -> None:
        """Orbax's barrier of the processes, which waits for nobody once a save has failed here.

        Orbax meets the others at the end of a failed save too: they are at another barrier, and all
        would hear of it when both have timed out.
        """
        self._broken = self._broken or sys.exc_info()[1]
        if self._broken is not None:
            raise self._broken
        self._written = self._written or "write_complete" in key
        try:
            multihost.get_barrier_sync_fn()(key=key, timeout_ms=timeout_ms)
        except Exception as e:
            self._broken = e
            raise

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
    path = os.path.join(checkpoint_path(workdir, step), "weights")
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            return checkpointer.restore(path, _abstract(params))
    except Exception as e:
        wrong = _mismatches(path, params) or type(e).__name__
        raise UserError(f"the weights in {path} do not fit the model: {wrong}") from e


def _mismatches(path: str, wanted: Any) -> str:
    """What keeps the arrays of an item from filling a tree; empty if nothing, or unreadable."""
    try:
        return "; ".join(mismatches(dotted(wanted), open_item(path)))
    except Exception:  # what is damaged is told by whoever asks
        return ""
