"""Checkpoints for PyTorch, written tensor by tensor: no more than one is in memory at a time."""

from __future__ import annotations

import json
import math
import mmap
import os
from collections.abc import Callable, Sequence
from typing import NamedTuple

import ml_dtypes
import numpy as np

from bagpiper_jax.errors import UserError
from bagpiper_jax.files import make_directory, write_json, write_whole
from bagpiper_jax.porting.sources import DTYPES, INDEX_FILE, need_torch

_NAMES = {dtype: name for name, dtype in DTYPES.items()}
SHARD_BYTES = 5 * 10**9


class Output(NamedTuple):
    """A tensor to write: its name, shape and dtype, and how to make it when its turn comes."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]

    @property
    def num_bytes(self) -> int:
        """Size of the data."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


Progress = Callable[[int], None]  # called with the bytes written since the last call


def write_safetensors(
    directory: str,
    outputs: Sequence[Output],
    progress: Progress = lambda _: None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes shards and their index, as Hugging Face names them.

    Raises:
      UserError: they cannot be written.
    """
    make_directory(directory)
    shards: list[list[Output]] = [[]]
    for output in outputs:
        used = sum(o.num_bytes for o in shards[-1])
        if shards[-1] and used + output.num_bytes > shard_bytes:
            shards.append([])
        shards[-1].append(output)
    places = {}
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write_whole(os.path.join(directory, name), lambda p, s=shard: _write_shard(p, s, progress))
        places |= {output.name: name for output in shard}
    total = sum(output.num_bytes for output in outputs)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
    write_json(os.path.join(directory, INDEX_FILE), index)


def _write_shard(path: str, outputs: Sequence[Output], progress: Progress) -> None:
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for output in outputs:
        header[output.name] = {
            "dtype": _NAMES[np.dtype(output.dtype)],
            "shape": list(output.shape),
            "data_offsets": [offset, offset + output.num_bytes],
        }
        offset += output.num_bytes
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)  # the data starts on a multiple of eight bytes
    with open(path, "wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for output in outputs:
            file.write(_made(output).reshape(-1).view(np.uint8))
            progress(output.num_bytes)


def write_torch(path: str, outputs: Sequence[Output], progress: Progress = lambda _: None) -> None:
    """Writes `{"module": state dict}` as torch.save does.

    The file is laid out first, then its tensors are filled in through a shared mapping.

    Raises:
      UserError: it cannot be written, or PyTorch is missing.
    """
    torch = need_torch()
    make_directory(os.path.dirname(os.path.abspath(path)))
    write_whole(path, lambda partial: _fill_torch(torch, partial, outputs, progress))


def _fill_torch(torch, path: str, outputs: Sequence[Output], progress: Progress) -> None:
    kinds = {np.dtype(ml_dtypes.bfloat16): torch.bfloat16, np.dtype(np.float32): torch.float32}
    # never written to, so that they take addresses and no memory
    state = {o.name: torch.empty(o.shape, dtype=kinds[np.dtype(o.dtype)]) for o in outputs}
    needed = sum(output.num_bytes for output in outputs)
    folder = os.path.dirname(os.path.abspath(path))
    free = os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize
    if free < needed:  # writing through a mapping to a full disk kills the process
        raise UserError(f"{path} needs {needed / 1e9:.1f} GB, there are {free / 1e9:.1f} GB free")
    with torch.serialization.skip_data():
        torch.save({"module": state}, path)
    del state
    with open(path, "r+b") as file:
        os.posix_fallocate(file.fileno(), 0, os.path.getsize(path))
    with torch.serialization.set_default_mmap_options(mmap.MAP_SHARED):
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)["module"]
    for output in outputs:
        array = _made(output)
        if array.dtype == ml_dtypes.bfloat16:
            source = torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
        else:
            source = torch.from_numpy(array)
        loaded[output.name].copy_(source)
        progress(output.num_bytes)


def _made(output: Output) -> np.ndarray:
    array = np.ascontiguousarray(output.read(), output.dtype).reshape(output.shape)
    return array if array.flags.writeable else array.copy()
