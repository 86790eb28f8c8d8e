"""Train state and the jitted step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from bagpiper_jax.modeling.bagpiper import Bagpiper


class TrainState(NamedTuple):
    """What a step changes: step number, parameters, optimizer state."""

    step: jax.Array
    params: Any
    opt_state: Any


def init_state(model: Bagpiper, optimizer: optax.GradientTransformation) -> TrainState:
    """State at step 0 from a model's weights."""
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))


def make_train_step(
    model: Bagpiper, optimizer: optax.GradientTransformation, schedule: optax.Schedule
) -> Callable:
    """The jitted step: (state, batch) → (state, metrics). The state's buffers are donated.

    A step whose loss or gradient is not finite changes nothing but the step number; the metric
    `skipped` tells.
    """
    graph, abstract = nnx.split(model, nnx.Param)

    def loss(params, batch):
        state = jax.tree.map(lambda x: x, abstract)  # a copy of the structure
        nnx.replace_by_pure_dict(state, params)
        return nnx.merge(graph, state).loss(batch)

    def step(state: TrainState, batch):
        (value, metrics), grads = jax.value_and_grad(loss, has_aux=True)(state.params, batch)
        norm = optax.global_norm(grads)
        finite = jnp.isfinite(value) & jnp.isfinite(norm)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        keep = lambda new, old: jnp.where(finite, new, old)  # noqa: E731
        params = jax.tree.map(keep, params, state.params)
        opt_state = jax.tree.map(keep, opt_state, state.opt_state)
        metrics = {
            **metrics,
            "loss": value,
            "grad_norm": norm,
            "learning_rate": schedule(state.step),
            "skipped": (~finite).astype(jnp.float32),
            "tokens": (batch.segment_ids > 0).sum().astype(jnp.float32),
        }
        return TrainState(state.step + 1, params, opt_state), metrics

    return jax.jit(step, donate_argnums=0)
