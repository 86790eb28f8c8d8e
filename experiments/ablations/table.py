"""Figures of the ablations' runs → tables in Markdown and JSON."""

from __future__ import annotations

import json
import os
import statistics
from typing import Any, NamedTuple

from bagpiper_jax.files import write_json, write_text


class Column(NamedTuple):
    """A figure: its heading, the evaluator that gave it, and where it lies in its figures."""

    heading: str
    evaluator: str
    path: tuple[str | int, ...]


def write_tables(out: str, ablations: dict[str, Any]) -> str:
    """Writes `ablations.md` and `ablations.json` to a directory of runs.

    Returns:
      the Markdown: of each ablation a table with a line per variant. Of several seeds a figure is
      their mean ± standard deviation, of one seed it stands with its 95 % bootstrap interval.
    """
    parts, data = [], {}
    for name, ablation in ablations.items():
        data[name] = {}
        heads = ["", "runs", "hours", *(column.heading for column in ablation.columns)]
        lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
        for variant in ablation.variants:
            runs = _runs(out, variant)
            data[name][variant] = {
                column.heading: [_figure(run, column) for run in runs]
                for column in ablation.columns
            }
            cells = [cell(figures) for figures in data[name][variant].values()]
            hours = sum(_hours(run) for run in runs) / max(len(runs), 1)
            lines.append(
                "| " + " | ".join([variant, str(len(runs)), f"{hours:.2f}", *cells]) + " |"
            )
        parts.append(f"### {ablation.question}\n\n" + "\n".join(lines))
    text = "\n\n".join(parts) + "\n"
    write_text(os.path.join(out, "ablations.md"), text)
    write_json(os.path.join(out, "ablations.json"), data)
    return text


def cell(figures: list[dict[str, float] | None]) -> str:
    """A table's cell of a figure from each run: {"value", "low", "high"}."""
    there = [figure for figure in figures if figure]
    if not there:
        return "–"
    if len(there) == 1:
        value, low, high = (100 * there[0][name] for name in ("value", "low", "high"))
        return f"{value:.1f} % ({low:.1f}–{high:.1f})"
    values = [100 * figure["value"] for figure in there]
    return f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f} %"


def _runs(out: str, variant: str) -> list[str]:
    """Directories of a variant's runs that are measured, by seed."""
    found, seed = [], 0
    while os.path.exists(os.path.join(out, f"{variant}-{seed}", "evaluation", "results.json")):
        found.append(os.path.join(out, f"{variant}-{seed}"))
        seed += 1
    return found


def _figure(run: str, column: Column) -> dict[str, float] | None:
    with open(os.path.join(run, "evaluation", "results.json"), encoding="utf-8") as file:
        value = json.load(file).get(column.evaluator)
    for key in column.path:
        try:
            value = value[key]
        except (KeyError, IndexError, TypeError):
            return None
    return value


def _hours(run: str) -> float:
    """Of training, from the speed that its log tells."""
    with open(os.path.join(run, "metrics.jsonl"), encoding="utf-8") as file:
        lines = [json.loads(line) for line in file]
    with open(os.path.join(run, "config.json"), encoding="utf-8") as file:
        tokens = json.load(file)["data"]["batch_tokens"]
    steps = [b["step"] - a["step"] for a, b in zip([{"step": 0}, *lines], lines)]
    return sum(n * tokens / line["tokens_per_second"] for n, line in zip(steps, lines)) / 3600
