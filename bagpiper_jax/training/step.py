"""Train state and the jitted step, on one device or on a mesh."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.tree_util import DictKey

from bagpiper_jax.errors import UserError
from bagpiper_jax.input_pipeline.batch import Batch
from bagpiper_jax.modeling.bagpiper import Bagpiper, mean_metrics, next_rows
from bagpiper_jax.modeling.config import BagpiperConfig
from bagpiper_jax.ops.flash_attention import PLATFORMS
from bagpiper_jax.sharding import count_slices, make_mesh, parameter_shardings, partition
from bagpiper_jax.training.config import RunConfig
from bagpiper_jax.training.optimizer import join, split_frozen
from bagpiper_jax.trees import dotted, nested, path_name


class TrainState(NamedTuple):
    """What a step changes: step number, parameters, optimizer state of those that are trained."""

    step: jax.Array
    params: Any
    opt_state: Any


def init_state(params: dict, optimizer: optax.GradientTransformation, frozen=()) -> TrainState:
    """State at step 0 from weights."""
    trained, _ = split_frozen(params, frozen)
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(trained))


def make_model(run: RunConfig, config: BagpiperConfig) -> Bagpiper:
    """The model of a run, shapes alone."""
    compute = run.compute
    return Bagpiper.abstract(
        config,
        dtype=jnp.dtype(compute.dtype),
        remat=compute.remat,
        attention=compute.attention,
    )


def abstract_state(
    model: Bagpiper, optimizer: optax.GradientTransformation, shardings: TrainState, frozen=()
) -> TrainState:
    """Shapes of a state, each with its place; arguments as for `make_train_step`."""
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        jax.eval_shape(lambda p: init_state(p, optimizer, frozen), params),
        shardings,
    )


def state_shardings(
    mesh: Mesh, params: dict, optimizer: optax.GradientTransformation, frozen=()
) -> TrainState:
    """Where a state's arrays lie: moments with their parameters, counters everywhere.

    Args:
      mesh: see `sharding.make_mesh`.
      params: nested dict of arrays or their shapes.
      optimizer: what makes the state.
      frozen: see `split_frozen`.
    """
    shapes = {path: tuple(leaf.shape) for path, leaf in dotted(params).items()}
    placed = nested(parameter_shardings(mesh, shapes))
    everywhere = NamedSharding(mesh, PartitionSpec())
    trained, _ = split_frozen(params, frozen)
    by_path = dotted(placed)

    def place(keys, _):  # a moment's path ends with that of its parameter
        return by_path.get(path_name(k for k in keys if isinstance(k, DictKey)), everywhere)

    opt_state = jax.eval_shape(optimizer.init, trained)
    return TrainState(everywhere, placed, jax.tree_util.tree_map_with_path(place, opt_state))


def _updates(opt_state: Any) -> jax.Array:
    """Updates made so far, which the schedule counts: skipped steps are none."""
    counts = [
        leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(opt_state)
        if getattr(path[-1], "name", None) == "count"
    ]
    return counts[0]


def run_mesh(run: RunConfig, devices: Sequence[jax.Device]) -> Mesh:
    """The mesh of a run; of several slices each is a replica, where `mesh.replica` is 1.

    Raises:
      UserError: it does not fit the devices, or `mesh.tensor` does not divide the rows' length, or
        the attention backend is for other devices.
    """
    platform, backend = devices[0].platform, run.compute.attention
    if PLATFORMS.get(backend, platform) != platform:
        raise UserError(
            f"config key compute.attention: {backend} is for {PLATFORMS[backend]} devices, not "
            f"{platform}: choose auto or xla"
        )
    sizes = dataclasses.asdict(run.mesh)
    if sizes["replica"] == 1:
        sizes["replica"] = count_slices(devices)
    mesh = make_mesh(sizes, devices)
    if run.data.length % mesh.shape["tensor"]:
        raise UserError("config key mesh.tensor must be a divisor of data.length")
    return mesh


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Of every field of a step's batch, [A, B, …]: A micro-batches of B rows."""
    return NamedSharding(mesh, partition(mesh, (None, "batch")))


def make_train_step(
    model: Bagpiper,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    *,
    frozen: Sequence[str] = (),
    shardings: TrainState | None = None,
) -> Callable:
    """The jitted step: (state, batch) → (state, metrics). The state's buffers are donated.

    Every field of the batch has a leading axis of micro-batches, whose gradients are summed: the
    loss and its gradients are those of the whole batch. A step whose loss or gradient is not
    finite changes nothing but the step number; the metric `skipped` tells.

    Args:
      model: its structure alone is read.
      optimizer: of the parameters that are trained.
      schedule: for the metric.
      frozen: see `split_frozen`.
      shardings: of the state, on the mesh that `jax.set_mesh` has set when the step is called.
    """
    graph, abstract = nnx.split(model, nnx.Param)

    def loss(trained, held, batch, scale):
        state = jax.tree.map(lambda x: x, abstract)  # a copy of the structure
        nnx.replace_by_pure_dict(state, join(trained, held))
        total, sums = nnx.merge(graph, state).loss_sums(batch)
        return total * scale, sums

    def gradients(trained, held, batches: Batch):
        """Loss, sums of metrics and gradients of all micro-batches together."""
        targets = jax.vmap(next_rows)(batches)[1][..., 0].sum()
        scale = 1.0 / jnp.maximum(targets, 1).astype(jnp.float32)

        def one(batch):
            (value, sums), grads = jax.value_and_grad(loss, has_aux=True)(
                trained, held, batch, scale
            )
            return value, sums, grads

        if len(batches.tokens) == 1:
            return one(jax.tree.map(lambda x: x[0], batches))

        def add(total, batch):
            return jax.tree.map(jnp.add, total, one(batch)), None

        shapes = jax.eval_shape(one, jax.tree.map(lambda x: x[0], batches))
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        return jax.lax.scan(add, zeros, batches)[0]

    def step(state: TrainState, batches: Batch):
        trained, held = split_frozen(state.params, frozen)
        value, sums, grads = gradients(trained, held, batches)
        norm = optax.tree.norm(grads)
        finite = jnp.isfinite(value) & jnp.isfinite(norm)
        updates, opt_state = optimizer.update(grads, state.opt_state, trained)
        new = optax.apply_updates(trained, updates)
        keep = lambda new, old: jnp.where(finite, new, old)  # noqa: E731
        new = jax.tree.map(keep, new, trained)
        opt_state = jax.tree.map(keep, opt_state, state.opt_state)
        metrics = {
            **mean_metrics(sums),
            "loss": value,
            "grad_norm": norm,
            "learning_rate": schedule(_updates(state.opt_state)),
            "skipped": (~finite).astype(jnp.float32),
            "tokens": (batches.segment_ids > 0).sum().astype(jnp.float32),
        }
        return TrainState(state.step + 1, join(new, held), opt_state), metrics

    if shardings is None:
        return jax.jit(step, donate_argnums=0)
    mesh = shardings.step.mesh
    return jax.jit(
        step,
        in_shardings=(shardings, batch_sharding(mesh)),
        out_shardings=(shardings, NamedSharding(mesh, PartitionSpec())),
        donate_argnums=0,
    )
