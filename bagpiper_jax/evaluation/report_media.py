"""Pictures and sounds of the report, as data URIs."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import soundfile

from bagpiper_jax.errors import UserError
from bagpiper_jax.input_pipeline.scenes import Scene
from bagpiper_jax.modeling.mel_codec import SAMPLE_RATE, log_mel, mel_filters

# Pictures have no background and middle greys and blues, to be read on white and on black.
INK, GRID = "#768090", "#76809040"
BLUE, ORANGE = "#3b82c4", "#d9822b"
DPI = 140
TICKS_HZ = (500, 1000, 2000, 4000)


def audio_uri(wav: np.ndarray) -> str:
    """A clip, float [S] at 16 kHz, as FLAC: every browser plays it, and it hides nothing."""
    buffer = io.BytesIO()
    soundfile.write(buffer, np.clip(wav, -1, 1), SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    return "data:audio/flac;base64," + base64.b64encode(buffer.getvalue()).decode()


def spectrogram(wav: np.ndarray, scene: Scene | None = None) -> str:
    """Log-mel spectrogram of a clip; with a scene, a bar under it for each of its events."""
    frames = log_mel(np.asarray(wav, np.float32))
    seconds = len(wav) / SAMPLE_RATE
    heights = (1.5, 0.16 + 0.19 * _lanes(scene)) if scene else (1.5,)
    figure, axes = _figure(5.6, 0.42 + sum(heights), len(heights), height_ratios=heights)
    picture = axes[0]
    picture.imshow(
        frames.T,
        origin="lower",
        aspect="auto",
        cmap="magma",
        extent=(0, seconds, 0, frames.shape[1]),
        vmin=np.log(2e-3),
        vmax=max(float(frames.max()), 0.0),
        interpolation="nearest",
    )
    centers = np.argmax(mel_filters(), 1)  # of each frequency, its strongest mel bin
    bins = [centers[round(hz / (SAMPLE_RATE / 2) * (len(centers) - 1))] for hz in TICKS_HZ]
    picture.set_yticks(bins, [f"{hz / 1000:g} kHz" for hz in TICKS_HZ])
    if scene:
        picture.tick_params(labelbottom=False)
        _event_bars(axes[1], scene)
        axes[1].set_xlim(0, seconds)
    axes[-1].set_xlabel("seconds", labelpad=1)
    return _png(figure)


def loss_curve(lines: Sequence[dict[str, float]]) -> str:
    """Loss over the steps of a run: all streams, and stream 0 (text and first codes).

    lines: of the run's `metrics.jsonl`.
    """
    figure, (axis,) = _figure(5.4, 2.9, 1)
    steps = [line["step"] for line in lines]
    for name, color, label in (
        ("loss", BLUE, "loss of all streams, weighted"),
        ("ce/stream0", ORANGE, "stream 0: text and first codec stream"),
    ):
        axis.plot(steps, [line[name] for line in lines], color=color, label=label, lw=1.4)
    axis.set_xlabel("step")
    axis.set_ylabel("nats per token")
    axis.grid(color=GRID, lw=0.6)
    axis.set_ylim(bottom=0)
    axis.legend(frameon=False, fontsize=8, labelcolor=INK)
    return _png(figure)


def sweep_plot(sweeps: dict[str, Sequence[dict[str, Any]]]) -> str:
    """Word error rate over the strength of guidance; evaluation → entries of its sweep."""
    figure, (axis,) = _figure(5.4, 2.7, 1)
    for shift, (name, points), color in zip((0, 0.03), sweeps.items(), (BLUE, ORANGE)):
        values = 100 * np.array([[p["wer"][k] for k in ("value", "low", "high")] for p in points])
        middle, low, high = values.T
        axis.errorbar(
            [p["cfg"] + shift for p in points],
            middle,
            yerr=[middle - low, high - middle],
            color=color,
            marker="o",
            ms=5,
            lw=1.4,
            capsize=3,
            label=name,
        )
    axis.set_xticks([p["cfg"] for p in points])
    axis.set_xlabel("strength of guidance (1 = none)")
    axis.set_ylabel("WER of rendered digits, %")
    axis.set_ylim(bottom=0)
    axis.grid(color=GRID, lw=0.6)
    axis.legend(frameon=False, fontsize=8, labelcolor=INK)
    return _png(figure)


def _figure(width: float, height: float, rows: int, columns: int = 1, **grid: Any):
    """A figure in inches and its axes, drawn without any window system."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError(
            "the report needs matplotlib: install the extra `eval` "
            "(pip install 'bagpiper_jax[eval]')"
        ) from error
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


def _png(figure: Any) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, transparent=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _spans(scene: Scene) -> list[tuple[int, float, float, str]]:
    """(lane, start, end in seconds, words) of events and music; nothing overlaps in a lane."""
    spans, ends = [], []
    for event in scene.events:
        start, end = event.onset / SAMPLE_RATE, event.offset / SAMPLE_RATE
        lane = next((i for i, busy in enumerate(ends) if busy <= start), len(ends))
        ends[lane : lane + 1] = [end]
        spans.append((lane, start, end, f"“{event.text}”" if event.voice else event.label))
    if scene.bed:
        spans.append((len(ends), 0.0, scene.seconds, scene.bed.label))
    return spans


def _lanes(scene: Scene | None) -> int:
    return 1 + max(span[0] for span in _spans(scene)) if scene else 0


def _event_bars(axis: Any, scene: Scene) -> None:
    letters = 80 / scene.seconds  # of the size below, in a second of the picture
    for lane, start, end, words in _spans(scene):
        color = BLUE if words.startswith("“") else ORANGE
        axis.barh(lane, end - start, left=start, height=0.84, color=color + "20", edgecolor=color)
        room = int((end - start) * letters)
        short = words if len(words) <= room else words[: room - 1] + "…"
        axis.text(start + 0.5 / letters, lane, short, va="center", fontsize=8, color=INK)
    axis.set_ylim(_lanes(scene) - 0.4, -0.6)
    axis.set_yticks([])
    for side in ("left", "right", "top"):
        axis.spines[side].set_visible(False)
