"""What failed writes of Orbax and TensorStore say."""

from __future__ import annotations

import logging
import sys


def silence_doubles() -> None:
    """Orbax and TensorStore print tracebacks of failed writes; users are told in one line."""
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


def causes(error: BaseException | None) -> list[BaseException]:
    """An error and all that led to it."""
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found
