"""A trace of a few steps of a training, for XProf or Perfetto."""

from __future__ import annotations

import sys

import jax

_STEPS = range(10, 15)  # of a start; the first ones compile and warm up


class Trace:
    """Traces steps 11 to 15 of a start, or those of them that there are; a context manager."""

    def __init__(self, directory: str | None):
        """Nothing is traced before step 11.

        Args:
          directory: where the trace goes; None: there is none.
        """
        self._directory = directory
        self._due, self._running = directory is not None, False

    def before(self, step: int, state) -> None:
        """Begins or ends the trace, where it is time to.

        Args:
          step: the one that follows, counted from 0 at this start.
          state: of the training, which the steps before have made.
        """
        if self._due and step == _STEPS.start:
            jax.block_until_ready(state)
            jax.profiler.start_trace(self._directory)
            self._due, self._running = False, True
        elif self._running and step == _STEPS.stop:
            jax.block_until_ready(state)
            self._end()

    def _end(self) -> None:
        self._running = False
        jax.profiler.stop_trace()

    def __enter__(self) -> Trace:
        return self

    def __exit__(self, kind, *_):
        if self._running:  # the run ends, or fails, amid the steps: without this nothing is written
            self._end()
        elif self._due and kind is None:
            print(
                f"--profile: no trace, this start had no more than {_STEPS.start} steps to do",
                file=sys.stderr,
            )
