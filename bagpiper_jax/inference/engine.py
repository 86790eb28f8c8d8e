"""Many requests through one model: they join and leave a running batch of sequences.

Source: arXiv 2602.05220 and the reference's inference (ESPnet SpeechLM); the batch is continuous
(Yu et al., "Orca", OSDI 2022). The loop over rows runs on the device, `steps.CHUNK` rows at most
without the host.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence

import numpy as np
from flax import nnx
from jax.sharding import Mesh

from bagpiper_jax import vocab as vocab_lib
from bagpiper_jax.errors import UserError
from bagpiper_jax.inference import steps
from bagpiper_jax.inference.context import Piece
from bagpiper_jax.inference.requests import MAX_MESSAGES, MODALITIES, Event, Generated, Request
from bagpiper_jax.inference.sequences import Sequences
from bagpiper_jax.modeling.bagpiper import Bagpiper

_KINDS = {"text": steps.TEXT, "audio": steps.AUDIO}
_AHEAD = 256  # rows of an answer for which a cache has room at once


@dataclasses.dataclass
class _Branch:
    """A hypothesis in the batch: its sequence, and the one kept for its guidance."""

    id: int
    request: Request
    hypothesis: int
    number: int
    guide: int | None
    message: int = -1
    modality: str = ""
    rows: int = 0

    @property
    def numbers(self) -> list[int]:
        return [self.number] + ([] if self.guide is None else [self.guide])

    @property
    def may_go_on(self) -> bool:
        return self.message + 1 < self.request.messages


class Engine:
    """A model that answers requests; one thread drives it."""

    def __init__(
        self,
        model: Bagpiper,
        *,
        max_sequences: int = 32,
        quantize: str | None = None,
        mesh: Mesh | None = None,
    ):
        """Lays the model's weights out for generation.

        Args:
          model: afterwards it is not needed.
          max_sequences: of the batch; a guided answer takes two.
          quantize: see `ServedModel`.
          mesh: where the model's weights lie; sequences are split over `replica` and `fsdp`,
            heads over `tensor`.

        Raises:
          UserError: see `ServedModel`; or the mesh does not divide the heads.
        """
        self.config = model.config
        self.max_sequences = max_sequences
        self._abstract = nnx.eval_shape(lambda: model)
        self._batch = Sequences(model, quantize, mesh)
        self._ids = itertools.count()
        self._pending: deque[tuple[int, Request]] = deque()
        self._branches: list[_Branch] = []
        self._kept: dict[int, list[Event]] = {}  # of requests that others have let step

    def replace_weights(self, params) -> None:
        """Other weights of the same shapes, without compiling again; a nested dict of arrays.

        Raises:
          UserError: a request is being answered.
        """
        if self.busy:
            raise UserError("weights cannot be replaced while requests are being answered")
        graph, state = nnx.split(self._abstract)
        nnx.replace_by_pure_dict(state, params)
        self._batch.serve(nnx.merge(graph, state))

    def row_bytes(self, modality: str) -> int:
        """See `Sequences.row_bytes`."""
        return self._batch.row_bytes(modality)

    @property
    def busy(self) -> bool:
        """Whether a request runs or waits."""
        return bool(self._pending or self._branches)

    @property
    def load(self) -> tuple[int, int]:
        """Requests in the batch, and requests that wait."""
        return len({b.id for b in self._branches}), len(self._pending)

    def submit(self, request: Request) -> int:
        """Takes a request; its number.

        Raises:
          UserError: it does not fit the context or the batch.
        """
        length, context = len(request.prompt), self._context
        if length + 3 + self.config.vocab.delay_rows > context:
            raise UserError(
                f"the prompt takes {length} rows, the context holds {context}: shorten it"
            )
        if request.sequences > self.max_sequences:
            raise UserError(
                f"the answer takes {request.sequences} sequences, two a guided hypothesis, and the "
                f"engine has {self.max_sequences}: ask for fewer hypotheses or raise max_sequences"
            )
        number = next(self._ids)
        self._pending.append((number, request))
        return number

    def cancel(self, number: int) -> None:
        """Drops a request, wherever it is."""
        self._pending = deque(item for item in self._pending if item[0] != number)
        self._kept.pop(number, None)
        self._free([b for b in self._branches if b.id == number])

    def stream(self, request: Request, limit: int = steps.CHUNK) -> Iterator[Event]:
        """A request's events, `limit` rows at most in each; closing the iterator ends it.

        Several may be open at once, and `generate` may be called meanwhile.

        Raises:
          UserError: see `submit`.
        """
        number = self.submit(request)
        try:
            while self._answers({number}):
                yield from self._take({number}, limit)
        finally:
            self.cancel(number)

    def generate(
        self, requests: Sequence[Request], on_event: Callable[[Event], None] | None = None
    ) -> list[list[list[Generated]]]:
        """Answers requests: for each, its hypotheses, each a list of messages.

        Raises:
          UserError: see `submit`; then none is answered.
        """
        numbers: list[int] = []
        parts: dict[tuple[int, int, int], list[Event]] = {}
        try:
            for request in requests:
                numbers.append(self.submit(request))
            while self._answers(numbers):
                for event in self._take(numbers):
                    key = event.request, event.hypothesis, event.message
                    parts.setdefault(key, []).append(event)
                    if on_event is not None:
                        on_event(event)
        finally:  # whatever stopped it, none of them is left in the batch
            for number in numbers:
                self.cancel(number)
        answers = {n: [[] for _ in range(r.hypotheses)] for n, r in zip(numbers, requests)}
        for number, hypothesis, message in sorted(parts):
            events = parts[number, hypothesis, message]
            rows = np.concatenate([e.rows for e in events])
            made = Generated(events[0].modality, rows, events[-1].end)
            answers[number][hypothesis].append(made)
        return list(answers.values())

    def step(self, limit: int = steps.CHUNK) -> list[Event]:
        """Lets what waits join, and generates up to `limit` rows of every sequence.

        It returns earlier where a message ends and something waits for that. The events are those
        of all requests: `stream` and `generate` are for who shares the engine.
        """
        with self._batch.on_mesh():
            self._open([b for b in self._branches if self._batch.numbers.ended[b.number]])
            self._admit()
            return self._advance(min(limit, steps.CHUNK)) if self._branches else []

    def _answers(self, numbers: Collection[int]) -> bool:
        """Whether some of these requests are not complete, or have events to take."""
        there = {n for n, _ in self._pending} | {b.id for b in self._branches} | self._kept.keys()
        return not there.isdisjoint(numbers)

    def _take(self, numbers: Collection[int], limit: int = steps.CHUNK) -> list[Event]:
        """The next events of these requests; those of others are kept for them."""
        if self._kept.keys().isdisjoint(numbers):
            for event in self.step(limit):
                self._kept.setdefault(event.request, []).append(event)
        return [event for n in numbers for event in self._kept.pop(n, [])]

    @property
    def _context(self) -> int:
        return self.config.decoder.max_position_embeddings

    def _room(self, branch: _Branch) -> int:
        """Rows that an answer may still have: in the context, and of those asked for."""
        room = self._context - int(self._batch.numbers.length[branch.number])
        asked = branch.request.max_rows
        return room if asked is None else min(room, asked - branch.rows)

    def _admit(self) -> None:
        """Requests that wait join the batch, in their order, as far as there is room."""
        used = [n for b in self._branches for n in b.numbers]
        wanted, new = len(used), []
        while self._pending and wanted + self._pending[0][1].sequences <= self.max_sequences:
            new.append(self._pending.popleft())
            wanted += new[-1][1].sequences
        if not wanted:
            return
        moved = self._batch.reshape(used, wanted, _AHEAD, shrink=not self._pending)
        if moved is not None:
            for branch in self._branches:
                branch.number = moved[branch.number]
                branch.guide = None if branch.guide is None else moved[branch.guide]
            used = list(moved.values())
        free = iter(sorted({*range(len(self._batch))} - {*used}))
        fresh = [
            _Branch(id_, request, h, next(free), next(free) if request.guided else None)
            for id_, request in new
            for h in range(request.hypotheses)
        ]
        self._branches += fresh
        self._open(fresh)

    def _open(self, branches: list[_Branch]) -> None:
        """Begins the next message of branches: what comes before it, its marker, its settings."""
        streams = self.config.vocab.num_streams
        pieces, copies = {}, []
        first = {b.id: b for b in branches if b.message < 0 and b.hypothesis == 0}
        for branch in branches:
            plan = branch.request.modalities
            branch.modality = plan[branch.message + 1] if plan else ""
            marker = [vocab_lib.MODALITIES[branch.modality]] if plan else []
            if branch.message >= 0:
                # in training `<|eot|>` stands wherever the same role goes on
                ids = [vocab_lib.EOT, vocab_lib.ROLES["assistant"], *marker]
                pieces[branch.number] = Piece.of_ids(ids, streams)
            elif branch.hypothesis == 0:
                pieces[branch.number] = Piece.of_prompt(branch.request.prompt, marker)
            else:
                copies.append(branch)
            branch.message += 1
        likelier = dict(zip(pieces, self._feed(branches, pieces), strict=True))
        for branch in copies:
            source = first[branch.id].number
            self._batch.copy(source, branch.number)
            likelier[branch.number] = likelier[source]
        markers = {}
        for branch in branches:
            if not branch.modality:
                branch.modality = MODALITIES[likelier[branch.number]]
                marker = [vocab_lib.MODALITIES[branch.modality]]
                markers[branch.number] = Piece.of_ids(marker, streams)
        self._feed(branches, markers)
        for branch in branches:
            self._begin(branch)

    def _feed(self, branches: list[_Branch], pieces: dict[int, Piece]) -> list[int]:
        longest = (s.max_rows for b in branches for s in b.request.sampling.values())
        return self._batch.feed(pieces, min(max(longest, default=0), _AHEAD))

    def _begin(self, branch: _Branch) -> None:
        sampling = branch.request.sampling[branch.modality]
        max_rows = min(sampling.max_rows, self._room(branch))
        self._batch.begin(
            branch.number,
            branch.guide if sampling.cfg != 1 else None,
            kind=_KINDS[branch.modality],
            seed=branch.request.seed & 0xFFFFFFFF,
            branch=branch.hypothesis * MAX_MESSAGES + branch.message,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            cfg=sampling.cfg,
            top_k=sampling.top_k,
            min_rows=min(sampling.min_rows, max_rows - 1),
            max_rows=max_rows,
        )

    def _advance(self, limit: int) -> list[Event]:
        used = [b.number for b in self._branches]
        before = self._batch.numbers.step[used]
        pause = bool(self._pending) or any(b.may_go_on for b in self._branches)
        out = self._batch.generate(used, limit, pause)
        events, finished = [], []
        counts = self._batch.numbers.step[used] - before
        for branch, count in zip(self._branches, counts, strict=True):
            branch.rows += int(count)
            ended = int(self._batch.numbers.ended[branch.number])
            last = ended != steps.RUNNING and not self._goes_on(branch, ended)
            if last:
                finished.append(branch)
            rows = out[:count, branch.number]
            end = None if ended == steps.RUNNING else ended
            who = branch.id, branch.hypothesis, branch.message, branch.modality
            events.append(Event(*who, rows, end, last))
        self._free(finished)
        return events

    def _goes_on(self, branch: _Branch, ended: int) -> bool:
        """Whether another message follows the one that has ended."""
        asked = branch.request.modalities is not None or ended == vocab_lib.EOT
        room = self._room(branch) - 4 > self.config.vocab.delay_rows
        return asked and branch.may_go_on and room

    def _free(self, branches: list[_Branch]) -> None:
        for branch in branches:
            for number in branch.numbers:
                self._batch.free(number)
            self._branches.remove(branch)
        if not self._branches:
            self._batch.clear()
