"""Parameters from a mapping of tensors, and back; all problems are collected and told once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from bagpiper_jax.errors import UserError
from bagpiper_jax.porting.copies import copy_into
from bagpiper_jax.porting.table import Entry, Row, entries
from bagpiper_jax.trees import dotted

# tensors of these types are read; anything else is a mistake somewhere before
FLOATS = (np.dtype(ml_dtypes.bfloat16), np.dtype(np.float32))


def table_of(rows: Sequence[Row], tree: Any, vocab_size: int = 0) -> list[Entry]:
    """The tensors that belong to a tree of parameters, abstract or not."""
    shapes = {path: tuple(leaf.shape) for path, leaf in dotted(tree).items()}
    return entries(rows, shapes, vocab_size)


def problems(table: Sequence[Entry], tensors: Mapping[str, Any], ignored: Sequence[str] = ()):
    """What keeps tensors from filling a table, one line each, by name.

    Args:
      table: from `table_of`.
      tensors: name → what has a shape and a dtype.
      ignored: names that may be there besides.
    """
    found = []
    wanted = {entry.source: entry for entry in table}
    for name, entry in wanted.items():
        if name not in tensors:
            if not entry.row.optional:
                found.append(f"{name} is missing")
            continue
        tensor = tensors[name]
        if tuple(tensor.shape) != entry.shape:
            found.append(f"{name} has shape {list(tensor.shape)}, not {list(entry.shape)}")
        if not _is_float(tensor.dtype):
            found.append(f"{name} is {tensor.dtype}, not bfloat16 or float32")
    found += [f"{n} is unexpected" for n in tensors if n not in wanted and n not in ignored]
    return found


def _is_float(dtype: Any) -> bool:
    try:
        return np.dtype(dtype) in FLOATS
    except TypeError:  # a type of another package
        return False


def check(
    what: str, table: Sequence[Entry], tensors: Mapping[str, Any], ignored: Sequence[str] = ()
) -> None:
    """Raises UserError with all problems, if there are any."""
    found = problems(table, tensors, ignored)
    if found:
        lines = "; ".join(sorted(found))
        raise UserError(f"{what} does not fit the model ({len(found)} problems): {lines}")


def fill(
    table: Sequence[Entry],
    read: Callable[[str], np.ndarray | None],
    tree: Any,
    place: Callable[[str, tuple[int, ...], Callable], Any],
) -> dict[str, Any]:
    """Parameters of a tree from tensors that are read when they are needed.

    Args:
      table: from `table_of`.
      read: name → tensor, perhaps memory-mapped; None where an optional one is missing.
      tree: of arrays or shapes to fill.
      place: (path, shape, cut) → array; `cut(index)` gives the part of the parameter at `index`,
        a tuple of slices, as `jax.make_array_from_callback` asks for it.

    Returns:
      dotted path → array.
    """
    by_target: dict[str, list[Entry]] = {}
    for entry in table:
        by_target.setdefault(entry.target, []).append(entry)
    return {
        path: place(path, tuple(leaf.shape), _cutter(by_target[path], read, tuple(leaf.shape)))
        for path, leaf in dotted(tree).items()
    }


def _cutter(members: Sequence[Entry], read, shape):
    stacked = members[0].layer is not None
    inner = shape[1:] if stacked else shape

    def one(entry: Entry, index) -> np.ndarray:
        tensor = read(entry.source)
        if tensor is None:
            return np.broadcast_to(np.float32(0), inner)[index]
        part = entry.row.transform.forward(tensor)
        if entry.row.padded:  # of all axes only the first is padded
            start, stop, _ = index[0].indices(shape[0])
            part = part[(slice(start, stop), *index[1:])]
            short = stop - start - len(part)
            return np.pad(part, ((0, short), (0, 0))) if short else part
        return part[index]

    def cut(index: tuple[slice, ...]) -> np.ndarray:
        if not stacked:
            return np.asarray(one(members[0], index))
        parts = [one(members[layer], index[1:]) for layer in range(*index[0].indices(shape[0]))]
        out = np.empty((len(parts), *parts[0].shape), np.result_type(*parts))
        for place, part in zip(out, parts, strict=True):
            copy_into(place, part)
        return out

    return cut


def tensors_of(
    table: Sequence[Entry], arrays: Mapping[str, Any], dtype: Any = None
) -> Iterator[tuple[str, np.ndarray]]:
    """The tensors of a checkpoint from parameters, one after the other.

    Args:
      table: from `table_of`.
      arrays: dotted path → array.
      dtype: of the tensors; each parameter's own if None.
    """
    for entry in table:
        array = arrays[entry.target]
        array = np.asarray(array if entry.layer is None else array[entry.layer])
        if entry.row.padded:
            array = array[: entry.shape[0]]
        array = entry.row.transform.backward(array)
        yield entry.source, array if dtype is None else array.astype(dtype, copy=False)
