"""`Item`: one question or utterance of a benchmark, and its recording."""

from __future__ import annotations

import dataclasses
import io
import os
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from bagpiper_jax.audio import MAX_SECONDS, open_sound, prepare_audio
from bagpiper_jax.errors import UserError


class Embedded(Protocol):
    """A recording inside another file; its `str` names the place."""

    def read(self) -> bytes:
        """The recording as a file's bytes."""
        ...


@dataclasses.dataclass(frozen=True)
class Item:
    """What a benchmark asks.

    Attributes:
      key: its own, unique in the benchmark.
      audio: path of the recording, or where it lies inside another file; "" where there is none.
      question: what is asked; for speech, "".
      choices: answers to choose from, where there are any.
      answer: the reference; for speech, the words.
      category: what the benchmark groups by.
      extra: what else the benchmark tells.
    """

    key: str
    audio: str | Embedded
    question: str
    choices: tuple[str, ...]
    answer: str
    category: str
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def load_clip(audio: str | Embedded) -> tuple[np.ndarray, float]:
    """The first 30 s of a recording, which is what the model takes.

    Returns:
      float32 [S] at 16 kHz; the seconds that were cut off.

    Raises:
      UserError: no audio, silence, or less than 0.1 s.
    """
    import soundfile

    try:
        if isinstance(audio, str):
            with open_sound(audio) as sound:
                wav, rate, total = _head(sound)
        else:
            with soundfile.SoundFile(io.BytesIO(audio.read())) as sound:
                wav, rate, total = _head(sound)
    except (soundfile.LibsndfileError, RuntimeError, OSError) as e:
        why = getattr(e, "error_string", e)  # the whole message would name a place in memory
        raise UserError(f"{audio} cannot be read as audio: {why}") from e
    return prepare_audio(wav, rate, name=str(audio)), max(0.0, total / rate - MAX_SECONDS)


def _head(sound) -> tuple[np.ndarray, int, int]:
    wav = sound.read(int(MAX_SECONDS * sound.samplerate), dtype="float32", always_2d=True)
    return wav[:, 0], sound.samplerate, max(sound.frames, len(wav))


def check_audio(path: str, where: str, mend: str) -> None:
    """Checks that a recording is there and has a header that reads.

    Args:
      path: of the recording.
      where: file and entry that name it.
      mend: what to do.

    Raises:
      UserError: it is not, or has not.
    """
    import soundfile

    if not os.path.isfile(path):
        raise UserError(f"{where}: there is no recording {path}: {mend}")
    try:
        with open_sound(path) as sound:
            frames = sound.frames
    except (soundfile.LibsndfileError, RuntimeError, OSError) as e:
        why = getattr(e, "error_string", e)
        raise UserError(f"{where}: {path} cannot be read as audio ({why}): {mend}") from e
    if not frames:
        raise UserError(f"{where}: {path} holds no sound: {mend}")


def choose(items: Sequence[Item], count: int, seed: int) -> list[Item]:
    """All items, or `count` of them drawn by `seed`, in their order; 0: all.

    Raises:
      UserError: fewer than one is asked for.
    """
    if count < 0:
        raise UserError(f"count must be 0 (all) or more, not {count}")
    if not count or count >= len(items):
        return list(items)
    picked = np.random.default_rng(seed).permutation(len(items))[:count]
    return [items[i] for i in sorted(picked)]
