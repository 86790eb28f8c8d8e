import dataclasses
import functools

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from bagpiper_jax.errors import UserError
from bagpiper_jax.input_pipeline.batch import Batch
from bagpiper_jax.modeling.bagpiper import Bagpiper
from bagpiper_jax.modeling.config import get_config
from bagpiper_jax.modeling.flops import step_flops
from bagpiper_jax.trees import dotted, nested

ROWS, LENGTH, WINDOWS = 2, 64, 4
FROZEN = {
    "nothing": (),
    "audio": ("audio_tower",),
    "warm-up": ("audio_tower", "model.layers"),
    "all but audio": ("model", "lm_head", "stream_emb", "adaptor"),
}


@pytest.fixture(scope="module")
def config():
    """Small, but wide enough for products to outweigh element-wise work; nothing is in a loop."""
    base = get_config("tiny")
    return dataclasses.replace(
        base,
        # 256 + 688 + 4 · 20 ids: the tables need no padding
        vocab=dataclasses.replace(base.vocab, text_size=688, codebook_size=19),
        decoder=dataclasses.replace(
            base.decoder, hidden_size=256, intermediate_size=512, head_dim=64
        ),
        encoder=dataclasses.replace(
            base.encoder,
            d_model=128,
            encoder_ffn_dim=512,
            output_dim=192,
            downsample_hidden_size=32,
        ),
        head_chunk=ROWS * LENGTH,
        scan_unroll=2,
    )


def lower(config, frozen, length=LENGTH):
    """The loss and its gradients, for XLA."""
    graph, state = nnx.split(Bagpiper.abstract(config), nnx.Param)
    params = nnx.to_pure_dict(state)
    below = lambda path: any(path == top or path.startswith(f"{top}.") for top in frozen)  # noqa: E731
    flat = dotted(params)
    trained = {path: leaf for path, leaf in flat.items() if not below(path)}
    held = {path: leaf for path, leaf in flat.items() if below(path)}

    def loss(trained, held, batch):
        own = jax.tree.map(lambda x: x, state)
        nnx.replace_by_pure_dict(own, nested({**trained, **held}))
        return nnx.merge(graph, own).loss(batch)[0]

    streams = config.vocab.num_streams
    shapes = Batch(
        tokens=((length, streams), jnp.int32),
        loss_mask=((length, streams), jnp.bool_),
        segment_ids=((length,), jnp.int32),
        positions=((length,), jnp.int32),
        mel=((WINDOWS, 100, config.encoder.num_mel_bins), jnp.float32),
        mel_frames=((WINDOWS,), jnp.int32),
        audio_index=((length,), jnp.int32),
    )
    batch = Batch(*(jax.ShapeDtypeStruct((ROWS, *shape), dtype) for shape, dtype in shapes))
    step = jax.jit(jax.grad(loss) if trained else loss)
    return step.lower(trained, held, batch)


@pytest.fixture(scope="module")
def xla(config):
    """What XLA counts in a step before it optimises it; loops there are none."""
    return functools.cache(lambda *args: lower(config, *args).cost_analysis()["flops"])


def count(config, frozen=(), length=LENGTH):
    return step_flops(config, rows=ROWS, length=length, windows=WINDOWS, frozen=frozen)


@pytest.mark.parametrize("frozen", FROZEN.values(), ids=FROZEN)
def test_xla_counts_what_we_count(config, xla, frozen):
    # the rest is element-wise work and the half of the blocks on the diagonal of the attention
    assert 1.0 < xla(frozen) / count(config, frozen).total < 1.1


def test_the_compiled_program_has_as_many(config):
    compiled = lower(config, ()).compile()
    assert 1.0 < compiled.cost_analysis()["flops"] / count(config).total < 1.1


@pytest.mark.parametrize(("more", "less"), [("nothing", "audio"), ("audio", "warm-up")])
def test_freezing_saves_what_xla_saves(config, xla, more, less):
    ours = count(config, FROZEN[more]).total - count(config, FROZEN[less]).total
    assert xla(FROZEN[more]) - xla(FROZEN[less]) == pytest.approx(ours, rel=0.02)


def test_attention_grows_as_in_xla(config, xla):
    # second differences leave what grows with the square of the length
    square = lambda f: f(3 * LENGTH) - 2 * f(2 * LENGTH) + f(LENGTH)  # noqa: E731
    ours = square(lambda length: count(config, (), length).attention)
    assert 1.0 < square(lambda length: xla((), length)) / ours < 1.15


def test_published_model_by_hand():
    flops = step_flops(get_config("bagpiper_8b"), rows=80, length=8192, windows=64)
    tokens = 80 * 8192
    layer = 2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 12288
    assert 36 * layer == pytest.approx(6.95e9, rel=1e-3)
    assert flops.decoder == 6 * 36 * layer * tokens
    # per layer and token two products with 4,096 keys on average, each 32 heads of 128
    assert flops.attention == 6 * 36 * (2 * 4096 * 4096) * tokens
    assert flops.head == pytest.approx(6 * 160_392 * 4096 * tokens, rel=1e-3)
    audio = 80 * 64 * 13
    assert flops.adaptor == 6 * 2048 * 4096 * audio
    layers = 32 * (4 * 1280**2 + 2 * 1280 * 5120 + 2 * 104 * 1280)
    convolutions = 9 * (50 * 64 * 480 + 25 * 32 * 480**2 + 13 * 16 * 480**2) / 13
    rest = convolutions + 480 * 16 * 1280 + 1280 * 1280 + 1280 * 2048
    assert flops.encoder == pytest.approx(6 * audio * (layers + rest), rel=1e-3)
    parts = flops.encoder + flops.adaptor + flops.decoder + flops.attention + flops.head
    assert flops.total == parts == flops.per_token * tokens


def test_stages_of_the_published_training():
    config = get_config("bagpiper_8b")
    shape = dict(rows=1, length=8192, windows=8)
    whole = step_flops(config, **shape)
    warm_up = step_flops(config, **shape, frozen=("audio_tower", "model.layers"))
    assert warm_up.encoder == pytest.approx(whole.encoder / 3, rel=1e-3)
    assert warm_up.adaptor == whole.adaptor * 2 / 3
    assert warm_up.decoder == whole.decoder * 2 / 3
    assert (warm_up.attention, warm_up.head) == (whole.attention, whole.head)

    below = ("audio_tower", "adaptor", "model")
    head_only = step_flops(config, **shape, frozen=below)
    assert head_only.decoder == whole.decoder / 3
    assert head_only.attention == whole.attention / 3
    assert head_only.head == pytest.approx(whole.head * 2 / 3, rel=1e-3)


def test_frozen_paths_end_at_dots():
    config = get_config("tiny")
    shape = dict(rows=1, length=64, windows=2)
    assert step_flops(config, **shape, frozen=("audio", "model.lay")) == step_flops(config, **shape)


def test_a_tied_head_is_frozen_with_the_table():
    config = get_config("mini")
    shape = dict(rows=1, length=512, windows=4)
    free = step_flops(config, **shape, frozen=("lm_head",))
    assert free == step_flops(config, **shape)
    assert step_flops(config, **shape, frozen=("model.embed_tokens",)).head < 0.7 * free.head


def test_no_audio_no_encoder():
    flops = step_flops(get_config("tiny"), rows=1, length=64, windows=0)
    assert flops.encoder == flops.adaptor == 0 < flops.decoder


@pytest.mark.parametrize("wrong", [{"rows": 0}, {"length": 0}, {"windows": -1}])
def test_nothing_to_count(wrong):
    with pytest.raises(UserError, match="nothing to count"):
        step_flops(get_config("tiny"), **({"rows": 1, "length": 8, "windows": 2} | wrong))
