"""A folder of recordings, each with its text in a file of the same name beside it."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
from collections.abc import Iterator

from bagpiper_jax.errors import UserError
from bagpiper_jax.preparation.item import Damaged, Item
from bagpiper_jax.preparation.sources.entries import (
    BadEntry,
    Defaults,
    decode_text,
    local_audio,
    make_item,
    parse_json,
    read_text,
    stamp,
    unique,
)
from bagpiper_jax.preparation.sources.limits import AUDIO_SUFFIXES, PART_FILES, TEXT_SUFFIXES


@dataclasses.dataclass(frozen=True)
class Folder:
    """Recordings in nested folders; `a.txt` has the caption of `a.wav`, or `a.json` its fields.

    A recording with neither is an item without caption. Ids are paths within the folder. Every
    other file is damaged, but for those whose names begin with a dot, and so is a link to a folder,
    which is not entered.

    Attributes:
      name: of the source.
      path: of the folder.
      defaults: what holds for every recording.
    """

    name: str
    path: str
    defaults: Defaults = Defaults()

    def parts(self) -> list[str]:
        """`FOLDER#NUMBER`, up to `PART_FILES` names of a folder each."""
        if not os.path.isdir(self.path):
            raise UserError(f"source {self.name}: there is no folder {self.path}")
        parts = []

        def unreadable(error: OSError) -> None:
            parts.append(f"{os.path.relpath(error.filename, self.path)}#000000")

        for folder, subfolders, _ in os.walk(self.path, onerror=unreadable):
            subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
            relative = os.path.relpath(folder, self.path)
            try:
                stems = len(_stems(folder))
            except OSError:
                stems = 1  # reading the part tells why
            parts += [f"{relative}#{start:06d}" for start in range(0, stems, PART_FILES)]
        return parts

    def stamp(self) -> str:
        """Of the files' names; sizes would ask the disk for each."""
        names = []
        for folder, subfolders, files in os.walk(self.path):
            subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
            relative = os.path.relpath(folder, self.path)
            names += [(os.path.join(relative, name), 0) for name in sorted(files)]
        return stamp(names)

    def read(self, part: str) -> Iterator[Item | Damaged]:
        """The recordings of a part, by name."""
        relative, start = part.rsplit("#", 1)
        folder = os.path.normpath(os.path.join(self.path, relative))
        try:
            stems = _stems(folder)
        except OSError as e:
            return iter([Damaged(relative, f"the folder cannot be read: {e.strerror}")])
        chosen = itertools.islice(stems, int(start), int(start) + PART_FILES)
        return unique(entry for stem in chosen for entry in self._entries(folder, stems[stem]))

    def _entries(self, folder: str, names: list[str]) -> Iterator[Item | Damaged]:
        """What the files of one stem are."""
        audio = [name for name in names if _suffix(name) in AUDIO_SUFFIXES]
        texts = {_suffix(name): name for name in names if _suffix(name) in TEXT_SUFFIXES}
        for name in names:
            if name in texts.values() and audio:
                continue
            entry_id = os.path.normpath(os.path.relpath(os.path.join(folder, name), self.path))
            if not entry_id.isprintable():  # bytes that are no UTF-8 stand as half characters
                shown = entry_id.encode("ascii", "backslashreplace").decode()
                yield Damaged(shown, "its name is not UTF-8, or holds control characters")
            elif name in audio:
                yield self._recording(folder, name, entry_id, texts)
            else:
                reason = "is no recording and no text"
                if name in texts.values():
                    reason = "has no recording beside it"
                elif os.path.isdir(os.path.join(folder, name)):
                    reason = "is a link to a folder, which is not entered"
                yield Damaged(entry_id, reason)

    def _recording(self, folder: str, name: str, entry_id: str, texts: dict[str, str]):
        provenance = {"source": self.name, "file": entry_id}
        try:
            fields: dict = {}
            if ".json" in texts:
                fields = parse_json(read_text(self.path, folder, texts[".json"]))
                if not isinstance(fields, dict):
                    raise BadEntry(f"{texts['.json']} holds no mapping of fields")
            if ".txt" in texts and self.defaults.get(fields, "caption") is None:
                text = decode_text(read_text(self.path, folder, texts[".txt"]))
                fields = {**fields, "caption": text}
            recording = local_audio(self.path, folder, name)
        except BadEntry as e:
            return Damaged(entry_id, str(e))
        return make_item(
            fields,
            entry_id,
            # a dialogue may name this recording and others of the folder
            lambda other: recording if other == name else local_audio(self.path, folder, other),
            self.defaults,
            provenance,
            (recording,),
        )


def _stems(folder: str) -> dict[str, list[str]]:
    """Names of the files of a folder, by what stands before the suffix, in order.

    Raises:
      OSError: the folder cannot be read.
    """
    return _list_stems(folder, os.stat(folder).st_mtime_ns)


@functools.lru_cache(maxsize=1)  # many parts may be of one folder
def _list_stems(folder: str, changed: int) -> dict[str, list[str]]:
    stems: dict[str, list[str]] = {}
    with os.scandir(folder) as found:
        entries = [e for e in found if not e.name.startswith(".")]
    names = [e.name for e in entries if not e.is_dir(follow_symlinks=False)]
    for name in names:
        stems.setdefault(os.path.splitext(name)[0], []).append(name)
    return {stem: sorted(stems[stem]) for stem in sorted(stems)}


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()
