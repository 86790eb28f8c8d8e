"""Prepared records → packed rows with random access: the order of training is a pure function.

Row i depends on the sources, the shape of a row, the seed and i alone (see `row_plan`); so a host
takes its rows of each batch, on any number of hosts and workers, and the state to resume from is
the number of rows read.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from bagpiper_jax.conversation import Example, drop_condition, encode_conversation
from bagpiper_jax.errors import UserError
from bagpiper_jax.input_pipeline.batch import Batch, block_windows, pack_row
from bagpiper_jax.input_pipeline.mixture import Source, Survey, survey
from bagpiper_jax.input_pipeline.packing import RowShape
from bagpiper_jax.input_pipeline.permutation import chance
from bagpiper_jax.input_pipeline.records import conversation
from bagpiper_jax.input_pipeline.row_plan import Lengths, Planned, Position, RowPlan
from bagpiper_jax.log_mel import TOKENS_PER_WINDOW, MelWindows
from bagpiper_jax.modeling.config import BagpiperConfig
from bagpiper_jax.tokenizer import Tokenizer

_FRAMES_PER_TOKEN = 8


class PackedRecords:
    """A random-access source of packed rows (`Batch` without its leading axis) for Grain."""

    def __init__(
        self,
        sources: Sequence[Source],
        config: BagpiperConfig,
        tokenizer: Tokenizer,
        *,
        shape: RowShape,
        num_rows: int,
        seed: int,
        cfg_dropout: float = 0.05,
    ):
        """Surveys the sizes of the sources; reads no record.

        Args:
          sources: what to read, see `mixture.spread`.
          config: the model's, for ids and encoder blocks.
          tokenizer: text ↔ ids; the one that the sets were prepared with.
          shape: sizes of a packed row.
          num_rows: rows of a run; a source that ends before begins a new epoch in another order.
          seed: of the orders and of CFG dropout.
          cfg_dropout: chance, in each epoch, that an example with assistant audio loses its
            condition (arXiv 2602.05220).

        Raises:
          UserError: no sources, one of them twice, or one without an example that fits.
        """
        sources = tuple(source for source in sources if source.weight > 0)
        if not sources:
            raise UserError("config key data.sets: name a prepared data set to train on")
        known: dict[str, str] = {}
        for source in sources:
            if source.name not in known:
                known[source.name] = source.identity
            elif known[source.name] == source.identity:
                raise UserError(
                    f"config key data.sets: {source.name} is there twice: add up its weights"
                )
            else:
                raise UserError(
                    f"config key data.sets: two sets are called {source.examples.name}: give one "
                    'another "name" in its dataset.json'
                )
        self._sources = sources
        self._config = config
        self._tokenizer = tokenizer
        self._shape = shape
        self._num_rows = num_rows
        self._seed = seed
        self._cfg_dropout = cfg_dropout
        self.surveys: dict[str, Survey] = {s.name: survey(s, shape) for s in sources}
        for name, found in self.surveys.items():
            if not found.served:
                raise UserError(
                    f"{name}: no example fits rows of {shape.windows} mel windows "
                    f"({found.left_out} are longer, {found.unable} cannot serve the task): "
                    "leave it out of data.sets, or raise data.windows"
                )
        self._resumed: Position | None = None
        self._plan = self._make_plan()

    def __getstate__(self):
        return {k: v for k, v in self.__dict__.items() if k != "_plan"}

    def __setstate__(self, state):
        self.__dict__.update(state)
        self._plan = self._make_plan()

    def _make_plan(self) -> RowPlan:
        lengths = []
        for source in self._sources:
            found = self.surveys[source.name]
            rows, windows = source.examples.rows(source.task), source.examples.windows(source.task)
            share = self.shares[source.name]
            lengths.append(
                Lengths(rows, windows, found.served, found.tokens, share, source.identity)
            )
        plan = RowPlan(lengths, self._shape, self._seed)
        if self._resumed is not None:
            plan.resume(self._resumed)
        return plan

    def __len__(self) -> int:
        return self._num_rows

    def __repr__(self) -> str:  # Grain compares and prints sources
        names = ", ".join(source.name for source in self._sources)
        return f"PackedRecords({names}, seed={self._seed}, rows={self._num_rows})"

    def __getitem__(self, row: int) -> Batch:
        examples = [self.example(planned) for planned in self._plan[row]]
        block = self._config.encoder.block_windows
        return pack_row(examples, self._shape.length, self._shape.windows, block)

    @property
    def sources(self) -> tuple[Source, ...]:
        """What is read, in the order of `Planned.source`."""
        return self._sources

    @property
    def shape(self) -> RowShape:
        """Sizes of a packed row."""
        return self._shape

    @property
    def shares(self) -> Mapping[str, float]:
        """Share of all tokens by source."""
        total = sum(source.weight for source in self._sources)
        return {source.name: source.weight / total for source in self._sources}

    @property
    def plan(self) -> RowPlan:
        """What each row holds."""
        return self._plan

    def position(self, row: int) -> dict[str, Any]:
        """Where the sources stand at a row, of plain values, for the checkpoint of a run.

        It spares `resume` the planning of all rows before, and holds for any number of hosts and
        workers. It stands at the start of the row's window of rows that are planned together:
        for each source, how far its endless order is read, the tokens drawn, and the numbers of
        the examples that no row before had room for.
        """
        at = self._plan.position(row)
        passed_on: list[list[int]] = [[] for _ in self._sources]
        for source, number in at.passed_on:
            passed_on[source].append(number)
        sources = {
            source.name: {
                "fingerprint": source.examples.fingerprint,
                "read": at.read[i],
                "tokens": at.tokens[i],
                "passed_on": passed_on[i],
            }
            for i, source in enumerate(self._sources)
        }
        return {"window": at.window, "sources": sources}

    def resume(self, position: Mapping[str, Any]) -> None:
        """Goes on from a `position`: rows from there on are known without planning those before.

        Raises:
          UserError: it is of other sources.
        """
        theirs = {name: s["fingerprint"] for name, s in position["sources"].items()}
        mine = {s.name: s.examples.fingerprint for s in self._sources}
        if theirs != mine:
            changed = sorted(n for n in {*theirs, *mine} if theirs.get(n) != mine.get(n))
            raise UserError(
                f"the checkpoint was trained on other data ({', '.join(changed)}): name the same "
                "data.sets, or start another run with init_from"
            )
        saved = [position["sources"][source.name] for source in self._sources]
        self._resumed = Position(
            position["window"],
            tuple(s["read"] for s in saved),
            tuple(s["tokens"] for s in saved),
            tuple((i, number) for i, s in enumerate(saved) for number in s["passed_on"]),
        )
        self._plan.resume(self._resumed)

    def example(self, planned: Planned) -> Example:
        """Reads a record and lays it out.

        Raises:
          UserError: it is not as its index says.
        """
        source = self._sources[planned.source]
        record = source.examples[planned.index]
        messages = conversation(record, source.task)
        example = encode_conversation(messages, self._config.vocab, self._tokenizer)
        self._check(planned, record.id, example)
        example = cut(example, self._shape.length)
        if example.cfg_span is not None:
            key = ("cfg_dropout", self._seed, source.identity, planned.index, planned.epoch)
            if chance(*key) < self._cfg_dropout:
                example = drop_condition(example)
        return example

    def _check(self, planned: Planned, record_id: str, example: Example) -> None:
        block = self._config.encoder.block_windows
        windows = sum(block_windows(len(clip.frames), block) for _, clip in example.audio)
        source = self._sources[planned.source]
        rows = int(source.examples.rows(source.task)[planned.index])
        if (len(example), windows) != (rows, planned.windows):
            raise UserError(
                f"{source.name}: record {record_id} takes {len(example)} positions and {windows} "
                f"mel windows, its index says {rows} and {planned.windows}: prepare the data "
                "with the tokenizer and the model of this run"
            )


def cut(example: Example, length: int) -> Example:
    """The first `length` rows of an example; a clip that reaches further loses its end."""
    if len(example) <= length:
        return example
    audio = tuple(
        (start, _first_tokens(clip, length - start))
        for start, clip in example.audio
        if start < length
    )
    span = example.cfg_span
    if span is not None:
        span = (span[0], min(span[1], length)) if span[0] < length else None
    return dataclasses.replace(
        example,
        tokens=example.tokens[:length],
        loss_mask=example.loss_mask[:length],
        audio=audio,
        cfg_span=span,
    )


def _first_tokens(clip: MelWindows, tokens: int) -> MelWindows:
    """The windows that give a clip's first encoder tokens, exactly so many of them."""
    if clip.num_tokens <= tokens:
        return clip
    count = -(-tokens // TOKENS_PER_WINDOW)
    mel, frames = clip.mel[:count].copy(), clip.frames[:count].copy()
    left = tokens - (count - 1) * TOKENS_PER_WINDOW
    frames[-1] = min(frames[-1], left * _FRAMES_PER_TOKEN)
    mel[-1, frames[-1] :] = 0
    return MelWindows(mel, frames)
