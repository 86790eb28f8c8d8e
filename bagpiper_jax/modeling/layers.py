"""What several models share: stacked layers under a scan, flat matmuls, an activation."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from bagpiper_jax.errors import UserError
from bagpiper_jax.sharding import constrain

_INPUT = "layer_input"
_policies = jax.checkpoint_policies
# what is kept of a layer for its backward pass; the rest is computed again
REMAT = {
    "none": None,  # everything is kept
    "dots": _policies.dots_with_no_batch_dims_saveable,  # results of the matmuls with weights
    "full": _policies.nothing_saveable,  # the layer's input
    "offload": _policies.save_and_offload_only_these_names(  # the same, in the host's memory
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=[_INPUT],
        offload_src="device",
        offload_dst="pinned_host",
    ),
}


@dataclasses.dataclass(frozen=True)
class Form:
    """How stacked layers are computed.

    Attributes:
      dtype: of the computation.
      unroll: layers per step of the scan.
      remat: one of REMAT.

    Raises:
      UserError: there is no such remat policy.
    """

    dtype: Any = jnp.float32
    unroll: int = 1
    remat: str = "none"

    def __post_init__(self):
        if self.remat not in REMAT:
            raise UserError(f"there is no remat {self.remat!r}: choose one of {', '.join(REMAT)}")


def stack(make: Callable[[nnx.Rngs], nnx.Module], num: int, rngs: nnx.Rngs) -> nnx.Module:
    """`num` independent modules as one, every parameter stacked on a leading axis."""

    @nnx.split_rngs(splits=num)
    @nnx.vmap(in_axes=(0,), out_axes=0)
    def build(rngs):
        return make(rngs)

    return build(rngs)


def flat(x: jax.Array) -> jax.Array:
    """[B, T, D] → [B · T, D]: gradients of two-dimensional matmuls are twice as fast on CPU."""
    return constrain(x.reshape(-1, x.shape[-1]), "batch")


def gelu(x: jax.Array) -> jax.Array:
    """The exact GELU (erf), which the originals of the encoders use."""
    return jax.nn.gelu(x, approximate=False)


def scan(layers: nnx.Module, carry, apply: Callable, xs=None, *, form: Form | None = None):
    """Applies stacked layers in order, so that compile time does not grow with depth.

    Args:
      layers: made by `stack`.
      carry: what goes from layer to layer, arrays [B, T, D].
      apply: (layer, carry, x) → (carry, y).
      xs: per-layer inputs with a leading layer axis (the KV cache), or None.
      form: how; float32 and one by one if None.

    Returns:
      (carry, ys): ys has a leading layer axis.
    """
    form = form or Form()
    graph, state = nnx.split(layers)
    # before the loop: so a split weight is gathered in the type that it is used in
    state = jax.tree.map(lambda w: w.astype(form.dtype), state)

    def body(carry, layer_and_x):
        layer_state, x = layer_and_x
        carry = jax.tree.map(lambda a: checkpoint_name(constrain(a, "batch"), _INPUT), carry)
        return apply(nnx.merge(graph, layer_state), carry, x)

    if REMAT[form.remat] is not None:
        # the scan keeps XLA from merging the two computations
        body = jax.checkpoint(body, policy=REMAT[form.remat], prevent_cse=False)
    return jax.lax.scan(body, carry, (state, xs), unroll=form.unroll)
