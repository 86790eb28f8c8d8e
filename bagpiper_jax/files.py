"""Files that appear under their name only when they are whole."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

from bagpiper_jax.errors import UserError


def write_whole(path: str | os.PathLike, write: Callable[[str], Any]) -> None:
    """Lets `write` make a file under another name, then gives it its own.

    Args:
      path: of the file.
      write: called with the path to write to, in the same directory.

    Raises:
      UserError: it cannot be written; what stood there before still does.
    """
    partial = f"{os.fspath(path)}.tmp"
    try:
        write(partial)
        os.replace(partial, path)
    except OSError as e:
        _remove(partial)
        raise UserError(f"cannot write {path}: {e.strerror or e}") from e
    except BaseException:
        _remove(partial)
        raise


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes a text file; see `write_whole`."""

    def write(partial: str) -> None:
        with open(partial, "w", encoding="utf-8") as file:
            file.write(text)

    write_whole(path, write)


def write_json(path: str | os.PathLike, values: Any) -> None:
    """Writes a JSON file; see `write_whole`."""
    write_text(path, json.dumps(values, indent=1, ensure_ascii=False) + "\n")


def make_directory(path: str | os.PathLike) -> None:
    """Makes a directory, and those above it, where they are missing.

    Raises:
      UserError: it cannot be made.
    """
    try:
        os.makedirs(path, exist_ok=True)
    except OSError as e:
        raise UserError(f"cannot make the directory {path}: {e.strerror}") from e


def _remove(path: str) -> None:
    if os.path.exists(path):
        os.remove(path)
