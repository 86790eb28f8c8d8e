"""First-fit packing of examples into rows, from their sizes alone."""

from __future__ import annotations

import dataclasses

import numba
import numpy as np


@dataclasses.dataclass(frozen=True)
class RowShape:
    """Sizes of a packed row: T positions, W mel windows."""

    length: int
    windows: int


def by_falling_size(rows: np.ndarray, windows: np.ndarray, shape: RowShape) -> np.ndarray:
    """The order in which first-fit fills best: the largest first, int64 [n].

    Size counts rows and mel windows alike: by rows alone, captioning examples would come last and
    find the windows of full rows wasted.
    """
    size = rows / shape.length + windows / max(shape.windows, 1)
    return np.argsort(-size, kind="stable")


def first_fit(rows: np.ndarray, windows: np.ndarray, num_rows: int, shape: RowShape) -> np.ndarray:
    """Puts each example, in order, into the first row that has room for it.

    Args:
      rows: int [n], positions of the examples.
      windows: int [n], their mel windows.
      num_rows: rows to fill.
      shape: what a row holds.

    Returns:
      int64 [n], the row of each example; −1 where none had room.
    """
    rows, windows = np.asarray(rows, np.int64), np.asarray(windows, np.int64)
    return _first_fit(rows, windows, num_rows, shape.length, shape.windows)


# compiled: on restoring at a far row, and in every worker, all examples are packed
@numba.njit(cache=True)
def _first_fit(rows, windows, num_rows, length, num_windows):
    free = np.full(num_rows, length)
    free_windows = np.full(num_rows, num_windows)
    found = np.full(len(rows), -1)
    for example in range(len(rows)):
        for row in range(num_rows):
            if free[row] >= rows[example] and free_windows[row] >= windows[example]:
                found[example] = row
                free[row] -= rows[example]
                free_windows[row] -= windows[example]
                break
    return found
