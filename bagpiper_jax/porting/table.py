"""Tables of names: tensors of a PyTorch checkpoint ↔ parameters here, read in both directions.

A row pairs two patterns. `*` stands for the same piece of a name on both sides; `#` in the source
is the number of a layer, and the layers are stacked here on a leading axis.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import numpy as np

Shape = tuple[int, ...]


class Transform(NamedTuple):
    """How a tensor of the source becomes a parameter of the target, and back.

    Both are views of their argument where that is possible, so that a memory-mapped tensor is not
    read whole.
    """

    forward: Callable[[np.ndarray], np.ndarray]
    backward: Callable[[np.ndarray], np.ndarray]


def _axes(*order: int) -> Transform:
    inverse = np.argsort(order)
    return Transform(lambda x: x.transpose(order), lambda x: x.transpose(inverse))


SAME = Transform(lambda x: x, lambda x: x)
LINEAR = _axes(1, 0)  # [out, in] → [in, out]
CONV1D = _axes(2, 1, 0)  # [out, in, time] → [time, in, out]
CONV1D_TRANSPOSED = _axes(2, 0, 1)  # [in, out, time] → [time, in, out]
CONV2D = _axes(3, 2, 1, 0)  # [out, in, mel, time] → [time, mel, in, out]
CHANNELS = Transform(lambda x: x[0, :, 0], lambda x: x[None, :, None])  # [1, C, 1] → [C]


class Row(NamedTuple):
    """One line of a table.

    Attributes:
      source: pattern of the names in the checkpoint.
      target: pattern of the parameters' dotted paths.
      transform: source → target.
      padded: the parameter has more rows than the tensor, so that meshes divide them.
      optional: a checkpoint may lack it; the parameter is zero then. What only training needs.
    """

    source: str
    target: str
    transform: Transform = SAME
    padded: bool = False
    optional: bool = False


def prefixed(rows: Iterable[Row], source: str, target: str) -> tuple[Row, ...]:
    """The table of a part inside a whole."""
    return tuple(
        row._replace(source=source + row.source, target=target + row.target) for row in rows
    )


class Entry(NamedTuple):
    """One tensor of the source, and the place of the target that it fills.

    Attributes:
      source: name of the tensor.
      target: dotted path of the parameter.
      layer: index on the parameter's leading axis; None for the whole parameter.
      row: the line of the table.
      shape: of the tensor.
    """

    source: str
    target: str
    layer: int | None
    row: Row
    shape: Shape


def entries(rows: Iterable[Row], shapes: Mapping[str, Shape], vocab_size: int = 0) -> list[Entry]:
    """All tensors that a model's parameters correspond to.

    Args:
      rows: the table.
      shapes: dotted path → shape of every parameter of the model.
      vocab_size: rows of the source's tables, where the table has padded ones.

    Raises:
      KeyError: a parameter that no row of the table names.
    """
    patterns = [(_pattern(row.target), row) for row in rows]
    found: list[Entry] = []
    for path, shape in shapes.items():
        matches = ((pattern.fullmatch(path), row) for pattern, row in patterns)
        match, row = next((pair for pair in matches if pair[0]), (None, None))
        if match is None:
            raise KeyError(f"no row of the table names {path}")
        source = row.source
        for piece in match.groups():
            source = source.replace("*", piece, 1)
        stacked = "#" in source
        inner = shape[1:] if stacked else shape
        if row.padded:
            inner = (vocab_size, *inner[1:])
        inner = row.transform.backward(np.broadcast_to(np.int8(0), inner))
        for layer in range(shape[0]) if stacked else (None,):
            name = source.replace("#", str(layer)) if stacked else source
            found.append(Entry(name, path, layer, row, inner.shape))
    return found


def _pattern(target: str) -> re.Pattern:
    return re.compile(re.escape(target).replace(r"\*", r"([^.]*)"))
