"""Pictures and sounds of a page, as data URIs."""

from __future__ import annotations

import base64
import io
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from bagpiper_jax.errors import UserError
from bagpiper_jax.modeling.mel_codec import SAMPLE_RATE, log_mel, mel_filters

# Pictures have no background and middle greys and blues, to be read on white and on black.
INK, GRID = "#768090", "#76809040"
BLUE, ORANGE = "#3b82c4", "#d9822b"
DPI = 140
TICKS_HZ = (500, 1000, 2000, 4000)
_POINT_WIDTH = 0.24  # of the picture, that the words of a point in time take in its lane


class Span(NamedTuple):
    """An event of a clip: from, to (seconds; alike for a point in time), words and colour."""

    start: float
    end: float
    words: str
    color: str = ORANGE


def audio_uri(wav: np.ndarray, rate: int = SAMPLE_RATE) -> str:
    """A clip, float [S], as FLAC: every browser plays it, and it hides nothing."""
    import soundfile

    buffer = io.BytesIO()
    soundfile.write(buffer, np.clip(wav, -1, 1), rate, format="FLAC", subtype="PCM_16")
    return data_uri("audio/flac", buffer.getvalue())


def data_uri(kind: str, data: bytes) -> str:
    """A file's bytes as a data URI of a MIME type."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def spectrogram(wav: np.ndarray, spans: Sequence[Span] = ()) -> str:
    """Log-mel spectrogram of a clip at 16 kHz, and a bar under it for each of its events."""
    frames = log_mel(np.asarray(wav, np.float32))
    centers = np.argmax(mel_filters(), 1)  # of each frequency, its strongest mel bin
    bins = [centers[round(hz / (SAMPLE_RATE / 2) * (len(centers) - 1))] for hz in TICKS_HZ]
    ticks = (bins, [f"{hz / 1000:g} kHz" for hz in TICKS_HZ])
    limits = (float(np.log(2e-3)), max(float(frames.max()), 0.0))
    return mel_picture(frames, len(wav) / SAMPLE_RATE, spans, ticks, limits)


def mel_picture(
    frames: np.ndarray,
    seconds: float,
    spans: Sequence[Span] = (),
    ticks: tuple[Sequence[float], Sequence[str]] | None = None,
    limits: tuple[float, float] | None = None,
) -> str:
    """Frames of a spectrogram, float [T, M], and a bar under them for each event.

    Args:
      frames: the values.
      seconds: that they last.
      spans: the events.
      ticks: rows of frequencies, and their names.
      limits: values of the darkest and the brightest colour.
    """
    placed = in_lanes(spans, seconds)
    lanes = 1 + max((lane for lane, _ in placed), default=-1)
    heights = (1.5, 0.16 + 0.19 * lanes) if lanes else (1.5,)
    figure, axes = new_figure(5.6, 0.42 + sum(heights), len(heights), height_ratios=heights)
    picture = axes[0]
    picture.imshow(
        frames.T,
        origin="lower",
        aspect="auto",
        cmap="magma",
        extent=(0, seconds, 0, frames.shape[1]),
        vmin=limits[0] if limits else None,
        vmax=limits[1] if limits else None,
        interpolation="nearest",
    )
    if ticks:
        picture.set_yticks(*ticks)
    if lanes:
        picture.tick_params(labelbottom=False)
        _event_bars(axes[1], placed, lanes, seconds)
        axes[1].set_xlim(0, seconds)
    axes[-1].set_xlabel("seconds", labelpad=1)
    return png(figure)


def in_lanes(spans: Sequence[Span], seconds: float) -> list[tuple[int, Span]]:
    """Spans with a lane each; nothing overlaps in a lane, words of points included."""
    placed, ends = [], []
    for span in spans:
        room = 0.0 if span.end > span.start else _POINT_WIDTH * seconds
        leftward = room and span.start >= seconds - room
        start = span.start - room if leftward else span.start
        lane = next((i for i, busy in enumerate(ends) if busy <= start), len(ends))
        ends[lane : lane + 1] = [span.end if leftward else span.end + room]
        placed.append((lane, span))
    return placed


def new_figure(width: float, height: float, rows: int, columns: int = 1, **grid: Any):
    """A figure in inches and its axes, drawn without any window system.

    Raises:
      UserError: matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError("the page needs matplotlib: pip install 'matplotlib>=3.10,<4'") from error
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, gridspec_kw=grid).ravel()
    for axis in axes:
        axis.patch.set_alpha(0)
        axis.tick_params(colors=INK, labelsize=8, length=3)
        axis.xaxis.label.set(color=INK, size=8)
        axis.yaxis.label.set(color=INK, size=8)
        for spine in axis.spines.values():
            spine.set_color(GRID)
    return figure, axes


def png(figure: Any) -> str:
    """A figure as a picture."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():  # words of scripts that the font lacks are drawn as boxes
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(buffer, format="png", dpi=DPI, transparent=True)
    return data_uri("image/png", buffer.getvalue())


def _event_bars(axis: Any, placed: Sequence[tuple[int, Span]], lanes: int, seconds: float) -> None:
    letters = 80 / seconds  # of the size below, in a second of the picture
    for lane, (start, end, words, color) in placed:
        length = end - start
        axis.barh(lane, length, left=start, height=0.84, color=color + "20", edgecolor=color)
        room = int((length or _POINT_WIDTH * seconds) * letters)
        short = words if len(words) <= room else words[: max(room - 1, 0)] + "…"
        left = length or start < seconds - _POINT_WIDTH * seconds  # else the words would leave it
        axis.text(
            start + (0.5 if left else -0.5) / letters,
            lane,
            short,
            ha="left" if left else "right",
            va="center",
            fontsize=8,
            color=INK,
            parse_math=False,  # a dollar sign is one
            clip_on=True,
        )
    axis.set_ylim(lanes - 0.4, -0.6)
    axis.set_yticks([])
    for side in ("left", "right", "top"):
        axis.spines[side].set_visible(False)
