"""The figures of an evaluation that have targets, and evaluations side by side."""

from __future__ import annotations

import dataclasses
import json
import os
from typing import Any

from bagpiper_jax.errors import UserError
from bagpiper_jax.evaluation import tables
from bagpiper_jax.release import weights_digest

RESULTS_FILE = "results.json"


@dataclasses.dataclass(frozen=True)
class Target:
    """A figure with a target: where it lies in the results, and what it must not pass."""

    name: str
    path: tuple[str, ...]
    limit: float
    at_most: bool = True
    percent: bool = True

    def verdict(self, interval: dict[str, float]) -> str:
        """ "met" or "not met" where the whole interval is, else "undecided"."""
        best, worst = interval["low"], interval["high"]
        if not self.at_most:
            best, worst = -worst, -best
        limit = self.limit if self.at_most else -self.limit
        return "met" if worst <= limit else "not met" if best > limit else "undecided"


TARGETS = (
    Target(
        "Quoted digit and letter strings, word error rate",
        ("understanding", "wer", "spelled"),
        0.03,
    ),
    Target("Events named, F1", ("understanding", "events_f1"), 0.95, False, False),
    Target(
        "The same strings, given another scene's audio (control)",
        ("understanding", "control", "wer", "spelled"),
        0.90,
        False,
    ),
    Target(
        "Rendered digit strings, word error rate by Whisper",
        ("rendering", "wer", "rendered", "digits"),
        0.10,
    ),
    Target(
        "Prompts through the codec, word error rate by Whisper",
        ("codec", "wer", "reconstruction"),
        0.05,
    ),
)


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """An evaluation as written by `evaluate`, with a heading for its column."""

    name: str
    results: dict[str, Any]

    def get(self, *path: str) -> Any:
        """A part of the results, or None where it was not measured."""
        return tables.at(self.results, path)


def committed(checkpoint: str) -> list[Evaluation]:
    """The full evaluation that lies beside a checkpoint, if there is one.

    Raises:
      UserError: the file is damaged.
    """
    path = os.path.join(checkpoint, RESULTS_FILE)
    try:
        with open(path, encoding="utf-8") as file:
            results = json.load(file)
        digest = results["weights_sha256"]
        evaluation = Evaluation(f"full evaluation of {results['date']}", results)
    except FileNotFoundError:
        return []
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}): run `bagpiper evaluate` again") from error
    if digest != weights_digest(checkpoint):
        raise UserError(f"{path} holds figures of other weights: run `bagpiper evaluate` again")
    return [evaluation]


def figures_of(results: dict[str, Any], name: str = "") -> list[str]:
    """The figures that have targets, as lines for a terminal.

    Args:
      results: of `evaluate`.
      name: of the evaluation, said in every line if given.
    """
    evaluation = Evaluation(name, results)
    lines = []
    for target in TARGETS:
        interval = evaluation.get(*target.path)
        if interval:
            scale, form = (100, "{:.1f} %") if target.percent else (1, "{:.3f}")
            value, low, high, limit = (
                form.format(scale * x)
                for x in (interval["value"], interval["low"], interval["high"], target.limit)
            )
            bound = "at most" if target.at_most else "at least"
            head = f"{name}: {target.name}" if name else target.name
            tail = f"n = {interval['count']}; target {bound} {limit}"
            lines.append(f"{head}: {value} ({low} to {high}; {tail}: {target.verdict(interval)})")
    return lines
