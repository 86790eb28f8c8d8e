"""Cross-entropy of the fused codec-token head, from one vocabulary product per row.

The logits of stream k are W·(h + s_k) = W·h + c_k with c_k = W·s_k, so W·h serves all streams; the
log-sum-exps of streams 1…K−1 factorise (`stream_log_sum_exp`). Logits exist for a chunk of rows at
a time. Where gradients are wanted they are made in the forward pass, beside the logits of their
chunk: nothing is computed twice, and nothing of the size rows × vocabulary is kept.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bagpiper_jax.ops.stream_log_sum_exp import (
    Offsets,
    make_offsets,
    stream_gradients,
    stream_log_sum_exp,
)
from bagpiper_jax.ops.tables import TABLE_AXES, gather_table, scatter_table
from bagpiper_jax.sharding import on_mesh

# of the head's gradient; a block keeps the matrix units busy
_BLOCKS, _SMALLEST_BLOCK = 8, 4096
# A head that has more padding than this part of its rows loses it before the products: that of
# the mini model takes a third less time on CPU so. A large head has less, and would be copied.
_PADDING_TO_KEEP = 1 / 64


class HeadLoss(NamedTuple):
    """Per-target results, zero where there is no target; [B, T, K] each, float32."""

    cross_entropy: jax.Array
    log_sum_exp: jax.Array
    correct: jax.Array


@dataclasses.dataclass(frozen=True)
class HeadShape:
    """What the head must know beside its arrays.

    Attributes:
      vocab_size: V; further rows of the head are padding.
      codec_start: first codec id.
      stream_size: ids per stream, pad included.
      z_loss: weight of the squared log-sum-exp.
      chunk: rows whose logits exist at a time, on each device.
      dtype: of the products' inputs; their sums are float32.
    """

    vocab_size: int
    codec_start: int
    stream_size: int
    z_loss: float
    chunk: int
    dtype: Any = jnp.float32


class _Rows(NamedTuple):
    """Rows of a batch, or of a chunk."""

    targets: jax.Array
    mask: jax.Array
    weights: jax.Array


def _from_logits(logits, added: Offsets, rows: _Rows, shape: HeadShape, with_grad: bool):
    """The loss of a chunk [n, V'] summed, its `HeadLoss` [n, K], gradients if wanted.

    The gradients are those of the logits [n, V'] and of the streams' offsets [K, Vc], whose row 0
    is of no use: nothing is added to stream 0.
    """
    targets, mask, weights = rows
    weights = jnp.where(mask, weights, 0.0)
    streams, size = targets.shape[1], shape.stream_size
    # rows of the head before the codec, in it, and after it, which only pad the table
    text, codec, padding = jnp.split(logits, (shape.codec_start, shape.vocab_size), axis=1)
    log_sum_exp, sums = stream_log_sum_exp(codec, added, mask)
    whole = jnp.logaddexp(jax.nn.logsumexp(text, axis=-1), log_sum_exp[:, 0])
    log_sum_exp = log_sum_exp.at[:, 0].set(whole)
    # a masked target may be any id: keep the gathers inside the range
    codec_ids = jnp.clip(targets - shape.codec_start, 0, streams * size - 1)
    target_logits = jnp.take_along_axis(logits, targets, axis=1)
    target_logits += jnp.take_along_axis(added.values.T, codec_ids, axis=0)  # 0 for stream 0
    cross_entropy = jnp.where(mask, log_sum_exp - target_logits, 0.0)
    regular = jnp.where(mask, log_sum_exp, 0.0)
    loss = (weights * cross_entropy).sum() + shape.z_loss * (regular**2).sum()

    each = jnp.arange(streams)
    own = codec.reshape(-1, streams, size) + added.values.reshape(-1, streams, size)[each, each]
    best = own.max(-1).at[:, 0].set(jnp.maximum(text.max(-1), sums.largest))
    out = HeadLoss(cross_entropy, regular, (mask & (target_logits >= best)).astype(jnp.float32))
    if not with_grad:
        return loss, out, None

    of_sum = weights + 2 * shape.z_loss * regular
    d_codec, d_offsets = stream_gradients(sums, added, log_sum_exp, of_sum)
    d_text = of_sum[:, :1] * jnp.exp(text - whole[:, None])
    d_logits = jnp.concatenate([d_text, d_codec, jnp.zeros_like(padding)], axis=1)
    d_logits = d_logits.at[jnp.arange(len(targets))[:, None], targets].add(-weights)
    return loss, out, (d_logits, d_offsets.at[each, codec_ids].add(-weights))


def _device_loss(shape: HeadShape, with_grad: bool, axes, hidden, head, stream_emb, rows: _Rows):
    """One device's rows: loss summed over all devices, `HeadLoss`, gradients if wanted."""
    batch, length, width = hidden.shape
    head = gather_table(axes, head.astype(shape.dtype))
    table = len(head)
    if table - shape.vocab_size > table * _PADDING_TO_KEEP:
        head = head[: shape.vocab_size]
    # stream 0 uses the hidden state as it is
    only_fsdp = [a for a in axes if a == "fsdp"]  # what `stream_emb` is split over
    emb = gather_table(only_fsdp, stream_emb.astype(shape.dtype), dimension=1)[1:]
    product = partial(jnp.einsum, preferred_element_type=jnp.float32)
    codec = slice(shape.codec_start, shape.vocab_size)
    added = make_offsets(jnp.pad(product("kd,vd->kv", emb, head[codec]), ((1, 0), (0, 0))))

    # chunks of positions, all rows of the batch in each: so the batch stays split as it is
    step = max(1, min(length, shape.chunk // batch))
    pad = -length % step

    def chunked(x):
        x = jnp.pad(x, ((0, 0), (0, pad), (0, 0))).reshape(batch, -1, step, x.shape[-1])
        return x.swapaxes(0, 1).reshape(-1, batch * step, x.shape[-1])

    def whole(x):
        x = x.reshape(-1, batch, step, x.shape[-1]).swapaxes(0, 1)
        return x.reshape(batch, length + pad, -1)[:, :length]

    def body(total, chunk):
        hidden, rows = chunk
        logits = product("nd,vd->nv", hidden, head)
        loss, out, grads = _from_logits(logits, added, rows, shape, with_grad)
        if not with_grad:
            return total + loss, (out, None)
        total, d_head, d_offsets = total
        d_logits = grads[0].astype(shape.dtype)
        d_hidden = jnp.einsum("nv,vd->nd", d_logits, head)
        d_head = _add_product(d_head, d_logits, hidden)
        return (total + loss, d_head, d_offsets + grads[1]), (out, d_hidden)

    total = jnp.zeros(())
    if with_grad:
        total = (total, jnp.zeros(head.shape, jnp.float32), jnp.zeros_like(added.values))
    chunks = jax.tree.map(chunked, (hidden.astype(shape.dtype), rows))
    if step < length:
        total, (out, d_hidden) = jax.lax.scan(body, total, chunks)
    else:
        total, (out, d_hidden) = body(total, jax.tree.map(lambda x: x[0], chunks))
    out = HeadLoss(*map(whole, out))
    if not with_grad:
        return _summed(axes, total), out, None
    total, d_head, d_offsets = total
    d_offsets = d_offsets[1:].astype(shape.dtype)
    d_emb = jnp.pad(product("kv,vd->kd", d_offsets, head[codec]), ((1, 0), (0, 0)))
    # the streams' offsets are logits of rows that hold the stream embeddings
    around = (codec.start, len(head) - codec.stop)
    d_head = _add_product(d_head, jnp.pad(d_offsets, ((0, 0), around)), emb)
    d_head = jnp.pad(d_head, ((0, table - len(head)), (0, 0)))
    if "tensor" in axes:
        d_emb = jax.lax.psum(d_emb, "tensor")
    d_emb = scatter_table([a for a in axes if a != "tensor"], d_emb, dimension=1)
    grads = (whole(d_hidden), scatter_table(axes, d_head), d_emb)
    return _summed(axes, total), out, grads


def _add_product(total, a, b):
    """total [V', D] + aᵀ·b, in blocks of rows of a large table: the product is never whole.

    On TPUs the compiler adds while it multiplies, and there is no product to avoid.
    """
    size = len(total) // _BLOCKS

    def add(start, total, a, b):
        part = jax.lax.dynamic_slice_in_dim(a, start, size, axis=1)
        part = jnp.einsum("nv,nd->vd", part, b, preferred_element_type=jnp.float32)
        part += jax.lax.dynamic_slice_in_dim(total, start, size)
        return jax.lax.dynamic_update_slice_in_dim(total, part, start, axis=0)

    def at_once(total, a, b):
        return total + jnp.einsum("nv,nd->vd", a, b, preferred_element_type=jnp.float32)

    def in_blocks(total, a, b):
        return jax.lax.fori_loop(0, _BLOCKS, lambda i, x: add(i * size, x, a, b), total)

    if len(total) % _BLOCKS or size < _SMALLEST_BLOCK:
        return at_once(total, a, b)
    return jax.lax.platform_dependent(total, a, b, tpu=at_once, default=in_blocks)


def _summed(axes, x):
    return jax.lax.psum(x, tuple(axes)) if axes else x


def _loss(shape: HeadShape, with_grad: bool, hidden, head, stream_emb, rows: _Rows):
    rows_axes = ("batch", "positions", None)
    arrays = (rows_axes, TABLE_AXES, (None, "embed"))
    run = on_mesh(
        partial(_device_loss, shape, with_grad),
        (*arrays, _Rows(rows_axes, rows_axes, rows_axes)),
        ((), HeadLoss(rows_axes, rows_axes, rows_axes), arrays if with_grad else None),
    )
    return run(hidden, head, stream_emb, rows)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _head_loss(shape: HeadShape, hidden, head, stream_emb, rows: _Rows):
    return _loss(shape, False, hidden, head, stream_emb, rows)[:2]


def _forward(shape: HeadShape, hidden, head, stream_emb, rows: _Rows):
    total, out, grads = _loss(shape, True, hidden, head, stream_emb, rows)
    types = (hidden, head, stream_emb)
    return (total, out), tuple(g.astype(x.dtype) for g, x in zip(grads, types, strict=True))


def _backward(_, grads, cotangents):
    scale = cotangents[0]
    return *((g * scale).astype(g.dtype) for g in grads), None


_head_loss.defvjp(_forward, _backward)


def fused_cross_entropy(
    hidden: jax.Array,
    targets: jax.Array,
    mask: jax.Array,
    weights: jax.Array,
    head: jax.Array,
    stream_emb: jax.Array,
    shape: HeadShape,
) -> tuple[jax.Array, HeadLoss]:
    """Loss over all streams' next tokens (arXiv 2602.05220, fused codec-token layer).

    Stream 0 is a softmax over the vocabulary, streams 1…K−1 over the codec range.

    Args:
      hidden: [B, T, D].
      targets: int32 [B, T, K].
      mask: bool [B, T, K]; which targets count.
      weights: float32 [B, T, K]; of each target's cross-entropy.
      head: [V', D], V' ≥ V; further rows are padding.
      stream_emb: [K, D]; row 0 is not used.
      shape: sizes, and the form of the computation.

    Returns:
      (Σ mask · (weights · cross-entropy + z_loss · log-sum-exp²), `HeadLoss`). The sum alone has
      gradients: with respect to hidden, head and stream_emb. In `HeadLoss`, `correct` tells
      whether the target is the most likely token, for streams ≥ 1 among those of its own stream.
    """
    total, out = _head_loss(shape, hidden, head, stream_emb, _Rows(targets, mask, weights))
    return total, jax.tree.map(jax.lax.stop_gradient, out)
