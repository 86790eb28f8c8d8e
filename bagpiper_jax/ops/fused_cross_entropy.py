"""Cross-entropy of the fused codec-token head, from one vocabulary product per row.

The logits of stream k are W·(h + s_k) = W·h + c_k with c_k = W·s_k, so W·h serves all streams.
Over the codec range the log-sum-exp of streams 1…K−1 then factorises,
Σ_v exp(L_v + c_kv) = Σ_v exp(L_v) · exp(c_kv): the exponentials of the logits are taken once and
multiplied with a [codec, K−1] matrix. Maxima are taken per stream range on both factors and the
ranges combined in log space; where a sum still vanishes, the plain form is used.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

# below this a factorised sum has lost its precision to underflow
_TINY = 1e-30


class HeadLoss(NamedTuple):
    """Per-target results, zero where there is no target; [N, K] each, float32."""

    cross_entropy: jax.Array
    log_sum_exp: jax.Array
    correct: jax.Array


def _factors(logits, offsets, ranges):
    """exp(L − m) [n, J, R], m [n, J], exp(c − q) [K, J, R], q [K, J] over J ranges of R ids."""
    split_l = logits.reshape(len(logits), ranges, -1)
    split_c = offsets.reshape(len(offsets), ranges, -1)
    max_l, max_c = split_l.max(-1), split_c.max(-1)
    return jnp.exp(split_l - max_l[..., None]), max_l, jnp.exp(split_c - max_c[..., None]), max_c


def _factorised(logits, offsets, ranges):
    """Log-sum-exp [n, K], and the smallest scaled sum, which tells whether to trust it."""
    exp_l, max_l, exp_c, max_c = _factors(logits, offsets, ranges)
    sums = jnp.einsum("njr,kjr->nkj", exp_l, exp_c)
    shift = max_l[:, None] + max_c[None]
    # a range whose sum vanished matters only if no other range outweighs what it may have lost
    logs = jnp.log(jnp.maximum(sums, _TINY)) + shift
    total = jax.nn.logsumexp(logs, axis=-1)
    lost = jnp.where(sums < _TINY, logs, -jnp.inf).max(-1)
    return total, jnp.all(lost < total - 20.0)


def _plain(logits, offsets):
    return jax.lax.map(lambda c: jax.nn.logsumexp(logits + c, axis=-1), offsets).T


@jax.custom_vjp
def stream_log_sum_exp(logits: jax.Array, offsets: jax.Array) -> jax.Array:
    """log Σ_v exp(logits[n, v] + offsets[k, v]) for every row and stream.

    Args:
      logits: float32 [n, Vc], codec range of W·h. Vc is split into K + 1 equal ranges, the
        streams', for the maxima.
      offsets: float32 [K, Vc], codec range of W·s_k for the K streams after stream 0.

    Returns:
      float32 [n, K].
    """
    return _forward(logits, offsets)[0]


def _forward(logits, offsets):
    ranges = len(offsets) + 1
    total, trusted = _factorised(logits, offsets, ranges)
    total = jax.lax.cond(trusted, lambda: total, lambda: _plain(logits, offsets))
    return total, (logits, offsets, total, trusted)


def _backward(saved, grad):
    logits, offsets, total, trusted = saved
    ranges = len(offsets) + 1

    def factorised():
        exp_l, max_l, exp_c, max_c = _factors(logits, offsets, ranges)
        # softmax = exp_l · exp_c · scale; the scale may be large only where the others are small
        scale = jnp.exp(max_l[:, None] + max_c[None] - total[..., None])
        weighted = grad[..., None] * scale
        d_logits = exp_l * jnp.einsum("nkj,kjr->njr", weighted, exp_c)
        d_offsets = exp_c * jnp.einsum("nkj,njr->kjr", weighted, exp_l)
        return d_logits.reshape(logits.shape), d_offsets.reshape(offsets.shape)

    def plain():
        def add(d_logits, stream):
            offset, lse, g = stream
            p = g[:, None] * jnp.exp(logits + offset - lse[:, None])
            return d_logits + p, p.sum(0)

        zeros = jnp.zeros_like(logits)
        return jax.lax.scan(add, zeros, (offsets, total.T, grad.T))

    return jax.lax.cond(trusted, factorised, plain)


stream_log_sum_exp.defvjp(_forward, _backward)


def _chunk_loss(hidden, targets, mask, head, stream_emb, vocab_size, codec_start, stream_size):
    streams = targets.shape[1]
    logits = jnp.einsum("nd,vd->nv", hidden, head, preferred_element_type=jnp.float32)
    if head.shape[0] > vocab_size:  # rows that only pad the table
        logits = jnp.where(jnp.arange(head.shape[0]) < vocab_size, logits, -jnp.inf)
    codec = slice(codec_start, codec_start + streams * stream_size)
    offsets = jnp.einsum(
        "kd,vd->kv", stream_emb[1:], head[codec], preferred_element_type=jnp.float32
    )
    log_sum_exp = jnp.concatenate(
        [
            jax.nn.logsumexp(logits, axis=-1)[:, None],
            stream_log_sum_exp(logits[:, codec], offsets),
        ],
        axis=1,
    )
    # a masked target may be any id: keep the gathers inside the range
    codec_ids = jnp.clip(targets[:, 1:] - codec_start, 0, streams * stream_size - 1)
    own_offset = jnp.take_along_axis(offsets.T, codec_ids, axis=0)
    target_logits = jnp.take_along_axis(logits, targets, axis=1)
    target_logits = target_logits.at[:, 1:].add(own_offset)
    starts = codec_start + jnp.arange(1, streams) * stream_size
    by_stream = logits[:, codec].reshape(-1, streams, stream_size)[:, 1:]
    own = offsets.reshape(streams - 1, streams, stream_size)
    own = own[jnp.arange(streams - 1), jnp.arange(1, streams)]
    best = jnp.argmax(jax.lax.stop_gradient(by_stream + own), axis=-1) + starts
    best = jnp.concatenate([jnp.argmax(logits, axis=-1)[:, None], best], axis=1)
    return HeadLoss(
        cross_entropy=jnp.where(mask, log_sum_exp - target_logits, 0.0),
        log_sum_exp=jnp.where(mask, log_sum_exp, 0.0),
        correct=(mask & (best == targets)).astype(jnp.float32),
    )


def fused_cross_entropy(
    hidden: jax.Array,
    targets: jax.Array,
    mask: jax.Array,
    head: jax.Array,
    stream_emb: jax.Array,
    *,
    vocab_size: int,
    codec_start: int,
    stream_size: int,
    chunk: int,
) -> HeadLoss:
    """Cross-entropy of all streams' next tokens (arXiv 2602.05220, fused codec-token layer).

    Stream 0 is a softmax over the vocabulary, streams 1…K−1 over the codec range. Logits exist
    for `chunk` rows at a time, in the forward and the backward pass.

    Args:
      hidden: [N, D].
      targets: int32 [N, K].
      mask: bool [N, K]; which targets count.
      head: [V', D], V' ≥ vocab_size; further rows are padding.
      stream_emb: [K, D]; row 0 is not used.
      vocab_size: V.
      codec_start: first codec id.
      stream_size: ids per stream, pad included.
      chunk: rows per chunk.

    Returns:
      `HeadLoss`; `correct` tells whether the target is the most likely token, for streams ≥ 1
      among the tokens of its own stream.
    """
    rows, streams = targets.shape

    def loss(hidden, targets, mask):
        return _chunk_loss(
            hidden, targets, mask, head, stream_emb, vocab_size, codec_start, stream_size
        )

    if rows <= chunk:
        return loss(hidden, targets, mask)
    pad = -rows % chunk
    chunked = [
        jnp.pad(x, ((0, pad), (0, 0))).reshape(-1, chunk, x.shape[1])
        for x in (hidden, targets, mask)
    ]
    out = jax.lax.map(lambda xs: jax.checkpoint(loss)(*xs), chunked)
    return HeadLoss(*(x.reshape(-1, streams)[:rows] for x in out))
