"""The two tables of a model on a mesh: rows looked up, and how a split table is gathered.

A table [V', D] lies split by ids over `fsdp` and `tensor`. For use every device gathers it whole,
in the type of the computation; its gradient is summed in float32 and goes back split.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from bagpiper_jax.sharding import on_mesh

TABLE_AXES = ("vocab", None)


def gather_table(axes, table: jax.Array, dimension: int = 0) -> jax.Array:
    """The whole of what is split over `fsdp` and `tensor`, inside `on_mesh`."""
    split = tuple(a for a in axes if a != "replica")
    return jax.lax.all_gather(table, split, axis=dimension, tiled=True) if split else table


def scatter_table(axes, grad: jax.Array, dimension: int = 0) -> jax.Array:
    """This device's part of the sum over all devices of a gradient, inside `on_mesh`."""
    split = tuple(a for a in axes if a != "replica")
    if split:
        grad = jax.lax.psum_scatter(grad, split, scatter_dimension=dimension, tiled=True)
    return jax.lax.psum(grad, "replica") if "replica" in axes else grad


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def embed_rows(table: jax.Array, tokens: jax.Array, dtype) -> jax.Array:
    """Sum over the streams of a row's embeddings (arXiv 2602.05220, summed stream embeddings).

    Id 0 counts in stream 0 only, and gets no gradient (`padding_idx` of the reference).

    Args:
      table: [V', D].
      tokens: int [B, T, K].
      dtype: of the result.

    Returns:
      [B, T, D].
    """

    def look_up(axes, table, tokens):
        table = gather_table(axes, table.astype(dtype))
        x = table[tokens[..., 0]].astype(jnp.float32)
        for k in range(1, tokens.shape[-1]):
            ids = tokens[..., k]
            x += jnp.where((ids > 0)[..., None], table[ids], 0)
        return x.astype(dtype)

    rows = ("batch", None, None)
    return on_mesh(look_up, (TABLE_AXES, rows), rows)(table, tokens)


def _embed_forward(table, tokens, dtype):
    return embed_rows(table, tokens, dtype), (tokens, jnp.zeros((0, len(table)), table.dtype))


def _embed_backward(dtype, saved, grad):
    tokens, like = saved

    def add_up(axes, tokens, grad):
        rows = like.shape[1]
        total = jnp.zeros((rows, grad.shape[-1]), jnp.float32)
        flat = grad.reshape(-1, grad.shape[-1]).astype(jnp.float32)
        if "tensor" in axes:  # every device of this axis has the same rows
            flat /= jax.lax.axis_size("tensor")
        for k in range(tokens.shape[-1]):
            ids = tokens[..., k].reshape(-1)
            total = total.at[jnp.where(ids > 0, ids, rows)].add(flat, mode="drop")
        return scatter_table(axes, total)

    rows = ("batch", None, None)
    d_table = on_mesh(add_up, (rows, rows), TABLE_AXES)(tokens, grad)
    return d_table.astype(like.dtype), None


embed_rows.defvjp(_embed_forward, _embed_backward)
