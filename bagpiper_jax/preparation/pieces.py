"""Recordings of any length → pieces of at most 30 s, cut in pauses; level and loudness."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator

import numpy as np

from bagpiper_jax.audio import MAX_SECONDS, MIN_SECONDS, SAMPLE_RATE
from bagpiper_jax.preparation.decode import Rejected

_LONGEST = int(MAX_SECONDS * SAMPLE_RATE)
_SHORTEST = _LONGEST // 2  # of all pieces but the last
_LAST = 5 * SAMPLE_RATE  # the last piece is as long at least
_FRAME = 320
_PAUSE = 15  # frames, 0.3 s: what a gap inside a word does not last
_PAUSE_DB = -35.0  # under the mean level
_FLOOR = 1e-6  # mean square, −60 dB of full scale
SILENCE_DB = -60.0  # a peak under it is silence
_GATE = 0.4  # seconds of a block of ITU-R BS.1770


@dataclasses.dataclass(frozen=True)
class Piece:
    """A part of a recording, or all of it.

    Attributes:
      start: its first sample in the recording, at 16 kHz.
      pcm: int16 [S] at 16 kHz, what is kept and what everything is computed from.
      in_pause: it ends in a pause, or with the recording.
    """

    start: int
    pcm: np.ndarray
    in_pause: bool = True

    @property
    def seconds(self) -> float:
        return len(self.pcm) / SAMPLE_RATE

    def wav(self) -> np.ndarray:
        """float32 [S]; what FLAC of `pcm` decodes to."""
        return self.pcm.astype(np.float32) / np.float32(32768)


def cut(chunks: Iterable[np.ndarray]) -> Iterator[Piece]:
    """Cuts a recording into pieces of 15 to 30 s, the last one of 5 to 30 s; 30 s stay whole.

    Args:
      chunks: float32 [n] at 16 kHz.
    """
    rest, start = np.zeros(0, np.float32), 0
    for chunk in chunks:
        rest = np.concatenate([rest, chunk])
        while len(rest) > _LONGEST + _LAST:  # however the recording ends, enough is left
            at, in_pause = cut_point(rest, _LONGEST)
            yield Piece(start, _to_pcm(rest[:at]), in_pause)
            rest, start = rest[at:], start + at
    if len(rest) > _LONGEST:
        at, in_pause = cut_point(rest, min(_LONGEST, len(rest) - _LAST))
        yield Piece(start, _to_pcm(rest[:at]), in_pause)
        rest, start = rest[at:], start + at
    yield Piece(start, _to_pcm(rest))


def cut_point(wav: np.ndarray, latest: int) -> tuple[int, bool]:
    """Where to cut, from 15 s on: amid the longest pause, else where it is quietest.

    Args:
      wav: float32 [S].
      latest: sample that it is cut at at the latest.

    Returns:
      The sample, and whether there is a pause.
    """
    frames = latest // _FRAME
    power = np.square(wav[: frames * _FRAME].reshape(frames, _FRAME)).mean(1, dtype=np.float64)
    first = _SHORTEST // _FRAME
    # level [n] of 0.3 s that begin with each frame from the first one on
    level = np.convolve(power[first:], np.full(_PAUSE, 1 / _PAUSE), "valid")
    pause = level <= max(power.mean() * 10 ** (_PAUSE_DB / 10), _FLOOR)
    if pause.any():
        edges = np.flatnonzero(np.diff(np.concatenate([[0], pause.astype(np.int8), [0]])))
        starts, stops = edges[::2], edges[1::2]
        longest = len(starts) - 1 - np.argmax((stops - starts)[::-1])  # the last one of its length
        middle = (starts[longest] + stops[longest] - 1) // 2
    else:
        middle = np.argmin(level)
    return int(first + middle + _PAUSE // 2) * _FRAME, bool(pause.any())


def check_level(piece: Piece) -> float:
    """Integrated loudness of a piece in LUFS (ITU-R BS.1770-4), of its level where it is short.

    Raises:
      Rejected: it is too short, or silent.
    """
    if piece.seconds < MIN_SECONDS:
        raise Rejected("too short", f"it lasts {piece.seconds:.3f} s, under {MIN_SECONDS} s")
    # a difference of the ends: the magnitude of −32,768 has no int16
    peak = max(int(piece.pcm.max()), -int(piece.pcm.min()))
    if peak < 32768 * 10 ** (SILENCE_DB / 20):
        raise Rejected("silent", f"its first channel stays under {SILENCE_DB:.0f} dB of full scale")
    import pyloudnorm

    meter = pyloudnorm.Meter(SAMPLE_RATE, block_size=min(_GATE, piece.seconds))
    with np.errstate(divide="ignore"):  # no block over the gate
        loudness = float(meter.integrated_loudness(piece.wav().astype(np.float64)))
    if not np.isfinite(loudness):
        raise Rejected("silent", "its first channel is under -70 LUFS throughout")
    return loudness


def _to_pcm(wav: np.ndarray) -> np.ndarray:
    """float32 → int16; peaks over full scale bring the whole piece down rather than clip."""
    peak = np.abs(wav).max(initial=0.0)
    scale = 32767 / peak if peak > 32767 / 32768 else np.float32(32768)
    return np.rint(wav * np.float32(scale)).astype(np.int16)
