"""Model directories of this project on either side of a conversion: runs, releases, and what
`convert --to orbax` writes.
"""

from __future__ import annotations

import dataclasses
import os
import threading
from collections.abc import Mapping, Sequence

import numpy as np

from bagpiper_jax.errors import UserError
from bagpiper_jax.files import write_directory, write_json
from bagpiper_jax.modeling.config import BagpiperConfig
from bagpiper_jax.modeling.xcodec_model import XCodecConfig
from bagpiper_jax.porting.copies import BLOCK_BYTES, contiguous
from bagpiper_jax.porting.espnet import shapes_of
from bagpiper_jax.porting.rows import BAGPIPER, OWN_CODEC
from bagpiper_jax.porting.sources import LazyTensor, open_safetensors
from bagpiper_jax.porting.state import fill, table_of
from bagpiper_jax.porting.table import Entry
from bagpiper_jax.porting.writers import Progress
from bagpiper_jax.release import (
    MODEL_FILE,
    WEIGHTS_FILE,
    XCODEC_FILE,
    read_xcodec_config,
    write_config,
    xcodec_arrays,
)
from bagpiper_jax.store import SlicedArray, open_sliced, write_sliced
from bagpiper_jax.trees import mismatches


def is_run(path: str) -> bool:
    """Whether a path is a model directory of this project."""
    return os.path.exists(os.path.join(path, MODEL_FILE))


def open_arrays(
    directory: str, config: BagpiperConfig, codec: XCodecConfig | None = None
) -> dict[str, SlicedArray]:
    """The arrays of a model directory by dotted path, an X-codec's under "codec.".

    Args:
      directory: a release, a run's workdir, or what `write_run` wrote.
      config: of the model.
      codec: of its X-codec; None leaves that out.

    Raises:
      UserError: no checkpoint, a damaged one, or one that does not fit, by name.
    """
    weights = os.path.join(directory, WEIGHTS_FILE)
    if os.path.exists(weights):
        arrays = {name: _sliced(tensor) for name, tensor in open_safetensors(weights).items()}
    else:
        arrays = open_sliced(directory)
    if codec is not None:
        arrays |= {OWN_CODEC + name: a for name, a in xcodec_arrays(directory).items()}
    wrong = mismatches(shapes_of(config, codec), arrays)
    if wrong:
        raise UserError(f"{directory} does not fit its {MODEL_FILE}: {'; '.join(wrong)}")
    return arrays


def _sliced(tensor: LazyTensor) -> SlicedArray:
    return SlicedArray(tensor.shape, tensor.dtype, lambda index: tensor.read()[index])


def codec_of(directory: str) -> XCodecConfig | None:
    """Shapes of a model directory's X-codec, if it has one."""
    there = os.path.exists(os.path.join(directory, XCODEC_FILE))
    return read_xcodec_config(directory) if there else None


def open_run(
    directory: str, config: BagpiperConfig, dtype: np.dtype | None = None
) -> dict[str, LazyTensor]:
    """The tensors of a model directory under the names of ESPnet; nothing is read yet.

    Args:
      directory: see `open_arrays`.
      config: of the model.
      dtype: of the tensors; that of each array if None.

    Raises:
      UserError: see `open_arrays`.
    """
    codec = codec_of(directory)
    arrays = open_arrays(directory, config, codec)
    table = table_of(BAGPIPER, shapes_of(config, codec), config.vocab.size)
    return {entry.source: _tensor(entry, arrays[entry.target], dtype) for entry in table}


def _tensor(entry: Entry, array: SlicedArray, dtype: np.dtype | None) -> LazyTensor:
    dtype = np.dtype(dtype or array.dtype)
    first, stop = 0, entry.shape[0] if entry.row.padded else array.shape[0]
    if entry.layer is not None:
        first, stop = entry.layer, entry.layer + 1

    def rows(start: int, end: int) -> np.ndarray:
        return array.cut((slice(start, end), *(slice(None),) * (array.ndim - 1)))

    def read() -> np.ndarray:
        if dtype == array.dtype:
            part = rows(first, stop)
        else:  # by blocks, so that what is cast is never there twice
            part = np.empty((stop - first, *array.shape[1:]), dtype)
            step = max(1, BLOCK_BYTES // max(part[:1].nbytes, 1))
            for start in range(0, len(part), step):
                end = min(start + step, len(part))
                part[start:end] = rows(first + start, first + end)
        return entry.row.transform.backward(part if entry.layer is None else part[0])

    return LazyTensor(entry.shape, dtype, read)


def write_run(
    directory: str,
    table: Sequence[Entry],
    tensors: Mapping[str, LazyTensor],
    config: BagpiperConfig,
    *,
    codec: XCodecConfig | None = None,
    beside: Mapping[str, str] | None = None,
    progress: Progress = lambda _: None,
) -> None:
    """Writes a directory that `bp.load` and `Pipeline.load` read: shapes, Orbax checkpoint, codec.

    Args:
      directory: to write; it appears when it is whole.
      table, tensors: from `fit`.
      config: of the model.
      codec: of the X-codec, where there is one; that of the published model if None.
      beside: name → file to copy into the directory: tokenizer, embedded codec, sampling.
      progress: called with the bytes written since the last call.

    Raises:
      UserError: something is there already, or it cannot be written; nothing is left then.
    """
    with_codec = any(entry.target.startswith(OWN_CODEC) for entry in table)
    codec = (codec or XCodecConfig()) if with_codec else None
    state = shapes_of(config, codec)
    kinds: dict[str, set] = {}
    for entry in table:
        if entry.source in tensors:
            kinds.setdefault(entry.target, set()).add(np.dtype(tensors[entry.source].dtype))
    read = _Reader(tensors)

    def place(path, shape, cut):
        found = kinds.get(path, set())
        dtype = next(iter(found)) if len(found) == 1 else np.dtype(np.float32)
        return SlicedArray(shape, dtype, lambda i: contiguous(cut(i), dtype))

    arrays = fill(table, read, state, place)
    items = {"weights": {p: a for p, a in arrays.items() if not p.startswith(OWN_CODEC)}}
    if codec is not None:
        items["codec"] = {
            p.removeprefix(OWN_CODEC): a for p, a in arrays.items() if p.startswith(OWN_CODEC)
        }

    def write(partial: str) -> None:
        for name, file in (beside or {}).items():
            with open(file, "rb") as source, open(os.path.join(partial, name), "wb") as copy:
                copy.write(source.read())
        write_config(os.path.join(partial, MODEL_FILE), config)
        if codec is not None:
            write_json(os.path.join(partial, XCODEC_FILE), dataclasses.asdict(codec))
        write_sliced(partial, items, progress)

    write_directory(directory, write, sum(tensor.num_bytes for tensor in tensors.values()))


class _Reader:
    """Reads tensors, the last one once: tables are written by rows, and may be made, not mapped."""

    def __init__(self, tensors: Mapping[str, LazyTensor]):
        self._tensors = tensors
        self._local = threading.local()  # each item is written by a thread of its own

    def __call__(self, name: str) -> np.ndarray | None:
        if name not in self._tensors:
            return None
        last = getattr(self._local, "last", None)
        if last is None or last[0] != name:
            self._local.last = last = None  # before the next one is made
            self._local.last = last = (name, self._tensors[name].read())
        return last[1]
