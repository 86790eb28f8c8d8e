"""Checkpoints for PyTorch, written tensor by tensor: no more than one is in memory at a time."""

from __future__ import annotations

import json
import os
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

import ml_dtypes
import numpy as np

from bagpiper_jax.errors import UserError
from bagpiper_jax.files import (
    check_space,
    check_vacant,
    make_directory,
    write_json,
    write_whole,
)
from bagpiper_jax.porting.copies import contiguous
from bagpiper_jax.porting.sources import DTYPES, INDEX_FILE, LazyTensor, need_torch

_NAMES = {dtype: name for name, dtype in DTYPES.items()}
SHARD_BYTES = 5 * 10**9
_AHEAD_BYTES = 512 << 20


Progress = Callable[[int], None]  # called with the bytes written since the last call


def write_safetensors(
    directory: str,
    tensors: Mapping[str, LazyTensor],
    progress: Progress = lambda _: None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes shards and their index, as Hugging Face names them, into an empty directory.

    Raises:
      UserError: they cannot be written.
    """
    make_directory(directory)
    check_vacant(directory)
    shards: list[dict[str, LazyTensor]] = [{}]
    used = 0
    for name, tensor in tensors.items():
        if shards[-1] and used + tensor.num_bytes > shard_bytes:
            shards.append({})
            used = 0
        shards[-1][name] = tensor
        used += tensor.num_bytes
    places = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write_whole(os.path.join(directory, file), lambda p, s=shard: _write_shard(p, s, progress))
        places |= dict.fromkeys(shard, file)
    total = sum(tensor.num_bytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
    write_json(os.path.join(directory, INDEX_FILE), index)


def _write_shard(path: str, tensors: Mapping[str, LazyTensor], progress: Progress) -> None:
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, tensor in tensors.items():
        header[name] = {
            "dtype": _NAMES[np.dtype(tensor.dtype)],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + tensor.num_bytes],
        }
        offset += tensor.num_bytes
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)  # the data starts on a multiple of eight bytes
    with open(path, "wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for name, array in _made(tensors):
            file.write(array.reshape(-1).view(np.uint8))
            progress(tensors[name].num_bytes)


def write_torch(
    path: str, tensors: Mapping[str, LazyTensor], progress: Progress = lambda _: None
) -> None:
    """Writes `{"module": state dict}` as torch.save does.

    PyTorch lays the file out first, without data; then the tensors are filled in.

    Raises:
      UserError: it cannot be written, or PyTorch is missing.
    """
    torch = need_torch()
    if os.path.isdir(path):
        raise UserError(f"{path} is a directory: name a file to write")
    make_directory(os.path.dirname(os.path.abspath(path)))
    write_whole(path, lambda partial: _fill_torch(torch, partial, tensors, progress))


def _fill_torch(torch, path: str, tensors: Mapping[str, LazyTensor], progress: Progress) -> None:
    kinds = {np.dtype(ml_dtypes.bfloat16): torch.bfloat16, np.dtype(np.float32): torch.float32}
    # never written to, so that they take addresses and no memory
    state = {n: torch.empty(t.shape, dtype=kinds[np.dtype(t.dtype)]) for n, t in tensors.items()}
    # writing through a mapping to a full disk kills the process
    check_space(path, sum(tensor.num_bytes for tensor in tensors.values()))
    try:
        with torch.serialization.skip_data():
            torch.save({"module": state}, path)
    except RuntimeError as e:
        raise UserError(f"cannot write {path}: {' '.join(str(e).split())[:120]}") from e
    del state
    offsets = _offsets(torch, path)
    with open(path, "r+b") as file:
        os.posix_fallocate(file.fileno(), 0, os.path.getsize(path))
        for name, array in _made(tensors):
            file.seek(offsets[name])
            file.write(array.reshape(-1).view(np.uint8))
            progress(tensors[name].num_bytes)


def _offsets(torch, path: str) -> dict[str, int]:
    """Where in a file of torch.save each tensor's data begins.

    PyTorch maps the file once, so tensors lie in memory as their records lie in the file.
    """
    starts = []
    with zipfile.ZipFile(path) as archive, open(path, "rb") as file:
        for record in archive.infolist():
            if "/data/" in record.filename:
                file.seek(record.header_offset + 26)  # of a local header: lengths of name and extra
                name, extra = struct.unpack("<HH", file.read(4))
                starts.append(record.header_offset + 30 + name + extra)
    loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)["module"]
    places = {name: tensor.data_ptr() for name, tensor in loaded.items()}
    first = min(places.values()) - min(starts)
    offsets = {name: place - first for name, place in places.items()}
    if sorted(offsets.values()) != sorted(starts):
        raise RuntimeError(f"this release of PyTorch lays out {path} in another way")
    return offsets


def _made(tensors: Mapping[str, LazyTensor]) -> Iterator[tuple[str, np.ndarray]]:
    """Names and tensors; unless it is large, one is made while the one before it is written."""
    items = list(tensors.items())
    with ThreadPoolExecutor(1) as pool:
        ahead = None
        for number, (name, tensor) in enumerate(items):
            array = ahead.result() if ahead else _make(tensor)
            ahead = None
            if number + 1 < len(items):
                following = items[number + 1][1]
                if tensor.num_bytes + following.num_bytes <= _AHEAD_BYTES:
                    ahead = pool.submit(_make, following)
            yield name, array


def _make(tensor: LazyTensor) -> np.ndarray:
    array = contiguous(tensor.read(), tensor.dtype).reshape(tensor.shape)
    return array if array.flags.writeable else array.copy()
