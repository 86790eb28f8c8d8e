"""Model directories of this project on either side of a conversion: runs, releases, and what
`convert --to orbax` writes.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Mapping, Sequence

import numpy as np

from bagpiper_jax.errors import UserError
from bagpiper_jax.files import make_directory, write_json, write_whole
from bagpiper_jax.modeling.config import BagpiperConfig
from bagpiper_jax.modeling.xcodec_model import XCodecConfig
from bagpiper_jax.porting.espnet import abstract, states
from bagpiper_jax.porting.rows import BAGPIPER
from bagpiper_jax.porting.sources import LazyTensor, open_safetensors
from bagpiper_jax.porting.state import fill, table_of
from bagpiper_jax.porting.table import Entry
from bagpiper_jax.porting.writers import Progress
from bagpiper_jax.release import (
    MODEL_FILE,
    QWEN3_TOKENIZER_FILE,
    WEIGHTS_FILE,
    XCODEC_FILE,
    read_xcodec_config,
    write_config,
)
from bagpiper_jax.store import SlicedArray, open_sliced, write_sliced

_CODEC = "codec."


def open_run(directory: str, config: BagpiperConfig) -> dict[str, LazyTensor]:
    """The tensors of a model directory under the names of ESPnet; nothing is read yet.

    Raises:
      UserError: no checkpoint, a damaged one, or one that does not fit the model.
    """
    weights = os.path.join(directory, WEIGHTS_FILE)
    if os.path.exists(weights):
        arrays = {name: _sliced(tensor) for name, tensor in open_safetensors(weights).items()}
    else:
        arrays = open_sliced(directory)
    codec = None
    if os.path.exists(os.path.join(directory, XCODEC_FILE)):
        codec = read_xcodec_config(directory)
        arrays |= {_CODEC + name: a for name, a in open_sliced(directory, "codec").items()}
    state = states(*abstract(config, codec))
    wrong = [f"{path} is missing" for path in state if path not in arrays]
    wrong += [f"{path} is unexpected" for path in arrays if path not in state]
    wrong += [
        f"{path} has shape {list(arrays[path].shape)}, not {list(leaf.shape)}"
        for path, leaf in state.items()
        if path in arrays and arrays[path].shape != tuple(leaf.shape)
    ]
    if wrong:
        raise UserError(f"{directory} does not fit its {MODEL_FILE}: {'; '.join(sorted(wrong))}")
    table = table_of(BAGPIPER, state, config.vocab.size)
    return {entry.source: _tensor(entry, arrays[entry.target]) for entry in table}


def _sliced(tensor: LazyTensor) -> SlicedArray:
    return SlicedArray(tensor.shape, tensor.dtype, lambda index: tensor.read()[index])


def _tensor(entry: Entry, array: SlicedArray) -> LazyTensor:
    def read() -> np.ndarray:
        whole = (slice(None),) * (array.ndim - 1)
        if entry.layer is not None:
            part = array.cut((slice(entry.layer, entry.layer + 1), *whole))[0]
        elif entry.row.padded:
            part = array.cut((slice(0, entry.shape[0]), *whole))
        else:
            part = array.cut((slice(None), *whole))
        return entry.row.transform.backward(part)

    return LazyTensor(entry.shape, array.dtype, read)


def write_run(
    directory: str,
    table: Sequence[Entry],
    tensors: Mapping[str, LazyTensor],
    config: BagpiperConfig,
    progress: Progress = lambda _: None,
    tokenizer: str | None = None,
) -> None:
    """Writes a directory that `bp.load` and `Pipeline.load` read: shapes, Orbax checkpoint, codec.

    Args:
      directory: to write.
      table, tensors: from `fit`.
      config: of the model.
      progress: called with the bytes written since the last call.
      tokenizer: a `tokenizer.json` to copy.

    Raises:
      UserError: the directory holds checkpoints already, or cannot be written.
    """
    with_codec = any(entry.target.startswith(_CODEC) for entry in table)
    codec = XCodecConfig() if with_codec else None
    state = states(*abstract(config, codec))
    kinds: dict[str, set] = {}
    for entry in table:
        if entry.source in tensors:
            kinds.setdefault(entry.target, set()).add(np.dtype(tensors[entry.source].dtype))

    def place(path, shape, cut):
        found = kinds.get(path, set())
        dtype = found.pop() if len(found) == 1 else np.dtype(np.float32)
        return SlicedArray(shape, dtype, lambda i: np.ascontiguousarray(cut(i), dtype))

    read = lambda name: tensors[name].read() if name in tensors else None  # noqa: E731
    arrays = fill(table, read, state, place)
    make_directory(directory)
    items = {"weights": {p: a for p, a in arrays.items() if not p.startswith(_CODEC)}}
    if with_codec:
        items["codec"] = {
            p.removeprefix(_CODEC): a for p, a in arrays.items() if p.startswith(_CODEC)
        }
    write_sliced(directory, items, progress)
    if codec is not None:
        write_json(os.path.join(directory, XCODEC_FILE), dataclasses.asdict(codec))
    if tokenizer:
        file = os.path.join(directory, QWEN3_TOKENIZER_FILE)
        write_whole(file, lambda p: shutil.copyfile(tokenizer, p))
    write_whole(os.path.join(directory, MODEL_FILE), lambda p: write_config(p, config))
