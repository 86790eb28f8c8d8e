"""Checkpoints of PyTorch, opened without reading them: tensors are mapped, and read when asked for.

`.pt` files are opened with `weights_only=True`: a pickle that wants to run code is refused.
"""

from __future__ import annotations

import glob
import json
import math
import os
import pickle
import zipfile
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from bagpiper_jax.errors import UserError

INDEX_FILE = "model.safetensors.index.json"
DTYPES = {
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F16": np.dtype(np.float16),
    "F32": np.dtype(np.float32),
    "F64": np.dtype(np.float64),
    "I32": np.dtype(np.int32),
    "I64": np.dtype(np.int64),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
_NORM_NAMES = {
    ".weight_g": ".parametrizations.weight.original0",
    ".weight_v": ".parametrizations.weight.original1",
}


class LazyTensor(NamedTuple):
    """A tensor that is read, or made, when asked for; of a file, it is a view of mapped memory."""

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]

    @property
    def num_bytes(self) -> int:
        """Size of the data."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


def open_checkpoint(path: str) -> dict[str, LazyTensor]:
    """The tensors of a checkpoint by name.

    Args:
      path: a `.pt` file (ESPnet, DeepSpeed; with or without `module`), a `.safetensors` file, or a
        directory of shards with their index.

    Raises:
      UserError: nothing there, a truncated or damaged file, a missing shard, a file that holds
        something else, a pickle that wants to run code.
    """
    if os.path.isdir(path):
        return rename_norms(_open_directory(path))
    if not os.path.isfile(path):
        raise UserError(f"there is no checkpoint {path}")
    opened = open_safetensors(path) if path.endswith(".safetensors") else _open_torch(path)
    return rename_norms(opened)


def _open_directory(path: str) -> dict[str, LazyTensor]:
    index = os.path.join(path, INDEX_FILE)
    if os.path.exists(index):
        try:
            with open(index, encoding="utf-8") as file:
                places: dict[str, str] = json.load(file)["weight_map"]
            names = set(places.values())
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
            raise UserError(f"{index} is damaged: download it again") from e
        shards = {name: os.path.join(path, name) for name in sorted(names)}
        lost = [name for name, shard in shards.items() if not os.path.exists(shard)]
        if lost:
            raise UserError(f"{path} lacks the shards {', '.join(lost)}: download them")
        opened = {name: open_safetensors(shard) for name, shard in shards.items()}
        absent = [
            f"{name} in {shard}" for name, shard in places.items() if name not in opened[shard]
        ]
        if absent:
            raise UserError(f"{path}: tensors are not where the index says: {'; '.join(absent)}")
        return {name: opened[shard][name] for name, shard in places.items()}
    files = sorted(glob.glob(os.path.join(glob.escape(path), "*.safetensors")))
    if files:
        return {name: t for file in files for name, t in open_safetensors(file).items()}
    files = sorted(glob.glob(os.path.join(glob.escape(path), "*mp_rank_00_model_states.pt")))
    if len(files) == 1:
        return _open_torch(files[0])
    raise UserError(
        f"{path} holds no checkpoint: neither .safetensors files nor one mp_rank_00_model_states.pt"
    )


def open_safetensors(path: str) -> dict[str, LazyTensor]:
    """The tensors of one `.safetensors` file.

    The format is public: eight bytes of length, a JSON header, then the data.

    Raises:
      UserError: a truncated or damaged file.
    """
    size = os.path.getsize(path)
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= size - 8:
                raise ValueError("no header")
            header: dict[str, Any] = json.loads(file.read(length))
        header.pop("__metadata__", None)
        found = {name: _entry(entry) for name, entry in header.items()}
    except OSError as e:
        raise UserError(f"cannot read {path}: {e.strerror}") from e
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise UserError(f"{path} is no safetensors file, or is damaged: copy it again") from e
    start = 8 + length
    end = max((last for _, _, _, last in found.values()), default=0)
    if start + end > size:
        raise UserError(f"{path} is truncated: it has {size} of {start + end} bytes, copy it again")
    data = np.memmap(path, np.uint8, mode="r")

    def tensor(name: str, kind: str, shape: tuple, first: int, last: int) -> LazyTensor:
        if kind not in DTYPES:
            raise UserError(f"{path}: {name} is of type {kind}, which is not supported")
        dtype = DTYPES[kind]
        if last - first != dtype.itemsize * math.prod(shape):
            raise UserError(f"{path} is damaged: {name} has {last - first} bytes, copy it again")
        part = data[start + first : start + last]
        return LazyTensor(shape, dtype, lambda: part.view(dtype).reshape(shape))

    return {name: tensor(name, *entry) for name, entry in found.items()}


def _entry(entry: dict[str, Any]) -> tuple[str, tuple[int, ...], int, int]:
    """(type, shape, first byte, end) of a tensor in a header; raises where that is none."""
    (first, last), shape = entry["data_offsets"], tuple(entry["shape"])
    numbers = (first, last, *shape)
    if not all(type(n) is int and n >= 0 for n in numbers) or last < first:
        raise ValueError("no offsets or shape")
    return str(entry["dtype"]), shape, first, last


def _open_torch(path: str) -> dict[str, LazyTensor]:
    torch = need_torch()
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as e:
        raise UserError(
            f"{path} holds a pickle that wants to run code, or more than tensors: refused; "
            "save its state dict alone"
        ) from e
    except (RuntimeError, EOFError, ValueError, OSError) as e:
        why = "is truncated, or is no file of torch.save: copy it again"
        if not zipfile.is_zipfile(path):
            why = "is truncated, or of the form before PyTorch 1.6: copy it again, or save it anew"
        raise UserError(f"{path} {why}") from e
    state = loaded.get("module", loaded) if isinstance(loaded, dict) else loaded
    if not isinstance(state, dict) or not state:
        raise UserError(f"{path} holds no state dict")
    others = [str(name) for name, value in state.items() if not isinstance(value, torch.Tensor)]
    if others:
        raise UserError(f"{path} holds more than tensors: {', '.join(others[:5])}")
    return {str(name): LazyTensor(*_described(value)) for name, value in state.items()}


def _described(tensor: Any) -> tuple[tuple[int, ...], np.dtype, Callable[[], np.ndarray]]:
    import torch

    tensor = tensor.detach()

    def read() -> np.ndarray:
        if tensor.dtype == torch.bfloat16:
            return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
        return tensor.numpy()

    # dtypes that numpy does not know (float8) have another name and are told by it
    kind = str(tensor.dtype).removeprefix("torch.")
    known = {"bfloat16": np.dtype(ml_dtypes.bfloat16), "bool": np.dtype(np.bool_)}
    try:
        dtype = known.get(kind) or np.dtype(kind)
    except TypeError as e:
        raise UserError(f"tensors of type {kind} are not supported") from e
    return tuple(tensor.shape), dtype, read


def need_torch() -> Any:
    """The package torch.

    Raises:
      UserError: it is not installed.
    """
    try:
        import torch
    except ImportError as e:
        raise UserError("this needs PyTorch: pip install 'bagpiper_jax[convert]'") from e
    return torch


def rename_norms(tensors: dict[str, LazyTensor]) -> dict[str, LazyTensor]:
    """Weight norm's old names, `weight_g` and `weight_v`, as the present ones."""
    out = {}
    for name, tensor in tensors.items():
        for old, new in _NORM_NAMES.items():
            if name.endswith(old):
                name = name.removesuffix(old) + new
        out[name] = tensor
    return out


def fold_norms(tensors: dict[str, LazyTensor], wanted: Iterable[str]) -> dict[str, LazyTensor]:
    """Folds weight norm into the kernel where a plain `weight` is wanted and is not there.

    Only for norms over all axes but the first, as the acoustic convolutions have them.
    """
    out = dict(tensors)
    for name in wanted:
        stem = name.removesuffix(".weight")
        parts = [f"{stem}.parametrizations.weight.original{i}" for i in (0, 1)]
        if name not in out and all(part in out for part in parts):
            scale, direction = (out.pop(part) for part in parts)
            out[name] = LazyTensor(direction.shape, direction.dtype, _folded(scale, direction))
    return out


def _folded(scale: LazyTensor, direction: LazyTensor) -> Callable[[], np.ndarray]:
    def read() -> np.ndarray:
        g, v = (np.asarray(t.read(), np.float32) for t in (scale, direction))
        norm = np.sqrt(np.square(v).sum(tuple(range(1, v.ndim)), keepdims=True))
        return (g * (v / norm)).astype(direction.dtype)

    return read
