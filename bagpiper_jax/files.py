"""Files that appear under their name only when they are whole."""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
import time
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


def write_directory(
    path: str | os.PathLike, write: Callable[[str], Any], num_bytes: int = 0
) -> None:
    """Lets `write` fill a new directory under another name, then gives it its own.

    Args:
      path: of the directory; it must not be there, or be empty.
      write: called with the directory to fill, beside it.
      num_bytes: what it will take about.

    Raises:
      UserError: something is there, or it cannot be written; nothing is left then.
    """
    path = os.path.realpath(path)
    check_vacant(path)
    parent, name = os.path.split(path)
    make_directory(parent)
    try:
        partial = tempfile.mkdtemp(prefix=f".{name}-", dir=parent)
        os.chmod(partial, 0o755)
    except OSError as e:
        raise UserError(f"cannot write {path}: {e.strerror}") from e
    try:
        check_space(partial, num_bytes)
        write(partial)
        os.replace(partial, path)
    except OSError as e:
        discard(partial)
        raise UserError(f"cannot write {path}: {e.strerror or e}") from e
    except BaseException:
        discard(partial)
        raise


def discard(directory: str) -> None:
    """Removes a directory, though a thread that was told to stop may still write its last file."""
    for _ in range(20):
        shutil.rmtree(directory, ignore_errors=True)
        if not os.path.exists(directory):
            return
        time.sleep(0.1)


def check_vacant(path: str | os.PathLike) -> None:
    """Raises UserError where a directory to be written cannot take its place later."""
    path = os.path.realpath(path)
    if os.path.ismount(path):
        raise UserError(f"{path} is a mounted disk: name a directory inside it")
    try:
        there = os.listdir(path)
    except FileNotFoundError:
        return
    except OSError as e:
        raise UserError(f"{path} is no directory to write: {e.strerror}") from e
    if there:
        raise UserError(f"{path} is there already and is not empty: choose another directory")


def check_space(path: str | os.PathLike, num_bytes: int) -> None:
    """Raises UserError where the disk of `path` has less free than is needed."""
    disk = os.statvfs(os.path.dirname(os.path.abspath(path)))
    free = disk.f_bavail * disk.f_frsize
    if free < num_bytes:
        have = f"{free / 1e9:.1f} GB free"
        raise UserError(f"{path} needs {num_bytes / 1e9:.1f} GB, there are {have}")


def is_full(error: BaseException) -> bool:
    """Whether an error, or its text, says that a disk is full."""
    text = str(error)
    return getattr(error, "errno", None) == errno.ENOSPC or "No space left" in text


def _remove(path: str) -> None:
    if os.path.exists(path):
        os.remove(path)
