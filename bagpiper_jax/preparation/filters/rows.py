"""What filters share: verdicts, and the caption, the speech and the recording of a row."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from bagpiper_jax.audio import MAX_SECONDS, open_sound, prepare_audio
from bagpiper_jax.errors import UserError

Row = dict[str, Any]
THINK_END = "</think>"


class Verdict(NamedTuple):
    """What a filter says of a row.

    Attributes:
      keep: whether it stays.
      value: what was measured; None where the filter does not apply.
      reason: why it goes, or why the filter does not apply.
    """

    keep: bool
    value: float | str | None = None
    reason: str = ""


# (rows, directory that paths are relative to, thresholds) → a verdict on each row, in order
Filter = Callable[..., Iterator[Verdict]]


def caption_of(row: Row) -> str:
    """The caption of a row; of a dialogue, what the assistant writes beside its thoughts."""
    if isinstance(row.get("caption"), str):
        return row["caption"]
    texts = []
    for role, modality, content in _turns(row):
        if (role, modality) == ("assistant", "text"):
            texts.append(_without_thoughts(str(content)))
    return "\n".join(texts)


def _turns(row: Row) -> list[list]:
    """The messages of a row, whoever wrote it: what is none is left out."""
    messages = row.get("messages")
    found = messages if isinstance(messages, list) else []
    return [m for m in found if isinstance(m, list) and len(m) == 3]


def _without_thoughts(text: str) -> str:
    while "<think>" in text:
        before, _, rest = text.partition("<think>")
        text = before + rest.partition(THINK_END)[2]
    return text.strip()


def audio_path(row: Row, directory: str) -> str:
    """Where the recording of a row lies; of a dialogue that names none beside, its first one.

    Raises:
      UserError: it names none.
    """
    name = row.get("audio")
    if name is None:
        name = next((content for _, kind, content in _turns(row) if kind == "audio"), None)
    if not isinstance(name, str) or not name:
        raise UserError("the row names no audio")
    return os.path.join(directory, name)


def read_clip(row: Row, directory: str) -> np.ndarray:
    """The first 30 seconds of a row's recording: float32 [S] at 16 kHz.

    Raises:
      UserError: no, missing, damaged, silent or very short audio.
    """
    import soundfile

    path = audio_path(row, directory)
    name = os.path.basename(path)
    try:
        with open_sound(path) as file:
            wav = file.read(int(file.samplerate * MAX_SECONDS), "float32", always_2d=True)
            rate = file.samplerate
    except (soundfile.LibsndfileError, RuntimeError, OSError, ValueError) as e:
        raise UserError(f"{name} cannot be read as audio") from e
    return prepare_audio(wav, rate, name=name)


def need(module: str):
    """Imports a module of the extra `filters`.

    Raises:
      UserError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as e:
        raise UserError(
            f"filters need the package {e.name or module}: pip install 'bagpiper_jax[filters]'"
        ) from e
