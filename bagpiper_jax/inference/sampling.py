"""Sampling settings, and one token per stream from the head's logits."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from bagpiper_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How one modality is sampled.

    Attributes:
      temperature: 0 takes the most likely token.
      top_k: candidates per stream; 0 is all of them.
      cfg: guidance scale, logits = cfg · conditional + (1 − cfg) · unconditional; 1 is none.
      min_rows: rows before which the message may not end.
      max_rows: rows at which it ends in any case.
      top_p: of the candidates, the likeliest whose probabilities make up this much; 1 is all.
    """

    temperature: float
    top_k: int
    cfg: float
    min_rows: int
    max_rows: int
    top_p: float = 1.0

    def __post_init__(self):
        if self.temperature < 0 or self.top_k < 0 or self.cfg < 0:
            raise UserError("temperature, top_k and cfg must not be negative")
        if not 0 < self.top_p <= 1:
            raise UserError("top_p must lie in (0, 1]")
        if not 0 <= self.min_rows < self.max_rows:
            raise UserError("min_rows must lie in [0, max_rows)")


# the published settings (arXiv 2602.05220)
TEXT = Sampling(temperature=0.6, top_k=20, cfg=1.0, min_rows=1, max_rows=8192)
AUDIO = Sampling(temperature=0.8, top_k=20, cfg=3.0, min_rows=20, max_rows=2048)


def delay_mask(step, frames, delays: np.ndarray, min_rows, max_rows) -> jax.Array:
    """What each stream may be at a row of an audio message: pad, code, end token; bool [B, K, 3].

    Stream k runs `delays[k]` rows behind, so it is a pad before that row and again after its last
    frame. The message's number of frames is settled where stream 0 first takes its pad or an end
    token; as many more rows as the last stream is late then bring the others to their ends, and the
    end token follows. So no audio is cut off, whatever a model samples.

    Args:
      step: int [B]; index of the row in its message.
      frames: int [B]; of the message, −1 while it is not settled.
      delays: of the vocabulary, int [K].
      min_rows: int [B]; rows before which the end token may not come.
      max_rows: int [B]; rows at which the message is complete in any case.
    """
    step, min_rows, max_rows = (jnp.asarray(x)[:, None] for x in (step, min_rows, max_rows))
    late = int(delays[-1])
    frame = step - delays
    settled = (frames >= 0)[:, None]
    inside = (frame >= 0) & (~settled | (frame < frames[:, None]))
    complete = settled & (step >= frames[:, None] + late)
    first = np.arange(len(delays)) == 0
    open_ = first & ~settled  # stream 0 decides
    last = open_ & (step >= max_rows - late)
    may_stop = (late > 0) & (step >= min_rows - late)  # without a delay there are no pads
    pad = jnp.where(open_, may_stop | last, ~inside & ~complete)
    code = inside & ~last
    end = first & (complete | (open_ & ~last & (step >= min_rows)))
    # past the end nothing is read from the other streams, but each needs something to choose
    return jnp.stack([pad | (complete & ~first), code, end], axis=-1)


def choose(logits, keys, temperature, top_k, top_p, *, bound: int, nucleus: bool) -> jax.Array:
    """Top-k, then temperature, then top-p over the last axis; temperature 0 is greedy.

    Args:
      logits: [B, ..., n].
      keys: of the random numbers, [B].
      temperature, top_k, top_p: [B]; see `Sampling`.
      bound: no row's `top_k` is larger; 0 where some row takes all.
      nucleus: whether some row's `top_p` is under 1; the cumulative sums are costly on CPU.

    Returns:
      int32 [B, ...].
    """
    size = logits.shape[-1]
    values, indices = jax.lax.top_k(logits, min(bound, size) or size)
    rows = lambda x: x.reshape(-1, *(1,) * (logits.ndim - 1))  # noqa: E731
    rank = jnp.arange(values.shape[-1])
    scaled = values / jnp.maximum(rows(temperature), 1e-6)
    scaled = jnp.where((rank < rows(top_k)) | (rows(top_k) == 0), scaled, -jnp.inf)
    if nucleus:
        chances = jax.nn.softmax(scaled, axis=-1)
        before = jnp.cumsum(chances, axis=-1) - chances
        kept = (before < rows(top_p)) | (rows(top_p) >= 1) | (rank == 0)
        scaled = jnp.where(kept, scaled, -jnp.inf)
    # ranks first: a candidate's noise is the same whatever the bound
    shape = (scaled.shape[-1], *scaled.shape[1:-1])
    noise = jnp.moveaxis(jax.vmap(lambda key: jax.random.gumbel(key, shape))(keys), 1, -1)
    sampled = jnp.argmax(scaled + noise, axis=-1)
    best = jnp.where(rows(temperature)[..., 0] > 0, sampled, 0)
    return jnp.take_along_axis(indices, best[..., None], axis=-1)[..., 0].astype(jnp.int32)
