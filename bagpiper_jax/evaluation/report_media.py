"""Pictures of the report, as data URIs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from bagpiper_jax.html_report.media import (
    BLUE,
    GRID,
    INK,
    ORANGE,
    Span,
    new_figure,
    png,
    spectrogram,
)
from bagpiper_jax.input_pipeline.scenes import Scene
from bagpiper_jax.modeling.mel_codec import SAMPLE_RATE


def scene_picture(wav: np.ndarray, scene: Scene) -> str:
    """Log-mel spectrogram of a scene, with a bar under it for each of its events."""
    spans = []
    for event in scene.events:
        words, color = (f"“{event.text}”", BLUE) if event.voice else (event.label, ORANGE)
        spans.append(Span(event.onset / SAMPLE_RATE, event.offset / SAMPLE_RATE, words, color))
    if scene.bed:
        spans.append(Span(0.0, scene.seconds, scene.bed.label))
    return spectrogram(wav, spans)


def loss_curve(lines: Sequence[dict[str, float]]) -> str:
    """Loss over the steps of a run: all streams, and stream 0 (text and first codes).

    lines: of the run's `metrics.jsonl`.
    """
    figure, (axis,) = new_figure(5.4, 2.9, 1)
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
    return png(figure)


def sweep_plot(sweeps: dict[str, Sequence[dict[str, Any]]]) -> str:
    """Word error rate over the strength of guidance; evaluation → entries of its sweep."""
    figure, (axis,) = new_figure(5.4, 2.7, 1)
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
    return png(figure)
