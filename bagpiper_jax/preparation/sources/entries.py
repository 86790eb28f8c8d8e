"""Fields of a manifest's line, a table's row or a file beside a recording → `Item`."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import os
import re
import reprlib
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from bagpiper_jax.preparation.item import Audio, Damaged, Item
from bagpiper_jax.preparation.sources.limits import MAX_TEXT_BYTES
from bagpiper_jax.vocab import ROLES

DOMAINS = ("speech", "music", "sound", "mixed")
ALIASES = {
    "id": ("id", "key", "utt_id", "example_id"),
    "audio": ("audio", "audio_path", "audio_filepath", "wav", "file_name"),
    "caption": ("caption", "text", "transcript", "description"),
    "messages": ("messages",),
    "domain": ("domain",),
    "language": ("language", "lang"),
    "licence": ("licence", "license"),
    "start": ("start", "offset"),
    "stop": ("stop", "end"),
    "duration": ("duration",),  # seconds from start, as NeMo's manifests have it
}
_LANGUAGE = re.compile(r"[A-Za-z]{2,8}(-[A-Za-z0-9]{1,8})*")
_MAX_NOTE = 1000  # characters of a field that is kept in the provenance
_REPR = reprlib.Repr()  # of limited length and depth
_REPR.maxstring = _REPR.maxother = 80


class BadEntry(Exception):
    """Why an entry is no item."""


@dataclasses.dataclass(frozen=True)
class Defaults:
    """What holds for every entry of a source.

    Attributes:
      columns: names of the source's own fields for those of `ALIASES`; they go first.
      domain, language, licence: of entries that do not say.
      text_only: an entry without audio is a text, not damaged.
    """

    columns: Mapping[str, str] = dataclasses.field(default_factory=dict)
    domain: str = "mixed"
    language: str = "und"
    licence: str = ""
    text_only: bool = False

    def names(self, field: str) -> tuple[str, ...]:
        """The names under which a field is looked for, in order."""
        own = (self.columns[field],) if field in self.columns else ()
        return own + ALIASES[field]

    def get(self, fields: Mapping[str, Any], field: str) -> Any:
        """The value of a field under the first of its names that is there; None where none is."""
        for name in self.names(field):
            if fields.get(name) is not None:
                return fields[name]
        return None


def parse_json(data: bytes | str) -> Any:
    """Parses JSON that may be anything.

    Raises:
      BadEntry: it is no JSON, no UTF-8, or nested too deeply.
    """
    try:
        return json.loads(data.decode("utf-8-sig") if isinstance(data, bytes) else data)
    except UnicodeDecodeError as e:
        raise BadEntry(f"is not UTF-8: {e.reason} at byte {e.start}") from e
    except RecursionError as e:
        raise BadEntry("is JSON nested too deeply") from e
    except ValueError as e:
        raise BadEntry(f"is no JSON: {e}") from e


def make_item(
    fields: Any,
    default_id: str,
    audio: Callable[[Any], Audio],
    defaults: Defaults,
    provenance: Mapping[str, Any],
    recordings: Sequence[Audio] = (),
) -> Item | Damaged:
    """The item that fields describe.

    Args:
      fields: a mapping; anything else is damaged.
      default_id: of an entry that names none.
      audio: gives the recording that a field or an audio message names; raises BadEntry.
      defaults: of the source.
      provenance: where the entry stands; short plain fields that have no other place are added.
      recordings: those that the entry carries; audio messages may name them by number.
    """
    entry_id = default_id
    try:
        if not isinstance(fields, Mapping):
            raise BadEntry(f"is a {type(fields).__name__}, not a mapping of fields")
        entry_id = _id(defaults.get(fields, "id"), default_id)
        messages = defaults.get(fields, "messages")
        caption = defaults.get(fields, "caption")
        caption = "" if caption is None else _text(caption, "the caption")
        if messages is not None:
            caption, (audios, turns) = "", _dialogue(messages, audio, recordings)
        else:
            named = defaults.get(fields, "audio")
            audios, turns = tuple(recordings), ()
            if not audios and named is not None:
                audios = tuple(map(audio, named if isinstance(named, list) else [named]))
        if not audios and not turns and not (defaults.text_only and caption):
            raise BadEntry(f"has no audio: looked for {', '.join(defaults.names('audio'))}")
        return Item(
            id=entry_id,
            audios=_cut(audios, fields, defaults),
            caption=caption,
            messages=turns,
            domain=_domain(defaults.get(fields, "domain") or defaults.domain),
            language=_language(defaults.get(fields, "language") or defaults.language),
            licence=_text(defaults.get(fields, "licence") or defaults.licence, "the licence"),
            provenance={**provenance, **_notes(fields, defaults)},
        )
    except BadEntry as e:
        return Damaged(entry_id, str(e))


def labels(files: Sequence[str]) -> list[str]:
    """Names of files that tell them apart: paths within the folder that holds them all."""
    folders = [os.path.dirname(os.path.abspath(path)) for path in files]
    common = os.path.commonpath(folders) if folders else ""
    return [os.path.relpath(os.path.abspath(path), common) for path in files]


def stamp(sizes: Iterable[tuple[str, int]]) -> str:
    """A short text that tells one list of names and sizes from another."""
    return hashlib.sha256(json.dumps(list(sizes)).encode()).hexdigest()[:16]


def files_stamp(files: Sequence[str]) -> str:
    """`stamp` of files that are there."""
    return stamp(zip(labels(files), map(os.path.getsize, files), strict=True))


def local_audio(root: str, folder: str, name: Any, *, absolute: bool = False) -> Audio:
    """The recording at a path that a stranger wrote.

    Args:
      root: folder that it must not leave, not by links either.
      folder: what it is relative to, within `root`.
      name: the path.
      absolute: whether it may be absolute, and then anywhere.

    Raises:
      BadEntry: the path escapes, or is of no file that can be read.
    """
    if not isinstance(name, str) or not name:
        raise BadEntry(f"the audio is named by {_short(name)}, not by a path")
    if "\0" in name or "://" in name:
        raise BadEntry(f"the audio {_short(name)} is no path of a file")
    is_absolute = os.path.isabs(name)
    if is_absolute and not absolute:
        raise BadEntry(f"the audio {_short(name)} has an absolute path: allow it with absolute")
    what = f"the audio {_short(name)}"
    path, size = _regular_file(root, folder, name, what, anywhere=is_absolute)
    if size == 0:
        raise BadEntry(f"{what} is empty")
    return Audio(path=path)


def _regular_file(root: str, folder: str, name: str, what: str, *, anywhere: bool = False):
    """(real path, bytes) of a file that must not lead out of `root`, nor be one to wait for."""
    try:
        real = os.path.realpath(os.path.join(folder, name))
        if not anywhere and os.path.commonpath([real, _real(root)]) != _real(root):
            raise BadEntry(f"{what} lies outside of the source's folder {root}")
        found = os.stat(real)
    except (OSError, ValueError) as e:
        reason = getattr(e, "strerror", None) or e
        raise BadEntry(f"{what} cannot be read: {reason}") from e
    if not stat.S_ISREG(found.st_mode):
        raise BadEntry(f"{what} is no regular file")
    return real, found.st_size


@functools.lru_cache(maxsize=64)  # each realpath asks the disk about every folder on the way
def _real(root: str) -> str:
    return os.path.realpath(root)


def embedded_audio(data: bytes, name: str = "the audio") -> Audio:
    """A recording that comes as its bytes.

    Raises:
      BadEntry: there are none.
    """
    if not data:
        raise BadEntry(f"{name} is empty")
    return Audio(data=bytes(data))


def unique(entries: Iterator[Item | Damaged]) -> Iterator[Item | Damaged]:
    """Marks entries whose id an earlier entry of the same part has, by a stable id of their own."""
    seen: set[str] = set()
    for number, entry in enumerate(entries):
        if entry.id in seen:
            reason = f"an earlier entry has the id {entry.id}"
            entry = Damaged(f"{entry.id}@{number}", getattr(entry, "reason", reason))
        seen.add(entry.id)
        yield entry


def read_text(root: str, folder: str, name: str) -> bytes:
    """What a text file within `root` holds.

    Raises:
      BadEntry: it cannot be read, leads out of `root`, or is too large.
    """
    path, _ = _regular_file(root, folder, name, "the text beside it")
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_TEXT_BYTES + 1)
    except OSError as e:
        raise BadEntry(f"the text beside it cannot be read: {e.strerror}") from e
    if len(data) > MAX_TEXT_BYTES:
        raise BadEntry(f"the text beside it is larger than {MAX_TEXT_BYTES >> 20} MB")
    return data


def decode_text(data: bytes) -> str:
    """Text as it stands in a file, without the blanks around it.

    Raises:
      BadEntry: it is no UTF-8, or empty.
    """
    try:
        text = data.decode("utf-8-sig").strip()
    except UnicodeDecodeError as e:
        raise BadEntry(f"the text is not UTF-8: {e.reason} at byte {e.start}") from e
    if not text:
        raise BadEntry("the text is empty")
    return text


def _dialogue(messages: Any, audio: Callable[[Any], Audio], recordings: Sequence[Audio]):
    """(recordings, (role, modality, content)); one that is named twice is held once."""
    if isinstance(messages, str):
        messages = parse_json(messages)
    if not isinstance(messages, list | tuple) or not messages:
        raise BadEntry("messages is no list of (role, modality, content)")
    audios, turns = list(recordings), []
    numbers: dict[str, int] = {}
    for number, message in enumerate(messages):
        where = f"message {number}"
        role, modality, content = _turn(message, where)
        if modality == "text":
            turns.append((role, modality, _text(content, where)))
            continue
        if isinstance(content, int) and not isinstance(content, bool):
            if not 0 <= content < len(recordings):
                raise BadEntry(f"{where} names recording {content} of {len(recordings)}")
            turns.append((role, modality, content))
            continue
        name = content if isinstance(content, str) else f"\0{number}"
        if name not in numbers:
            recording = audio(content)
            # one that the entry carries keeps its place
            same = [i for i, known in enumerate(audios) if known is recording]
            numbers[name] = same[0] if same else len(audios)
            if not same:
                audios.append(recording)
        turns.append((role, modality, numbers[name]))
    return tuple(audios), tuple(turns)


def _turn(message: Any, where: str) -> tuple[str, str, Any]:
    if isinstance(message, Mapping):
        message = [message.get(key) for key in ("role", "modality", "content")]
    if not isinstance(message, list | tuple) or len(message) != 3:
        raise BadEntry(f"{where} is no (role, modality, content)")
    role, modality, content = message
    if not isinstance(role, str) or role not in ROLES:
        raise BadEntry(f"{where} has the role {_short(role)}, none of {', '.join(ROLES)}")
    if modality not in ("text", "audio"):
        raise BadEntry(f"{where} has the modality {_short(modality)}, neither text nor audio")
    return role, modality, content


def _cut(audios: tuple[Audio, ...], fields: Mapping[str, Any], defaults: Defaults):
    """The recordings with the span that the fields state; it belongs to a single one."""
    start = _seconds(defaults.get(fields, "start"), "start")
    stop = _seconds(defaults.get(fields, "stop"), "stop")
    named = any(defaults.get(fields, field) is not None for field in ("start", "stop"))
    if stop is None and start is not None:
        duration = _seconds(defaults.get(fields, "duration"), "duration")
        stop = None if duration is None else start + duration
    if not named:  # a duration alone tells how long the file is
        return audios
    if len(audios) != 1:
        raise BadEntry(f"start and stop need one recording, there are {len(audios)}")
    if stop is not None and stop <= (start or 0.0):
        raise BadEntry(f"stop {stop} is not after start {start or 0.0}")
    return (dataclasses.replace(audios[0], start=start or 0.0, stop=stop),)


def _id(value: Any, default: str) -> str:
    if value is None or value == "":
        return default
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise BadEntry(f"the id {_short(value)} is neither text nor a whole number")
    text = _text(str(value), "the id")
    if len(text) > _MAX_NOTE or not text.isprintable():
        raise BadEntry(f"the id {_short(value)} is too long or holds control characters")
    return text


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise BadEntry(f"{what} is {_short(value)}, not text")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as e:
        raise BadEntry(f"{what} holds half of a character pair, it is no valid Unicode") from e
    return value


def _seconds(value: Any, what: str) -> float | None:
    if value is None:
        return None
    try:
        seconds = math.nan if isinstance(value, bool | str) else float(value)
    except (TypeError, ValueError, OverflowError):
        seconds = math.nan
    if not (math.isfinite(seconds) and seconds >= 0):
        raise BadEntry(f"{what} is {_short(value)}, no number of seconds from 0 on")
    return seconds


def _domain(value: Any) -> str:
    if value not in DOMAINS:
        raise BadEntry(f"the domain {_short(value)} is none of {', '.join(DOMAINS)}")
    return value


def _language(value: Any) -> str:
    if not isinstance(value, str) or not _LANGUAGE.fullmatch(value):
        raise BadEntry(f"the language {_short(value)} is no BCP 47 tag such as en or pt-BR")
    return value


def _notes(fields: Mapping[str, Any], defaults: Defaults) -> dict[str, Any]:
    """Short plain fields that have no place in an item."""
    placed = {name for field in ALIASES for name in defaults.names(field)}
    notes = {}
    for name, value in fields.items():
        short = isinstance(value, str) and len(value) <= _MAX_NOTE
        plain = short or isinstance(value, bool | float)
        plain = plain or (isinstance(value, int) and abs(value) < 2**63)
        if isinstance(name, str) and name not in placed and plain:
            notes[name] = value if not short else value.encode("utf-8", "replace").decode()
    return {"fields": notes} if notes else {}


def _short(value: Any) -> str:
    """A value for a message: one short line of printable characters."""
    if isinstance(value, bytes):
        return f"{len(value)} bytes"
    return _REPR.repr(value).encode("ascii", "backslashreplace").decode()
