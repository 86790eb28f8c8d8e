"""JSON lines: manifests of recordings, and journals that a killed process leaves behind."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from bagpiper_jax.errors import UserError
from bagpiper_jax.files import make_directory, write_whole

MAX_BYTES = 32 << 20  # of a line; longer ones are no rows


class Line(NamedTuple):
    """A line of a manifest: its number from 1, and a row or what is wrong with it."""

    number: int
    row: dict[str, Any] | None
    problem: str = ""


def read_lines(path: str | os.PathLike) -> Iterator[Line]:
    """The rows of a file, one at a time; empty lines are left out, bad ones are told.

    Every row is an object with a text `id` of its own.

    Raises:
      UserError: the file cannot be read.
    """
    seen: set[str] = set()
    try:
        with open(path, "rb") as file:
            number = 0
            while data := file.readline(MAX_BYTES + 1):
                number += 1
                if len(data) > MAX_BYTES:
                    while data and not data.endswith(b"\n"):
                        data = file.readline(MAX_BYTES)
                    yield Line(number, None, f"longer than {MAX_BYTES >> 20} MiB")
                elif data.strip():
                    yield _line(number, data, seen)
    except OSError as e:
        raise UserError(f"cannot read {path}: {e.strerror or e}") from e


def _line(number: int, data: bytes, seen: set[str]) -> Line:
    try:
        row = json.loads(data)
    except (ValueError, RecursionError) as e:
        return Line(number, None, f"no JSON: {e}")
    if not isinstance(row, dict):
        return Line(number, None, "no JSON object")
    if rb"\ud" in data.lower():  # an escaped surrogate; half a pair has no UTF-8
        try:
            dump(row).encode()
        except UnicodeEncodeError:
            return Line(number, None, "half of a surrogate pair, which is no character")
    name = row.get("id")
    if not isinstance(name, str) or not name:
        return Line(number, None, "no id: every row needs a text of its own there")
    if name in seen:
        return Line(number, None, f"the id {name} occurs twice")
    seen.add(name)
    return Line(number, row)


def dump(row: Any) -> str:
    """A row as one line, with its newline."""
    return json.dumps(row, ensure_ascii=False) + "\n"


def write_rows(path: str | os.PathLike, rows: Iterable[Any]) -> None:
    """Writes rows; the file appears only when it is whole.

    Raises:
      UserError: it cannot be written.
    """

    def write(partial: str) -> None:
        with open(partial, "w", encoding="utf-8") as file:
            file.writelines(map(dump, rows))

    make_directory(os.path.dirname(os.path.abspath(path)))
    write_whole(path, write)


def rebase_audio(row: dict[str, Any], old: str, new: str) -> dict[str, Any]:
    """A row whose paths of audio, relative to one directory, are relative to another."""

    def move(path: Any) -> Any:
        if not isinstance(path, str) or not path or os.path.isabs(path):
            return path
        return os.path.relpath(os.path.join(old, path), new)

    row = dict(row)
    if "audio" in row:
        row["audio"] = move(row["audio"])
    if isinstance(row.get("messages"), Sequence):
        row["messages"] = [[m[0], m[1], move(m[2])] if _is_audio(m) else m for m in row["messages"]]
    return row


def _is_audio(message: Any) -> bool:
    return isinstance(message, list) and len(message) == 3 and message[1] == "audio"


class Journal:
    """Rows in the order in which they came, on disk as soon as they came. A context manager.

    A line that a kill cut short is dropped. Rows are found again by their key; the last one counts.
    """

    def __init__(self, path: str | os.PathLike):
        """Raises UserError where the file cannot be opened."""
        self.path = os.fspath(path)
        self._places: dict[str, tuple[int, int]] = {}
        make_directory(os.path.dirname(os.path.abspath(path)))
        try:
            self._file = open(path, "a+b")
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            self._file.close()
            raise UserError(f"another process writes {path}: wait for it, or end it") from e
        except OSError as e:
            raise UserError(f"cannot write {path}: {e.strerror}") from e
        self._file.seek(0)
        end = 0
        for data in self._file:
            try:
                key = json.loads(data)["key"] if data.endswith(b"\n") else None
            except (ValueError, KeyError, TypeError):
                key = None
            if key is None:
                break
            self._places[key] = (end, len(data))
            end += len(data)
        self._file.truncate(end)

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def __len__(self) -> int:
        return len(self._places)

    def add(self, key: str, value: Any) -> None:
        """Writes a row; it outlives the process from then on."""
        data = dump({"key": key, "value": value}).encode()
        try:
            place = self._file.seek(0, os.SEEK_END)
            self._file.write(data)
            self._file.flush()
        except OSError as e:
            raise UserError(f"cannot write {self.path}: {e.strerror}") from e
        self._places[key] = (place, len(data))

    def get(self, key: str) -> Any:
        """The row of a key; KeyError where there is none."""
        place, length = self._places[key]
        self._file.seek(place)
        return json.loads(self._file.read(length))["value"]

    def remove(self) -> None:
        """Closes and deletes the file."""
        self._file.close()
        os.remove(self.path)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_) -> None:
        self._file.close()
