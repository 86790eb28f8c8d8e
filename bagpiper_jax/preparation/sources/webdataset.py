"""WebDataset tars: consecutive members of one key are one entry."""

from __future__ import annotations

import dataclasses
import gzip
import io
import os
import tarfile
import zlib
from collections.abc import Iterator
from typing import IO, Any

from bagpiper_jax.errors import UserError
from bagpiper_jax.preparation.item import Audio, Damaged, Item
from bagpiper_jax.preparation.sources.entries import (
    BadEntry,
    Defaults,
    decode_text,
    embedded_audio,
    files_stamp,
    labels,
    make_item,
    parse_json,
    unique,
)
from bagpiper_jax.preparation.sources.limits import (
    AUDIO_SUFFIXES,
    MAX_AUDIO_BYTES,
    MAX_TEXT_BYTES,
)

SUFFIXES = (".tar", ".tar.gz", ".tgz")
_CAPTIONS = (".txt", ".text", ".caption", ".transcript")
_END = tarfile.NUL * tarfile.BLOCKSIZE
_PADDING = 64 << 10  # more than tar fills up with
_UNREADABLE = (tarfile.TarError, OSError, EOFError, zlib.error, ValueError, OverflowError)


@dataclasses.dataclass(frozen=True)
class WebDataset:
    """Tars, read from front to end; one member at a time is in memory, and those of its entry.

    The key of a member is its path up to the first dot of its name; what follows says what it is:
    a recording, its caption (txt, text, caption, transcript) or its fields (json). Members of other
    kinds are named in the provenance and not read. Messages name a recording of the entry by what
    follows its key ("flac", "user.flac"), by its name, by its number, or not at all: the next one.
    The id is `FILE:KEY`, or the field `id`.

    Attributes:
      name: of the source.
      files: the tars, in order.
      defaults: what holds for every entry.
    """

    name: str
    files: tuple[str, ...]
    defaults: Defaults = Defaults()

    def parts(self) -> list[str]:
        """`NUMBER:FILE`, a tar each."""
        for path in self.files:
            if not os.path.isfile(path):
                raise UserError(f"source {self.name}: there is no tar {path}")
        return [f"{n}:{name}" for n, name in enumerate(labels(self.files))]

    def stamp(self) -> str:
        """Of the files' names and sizes."""
        return files_stamp(self.files)

    def read(self, part: str) -> Iterator[Item | Damaged]:
        """The entries of a tar, in order."""
        number, name = part.split(":", 1)
        return unique(self._entries(self.files[int(number)], name))

    def _entries(self, path: str, name: str) -> Iterator[Item | Damaged]:
        group = None
        try:
            with _open(path) as file:
                for member, content in _members(file):
                    key, kind = _split(member.name)
                    if group is None or group.key != key:
                        if group is not None:
                            yield self._item(name, group)
                        group = _Group(key)
                    group.add(kind, member, content)
            if group is not None:
                yield self._item(name, group)
        except _UNREADABLE as e:
            # the entry at hand may lack members that follow
            after = "the start" if group is None else group.key
            reason = f"the tar cannot be read further: {' '.join(str(e).split())}"
            yield Damaged(f"{name}:{_printable(after)}@broken", reason)

    def _item(self, tar: str, group: _Group) -> Item | Damaged:
        entry_id = f"{tar}:{_printable(group.key)}"
        provenance: dict[str, Any] = {"source": self.name, "file": tar, "key": group.key}
        if group.others:
            provenance["not_read"] = ", ".join(map(_printable, group.others))[:1000]
        try:
            if group.fault or _printable(group.key) != group.key:
                raise BadEntry(group.fault or "the key is no plain text")
            fields = group.fields()
        except BadEntry as e:
            return Damaged(entry_id, str(e))
        audios = tuple(group.audios.values())
        return make_item(fields, entry_id, group.find, self.defaults, provenance, audios)


class _Group:
    """The members of one key."""

    def __init__(self, key: str):
        self.key, self.fault = key, ""
        self.audios: dict[str, Audio] = {}
        self.texts: dict[str, bytes] = {}
        self.others: list[str] = []
        self._bytes, self._next = 0, 0

    def add(self, kind: str, member: tarfile.TarInfo, content: IO[bytes] | None) -> None:
        suffix = "." + kind.rsplit(".", 1)[-1].lower()
        is_text = suffix in (*_CAPTIONS, ".json")
        limit = MAX_TEXT_BYTES if is_text else MAX_AUDIO_BYTES
        if not is_text and suffix not in AUDIO_SUFFIXES:
            self.others.append(kind)
        elif content is None:
            self.fault = f"its {kind} is a link or a device, not a file"
        elif kind in self.audios or kind in self.texts:
            self.fault = f"it has {kind} twice"
        elif member.size > limit or self._bytes + member.size > MAX_AUDIO_BYTES:
            self.fault = f"its {kind} has {member.size} bytes: it is too large"
        elif not self.fault:
            self._bytes += member.size
            data = content.read(member.size)
            if len(data) != member.size:
                raise tarfile.ReadError(f"{kind} ends after {len(data)} of {member.size} bytes")
            if is_text:
                self.texts[kind] = data
            elif not data:
                self.fault = f"its {kind} is empty"
            else:
                self.audios[kind] = embedded_audio(data)

    def fields(self) -> dict[str, Any]:
        """What the members of JSON and text say.

        Raises:
          BadEntry: they cannot be read.
        """
        fields: dict[str, Any] = {}
        for kind, data in self.texts.items():
            if kind.lower().endswith("json"):
                found = parse_json(data)
                if not isinstance(found, dict):
                    raise BadEntry(f"its {kind} holds no mapping of fields")
                fields.update(found)
            else:
                fields.setdefault("caption", decode_text(data))
        return fields

    def find(self, content: Any) -> Audio:
        """The recording that an audio message means."""
        audios = list(self.audios.values())
        if content is None or content == "":
            if self._next >= len(audios):
                raise BadEntry(f"there are more audio messages than recordings: {self._next}")
            self._next += 1
            return audios[self._next - 1]
        if not isinstance(content, str):
            raise BadEntry(f"the entry holds no recording {ascii(content)[:80]}")
        base = os.path.basename(self.key)
        kind = os.path.basename(content).removeprefix(base + ".").lstrip(".")
        if kind not in self.audios:
            raise BadEntry(f"the entry holds no recording {ascii(content)[:80]}")
        return self.audios[kind]


class _Guarded(io.RawIOBase):
    """A file that refuses what only a damaged header asks for."""

    def __init__(self, file: IO[bytes]):
        self._file = file
        self.block = b""  # the last of a header's size

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= MAX_AUDIO_BYTES:
            raise tarfile.ReadError(f"a header states {size} bytes")
        data = self._file.read(size)
        if size == tarfile.BLOCKSIZE:
            self.block = data
        return data

    def seek(self, offset: int, whence: int = 0) -> int:
        if whence == 0 and offset < 0:
            raise tarfile.ReadError("a header points before the beginning")
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True


def _open(path: str) -> IO[bytes]:
    return open(path, "rb") if path.endswith(".tar") else gzip.open(path, "rb")


def _members(file: IO[bytes]) -> Iterator[tuple[tarfile.TarInfo, IO[bytes] | None]]:
    """Members but for folders, each with its content; None for one that is no regular file.

    Raises:
      tarfile.TarError and others of _UNREADABLE: the tar is damaged, or ends too early.
    """
    guarded = _Guarded(file)
    with tarfile.open(fileobj=guarded, mode="r:") as tar:
        last = -1
        while (member := tar.next()) is not None:
            tar.members = []  # it keeps them all
            if member.size < 0 or tar.offset <= last:
                raise tarfile.ReadError("a header has an impossible size")
            last = tar.offset
            if not member.isdir():
                yield member, tar.extractfile(member) if member.isreg() else None
        # tarfile takes a damaged header, and a cut one, for the end
        if guarded.block != _END:
            raise tarfile.ReadError("it has a damaged header, or ends without the mark of its end")
        if guarded.read(_PADDING).strip(tarfile.NUL):
            raise tarfile.ReadError("there is more behind the mark of its end")


def _split(name: str) -> tuple[str, str]:
    """`a/b.user.flac` → (`a/b`, `user.flac`)."""
    folder, base = os.path.split(name)
    stem, _, kind = base.partition(".")
    return os.path.join(folder, stem), kind


def _printable(text: str) -> str:
    shown = text.encode("utf-8", "backslashreplace").decode()
    return shown if shown.isprintable() else ascii(shown)
