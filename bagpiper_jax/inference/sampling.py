"""Sampling settings, and one token per stream from the head's logits."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from bagpiper_jax import vocab as vocab_lib
from bagpiper_jax.errors import UserError
from bagpiper_jax.modeling.bagpiper import Bagpiper


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How one modality is sampled.

    Attributes:
      temperature: 0 takes the most likely token.
      top_k: candidates per stream.
      cfg: guidance scale, logits = cfg · conditional + (1 − cfg) · unconditional; 1 is none.
      min_rows: rows before which the message may not end.
      max_rows: rows at which it ends in any case.
    """

    temperature: float
    top_k: int
    cfg: float
    min_rows: int
    max_rows: int

    def __post_init__(self):
        if self.temperature < 0 or self.top_k < 1 or self.cfg < 0:
            raise UserError("temperature and cfg must not be negative, top_k at least 1")
        if not 0 <= self.min_rows < self.max_rows:
            raise UserError("min_rows must lie in [0, max_rows)")


# the published settings (arXiv 2602.05220)
TEXT = Sampling(temperature=0.6, top_k=20, cfg=1.0, min_rows=1, max_rows=8192)
AUDIO = Sampling(temperature=0.8, top_k=20, cfg=3.0, min_rows=20, max_rows=2048)


def text_logits(model: Bagpiper, hidden: jax.Array) -> jax.Array:
    """Stream 0's logits over special and text ids, all but text and end tokens at −∞; [B, n]."""
    vocab = model.config.vocab
    shared, _ = model.logits(hidden, 0, vocab.codec_start)
    ids = jnp.arange(vocab.codec_start)
    is_end = (ids == vocab_lib.EOS) | (ids == vocab_lib.EOT)
    return jnp.where((ids >= vocab.text_start) | is_end, shared, -jnp.inf)


def audio_logits(model: Bagpiper, hidden: jax.Array) -> jax.Array:
    """Logits of each stream over its own ids, then the two end tokens; [B, K, stream_size + 2].

    The end tokens are open to stream 0 only.
    """
    vocab = model.config.vocab
    streams = vocab.num_streams
    shared, offsets = model.logits(hidden, vocab.codec_start, vocab.size)
    own = shared.reshape(-1, streams, vocab.stream_size)
    each = jnp.arange(streams)
    own = own + offsets.reshape(streams, streams, vocab.stream_size)[each, each]
    ends, _ = model.logits(hidden, vocab_lib.EOS, vocab_lib.EOT + 1)
    ends = jnp.where(each[:, None] == 0, ends[:, None], -jnp.inf)
    return jnp.concatenate([own, ends], axis=-1)


def delay_mask(step, frames, streams: int, min_rows, max_rows: int) -> jax.Array:
    """What each stream may be at a row of an audio message: pad, code, end token; bool [B, K, 3].

    Stream k runs k rows behind, so it is a pad at rows before k and again after its last frame.
    The message's number of frames is settled where stream 0 first takes its pad or an end token;
    K − 1 more rows then bring the other streams to their ends, and the end token follows. So no
    audio is cut off, whatever a model samples.

    Args:
      step: index of the row.
      frames: int [B]; of the message, −1 while it is not settled.
      streams: K.
      min_rows: rows before which the end token may not come.
      max_rows: rows at which the message is complete in any case.
    """
    frame = step - jnp.arange(streams)
    settled = (frames >= 0)[:, None]
    inside = (frame >= 0) & (~settled | (frame < frames[:, None]))
    complete = settled & (step >= frames[:, None] + streams - 1)
    first = jnp.arange(streams) == 0
    open_ = first & ~settled  # stream 0 decides
    last = open_ & (step >= max_rows - streams + 1)
    may_stop = (streams > 1) & (step >= min_rows - streams + 1)  # one stream has no pads
    pad = jnp.where(open_, may_stop | last, ~inside & ~complete)
    code = inside & ~last
    end = first & (complete | (open_ & ~last & (step >= min_rows)))
    # past the end nothing is read from the other streams, but each needs something to choose
    return jnp.stack([pad | (complete & ~first), code, end], axis=-1)


def choose(logits: jax.Array, key: jax.Array, temperature: jax.Array, top_k: int) -> jax.Array:
    """Top-k, then temperature, over the last axis; temperature 0 is greedy. int32 [...]."""
    values, indices = jax.lax.top_k(logits, min(top_k, logits.shape[-1]))
    scaled = values / jnp.maximum(temperature, 1e-6)
    sampled = jax.random.categorical(key, scaled, axis=-1)
    rank = jnp.where(temperature > 0, sampled, 0)
    return jnp.take_along_axis(indices, rank[..., None], axis=-1)[..., 0].astype(jnp.int32)
