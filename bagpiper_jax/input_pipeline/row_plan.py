"""The order of training: which examples each packed row holds, from their lengths alone.

Every source is read in an endless order, each epoch a keyed permutation of its own. Rows are
planned in windows. A window draws from every source until the source has its share of all tokens
drawn so far, packs what was drawn first-fit, and passes on to the next window what found no room;
that comes first there. So no example is lost or comes twice, the shares hold to an example at every
window, and rows are as full as the examples allow.

A window follows from the few numbers that the one before it leaves (`Position`): how far each
source is read and what was passed on. They depend neither on hosts nor on workers nor on the rows
of a batch. From the start, a window far away is found by planning all before it, without reading
a record; from a checkpoint's position, at once.
"""

from __future__ import annotations

import bisect
import dataclasses
import functools
import threading
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from bagpiper_jax.input_pipeline.packing import RowShape, by_falling_size, first_fit
from bagpiper_jax.input_pipeline.permutation import key_of, shuffled

WINDOW_ROWS = 64
_KEPT = 64  # windows between positions that are kept
_MOST_READ = 1 << 20  # examples that are looked at at once


class Lengths(NamedTuple):
    """Sizes of a source's examples, and what names its order.

    Attributes:
      rows: int [N], positions; −1 for what is not read. More than a row are cut to it.
      windows: int [N], mel windows; an example with more than a row's is not read.
      served: how many are read, at least 1.
      tokens: rows of all that are read.
      share: of all tokens.
      identity: of the order, with the seed.
    """

    rows: np.ndarray
    windows: np.ndarray
    served: int
    tokens: int
    share: float
    identity: str


@dataclasses.dataclass(frozen=True)
class Position:
    """Where a plan stands before a window.

    Attributes:
      window: its number.
      read: how far each source's endless order is read.
      tokens: rows drawn of each source.
      passed_on: (source, number in its order) of examples that found no room so far.
    """

    window: int
    read: tuple[int, ...]
    tokens: tuple[int, ...]
    passed_on: tuple[tuple[int, int], ...]


class Planned(NamedTuple):
    """An example in its row.

    Attributes:
      source: number of its source.
      index: number of its record there.
      epoch: how often the source has been read before.
      rows, windows: what it takes.
    """

    source: int
    index: int
    epoch: int
    rows: int
    windows: int


class Drawn(NamedTuple):
    """Examples of a window, int64 [n] each; `number` counts in the source's endless order."""

    source: np.ndarray
    number: np.ndarray
    index: np.ndarray
    rows: np.ndarray
    windows: np.ndarray

    def take(self, which: np.ndarray) -> Drawn:
        """Those examples, in that order."""
        return Drawn(*(field[which] for field in self))


class RowPlan:
    """Random access to the rows of a plan, from several threads too."""

    def __init__(self, sources: Sequence[Lengths], shape: RowShape, seed: int):
        """Plans nothing yet.

        Args:
          sources: sizes and shares; the shares add up to 1.
          shape: what a row holds.
          seed: of the orders of sources and rows.
        """
        self._sources = sources
        self._shape = shape
        self._keys = [key_of("order", seed, source.identity) for source in sources]
        self._row_key = key_of("rows", seed)
        nothing = (0,) * len(sources)
        self._latest = Position(0, nothing, nothing, ())
        self._kept = [self._latest]  # by window
        self._lock = threading.Lock()  # of the two
        self._window = functools.lru_cache(maxsize=2)(self._make_window)

    def __getitem__(self, row: int) -> list[Planned]:
        """What a row holds, in order."""
        window, slot = divmod(int(row), WINDOW_ROWS)
        drawn, starts = self._window(window)
        span = slice(starts[slot], starts[slot + 1])
        sizes = [len(source.rows) for source in self._sources]
        return [
            Planned(source, index, number // sizes[source], rows, windows)
            for source, number, index, rows, windows in zip(*(f[span].tolist() for f in drawn))
        ]

    def window(self, number: int) -> tuple[Drawn, np.ndarray]:
        """Examples of a window in the order of its rows, and where each row starts, [rows + 1]."""
        return self._window(number)

    def position(self, row: int) -> Position:
        """Where the plan stands before the window of a row."""
        return self._position(int(row) // WINDOW_ROWS)

    def resume(self, position: Position) -> None:
        """Makes a position known, so that windows from there on need nothing before it."""
        with self._lock:
            self._latest = position
            self._keep(position)

    def _keep(self, position: Position) -> None:
        """Keeps a position; the lock is held."""
        at = bisect.bisect_left(self._kept, position.window, key=_window_of)
        if at == len(self._kept) or self._kept[at].window > position.window:
            self._kept.insert(at, position)

    def _position(self, window: int) -> Position:
        with self._lock:
            at = self._kept[bisect.bisect_right(self._kept, window, key=_window_of) - 1]
            if at.window < self._latest.window <= window:
                at = self._latest
        while at.window < window:
            at = self._planned(at)[2]
        return at

    def _make_window(self, window: int) -> tuple[Drawn, np.ndarray]:
        before = self._position(window)
        drawn, found, _ = self._planned(before)
        places = self._places(before, drawn, found)
        row = np.where(found >= 0, places[found], WINDOW_ROWS)  # what found no room comes last
        starts = np.searchsorted(np.sort(row), np.arange(WINDOW_ROWS + 1))
        return drawn.take(np.argsort(row, kind="stable")), starts

    def _places(self, before: Position, drawn: Drawn, found: np.ndarray) -> np.ndarray:
        """Where each packed row of a window comes in its order.

        First-fit leaves alike examples in a row. So of the rows, shuffled, the next one is always
        that which brings the sources nearest to their shares of all tokens so far, squares of what
        is too much or too little divided by the share: a row counts for more where little is due.
        """
        shares = np.array([source.share for source in self._sources])
        tokens = np.zeros((WINDOW_ROWS, len(shares)), np.int64)
        placed = found >= 0
        np.add.at(tokens, (found[placed], drawn.source[placed]), drawn.rows[placed])
        waiting = self._passed_on(before)
        placed_before = np.array(before.tokens)
        np.subtract.at(placed_before, waiting.source, waiting.rows)

        def excess_of(tokens):  # whole numbers, whose sums are the same on every machine
            return tokens - np.rint(tokens.sum(-1, keepdims=True) * shares).astype(np.int64)

        excess, so_far = excess_of(tokens), excess_of(placed_before)
        key = self._row_key + np.uint64(before.window)
        left = shuffled(np.arange(WINDOW_ROWS), WINDOW_ROWS, key)
        places = np.empty(WINDOW_ROWS, np.int64)
        weights = np.rint(1 / np.maximum(shares, 1e-6)).astype(np.int64)
        for place in range(WINDOW_ROWS):
            nearest = np.argmin(np.square(so_far + excess[left]) @ weights)
            places[left[nearest]] = place
            so_far += excess[left[nearest]]
            left = np.delete(left, nearest)
        return places

    def _planned(self, at: Position) -> tuple[Drawn, np.ndarray, Position]:
        """Examples of a window, the row of each (−1: none), and the position after it."""
        drawn, read, tokens = self._draw(at)
        found = first_fit(drawn.rows, drawn.windows, WINDOW_ROWS, self._shape)
        left = np.flatnonzero(found < 0)
        passed_on = tuple(zip(drawn.source[left].tolist(), drawn.number[left].tolist()))
        following = Position(at.window + 1, read, tokens, passed_on)
        with self._lock:
            self._latest = following
            if following.window % _KEPT == 0:
                self._keep(following)
        return drawn, found, following

    def _draw(self, at: Position) -> tuple[Drawn, tuple[int, ...], tuple[int, ...]]:
        """What was passed on, then what fills the window, each by falling size."""
        passed_on = self._passed_on(at)
        room = WINDOW_ROWS * self._shape.length - int(passed_on.rows.sum())
        total = sum(at.tokens) + max(room, 0)
        parts, read, tokens = [], [], []
        for number, source in enumerate(self._sources):
            before = at.tokens[number]
            part, stop = self._read(number, at.read[number], source.share * total - before)
            parts.append(part)
            read.append(stop)
            tokens.append(before + int(part.rows.sum()))
        new = Drawn(*map(np.concatenate, zip(*parts)))
        order = [
            part.take(by_falling_size(part.rows, part.windows, self._shape))
            for part in (passed_on, new)
        ]
        return Drawn(*map(np.concatenate, zip(*order))), tuple(read), tuple(tokens)

    def _passed_on(self, at: Position) -> Drawn:
        pairs = np.array(at.passed_on, np.int64).reshape(-1, 2)
        parts = [self._sized(s, pairs[pairs[:, 0] == s, 1]) for s in range(len(self._sources))]
        return Drawn(*map(np.concatenate, zip(*parts)))

    def _sized(self, number: int, numbers: np.ndarray) -> Drawn:
        """Sizes of examples of a source by their numbers in its order; cut to a row."""
        source = self._sources[number]
        index = shuffled(numbers, len(source.rows), self._keys[number])
        return Drawn(
            np.full(len(numbers), number),
            numbers,
            index,
            np.minimum(source.rows[index], self._shape.length).astype(np.int64),
            source.windows[index].astype(np.int64),
        )

    def _read(self, number: int, start: int, tokens: float) -> tuple[Drawn, int]:
        """The next examples of a source, as few as have so many tokens, and where they end."""
        source = self._sources[number]
        parts, stop = [self._sized(number, np.zeros(0, np.int64))], start
        while tokens > 0:
            expected = int(1.05 * tokens * len(source.rows) / source.tokens) + 16
            count = min(expected, _MOST_READ)
            part = self._sized(number, np.arange(stop, stop + count))
            fits = (part.rows > 0) & (part.windows <= self._shape.windows)
            stop += count
            part = part.take(np.flatnonzero(fits))
            sums = np.cumsum(part.rows)
            enough = int(np.searchsorted(sums, tokens))
            if enough < len(sums):
                part = part.take(np.arange(enough + 1))
                stop = int(part.number[-1]) + 1
            parts.append(part)
            tokens -= int(part.rows.sum())
        return Drawn(*map(np.concatenate, zip(*parts))), stop


def _window_of(position: Position) -> int:
    return position.window
