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

# of a cycle, and their words
MEASURES = {
    "similarity": "similarity of sentences",
    "wer": "word error rate",
    "events_f1": "F1 of events",
}


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


def rounds_plot(rounds: Sequence[dict[str, Any]], controls: Sequence[dict[str, Any]]) -> str:
    """Figures of a cycle over its rounds: against the scene, against the first round, controls."""
    found = [name for name in MEASURES if any(name in r["scene"] for r in rounds)]
    figure, axes = new_figure(2.8 * len(found), 2.9, 1, len(found))
    for axis, name in zip(axes, found):
        for part, color, label in (
            ("scene", BLUE, "against the scene"),
            ("drift", ORANGE, "against round 1"),
        ):
            for source, style, other in ((rounds, "o-", ""), (controls, "o:", ", control")):
                points = {n: r.get(part, {}).get(name) for n, r in enumerate(source, 1)}
                points = {n: interval for n, interval in points.items() if interval}
                if not points:
                    continue
                values = [[p[k] for k in ("value", "low", "high")] for p in points.values()]
                middle, low, high = np.array(values).T
                axis.errorbar(
                    [*points],
                    middle,
                    yerr=[middle - low, high - middle],
                    fmt=style,
                    color=color,
                    ms=4,
                    lw=1.4,
                    capsize=3,
                    label=label + other,
                )
        axis.set_xticks(range(1, len(rounds) + 1))
        axis.set_xlabel("round")
        axis.set_ylabel(MEASURES[name])
        axis.set_ylim(bottom=0)
        axis.grid(color=GRID, lw=0.6)
    lines, labels = axes[0].get_legend_handles_labels()
    place = {"loc": "outside lower center", "ncols": 4}
    figure.legend(lines, labels, frameon=False, fontsize=8, labelcolor=INK, **place)
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
