"""The sequences of the running batch: their caches on the device, their numbers on the host."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from bagpiper_jax.errors import UserError
from bagpiper_jax.inference import steps
from bagpiper_jax.inference.context import Piece, bucket, pack
from bagpiper_jax.inference.served_model import ServedModel
from bagpiper_jax.modeling.bagpiper import Bagpiper
from bagpiper_jax.modeling.qwen3 import LayerCache
from bagpiper_jax.sharding import automatic, partition

_SLOTS = 128  # the smallest cache
_BOUNDS = (32, 256)  # of candidates; each is compiled
_PREFILL_ROWS = 4096  # that one call reads at most, but for a single long prompt


class Sequences:
    """Sequences by number; their count and their slots grow and shrink in powers of two.

    Attributes:
      numbers: `steps.Numbers`, what steers each sequence.
    """

    def __init__(self, model: Bagpiper, quantize: str | None, mesh: Mesh | None):
        """See `Engine`."""
        self._mesh = None if mesh is None else automatic(mesh)
        axes = self._mesh.shape if self._mesh else {}
        self._multiple = axes.get("replica", 1) * axes.get("fsdp", 1)
        heads, parts = model.config.decoder.num_key_value_heads, axes.get("tensor", 1)
        if heads % parts:
            raise UserError(
                f"mesh axis tensor={parts} does not divide the {heads} key/value heads: choose a "
                "smaller one"
            )
        self._config = model.config
        self._quantize = quantize
        self.serve(model)

        def program(function, donate=True, **options):
            def run(params, *args, **kwargs):
                return function(nnx.merge(self._graph, params), *args, **kwargs)

            return jax.jit(run, donate_argnums=(1,) if donate else (), **options)

        self._extend = program(steps.extend)
        self._generate = program(
            steps.generate_rows, static_argnames=("kinds", "guided", "bound", "nucleus")
        )
        self._make_blank = program(steps.blank, donate=False, static_argnums=(1, 2))
        self._put_blank = jax.jit(steps.put_blank, donate_argnums=(0,))
        self._copy = jax.jit(steps.copy, donate_argnums=(0,))
        self._resize = jax.jit(steps.resize, static_argnums=(2,))
        self.clear()

    def serve(self, model: Bagpiper) -> None:
        """Lays a model's weights out; the shapes are those of the first one."""
        with self.on_mesh():
            self._graph, self._params = nnx.split(ServedModel(model, self._quantize))
        self._blank: steps.Caches | None = None

    def row_bytes(self, modality: str) -> int:
        """Bytes of weights that one row of the batch reads: layers, and the head's part."""
        read = (
            self._params["layers"],
            self._params["text_head" if modality == "text" else "codec_head"],
        )
        return sum(x.nbytes for x in jax.tree.leaves(read))

    def on_mesh(self):
        """The mesh as a context, for every call that computes."""
        return contextlib.nullcontext() if self._mesh is None else jax.set_mesh(self._mesh)

    def __len__(self) -> int:
        return len(self.numbers.kind)

    def clear(self) -> None:
        """No sequence; the caches' memory is free."""
        self._caches: steps.Caches | None = None
        self.numbers = steps.Numbers.idle(0)

    def reshape(
        self, used: Sequence[int], wanted: int, ahead: int, *, shrink: bool
    ) -> dict[int, int] | None:
        """Makes place for `wanted` sequences.

        Args:
          used: sequences to keep.
          wanted: how many there shall be at least.
          ahead: rows for which their caches should have room.
          shrink: whether to give place and slots up where half of them would do.

        Returns:
          old number → new number of those in use, or None if nothing has moved.
        """
        size, now = bucket(wanted, 1, self._multiple), len(self)
        if now == 0:
            self.numbers = steps.Numbers.idle(size)
            self._caches = self._empty(size, _SLOTS)
            return None
        slots = self._slots
        if shrink and used:
            slots = min(slots, bucket(int(self.numbers.length[list(used)].max()) + ahead, _SLOTS))
        if now >= size and slots == self._slots and not (shrink and 2 * size <= now):
            return None
        size = size if shrink else max(size, now)
        order = np.zeros(size, np.int32)
        order[: len(used)] = used
        self._caches = self._resize(self._caches, order, slots)
        moved = {old: new for new, old in enumerate(used)}
        numbers = steps.Numbers.idle(size)
        for field, values, old in zip(steps.Numbers._fields, numbers, self.numbers, strict=True):
            kept = [int(old[i]) for i in used] if field in ("leader", "guide") else old[list(used)]
            values[: len(used)] = [moved[i] for i in kept] if field in ("leader", "guide") else kept
        self.numbers = numbers
        return moved

    def free(self, number: int) -> None:
        """Leaves a sequence idle."""
        self._set(number, kind=steps.IDLE, leader=number, guide=number, length=0)

    def feed(self, pieces: Mapping[int, Piece], ahead: int) -> list[int]:
        """Pieces of context at the end of sequences.

        Args:
          pieces: by sequence.
          ahead: rows for which the caches should have room afterwards.

        Returns:
          for each, whether its likelier next marker is "text" (0) or "audio" (1).
        """
        chosen: list[int] = []
        part: dict[int, Piece] = {}
        for number, piece in pieces.items():
            longest = max(len(p.tokens) for p in (*part.values(), piece))
            if part and bucket(len(part) + 1, 1) * longest > _PREFILL_ROWS:
                chosen += self._feed(part, ahead)
                part = {}
            part[number] = piece
        return chosen + (self._feed(part, ahead) if part else [])

    def _feed(self, pieces: Mapping[int, Piece], ahead: int) -> list[int]:
        rows = list(pieces)
        starts = self.numbers.length[rows]
        prompts = pack(
            list(pieces.values()),
            rows,
            starts,
            self._config,
            idle_row=len(self),
            multiple=self._multiple,
        )
        lengths = starts + [len(piece.tokens) for piece in pieces.values()]
        self.make_room(max(max(starts) + prompts.tokens.shape[1], max(lengths) + ahead))
        self._caches, chosen = self._extend(self._params, self._caches, prompts)
        self.numbers.length[rows] = lengths
        return np.asarray(chosen)[: len(rows)].tolist()

    def copy(self, source: int, target: int) -> None:
        """The context of one sequence into another one."""
        self._caches = self._copy(self._caches, source, target)
        self.numbers.length[target] = self.numbers.length[source]

    def begin(self, number: int, guide: int | None, **settings) -> None:
        """A message after the context of a sequence; with a guide, a second sequence, or None."""
        length = int(self.numbers.length[number])
        if guide is not None:
            # the context of zeros is the same for every request
            if self._blank is None or len(self._blank.hidden) < length:
                size = bucket(length, _SLOTS)
                self._blank = self._make_blank(self._params, self._multiple, size)
            self._caches = self._put_blank(self._caches, self._blank, guide, length)
        steering = {"leader": number, "guide": number if guide is None else guide, "length": length}
        start = {"step": 0, "frames": -1, "ended": steps.RUNNING}
        for row in (number, guide):
            if row is not None:
                self._set(row, **steering, **start, **settings)

    def generate(self, used: Iterable[int], limit: int, pause: bool) -> np.ndarray:
        """Up to `limit` rows of the running messages of sequences; int32 [CHUNK, R, K].

        `numbers.step` tells how many there are of each.
        """
        used, before = list(used), self.numbers
        # a message ends where the context does
        context = self._config.decoder.max_position_embeddings
        self.make_room(min(int(before.length[used].max()) + limit, context))
        top_k = before.top_k[used]
        self._caches, changed, out = self._generate(
            self._params,
            self._caches,
            before,
            np.int32(limit),
            np.bool_(pause),
            kinds=frozenset(before.kind[used].tolist()),
            guided=bool((before.guide != np.arange(len(self))).any()),
            bound=next((b for b in _BOUNDS if top_k.min() and top_k.max() <= b), 0),
            nucleus=bool((before.top_p[used] < 1).any()),
        )
        changed, out = jax.device_get((changed, out))
        self.numbers = before._replace(**{name: np.array(x) for name, x in changed.items()})
        return out

    def make_room(self, slots: int) -> None:
        """Slots for as many positions of each sequence, and one to spare."""
        # idle sequences write to the slot after their last one
        if slots + 1 > self._slots:
            rows = np.arange(len(self), dtype=np.int32)
            self._caches = self._resize(self._caches, rows, bucket(slots + 1, _SLOTS))

    @property
    def _slots(self) -> int:
        return self._caches.layers[0].slots

    def _set(self, number: int, **values) -> None:
        for name, value in values.items():
            getattr(self.numbers, name)[number] = value

    def _empty(self, rows: int, slots: int) -> steps.Caches:
        decoder = self._config.decoder
        dtype = self._params["text_head"][...].dtype
        layers = [
            LayerCache.empty(decoder, rows, slots, dtype) for _ in range(decoder.num_hidden_layers)
        ]
        caches = steps.Caches(layers, jnp.zeros((rows, decoder.hidden_size), dtype))
        if self._mesh is None:
            return caches

        def place(x):
            axes = ("batch", "heads") if x.ndim == 4 else ("batch",)
            return NamedSharding(self._mesh, partition(self._mesh, axes))

        return jax.device_put(caches, jax.tree.map(place, caches))
