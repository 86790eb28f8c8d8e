"""What a plan of packed rows comes to: fill, shares of the tokens, what is cut and left out."""

from __future__ import annotations

import dataclasses

import numpy as np

from bagpiper_jax.input_pipeline.mixture import Survey
from bagpiper_jax.input_pipeline.packed_records import PackedRecords
from bagpiper_jax.input_pipeline.row_plan import WINDOW_ROWS

MIXTURE_TOKENS = 10_000_000  # the stretch over which shares are to hold


@dataclasses.dataclass(frozen=True)
class SourceStatistics:
    """A source in the rows of a plan.

    Attributes:
      wanted: its share of the tokens as asked.
      share: as planned.
      worst_share: of the shares over every stretch of MIXTURE_TOKENS positions, the furthest from
        `wanted`; over all rows where they have fewer.
      tokens: positions.
      examples: how many.
      epochs: how often the source was read, in parts too.
      survey: what of it is cut and left out, in each epoch.
    """

    wanted: float
    share: float
    worst_share: float
    tokens: int
    examples: int
    epochs: float
    survey: Survey


@dataclasses.dataclass(frozen=True)
class PlanStatistics:
    """The first rows of a plan.

    Attributes:
      rows: how many.
      fill: part of their positions that examples take.
      window_fill: part of their mel windows that clips take.
      passed_on: examples that wait for room after them.
      sources: by name.
    """

    rows: int
    fill: float
    window_fill: float
    passed_on: int
    sources: dict[str, SourceStatistics]


def plan_statistics(source: PackedRecords, num_rows: int | None = None) -> PlanStatistics:
    """Plans rows and counts; reads no record. A million examples take one to two seconds.

    Args:
      source: the packed rows.
      num_rows: how many to look at, in whole windows of 64; all of them if None.
    """
    windows = -(-min(num_rows or len(source), len(source)) // WINDOW_ROWS)
    rows, shape = windows * WINDOW_ROWS, source.shape
    tokens = np.zeros((rows, len(source.sources)), np.int64)
    examples = np.zeros(len(source.sources), np.int64)
    mel_windows = 0
    for window in range(windows):
        drawn, starts = source.plan.window(window)
        of_row = np.repeat(np.arange(WINDOW_ROWS), np.diff(starts)) + window * WINDOW_ROWS
        placed = slice(0, starts[-1])
        np.add.at(tokens, (of_row, drawn.source[placed]), drawn.rows[placed])
        examples += np.bincount(drawn.source[placed], minlength=len(examples))
        mel_windows += int(drawn.windows[placed].sum())
    after = source.plan.position(rows)
    worst = worst_shares(tokens, np.array(list(source.shares.values())), shape.length)
    sources = {
        s.name: SourceStatistics(
            wanted=source.shares[s.name],
            share=float(tokens[:, i].sum() / tokens.sum()),
            worst_share=float(worst[i]),
            tokens=int(tokens[:, i].sum()),
            examples=int(examples[i]),
            epochs=after.read[i] / len(s.examples),
            survey=source.surveys[s.name],
        )
        for i, s in enumerate(source.sources)
    }
    return PlanStatistics(
        rows=rows,
        fill=float(tokens.sum() / (rows * shape.length)),
        window_fill=mel_windows / (rows * shape.windows) if shape.windows else 0.0,
        passed_on=len(after.passed_on),
        sources=sources,
    )


def worst_shares(tokens: np.ndarray, wanted: np.ndarray, length: int) -> np.ndarray:
    """Of each source's shares over all stretches of MIXTURE_TOKENS, the furthest from `wanted`.

    Args:
      tokens: int [rows, sources].
      wanted: float [sources].
      length: positions of a row.
    """
    stretch = min(-(-MIXTURE_TOKENS // length), len(tokens))
    sums = np.concatenate([np.zeros((1, tokens.shape[1]), np.int64), tokens.cumsum(0)])
    sums = sums[stretch:] - sums[:-stretch]
    shares = sums / sums.sum(1, keepdims=True)
    at = np.argmax(np.abs(shares - wanted), 0)
    return shares[at, np.arange(len(wanted))]
