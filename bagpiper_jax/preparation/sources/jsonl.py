"""JSON-lines manifests: a line an entry, recordings by path, relative to the manifest."""

from __future__ import annotations

import dataclasses
import functools
import gzip
import os
import zlib
from collections.abc import Iterator
from typing import BinaryIO

from bagpiper_jax.errors import UserError
from bagpiper_jax.preparation.item import Audio, Damaged, Item
from bagpiper_jax.preparation.sources.entries import (
    BadEntry,
    Defaults,
    files_stamp,
    labels,
    local_audio,
    make_item,
    parse_json,
    unique,
)
from bagpiper_jax.preparation.sources.limits import MAX_TEXT_BYTES, PART_BYTES

SUFFIXES = (".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz")


@dataclasses.dataclass(frozen=True)
class JsonLines:
    """Manifests of one JSON object a line.

    Its fields are those of `entries.ALIASES`: id, audio, caption or text, domain, language,
    licence, start and stop in seconds, and `messages`, a list of [role, modality, content] where
    content of audio is a path (the form of ESPnet's SpeechLM). A line without id has
    `FILE@OFFSET`, the byte where it begins.

    Attributes:
      name: of the source.
      files: the manifests, in order.
      audio_root: what paths are relative to; empty: the folder of their manifest.
      within: folder that relative paths must not leave; empty: the one they are relative to.
      absolute: whether absolute paths are allowed.
      defaults: what holds for every line.
    """

    name: str
    files: tuple[str, ...]
    audio_root: str = ""
    within: str = ""
    absolute: bool = False
    defaults: Defaults = Defaults()

    def parts(self) -> list[str]:
        """`NUMBER:FILE#OFFSET`, lines that begin in `PART_BYTES` from there; gzip is one part."""
        parts = []
        for number, (path, name) in enumerate(zip(self.files, labels(self.files), strict=True)):
            try:
                size = os.path.getsize(path)
            except OSError as e:
                raise UserError(f"source {self.name}: cannot read {path}: {e.strerror}") from e
            step = size + 1 if path.endswith(".gz") else PART_BYTES
            parts += [f"{number}:{name}#{start}" for start in range(0, max(size, 1), step)]
        return parts

    def stamp(self) -> str:
        """Of the files' names and sizes."""
        return files_stamp(self.files)

    def read(self, part: str) -> Iterator[Item | Damaged]:
        """The entries of a part, line by line."""
        number, rest = part.split(":", 1)
        name, start = rest.rsplit("#", 1)
        return unique(self._entries(self.files[int(number)], name, int(start)))

    def _entries(self, path: str, name: str, start: int) -> Iterator[Item | Damaged]:
        offset = start
        try:
            with _open(path) as file:
                stop = None if path.endswith(".gz") else start + PART_BYTES
                for offset, line in _lines(file, start, stop):
                    yield self._entry(path, name, offset, line)
        except (OSError, EOFError, zlib.error) as e:
            yield Damaged(f"{name}@after-{offset}", f"the file cannot be read further: {e}")

    def _entry(self, path: str, name: str, offset: int, line: bytes | None) -> Item | Damaged:
        line_id = f"{name}@{offset}"
        if line is None:
            return Damaged(line_id, f"the line is longer than {MAX_TEXT_BYTES >> 20} MB")
        try:
            fields = parse_json(line)
        except BadEntry as e:
            return Damaged(line_id, str(e))
        folder = self.audio_root or os.path.dirname(os.path.abspath(path))
        provenance = {"source": self.name, "file": name, "offset": offset}
        audio = functools.partial(_audio, self.within or folder, folder, self.absolute)
        return make_item(fields, line_id, audio, self.defaults, provenance)


def _audio(root: str, folder: str, absolute: bool, name: object) -> Audio:
    return local_audio(root, folder, name, absolute=absolute)


def _open(path: str) -> BinaryIO:
    return gzip.open(path, "rb") if path.endswith(".gz") else open(path, "rb")


def _lines(file: BinaryIO, start: int, stop: int | None) -> Iterator[tuple[int, bytes | None]]:
    """(offset, line) of the lines that begin in [start, stop); None for one that is too long."""
    offset = start
    if start:
        file.seek(start - 1)
        offset = _skip_line(file, start - 1, stop)
    while stop is None or offset < stop:
        line = file.readline(MAX_TEXT_BYTES + 1)
        if not line:
            return
        begin, offset = offset, offset + len(line)
        if len(line) > MAX_TEXT_BYTES and not line.endswith(b"\n"):
            yield begin, None
            offset = _skip_line(file, offset, stop)
        elif line.strip():
            yield begin, line


def _skip_line(file: BinaryIO, offset: int, stop: int | None) -> int:
    """The offset after the line's end; anything from `stop` on where it goes on past that."""
    while stop is None or offset < stop:
        piece = file.readline(1 << 20)
        offset += len(piece)
        if not piece or piece.endswith(b"\n"):
            return offset if piece else max(offset, stop or 0)
    return offset
