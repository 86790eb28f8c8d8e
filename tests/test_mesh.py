"""The training step on meshes: the same numbers however the work is dealt out."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from bagpiper_jax.errors import UserError
from bagpiper_jax.input_pipeline.batch import Batch
from bagpiper_jax.modeling.bagpiper import Bagpiper
from bagpiper_jax.sharding import make_mesh, partition
from bagpiper_jax.training.config import OptimizerConfig
from bagpiper_jax.training.feed import own_rows, place
from bagpiper_jax.training.optimizer import make_optimizer, split_frozen
from bagpiper_jax.training.step import (
    batch_sharding,
    init_state,
    make_train_step,
    state_shardings,
)
from bagpiper_jax.trees import dotted

ROWS, LENGTH, WINDOWS = 8, 64, 4
SCHEDULE = optax.constant_schedule(1e-2)
# the first one's state is the last gradients. A large eps: Adam divides the rounding of tiny
# gradients by itself
OPTIMIZER = optax.chain(
    optax.trace(decay=0.0), optax.clip_by_global_norm(1.0), optax.adamw(SCHEDULE, eps=1e-3)
)


@pytest.fixture(scope="module")
def config(tiny_config):
    return dataclasses.replace(tiny_config, head_chunk=32)  # several chunks, the last one cut


@pytest.fixture(scope="module")
def batch(config):
    """Two examples a row, of text after audio and of codes; padding at the end."""
    rng = np.random.default_rng(0)
    vocab = config.vocab
    tokens = np.zeros((ROWS, LENGTH, vocab.num_streams), np.int32)
    tokens[:, :30, 0] = rng.integers(vocab.text_start, vocab.codec_start, (ROWS, 30))
    codes = rng.integers(1, vocab.stream_size, (ROWS, 28, vocab.num_streams))
    tokens[:, 30:58] = vocab.stream_pads + codes
    slots = np.arange(LENGTH)
    index = np.where((slots >= 2) & (slots < 20), slots, -1)
    mask = (tokens > 0) & (rng.random(tokens.shape) < 0.7)
    mask[:3] &= rng.random(mask[:3].shape) < 0.3  # micro-batches of unequal weight
    segments = np.where(slots < 30, 1, np.where(slots < 58, 2, 0))
    repeat = lambda x: np.tile(x.astype(np.int32), (ROWS, 1))  # noqa: E731
    return Batch(
        tokens=tokens,
        loss_mask=mask,
        segment_ids=repeat(segments),
        positions=repeat(np.where(slots < 30, slots, slots - 30)),
        mel=rng.standard_normal((ROWS, WINDOWS, 100, 128), dtype=np.float32),
        mel_frames=repeat(np.full(WINDOWS, 100)),
        audio_index=repeat(index),
    )


@pytest.fixture(scope="module")
def run(config, batch, tiny_model):
    """Two steps: (sizes of a mesh or None, micro-batches) → (state, metrics of both, what the
    optimizer keeps of the first one's gradients)."""
    weights = jax.device_get(nnx.to_pure_dict(nnx.state(tiny_model, nnx.Param)))

    def steps(
        sizes=None, micro_batches=1, *, rows=batch, frozen=(), optimizer=OPTIMIZER, **settings
    ):
        model = Bagpiper.abstract(config, **settings)
        params = jax.tree.map(jnp.array, weights)
        state, shardings = init_state(params, optimizer, frozen), None
        feed = jax.tree.map(lambda x: x.reshape(micro_batches, -1, *x.shape[1:]), rows)
        mesh = make_mesh(sizes or {}, None if sizes else jax.devices()[:1])
        if sizes:
            shardings = state_shardings(mesh, params, optimizer, frozen)
            state = jax.device_put(state, shardings)
            mine = own_rows(batch_sharding(mesh), ROWS, micro_batches)
            feed = place(rows, batch_sharding(mesh), ROWS, micro_batches, mine)
        step = make_train_step(model, optimizer, SCHEDULE, frozen=frozen, shardings=shardings)
        with jax.set_mesh(mesh):
            state, first = step(state, feed)
            gradients = jax.device_get(state.opt_state[0])
            state, second = step(state, feed)
        return state, jax.device_get([first, second]), gradients

    return steps


@pytest.fixture(scope="module")
def alone(run):
    return run()


def assert_same(ours, theirs, tolerance=1e-5):
    for mine, other in zip(ours[1], theirs[1], strict=True):
        for name in mine:
            np.testing.assert_allclose(mine[name], other[name], rtol=tolerance, atol=1e-6)
    params = dotted(jax.device_get(theirs[0].params))
    for path, mine in dotted(jax.device_get(ours[0].params)).items():
        np.testing.assert_allclose(mine, params[path], rtol=tolerance, atol=tolerance, err_msg=path)
    gradients = dotted(theirs[2].trace)
    largest = {path: np.abs(wanted).max() for path, wanted in gradients.items()}
    # softmax does not feel a bias of the keys: what is left of its gradient is rounding
    bias = "audio_tower.layers.k_proj.bias"
    largest[bias] = largest["audio_tower.layers.k_proj.kernel"]
    for path, mine in dotted(ours[2].trace).items():
        assert largest[path] > 0, path
        atol = tolerance * largest[path]
        np.testing.assert_allclose(mine, gradients[path], rtol=0, atol=atol, err_msg=path)


@pytest.mark.parametrize(
    "sizes,micro_batches",
    [
        (None, 4),
        ({"fsdp": 8}, 1),
        ({"fsdp": 4, "tensor": 2}, 1),
        ({"replica": 2, "fsdp": 4}, 1),
        ({"replica": 2, "fsdp": 2, "tensor": 2}, 2),
    ],
)
def test_the_step_does_not_depend_on_the_mesh(run, alone, sizes, micro_batches):
    """Loss, metrics and weights after two steps, gradients of the first one (fp32, 1e-5)."""
    assert_same(run(sizes, micro_batches), alone)


@pytest.mark.parametrize("remat", ["dots", "full", "offload"])
def test_what_is_computed_again_is_the_same(run, alone, remat):
    assert_same(run(remat=remat), alone)


def test_parameters_and_moments_lie_where_the_table_says(run):
    state, *_ = run({"fsdp": 4, "tensor": 2})
    spec = lambda x: x.sharding.spec  # noqa: E731
    params = dotted(state.params)
    wanted = {
        "model.embed_tokens": (("fsdp", "tensor"),),
        "model.layers.self_attn.q_proj.kernel": (None, "fsdp", "tensor"),
        "model.layers.mlp.down_proj.kernel": (None, "tensor", "fsdp"),
    }
    for path, axes in wanted.items():
        assert tuple(spec(params[path])) == axes
    adam = state.opt_state[2][0]
    for moments in (adam.mu, adam.nu):
        for path, leaf in dotted(moments).items():
            assert spec(leaf) == spec(params[path]), path


def test_frozen_parts_stay_and_have_no_moments(run, alone, tiny_model):
    frozen = ("audio_tower", "model.layers")
    state, metrics, _ = run({"fsdp": 4, "tensor": 2}, frozen=frozen)
    before = dotted(nnx.to_pure_dict(nnx.state(tiny_model, nnx.Param)))
    for path, after in dotted(state.params).items():
        same = np.array_equal(after, before[path])
        assert same is path.startswith(frozen), path
    moments = dotted(state.opt_state[2][0].mu)
    assert moments and not any(path.startswith(frozen) for path in moments)
    assert metrics[0]["loss"] == pytest.approx(alone[1][0]["loss"], rel=1e-5)
    assert metrics[0]["grad_norm"] < alone[1][0]["grad_norm"]


def test_freezing_nothing_or_all_is_told(tiny_model):
    params = nnx.to_pure_dict(nnx.state(tiny_model, nnx.Param))
    with pytest.raises(UserError, match="there is no 'audio_towr'; the parts are"):
        split_frozen(params, ("audio_towr",))
    with pytest.raises(UserError, match="nothing is left to train"):
        split_frozen(params, tuple(params))


def test_bf16_computation_and_moments_are_near(run, alone):
    settings = OptimizerConfig(1e-2, 1.0, 1.0, 0, 0.9, 0.95, 1e-3, 1e-4, 1.0, "bfloat16")
    state, metrics, _ = run(
        {"fsdp": 8}, optimizer=make_optimizer(settings, 100), dtype=jnp.bfloat16, remat="full"
    )
    for ours, theirs in zip(metrics, alone[1], strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=0.02)
        np.testing.assert_array_equal(ours["targets"], theirs["targets"])
    leaves = dotted(state.params).values()
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype("float32")}
    moments = [x for x in jax.tree.leaves(state.opt_state) if x.ndim]
    assert {leaf.dtype for leaf in moments} == {jnp.dtype("bfloat16")}


def test_a_step_that_is_not_finite_changes_nothing(run, config, batch, tiny_model):
    broken = batch._replace(mel=np.full_like(batch.mel, np.nan))
    params = nnx.to_pure_dict(nnx.state(tiny_model, nnx.Param))
    before = jax.device_get(params)
    state = init_state(jax.tree.map(jnp.array, params), OPTIMIZER)
    step = make_train_step(Bagpiper.abstract(config), OPTIMIZER, SCHEDULE)
    state, metrics = step(state, jax.tree.map(lambda x: x[None], broken))
    assert metrics["skipped"] == 1 and int(state.step) == 1
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state.params), before)
    assert not any(np.any(x) for x in jax.tree.leaves(state.opt_state))


def test_packed_examples_weigh_as_if_alone(run, alone, batch):
    """Each example in a row of its own: loss, metrics, gradients and weights (fp32, 1e-5)."""

    def cut(start, stop):
        """The example at these positions of every row, alone."""
        part = {name: getattr(batch, name)[:, start:stop] for name in Batch._fields}
        pad = lambda x: np.pad(x, ((0, 0), (0, LENGTH - stop + start), *[(0, 0)] * (x.ndim - 2)))  # noqa: E731
        rows = {
            name: pad(x)
            for name, x in part.items()
            if name not in ("mel", "mel_frames", "audio_index")
        }
        rows["segment_ids"] = np.minimum(rows["segment_ids"], 1)
        index = np.full((ROWS, LENGTH), -1, np.int32)
        index[:, : stop - start] = part["audio_index"]
        return Batch(**rows, mel=batch.mel, mel_frames=batch.mel_frames, audio_index=index)

    apart = jax.tree.map(lambda *parts: np.concatenate(parts), cut(0, 30), cut(30, 58))
    assert_same(run(rows=apart), alone)


@pytest.mark.parametrize(
    "sizes,message",
    [
        ({"fsdp": 3}, "does not fit the 8 devices"),
        ({"model": 8}, "mesh axes model are none of replica, fsdp, tensor"),
        ({"fsdp": -1, "tensor": -1}, "one may be -1"),
        ({"fsdp": 0}, "sizes are positive"),
    ],
)
def test_a_wrong_mesh_is_told(sizes, message):
    with pytest.raises(UserError, match=message):
        make_mesh(sizes)


def test_what_is_left_of_the_devices():
    assert dict(make_mesh({"fsdp": -1, "tensor": 2}).shape) == {
        "replica": 1,
        "fsdp": 4,
        "tensor": 2,
    }
    spec = partition(make_mesh({"fsdp": 8}), (None, "batch"))
    assert tuple(spec) == (None, ("replica", "fsdp"))


def test_rows_that_cannot_be_dealt_out_are_told():
    sharding = batch_sharding(make_mesh({"fsdp": 8}))
    assert own_rows(sharding, 16, 2).tolist() == list(range(16))
    with pytest.raises(UserError, match="6 rows .* 1 micro-batches .* 8 groups of devices"):
        own_rows(sharding, 6, 1)
