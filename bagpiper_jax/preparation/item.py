"""`Item`, the one schema that every source of recordings is read into."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, Protocol


@dataclasses.dataclass(frozen=True)
class Audio:
    """A recording, by reference or by its bytes; exactly one of `path` and `data` is given.

    Attributes:
      path: of a file that libsndfile reads.
      data: such a file's bytes.
      start, stop: seconds of the span that is meant; None: to the end.
    """

    path: str = ""
    data: bytes | None = None
    start: float = 0.0
    stop: float | None = None


@dataclasses.dataclass(frozen=True)
class Item:
    """An example as found, before any audio is decoded.

    Attributes:
      id: unique within its source, stable from one reading to the next.
      audios: its recordings.
      caption: text of the first recording; empty where there is none, or for a dialogue.
      messages: (role, modality, content); content of audio is its number in `audios`.
      domain: speech, music, sound or mixed.
      language: BCP 47 tag, "und" where unknown.
      licence: SPDX id, or its name; empty where unknown.
      provenance: source, file, line and the like, of plain values.
    """

    id: str
    audios: tuple[Audio, ...] = ()
    caption: str = ""
    messages: tuple[tuple[str, str, str | int], ...] = ()
    domain: str = "mixed"
    language: str = "und"
    licence: str = ""
    provenance: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Damaged:
    """An entry of a source that is no item: it is counted and quarantined, never skipped."""

    id: str
    reason: str


class Source(Protocol):
    """Where items come from. Parts are units of work: read in any order, each alone, repeatably."""

    name: str

    def parts(self) -> Sequence[str]:
        """Names of the parts, in a stable order (files, tars, spans of lines, row groups).

        Raises:
          UserError: the source is not there, or is of no known form.
        """
        ...

    def stamp(self) -> str:
        """Tells whether the source has changed since an earlier run: of names and sizes alone, so
        that a copy in another place has the same."""
        ...

    def read(self, part: str) -> Iterator[Item | Damaged]:
        """What a part holds, in a stable order; never raises for a bad entry."""
        ...
