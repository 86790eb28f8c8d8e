"""A JSON list of objects, read with errors that name the file, the entry and the mend."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

from bagpiper_jax.errors import UserError


class Entry:
    """One object of the list; reads its fields.

    Attributes:
      where: file and entry, for messages.
      mend: what to do where it is damaged.
    """

    def __init__(self, values: dict[str, Any], where: str, mend: str):
        self.where, self.mend, self._values = where, mend, values

    def text(self, name: str) -> str:
        """A field that must be a text, not empty."""
        value = self._values.get(name)
        if not isinstance(value, str) or not value.strip():
            raise self.damaged(f"there is no text {name!r}")
        return value

    def texts(self, name: str) -> tuple[str, ...]:
        """A field that must be a list of texts."""
        value = self._values.get(name)
        if not isinstance(value, list) or not value or not all(isinstance(v, str) for v in value):
            raise self.damaged(f"there is no list of texts {name!r}")
        return tuple(value)

    def get(self, name: str) -> Any:
        """A field as it is, None where it is missing."""
        return self._values.get(name)

    def damaged(self, what: str) -> UserError:
        """The error that says what is wrong with this entry."""
        return UserError(f"{self.where}: {what}: {self.mend}")


def read_entries(path: str, mend: str) -> Iterator[Entry]:
    """The entries of a file, numbered from 1 in messages.

    Raises:
      UserError: the file is missing, is no JSON, or is no list of objects; or it is empty.
    """
    if not os.path.isfile(path):
        raise UserError(f"there is no file {path}: {mend}")
    try:
        with open(path, encoding="utf-8") as file:
            rows = json.load(file)
    except (OSError, ValueError, RecursionError) as e:
        raise UserError(f"{path} cannot be read as JSON ({e}): {mend}") from e
    if not isinstance(rows, list) or not rows:
        raise UserError(f"{path} must hold a list of objects: {mend}")
    for number, row in enumerate(rows, 1):
        where = f"{path}, entry {number}"
        if not isinstance(row, dict):
            raise UserError(f"{where}: it is no object: {mend}")
        yield Entry(row, where, mend)
