"""Scaled dot-product attention with grouped key/value heads, in plain XLA.

`ops.flash_attention` has the accelerated forms of `causal_attention` and the choice among them.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

# finite, so that a fully masked (padding) query gives a mean and not NaN
MASKED = -1e30


def segment_mask(query_segments, key_segments, query_slots=None, key_slots=None) -> jax.Array:
    """Which keys a query may see: those of its own example, and not after it.

    Args:
      query_segments: int [B, T]; 0 is padding.
      key_segments: int [B, S].
      query_slots: int [T]; place of each query in the sequence. Without slots every key of the
        example is seen (encoder).
      key_slots: int [S].

    Returns:
      bool [B, 1, T, S].
    """
    mask = query_segments[:, :, None] == key_segments[:, None, :]
    mask &= key_segments[:, None, :] > 0
    if query_slots is not None:
        mask &= key_slots[None, None, :] <= query_slots[None, :, None]
    return mask[:, None]


def attention(q, k, v, mask) -> jax.Array:
    """Softmax attention; scores and softmax in float32.

    Args:
      q: [B, T, N, H].
      k: [B, S, G, H], N a multiple of G; query head n reads key head n // (N / G).
      v: [B, S, G, H].
      mask: bool [B, 1, T, S].

    Returns:
      [B, T, N, H] in the dtype of q.
    """
    # [B, heads, length, H] keeps each matmul contiguous: measurably faster on CPU
    return attend_heads(q, k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3), mask)


def attend_heads(q, k, v, mask) -> jax.Array:
    """`attention` with keys and values [B, G, S, H], as a cache keeps them."""
    batch, length, heads, dim = q.shape
    groups = k.shape[1]
    q = q.transpose(0, 2, 1, 3).reshape(batch, groups, heads // groups, length, dim)
    scores = jnp.einsum("bgnth,bgsh->bgnts", q, k, preferred_element_type=jnp.float32)
    scores = jnp.where(mask[:, None], scores * dim**-0.5, MASKED)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    out = jnp.einsum("bgnts,bgsh->bgnth", weights, v)
    return out.reshape(batch, heads, length, dim).transpose(0, 2, 1, 3)


def causal_attention(q, k, v, segment_ids, *, block: int | None = None) -> jax.Array:
    """Self-attention of packed rows: within an example, to itself and before.

    Queries go in blocks, and each block meets only the keys up to its end: about half the work and
    memory of the full square.

    Args:
      q: [B, T, N, H].
      k, v: [B, T, G, H].
      segment_ids: int [B, T]; 0 is padding.
      block: queries per block; None is 64 for each 1,024 positions or part of them.

    Returns:
      [B, T, N, H].
    """
    length = q.shape[1]
    # at most 16 blocks: each is compiled on its own
    block = block or 64 * math.ceil(length / 1024)
    slots = jnp.arange(length)
    blocks = []
    for start in range(0, length, block):
        stop = min(start + block, length)
        span = slice(start, stop)
        mask = segment_mask(segment_ids[:, span], segment_ids[:, :stop], slots[span], slots[:stop])
        blocks.append(attention(q[:, span], k[:, :stop], v[:, :stop], mask))
    return jnp.concatenate(blocks, axis=1)
