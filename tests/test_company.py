"""What a clip gives does not depend on its company: the same alone, in any batch, at any padding.

Log-mel in JAX, encoder features, codec codes and waveforms, hidden states; drawn by hypothesis.
"""

import jax
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_xcodec import CONFIG as CODEC

from bagpiper_jax import log_mel as front_end
from bagpiper_jax.modeling.xcodec_model import XCodecModel
from bagpiper_jax.ops.log_mel import log_mel

several = settings(deadline=None, max_examples=12, derandomize=True)


def noise(samples, seed):
    return 0.2 * np.random.default_rng(seed).standard_normal(samples).astype(np.float32)


def lengths_of(low, high, count=3):
    return st.lists(st.integers(low, high), min_size=count, max_size=count)


@pytest.fixture(scope="module")
def mel():
    return jax.jit(log_mel, static_argnames="normalize")


@several
@given(lengths=lengths_of(201, 9_000), rooms=st.sampled_from([9_000, 12_345]), plain=st.booleans())
def test_log_mel(mel, lengths, rooms, plain):
    wav = np.stack([noise(rooms, seed) for seed in range(3)])  # past the end: not silence
    out = np.asarray(mel(wav, np.array(lengths), normalize=plain))
    assert out.shape == (3, rooms // 160, 128)
    for row, clip, length in zip(out, wav, lengths, strict=True):
        want = front_end.log_mel(clip[:length], normalize=plain)
        # single against double precision at the floor of a quiet bin
        np.testing.assert_allclose(row[: len(want)], want, atol=1e-4)
        assert not row[len(want) :].any()
        again = mel(np.stack([clip, *wav[:2]]), np.array([length, 500, 777]), normalize=plain)
        np.testing.assert_allclose(again[0], row, atol=1e-5)
        padded = np.pad(clip[:length], (0, 13_000 - length))[None]
        alone = np.asarray(mel(padded, np.array([length]), normalize=plain))[0]
        np.testing.assert_allclose(alone[: len(want)], row[: len(want)], atol=1e-5)


def test_the_floor_of_a_clip_is_its_own(mel):
    """Eight decades below its own loudest place, beside clips that are a thousand times as loud."""
    soft = np.concatenate([noise(3_000, 0), np.zeros(3_000, np.float32)])
    wav = np.stack([1e-3 * soft, noise(6_000, 1), noise(6_000, 2)])
    together = np.asarray(mel(wav, np.full(3, 6_000), normalize=False))[0]
    np.testing.assert_allclose(together, front_end.log_mel(wav[0], normalize=False), atol=1e-4)


@pytest.fixture(scope="module")
def encode(tiny_model):
    return nnx.jit(lambda mel, frames: tiny_model.audio_tower(mel, frames))


def windows_of(frames, room):
    """A clip's windows in `room` of them; past its end lies noise, not silence."""
    mel = np.random.default_rng(frames).standard_normal((8, 100, 128), dtype=np.float32)[:room]
    return mel, np.clip(frames - 100 * np.arange(room), 0, 100)


@several
@given(frames=lengths_of(1, 400), room=st.sampled_from([4, 8]))
def test_encoder(encode, frames, room):
    mels, counts = zip(*(windows_of(n, room) for n in frames), strict=True)
    mels = np.stack(mels)
    together = np.asarray(encode(mels, np.stack(counts)))
    for i, count in enumerate(counts):
        few = -(-int((count > 0).sum()) // 2) * 2  # the tiny model's blocks are of two windows
        alone = np.asarray(encode(mels[i : i + 1, :few], count[None, :few]))[0]
        valid = (np.arange(13) < front_end.num_tokens(count)[:, None]).reshape(-1)
        np.testing.assert_allclose(together[i][valid], alone[valid[: len(alone)]], atol=1e-5)


@pytest.fixture(scope="module")
def codec():
    model = XCodecModel(CODEC, rngs=nnx.Rngs(0))
    x = np.random.default_rng(0).standard_normal(model.quantizer.embed.shape)
    model.quantizer.embed[...] = 0.3 * x.astype(np.float32)
    graph, state = nnx.split(model)
    encode = jax.jit(lambda wav, n: nnx.merge(graph, state).encode(wav, n, 4))
    decode = jax.jit(lambda codes, n: nnx.merge(graph, state).decode(codes, n))
    return model, encode, decode


@several
@given(lengths=lengths_of(80, 6_400), room=st.sampled_from([6_400, 9_600]))
def test_codec(codec, lengths, room):
    model, encode, decode = codec
    wav = np.stack([noise(room, seed) for seed in range(3)])
    together = np.asarray(encode(wav, np.array(lengths)))
    frames = [model.semantic_length(n) for n in lengths]
    sound = np.asarray(decode(together, np.array(frames)))
    for i, (length, count) in enumerate(zip(lengths, frames, strict=True)):
        other = np.stack([wav[i], *wav[:2]])[:, :6_400]
        codes = np.asarray(encode(other, np.array([length, 80, 6_400])))
        np.testing.assert_array_equal(together[i, :count], codes[0, :count])
        heard = np.asarray(decode(codes, np.array([count, 1, 20])))[0, : count * 320]
        scale = np.abs(heard).max()
        np.testing.assert_allclose(sound[i, : len(heard)], heard, atol=1e-5 * scale)
        assert not sound[i, len(heard) :].any()


@several
@given(lengths=lengths_of(1, 20), front=st.integers(0, 12), order=st.permutations(range(3)))
def test_hidden_states(tiny_model, tiny_config, lengths, front, order):
    """Alone in a row, or packed behind others in any order."""
    rng = np.random.default_rng(sum(lengths))
    clips = [rng.integers(1, tiny_config.vocab.size, (n, 4)) for n in lengths]
    room = 80

    def hidden(parts, start):
        tokens = np.zeros((1, room, 4), int)
        segments, positions, places = np.zeros((1, room), int), np.zeros((1, room), int), {}
        for number, i in enumerate(parts, 1):
            span = slice(start, start + len(clips[i]))
            tokens[0, span], segments[0, span] = clips[i], number
            positions[0, span], places[i] = np.arange(len(clips[i])), span
            start = span.stop
        out = _decode(tiny_model, tokens, positions, segments)[0]
        return {i: out[span] for i, span in places.items()}

    packed = hidden(order, front)
    batch = np.zeros((3, room, 4), int)
    for i, clip in enumerate(clips):
        batch[i, : len(clip)] = clip
    segments = (np.arange(room) < np.array(lengths)[:, None]).astype(int)
    together = _decode(tiny_model, batch, np.tile(np.arange(room), (3, 1)), segments)
    for i in range(3):
        alone = hidden([i], 0)[i]
        np.testing.assert_allclose(packed[i], alone, atol=1e-5)
        np.testing.assert_allclose(together[i, : len(alone)], alone, atol=1e-5)


@nnx.jit
def _run(model, tokens, positions, segments):
    return model.decode(model.embed(tokens), positions, segments)


def _decode(*args):
    return np.asarray(_run(*args))
