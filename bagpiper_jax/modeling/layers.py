"""What several models share: stacked layers under a scan, flat matmuls, an activation."""

from __future__ import annotations

from collections.abc import Callable

import jax
from flax import nnx


def stack(make: Callable[[nnx.Rngs], nnx.Module], num: int, rngs: nnx.Rngs) -> nnx.Module:
    """`num` independent modules as one, every parameter stacked on a leading axis."""

    @nnx.split_rngs(splits=num)
    @nnx.vmap(in_axes=(0,), out_axes=0)
    def build(rngs):
        return make(rngs)

    return build(rngs)


def flat(x: jax.Array) -> jax.Array:
    """[B, T, D] → [B · T, D]: gradients of two-dimensional matmuls are twice as fast on CPU."""
    return x.reshape(-1, x.shape[-1])


def gelu(x: jax.Array) -> jax.Array:
    """The exact GELU (erf), which the originals of the encoders use."""
    return jax.nn.gelu(x, approximate=False)


def scan(layers: nnx.Module, carry, apply: Callable, xs=None, *, unroll: int = 1):
    """Applies stacked layers in order, so that compile time does not grow with depth.

    Args:
      layers: made by `stack`.
      carry: what goes from layer to layer.
      apply: (layer, carry, x) → (carry, y).
      xs: per-layer inputs with a leading layer axis (the KV cache), or None.
      unroll: layers per step of the loop.

    Returns:
      (carry, ys): ys has a leading layer axis.
    """
    graph, state = nnx.split(layers)

    def body(carry, layer_and_x):
        layer_state, x = layer_and_x
        return apply(nnx.merge(graph, layer_state), carry, x)

    return jax.lax.scan(body, carry, (state, xs), unroll=unroll)
