"""Whom each item is held against for the control: another one, so that a match was guessed."""

from __future__ import annotations

from collections.abc import Callable


def next_others(count: int, fits: Callable[[int, int], bool], most: int = 0) -> list[int | None]:
    """For each of `count` items the next one after it that fits, from the start again at the end.

    Args:
      count: items.
      fits: (number of an item, number of another) → whether that one may be its control.
      most: items looked at after each; 0: all.

    Returns:
      their numbers, never an item's own; None where none fits.
    """
    steps = range(1, min(count, most + 1) if most else count)
    return [
        next((j for j in ((i + step) % count for step in steps) if fits(i, j)), None)
        for i in range(count)
    ]
