"""Parquet with embedded audio, in the form of Hugging Face's `datasets`."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from bagpiper_jax.errors import UserError
from bagpiper_jax.preparation.item import Audio, Damaged, Item
from bagpiper_jax.preparation.sources.entries import (
    ALIASES,
    BadEntry,
    Defaults,
    embedded_audio,
    files_stamp,
    labels,
    local_audio,
    make_item,
    parse_json,
    unique,
)
from bagpiper_jax.preparation.sources.limits import MAX_AUDIO_BYTES

if TYPE_CHECKING:
    import pyarrow
    import pyarrow.parquet

_BATCH_BYTES = 64 << 20
_MAX_BATCH = 256


@dataclasses.dataclass(frozen=True)
class Parquet:
    """Tables whose rows hold recordings in columns of {bytes, path}, and text or messages.

    Audio columns are all those of that type (`datasets.Audio`), or of lists of it, in the order of
    the schema; or the one that `defaults.columns["audio"]` names, which may be plain binary.
    Messages are lists of [role, modality, content] or of structs of these names, or JSON; content
    of audio is the number of a recording of the row, its path as the struct has it, or empty: the
    next one. Where a struct has no bytes, its path is one of a file beside the table. A row without
    id has `FILE#ROW`.

    Attributes:
      name: of the source.
      files: the tables, in order.
      defaults: what holds for every row.
    """

    name: str
    files: tuple[str, ...]
    defaults: Defaults = Defaults()

    def parts(self) -> list[str]:
        """`NUMBER:FILE#GROUP`, a row group each; a file that cannot be read is one part."""
        pa = _pyarrow()
        parts = []
        for number, (path, name) in enumerate(zip(self.files, labels(self.files), strict=True)):
            if not os.path.exists(path):
                raise UserError(f"source {self.name}: there is no table {path}")
            try:
                with _open(path) as table:
                    groups = table.num_row_groups
            except (pa.ArrowException, OSError, ValueError):  # reading the part tells why
                groups = 1
            parts += [f"{number}:{name}#{group}" for group in range(groups)]
        return parts

    def stamp(self) -> str:
        """Of the files' names and sizes."""
        return files_stamp(self.files)

    def read(self, part: str) -> Iterator[Item | Damaged]:
        """The rows of a part, in order."""
        number, rest = part.split(":", 1)
        name, group = rest.rsplit("#", 1)
        return unique(self._rows(self.files[int(number)], name, int(group)))

    def _rows(self, path: str, name: str, group: int) -> Iterator[Item | Damaged]:
        pa = _pyarrow()
        row = -1
        try:
            with _open(path) as table:
                first = sum(table.metadata.row_group(i).num_rows for i in range(group))
                row = first - 1
                for fields, cells in _read_group(table, group, self.defaults):
                    row += 1
                    yield self._item(path, name, row, fields, cells)
                expected = table.metadata.row_group(group).num_rows
            if row + 1 - first != expected:
                raise BadEntry(f"it has {row + 1 - first} rows where {expected} are stated")
        except (pa.ArrowException, OSError, ValueError, OverflowError, MemoryError, BadEntry) as e:
            reason = " ".join(str(e).split())
            damaged_id = f"{name}#group-{group}@after-{row}"
            yield Damaged(damaged_id, f"the row group cannot be read further: {reason}")

    def _item(
        self, path: str, name: str, row: int, fields: Any, cells: list[Any]
    ) -> Item | Damaged:
        folder = os.path.dirname(os.path.abspath(path))
        row_id = f"{name}#{row}"
        try:
            if isinstance(fields, Exception):
                raise BadEntry(f"a cell cannot be read: {fields}")
            recordings = _Recordings(folder, cells)
        except BadEntry as e:
            return Damaged(row_id, str(e))
        provenance = {"source": self.name, "file": name, "row": row}
        return make_item(
            fields, row_id, recordings.find, self.defaults, provenance, recordings.audios
        )


class _Recordings:
    """The recordings of a row, to be found by path or in turn."""

    def __init__(self, folder: str, cells: list[Any]):
        self.audios: list[Audio] = []
        self._folder, self._next = folder, 0
        self._paths: dict[str, Audio] = {}
        for number, cell in enumerate(cells):
            data, path = cell, ""
            if not isinstance(cell, bytes):
                data, path = cell.get("bytes"), cell.get("path") or ""
            if data is not None and len(data) > MAX_AUDIO_BYTES:
                raise BadEntry(f"recording {number} has {len(data)} bytes: it is too large")
            if data is not None:
                self.audios.append(embedded_audio(data, f"recording {number}"))
            else:
                self.audios.append(local_audio(folder, folder, path))
            for key in (path, os.path.basename(path)):
                self._paths.setdefault(key, self.audios[-1])

    def find(self, content: Any) -> Audio:
        """The recording that an audio message means."""
        if content is None or content == "":
            if self._next >= len(self.audios):
                raise BadEntry(f"there are more audio messages than recordings: {self._next}")
            self._next += 1
            return self.audios[self._next - 1]
        if isinstance(content, str):
            if content in self._paths:
                return self._paths[content]
            number = int(content) if content.isdecimal() and len(content) < 4 else -1
            if 0 <= number < len(self.audios):  # lists of one type hold numbers as text
                return self.audios[number]
        return local_audio(self._folder, self._folder, content)


def _read_group(
    table: pyarrow.parquet.ParquetFile, group: int, defaults: Defaults
) -> Iterator[tuple[dict[str, Any] | Exception, list[Any]]]:
    """(fields or why not, audio cells) of the rows, a few at a time so that memory stays small."""
    schema = table.schema_arrow
    audio = _audio_columns(schema, defaults)
    named = {name for field in ALIASES for name in defaults.names(field)}
    columns = audio + [f.name for f in schema if f.name not in audio and _wanted(f, named)]
    meta = table.metadata.row_group(group)
    row_bytes = meta.total_byte_size / max(meta.num_rows, 1)
    if row_bytes > MAX_AUDIO_BYTES:
        raise BadEntry(f"its rows have {row_bytes / 2**20:.0f} MB each: they are too large")
    batch_size = int(min(max(_BATCH_BYTES / max(row_bytes, 1), 1), _MAX_BATCH))
    for batch in table.iter_batches(
        batch_size, row_groups=[group], columns=columns, use_threads=False
    ):
        for row in range(batch.num_rows):
            try:
                values = {name: batch.column(name)[row].as_py() for name in columns}
            except (ValueError, OverflowError) as e:  # such as text that is no UTF-8
                yield e, []
                continue
            cells: list[Any] = []
            for name in audio:
                cell = values.pop(name)
                cells += cell if isinstance(cell, list) else [] if cell is None else [cell]
            yield values, [{} if cell is None else cell for cell in cells]


def _audio_columns(schema: pyarrow.Schema, defaults: Defaults) -> list[str]:
    pa = _pyarrow()
    own = defaults.columns.get("audio")
    if own is not None and own not in schema.names:
        raise BadEntry(f"the table has no column {own}: it has {', '.join(schema.names)[:200]}")

    def holds_audio(kind: pyarrow.DataType) -> bool:
        if pa.types.is_list(kind) or pa.types.is_large_list(kind):
            kind = kind.value_type
        if pa.types.is_struct(kind):
            return kind.get_field_index("bytes") >= 0
        is_binary = pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
        return is_binary and own is not None

    if own is not None:
        return [own] if holds_audio(schema.field(own).type) else []
    others = _other_features(schema)
    return [f.name for f in schema if f.name not in others and holds_audio(f.type)]


def _other_features(schema: pyarrow.Schema) -> set[str]:
    """Columns of pictures and films, whose type is that of audio: `datasets` says so beside it."""
    try:
        told = parse_json((schema.metadata or {})[b"huggingface"])["info"]["features"]
        kinds = {name: json.dumps(feature) for name, feature in told.items()}
    except (BadEntry, KeyError, TypeError, AttributeError):
        return set()
    return {name for name, kind in kinds.items() if '"Image"' in kind or '"Video"' in kind}


def _wanted(field: pyarrow.Field, named: set[str]) -> bool:
    """Named fields, and plain ones for the provenance; embeddings and the like are left unread."""
    types = _pyarrow().types
    kind = field.type
    plain = types.is_string(kind) or types.is_integer(kind) or types.is_floating(kind)
    return field.name in named or plain or types.is_boolean(kind)


def _open(path: str) -> pyarrow.parquet.ParquetFile:
    _pyarrow()
    import pyarrow.parquet

    # a buffer and no read-ahead: a column chunk of a row group may be gigabytes
    return pyarrow.parquet.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20)


def _pyarrow():
    try:
        import pyarrow
    except ImportError as e:
        raise UserError("reading Parquet needs pyarrow: pip install 'bagpiper_jax[data]'") from e
    return pyarrow
