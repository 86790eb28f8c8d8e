"""Copies of transposed matrices that the cache likes: several times as fast as NumPy's own."""

from __future__ import annotations

from typing import Any

import numpy as np

BLOCK_BYTES = 64 << 20  # what is cast or compared at a time
_STRIP = 16  # columns


def contiguous(array: np.ndarray, dtype: Any = None) -> np.ndarray:
    """The array in C order and of a type; itself if it is so already."""
    dtype = np.dtype(dtype or array.dtype)
    if array.dtype == dtype and array.flags.c_contiguous:
        return array
    out = np.empty(array.shape, dtype)
    copy_into(out, array)
    return out


def copy_into(target: np.ndarray, source: np.ndarray) -> None:
    """`target[...] = source`; a transposed matrix goes strip by strip."""
    if source.dtype == target.dtype and source.dtype.itemsize == 2:
        source, target = source.view(np.uint16), target.view(np.uint16)  # NumPy knows its own best
    if source.ndim == 2 and abs(source.strides[0]) < abs(source.strides[1]):
        for start in range(0, source.shape[1], _STRIP):
            span = (slice(None), slice(start, start + _STRIP))
            target[span] = source[span]
    else:
        target[...] = source
