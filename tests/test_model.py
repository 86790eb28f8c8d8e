"""The model's parts: shapes, embedding rules, cached decoding, the encoder's windows and blocks."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from bagpiper_jax.conversation import Message
from bagpiper_jax.inference.served_model import ServedModel
from bagpiper_jax.input_pipeline.batch import Batch, build_batch
from bagpiper_jax.log_mel import NUM_MELS, MelWindows, num_tokens
from bagpiper_jax.modeling.bagpiper import Bagpiper
from bagpiper_jax.modeling.config import get_config
from bagpiper_jax.modeling.qwen3 import LayerCache
from bagpiper_jax.ops.attention import attention, causal_attention, segment_mask

HIDDEN, STREAMS = 32, 4  # of the tiny model; its encoder blocks are of two windows


def random_tokens(config, shape, seed=0):
    return np.random.default_rng(seed).integers(1, config.vocab.size, (*shape, STREAMS))


def random_mel(shape, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((*shape, 100, NUM_MELS), dtype=np.float32)


@pytest.fixture(scope="module")
def make_batch(tiny_config, small_tokenizer):
    clip = MelWindows(random_mel([2]), np.array([100, 33], np.int32))
    codes = np.random.default_rng(0).integers(0, 16, (7, STREAMS))
    conversations = [
        [Message("user", "audio", clip), Message("assistant", "text", "rain")],
        [Message("user", "text", "a gong"), Message("assistant", "audio", codes)],
    ]
    return lambda **sizes: build_batch(conversations, tiny_config, small_tokenizer, **sizes)


@pytest.fixture(scope="module")
def batch(make_batch):
    return make_batch(length=50)


@pytest.fixture(scope="module")
def loss(tiny_model):
    return jax.jit(tiny_model.loss)


@pytest.fixture(scope="module")
def loss_and_gradients(tiny_model):
    """batch → ((loss, metrics), gradients)."""
    run = nnx.jit(nnx.value_and_grad(lambda model, batch: model.loss(batch), has_aux=True))
    return lambda batch: run(tiny_model, batch)


@pytest.fixture(scope="module")
def encode(tiny_model):
    return jax.jit(tiny_model.audio_tower.__call__)


@pytest.fixture(scope="module")
def decode(tiny_model):
    return jax.jit(tiny_model.decode)


def test_published_sizes():
    """Parameters of the 8B model, from the published tensors: decoder 8,260,006,912, encoder
    647,927,168, adaptor, stream embeddings; the two tables here have 120 rows more."""
    config = get_config("bagpiper_8b")
    model = nnx.eval_shape(lambda: Bagpiper(config, rngs=nnx.Rngs(0)))
    assert model.model.embed_tokens.shape == model.lm_head.shape == (160_512, 4096)

    def count(part):
        return sum(math.prod(x.shape) for x in jax.tree.leaves(nnx.state(part, nnx.Param)))

    assert count(model.model) + 160_512 * 4096 == 8_260_006_912 + 2 * 120 * 4096
    assert count(model.audio_tower) == 647_927_168
    assert count(model.adaptor) == 2048 * 4096 + 4096
    assert model.stream_emb.shape == (8, 4096)


def test_shapes(tiny_model, tiny_config, batch):
    rows, windows = batch.mel_frames.shape

    @jax.eval_shape
    def shapes():
        features = tiny_model.encode_audio(batch.mel, batch.mel_frames)
        x = tiny_model.embed(batch.tokens, batch.audio_index, features)
        hidden = tiny_model.decode(x, batch.positions, batch.segment_ids)
        return features, x, hidden, *tiny_model.logits(hidden)

    size = tiny_config.vocab.size
    assert [x.shape for x in shapes] == [
        (rows, windows * 13, HIDDEN),
        (rows, 50, HIDDEN),
        (rows, 50, HIDDEN),
        (rows, 50, size),
        (STREAMS, size),
    ]
    some, _ = jax.eval_shape(lambda: tiny_model.logits(np.zeros(HIDDEN, np.float32), 256, 300))
    assert some.shape == (44,)


def test_loss_is_finite_and_reaches_every_part(batch, loss_and_gradients):
    (value, metrics), grads = loss_and_gradients(batch)
    assert value.shape == () and np.isfinite(value) and value > 0
    counts = batch.loss_mask.sum((0, 1))
    assert metrics["targets"].tolist() == counts.tolist()
    per_stream = {k: m for k, m in metrics.items() if not k.startswith("kind_")}
    assert all(np.isfinite(m).all() and m.shape == (STREAMS,) for m in per_stream.values())
    for path, grad in nnx.to_flat_state(nnx.state(grads, nnx.Param)):
        if path[-2:] != ("k_proj", "bias"):  # a constant on all scores of a softmax
            assert np.isfinite(grad[...]).all() and np.asarray(grad[...]).any(), path


def test_logits_of_a_stream(tiny_model):
    """lm_head · (h + stream_emb[k]); stream 0 uses h itself."""
    hidden = np.random.default_rng(0).standard_normal((5, HIDDEN), dtype=np.float32)
    shared, offsets = tiny_model.logits(hidden)
    head = np.asarray(tiny_model.head)[: shared.shape[-1]]
    np.testing.assert_allclose(shared, hidden @ head.T, atol=1e-5)
    assert not np.asarray(offsets[0]).any() and np.asarray(tiny_model.stream_emb[0]).any()
    for k in range(1, STREAMS):
        expected = (hidden + np.asarray(tiny_model.stream_emb[k])) @ head.T
        np.testing.assert_allclose(shared + offsets[k], expected, atol=1e-5)


def test_embedding_is_the_sum_of_the_streams(tiny_model):
    table = np.asarray(tiny_model.model.embed_tokens)
    tokens = np.array([[[5, 600, 617, 640], [300, 0, 617, 0], [0, 0, 0, 0]]])
    x = tiny_model.embed(tokens)[0]
    rows = [table[[5, 600, 617, 640]].sum(0), table[300] + table[617], table[0]]
    np.testing.assert_allclose(x, rows, atol=1e-6)
    assert table[0].any()  # id 0 counts in stream 0


def test_row_zero_gets_no_gradient(tiny_model):
    tokens = np.array([[[0, 0, 0, 0], [0, 600, 0, 617], [256, 0, 0, 0]]])
    grads = nnx.grad(lambda m: m.embed(tokens).sum())(tiny_model)
    table = np.asarray(grads.model.embed_tokens)
    assert not table[0].any()
    assert sorted(np.flatnonzero(table.any(1))) == [256, 600, 617]
    assert (table[[256, 600, 617]] == 1.0).all()


def test_features_take_the_rows_of_the_clip(tiny_model):
    tokens = np.full((2, 6, STREAMS), 300)
    features = np.random.default_rng(0).standard_normal((2, 26, HIDDEN), dtype=np.float32)
    index = np.array([[-1, 0, 1, 13, -1, -1], [-1, -1, 25, 4, 4, -1]])
    x = np.asarray(tiny_model.embed(tokens, index, features))
    plain = np.asarray(tiny_model.embed(tokens))
    for b in range(2):
        for t in range(6):
            expected = plain[b, t] if index[b, t] < 0 else features[b, index[b, t]]
            np.testing.assert_array_equal(x[b, t], expected)


@pytest.mark.parametrize("empty", [("loss_mask",), Batch._fields])
def test_loss_without_targets(batch, loss_and_gradients, empty):
    """Nothing to learn from, or nothing but padding."""
    nothing = batch._replace(**{name: np.zeros_like(getattr(batch, name)) for name in empty})
    (value, _), grads = loss_and_gradients(nothing)
    assert value == 0.0
    assert not any(np.asarray(g).any() for g in jax.tree.leaves(nnx.state(grads, nnx.Param)))


def test_padding_changes_nothing(batch, make_batch, loss):
    longer = make_batch(length=64, windows=4)
    np.testing.assert_allclose(loss(longer)[0], loss(batch)[0], rtol=1e-6)


def test_bfloat16_is_near_float32(tiny_config, make_model, batch, loss):
    value, _ = jax.jit(make_model(tiny_config, dtype=jnp.bfloat16).loss)(batch)
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, loss(batch)[0], rtol=0.02)


def test_tied_tables(tiny_config, make_model):
    decoder = dataclasses.replace(tiny_config.decoder, tie_word_embeddings=True)
    model = make_model(dataclasses.replace(tiny_config, decoder=decoder))
    assert not hasattr(model, "lm_head")
    np.testing.assert_array_equal(model.head, model.model.embed_tokens[...])


def test_cached_decoding_equals_uncached(tiny_model, tiny_config, decode):
    """Sequences of several lengths in one cache, in pieces of any size, padded on the right."""
    served = ServedModel(tiny_model)
    extend = jax.jit(served.extend)
    lengths, slots = np.array([40, 31, 19]), 48
    tokens = random_tokens(tiny_config, (3, slots))
    start = tiny_config.vocab.codec_start
    tokens[..., 1:] = np.where(tokens[..., 1:] < start, 0, tokens[..., 1:])
    np.testing.assert_allclose(served.embed(tokens), tiny_model.embed(tokens), atol=1e-7)
    x = tiny_model.embed(tokens)
    caches = [LayerCache.empty(tiny_config.decoder, 3, slots, x.dtype) for _ in served.layers]
    whole = np.asarray(decode(x, np.tile(np.arange(slots), (3, 1)), np.ones((3, slots), np.int32)))
    starts = np.zeros(3, np.int32)
    for piece in (13, 1, 1, 16):  # of those, each sequence takes what it still has
        counts = np.minimum(lengths - starts, piece)
        places = np.minimum(starts[:, None] + np.arange(piece), slots - 1)
        hidden, caches = extend(np.take_along_axis(x, places[..., None], 1), caches, starts)
        for row, (start, count) in enumerate(zip(starts, counts, strict=True)):
            want = whole[row, start : start + count]
            np.testing.assert_allclose(hidden[row, :count], want, atol=1e-5)
        starts = starts + counts
    assert starts.tolist() == [31, 31, 19]


def test_decoding_is_causal(tiny_model, tiny_config, decode):
    tokens = random_tokens(tiny_config, (1, 19))
    other = tokens.copy()
    other[0, 12] = 7
    positions, segments = np.arange(19)[None], np.ones((1, 19), np.int32)
    a, b = (
        np.asarray(decode(tiny_model.embed(t), positions, segments)[0]) for t in (tokens, other)
    )
    np.testing.assert_array_equal(a[:12], b[:12])
    assert (np.abs(a[12:] - b[12:]).max(1) > 1e-4).all()


def test_blocks_of_queries_are_the_full_square():
    rng = np.random.default_rng(0)
    q = rng.standard_normal((2, 50, 6, 8), dtype=np.float32)
    k, v = rng.standard_normal((2, 2, 50, 3, 8), dtype=np.float32)
    segments = np.repeat([[1, 2, 0], [1, 1, 2]], [20, 23, 7], axis=1)
    slots = np.arange(50)
    full = np.asarray(attention(q, k, v, segment_mask(segments, segments, slots, slots)))
    assert np.isfinite(full).all()  # padding included
    blocked = jax.jit(causal_attention, static_argnames="block")
    for block in (16, 25, 64):
        out = np.asarray(blocked(q, k, v, segments, block=block))
        np.testing.assert_allclose(out[segments > 0], full[segments > 0], atol=1e-6)


FRAMES = np.array([[100, 100, 100, 70], [100, 9, 0, 0], [100, 100, 0, 0], [40, 0, 0, 0]])


def valid_tokens(frames):
    return (np.arange(13) < num_tokens(frames)[..., None]).reshape(*frames.shape[:-1], -1)


def test_a_batch_of_clips_is_each_clip(encode):
    mel = random_mel(FRAMES.shape)
    together = np.asarray(encode(mel, FRAMES))
    for i, valid in enumerate(valid_tokens(FRAMES)):
        alone = np.asarray(encode(mel[i : i + 1], FRAMES[i : i + 1]))[0]
        np.testing.assert_allclose(together[i][valid], alone[valid], atol=1e-5)


def test_blocks_are_encoded_apart(encode):
    """Four windows, blocks of two: the halves of the clip do not attend to each other."""
    mel, frames = random_mel([1, 4]), FRAMES[:1]
    valid = valid_tokens(frames)[0]
    whole = np.asarray(encode(mel, frames))[0]
    halves = np.asarray(encode(mel.reshape(2, 2, 100, NUM_MELS), frames.reshape(2, 2)))
    np.testing.assert_allclose(whole[valid], halves.reshape(whole.shape)[valid], atol=1e-5)
    mel[0, 0] += 1.0
    other = np.asarray(encode(mel, frames))[0]
    assert (np.abs(other[:26] - whole[:26]).max(1) > 1e-5).all()
    np.testing.assert_array_equal(other[26:], whole[26:])


def test_only_whole_blocks(tiny_model):
    with pytest.raises(ValueError, match="3 windows are not a multiple of the encoder block 2"):
        tiny_model.audio_tower(random_mel([1, 3]), np.full((1, 3), 100))
