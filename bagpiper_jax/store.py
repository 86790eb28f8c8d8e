"""The one module that calls Orbax: weights, optimizer and input position of a run."""

from __future__ import annotations

import glob
import logging
import os
import shutil
import sys
from typing import Any

import jax
import orbax.checkpoint as ocp

from bagpiper_jax.errors import UserError


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


def restore_weights(workdir: str, params: Any) -> Any:
    """Weights alone of a run's latest checkpoint, in the shapes of `params`.

    Raises:
      UserError: there is no checkpoint, or it is of another model.
    """
    directory = os.path.abspath(os.path.join(workdir, "checkpoints"))
    if not os.path.isdir(directory):
        raise UserError(f"{workdir} holds no checkpoints")
    with ocp.CheckpointManager(directory) as manager:
        step = manager.latest_step()
        if step is None:
            raise UserError(f"{workdir} holds no whole checkpoint yet")
        items = ocp.args.Composite(weights=ocp.args.StandardRestore(_abstract(params)))
        try:
            return manager.restore(step, args=items)["weights"]
        except Exception as e:
            raise UserError(
                f"the weights in {directory}/{step} do not fit the model ({type(e).__name__})"
            ) from e
