"""What tells tokenizers and codecs apart: prepared data is for those that it was made with.

JAX is imported for an X-codec alone.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from typing import Any

from bagpiper_jax.errors import UserError
from bagpiper_jax.modeling.config import BagpiperConfig

TOKENIZERS, CODECS = ("tokenizer.json", "tokenizer.model"), ("xcodec.json", "codec.npz")


def fingerprints(config: BagpiperConfig, tokenizer: str, codec: str | None) -> dict[str, Any]:
    """What sizes and codes depend on: SHA-256 of tokenizer and codec, and the layout's numbers.

    Args:
      config: shapes of the model.
      tokenizer: its file.
      codec: `codec.npz`, or the `xcodec.json` of a model directory; None where none is used.

    Raises:
      UserError: a file is missing or damaged.
    """
    delay = config.vocab.stream_delay
    return {
        "tokenizer": file_fingerprint(tokenizer),
        "codec": codec and _codec_fingerprint(codec),
        "num_streams": config.vocab.num_streams,
        "block_windows": config.encoder.block_windows,
        # sets that were prepared before it was a setting do not name it
        **({} if delay == 1 else {"stream_delay": delay}),
    }


def find_file(directory: str, names: Sequence[str]) -> str:
    """The first of these files that the directory has.

    Raises:
      UserError: it has none.
    """
    for name in names:
        path = os.path.join(directory, name)
        if os.path.exists(path):
            return path
    raise UserError(f"{directory} has neither {' nor '.join(names)}")


def file_fingerprint(path: str) -> str:
    """SHA-256 of a file.

    Raises:
      UserError: it cannot be read.
    """
    try:
        with open(path, "rb") as f:
            return hashlib.file_digest(f, "sha256").hexdigest()
    except OSError as e:
        raise UserError(f"cannot read {path}: {e.strerror}") from e


def tree_fingerprint(path: str) -> str | None:
    """SHA-256 of the names and sizes of the files below a directory, or of one file's size.

    Nothing is read: a file that is rewritten at its old length is not noticed. None where there
    is nothing.
    """
    if not os.path.exists(path):
        return None
    files = [os.path.join(folder, name) for folder, _, names in os.walk(path) for name in names]
    sizes = sorted((os.path.relpath(f, path), os.lstat(f).st_size) for f in files or [path])
    return hashlib.sha256(repr(sizes).encode()).hexdigest()


def _codec_fingerprint(path: str) -> str:
    """Of a `codec.npz` its bytes; of an X-codec its weights, in whatever form they are stored."""
    if os.path.basename(path) != "xcodec.json":
        return file_fingerprint(path)
    from bagpiper_jax.release import xcodec_fingerprint

    return xcodec_fingerprint(os.path.dirname(path))
