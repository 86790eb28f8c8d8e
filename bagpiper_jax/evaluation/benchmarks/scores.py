"""Scores that were given several times: their mean, its interval over items and its spread."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np

from bagpiper_jax.evaluation.text_metrics import bootstrap_ratio


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Mean and standard deviation (n − 1; None of one value) of repeated measurements."""
    values = [float(v) for v in values]
    sd = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "sd": sd, "values": values}


def repeated(
    scores: Sequence[Sequence[float]],
    *,
    highest: float = 1,
    weights: Sequence[float] | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Figures of items that were scored n times each.

    Args:
      scores: [items][n], from 0 to `highest`.
      highest: end of the scale.
      weights: of the items; all the same if None.
      seed: of the interval.

    Returns:
      score: the mean over items, each by the mean of its n scores, with its interval; samples: the
      n means over items, with their mean and standard deviation, which is the judge's noise.
    """
    table = np.asarray(scores, float)
    w = np.ones(len(table)) if weights is None else np.asarray(weights, float)
    return {
        "score": bootstrap_ratio(table.mean(1) * w, w, highest=highest, seed=seed),
        "samples": spread((table * w[:, None]).sum(0) / w.sum()),
    }


def balanced(groups: Sequence[str]) -> np.ndarray:
    """Weights that make every group count the same: [items]."""
    _, place, counts = np.unique(groups, return_inverse=True, return_counts=True)
    return 1 / counts[place]
