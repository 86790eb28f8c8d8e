"""AudioBench: a folder for each data set with its export of Hugging Face's `datasets`: Parquet, or
the Arrow files that `save_to_disk` writes.

Source: github.com/AudioLLMs/AudioBench, `src/dataset.py` and `src/dataset_src/`.
"""

from __future__ import annotations

import dataclasses
import functools
import glob
import os
from collections.abc import Callable
from typing import Any

from bagpiper_jax.errors import UserError
from bagpiper_jax.evaluation.benchmarks.item import Item

MEND = "fetch the data set again from huggingface.co/AudioLLMs"


@dataclasses.dataclass(frozen=True)
class Cell:
    """A recording in the column `context` of a table.

    Attributes:
      file: the table.
      group: row group of Parquet, record batch of Arrow.
      row: in the group.
    """

    file: str
    group: int
    row: int

    def read(self) -> bytes:
        """The recording as a file's bytes.

        Raises:
          UserError: it is missing, or the table is damaged.
        """
        audio = _audio_of(_group(self.file, self.group)[self.row]["context"])
        if audio.get("bytes"):
            return audio["bytes"]
        path = os.path.join(os.path.dirname(self.file), audio.get("path") or "")
        try:
            with open(path, "rb") as file:
                return file.read()
        except OSError as e:
            raise UserError(f"{self}: there is no recording ({e.strerror}): {MEND}") from e

    def __str__(self) -> str:
        return f"{self.file}, group {self.group}, row {self.row}"


def read_audio_bench(path: str, dataset: str) -> list[Item]:
    """The rows of one data set; `category` is its name.

    `extra["asked"]` is what is spoken in the recording where that is the question.

    Args:
      path: the folder that holds the folders of the data sets.
      dataset: name in AudioBench's scripts, such as "clotho_aqa_test"; of the folder too.

    Raises:
      UserError: no table, or one that is damaged or lacks a column; pyarrow is not installed.
    """
    folder = os.path.join(path, dataset)
    tables = [
        file
        for kind in ("parquet", "arrow")
        for file in sorted(
            glob.glob(os.path.join(glob.escape(folder), "**", f"*.{kind}"), recursive=True)
        )
    ]
    if not tables:
        raise UserError(f"{folder} has no .parquet or .arrow file: {MEND}")
    _group.cache_clear()  # a table may be another by now
    items = []
    for file in tables:
        for group in range(_open(file)[0]):
            for row, values in enumerate(_group(file, group)):
                cell = Cell(file, group, row)
                items.append(_item(values, cell, dataset, len(items)))
    if not items:
        raise UserError(f"{folder} has no rows: {MEND}")
    return items


def _item(values: dict[str, Any], cell: Cell, dataset: str, number: int) -> Item:
    audio = _audio_of(values.get("context"))
    if not audio.get("bytes"):
        beside = os.path.join(os.path.dirname(cell.file), audio.get("path") or "")
        if not audio.get("path") or not os.path.isfile(beside):
            raise UserError(f"{cell}: the column context holds no recording: {MEND}")
    answer = _text_of(values.get("answer"))
    if not answer:
        raise UserError(f"{cell}: the column answer holds no text: {MEND}")
    choices = values.get("choices") or ()
    choices = (choices,) if isinstance(choices, str) else tuple(choices)
    extra = {"asked": _text_of(values.get("speech_instruction"))}
    question = _text_of(values.get("instruction"))
    return Item(f"{dataset}/{number}", cell, question, choices, answer, dataset, extra)


def _audio_of(value: Any) -> dict[str, Any]:
    """{bytes, path} of an audio cell, or of {text, audio: {bytes, path}} of older exports."""
    if isinstance(value, dict) and isinstance(value.get("audio"), dict):
        value = value["audio"]
    return value if isinstance(value, dict) else {}


def _text_of(value: Any) -> str:
    if isinstance(value, dict):
        value = value.get("text")
    return value.strip() if isinstance(value, str) else ""


@functools.lru_cache(maxsize=1)  # items come in order, so a group is decoded twice at most
def _group(file: str, group: int) -> list[_Row]:
    pa = _pyarrow()
    wanted = ("context", "instruction", "speech_instruction", "choices", "answer")
    try:
        batch = _open(file)[1](group)
        names = [name for name in wanted if name in batch.schema.names]
        missing = {"context", "answer"} - set(names)
        if missing:
            raise UserError(f"{file} has no column {sorted(missing)[0]}: {MEND}")
        columns = {name: batch.column(name) for name in names}
    except (pa.ArrowException, OSError, ValueError) as e:
        raise UserError(f"{file} cannot be read ({' '.join(str(e).split())}): {MEND}") from e
    return [_Row(columns, row) for row in range(batch.num_rows)]


class _Row:
    """A row whose cells become Python objects when they are asked for: recordings are large."""

    def __init__(self, columns: dict[str, Any], row: int):
        self._columns, self._row = columns, row

    def __getitem__(self, name: str) -> Any:
        return self._columns[name][self._row].as_py()

    def get(self, name: str) -> Any:
        return self[name] if name in self._columns else None


def _open(file: str) -> tuple[int, Callable[[int], Any]]:
    """The number of groups of a table, and what gives one of them."""
    pa = _pyarrow()
    try:
        if file.endswith(".parquet"):
            import pyarrow.parquet

            table = pyarrow.parquet.ParquetFile(file)
            return table.num_row_groups, table.read_row_group
        import pyarrow.ipc

        with pyarrow.ipc.open_stream(pa.memory_map(file)) as stream:
            batches = list(stream)
        return len(batches), batches.__getitem__
    except (pa.ArrowException, OSError, ValueError) as e:
        raise UserError(f"{file} cannot be read ({' '.join(str(e).split())}): {MEND}") from e


def _pyarrow():
    try:
        import pyarrow
    except ImportError as e:
        raise UserError("AudioBench needs pyarrow: pip install 'bagpiper_jax[data]'") from e
    return pyarrow
