"""Fréchet distance between two sets of embeddings, and between halves of sets of scenes.

As of images (arXiv 1706.08500) and of audio (arXiv 1812.08466): the squared distance between the
Gaussians fitted to the sets, so it is on the scale of the embedding, which must be named beside it.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from bagpiper_jax.errors import UserError
from bagpiper_jax.evaluation.text_metrics import Interval

DRAWS = 32  # random halvings behind an interval


def frechet_distance(one: np.ndarray, two: np.ndarray) -> float:
    """|μ1 − μ2|² + Tr(Σ1 + Σ2 − 2 (Σ1 Σ2)^½) of two sets [N, D] and [M, D], in float64.

    With Σ = AᵀA for the centred rows A / √(N−1), the trace of (Σ1 Σ2)^½ is the sum of the singular
    values of A1 A2ᵀ. So no root of a matrix is taken, and sets smaller than D need no care.

    Two samples of one distribution are not at 0 but at some c / N, for the fit of a Gaussian to N
    clips errs (arXiv 1911.07023): compare only distances of equally many clips.

    Raises:
      UserError: a set has fewer than two rows, or the widths differ.
    """
    one, two = np.asarray(one, np.float64), np.asarray(two, np.float64)
    if min(len(one), len(two)) < 2 or one.shape[1:] != two.shape[1:]:
        raise UserError(
            "a Fréchet distance needs two clips or more on either side, with embeddings of one "
            f"width, not {one.shape} and {two.shape}"
        )
    gap = one.mean(0) - two.mean(0)
    roots = [_root(rows) for rows in (one, two)]
    cross = np.linalg.svd(roots[0] @ roots[1].T, compute_uv=False).sum()
    traces = sum(np.sum(root**2) for root in roots)
    return float(max(0.0, gap @ gap + traces - 2 * cross))


def _root(rows: np.ndarray) -> np.ndarray:
    """R [min(N, D), D] with RᵀR = the covariance of rows [N, D]."""
    centred = (rows - rows.mean(0)) / np.sqrt(len(rows) - 1)
    return np.linalg.qr(centred, mode="r") if len(rows) > rows.shape[1] else centred


def halved_distances(
    truth: np.ndarray, sets: Mapping[str, np.ndarray], *, draws: int = DRAWS, seed: int = 0
) -> dict[str, Interval]:
    """Distances from half of the true clips to the other half of each set, all of equal size.

    Row i of every set belongs to scene i, and the halves have no scene in common: else the copies
    of clips would be nearer to them than other true clips are. A set that is `truth` itself gives
    the floor, what the size of the halves alone makes of the distance.

    Args:
      truth: embeddings [N, D] of the true clips, at least four.
      sets: name → embeddings [N, D].
      draws: random halvings.
      seed: of the halvings.

    Returns:
      name → the mean distance over the halvings, between its 2.5 % and 97.5 % quantiles: halves
      drawn without replacement spread as much as all N would from sample to sample. Its count is
      the clips in a half.

    Raises:
      UserError: fewer than four clips, or sets of unequal size.
    """
    count, half = len(truth), len(truth) // 2
    if count < 4 or any(len(rows) != count for rows in sets.values()):
        sizes = {name: len(rows) for name, rows in sets.items()}
        raise UserError(f"halves need four clips or more, as many in each set: {count}, {sizes}")
    rng = np.random.default_rng(seed)
    orders = [rng.permutation(count) for _ in range(draws)]
    out = {}
    for name, rows in sets.items():
        found = [frechet_distance(truth[o[:half]], rows[o[half : 2 * half]]) for o in orders]
        low, high = np.quantile(found, (0.025, 0.975))
        value = float(np.mean(found))
        out[name] = Interval(value, min(value, float(low)), max(value, float(high)), half)
    return out
