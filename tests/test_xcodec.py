"""X-codec as a codec: any length, chunks without seams, independence of padding."""

import numpy as np
import pytest
from flax import nnx
from tiny_xcodec import CONFIG

from bagpiper_jax.errors import UserError
from bagpiper_jax.modeling.codec import Codec
from bagpiper_jax.modeling.xcodec import XCodec, decoder_reach
from bagpiper_jax.modeling.xcodec_model import XCodecConfig, XCodecModel


@pytest.fixture(scope="module")
def model():
    model = XCodecModel(CONFIG, rngs=nnx.Rngs(0))
    codec = XCodec(model, num_books=3)
    # books on the scale of what they quantise, so that all codes are in use
    x = np.random.default_rng(0).standard_normal(model.quantizer.embed.shape)
    model.quantizer.embed[...] = 0.3 * x.astype(np.float32)
    assert isinstance(codec, Codec)
    return model


def noise(samples, seed=0):
    return 0.2 * np.random.default_rng(seed).standard_normal(samples).astype(np.float32)


@pytest.mark.parametrize("samples", [1, 319, 320, 321, 16_000, 20_007])
def test_any_length(model, samples):
    codec = XCodec(model, num_books=2)
    codes = codec.encode(noise(samples))
    assert codes.shape == (-(-samples // 320), 2) and codes.dtype == np.int32
    assert codes.min() >= 0 and codes.max() < CONFIG.codebook_size
    wav = codec.decode(codes)
    assert wav.shape == (len(codes) * 320,) and wav.dtype == np.float32


def test_what_is_no_clip_is_told(model):
    codec = XCodec(model)
    for wav in (np.zeros(0, np.float32), np.zeros((2, 320), np.float32), np.full(320, np.nan)):
        with pytest.raises(UserError, match="needs a mono clip of finite samples"):
            codec.encode(wav)
    assert codec.decode(np.zeros((0, 8), int)).shape == (0,)


def test_decoding_in_chunks_has_no_seams(model):
    codes = np.random.default_rng(1).integers(0, CONFIG.codebook_size, (170, 3))
    whole = XCodec(model, num_books=3).decode(codes)
    for seconds in (0.5, 1.0):
        parts = XCodec(model, num_books=3, chunk_seconds=seconds).decode(codes)
        np.testing.assert_allclose(parts, whole, atol=1e-5 * np.abs(whole).max())


def test_a_smaller_reach_would_leave_seams(model, monkeypatch):
    """The reach is not larger than it need be."""
    from bagpiper_jax.modeling import xcodec

    reach = decoder_reach(CONFIG)
    assert reach == decoder_reach(XCodecConfig()) == 11
    codes = np.random.default_rng(1).integers(0, CONFIG.codebook_size, (170, 3))
    whole = XCodec(model, num_books=3).decode(codes)
    monkeypatch.setattr(xcodec, "decoder_reach", lambda config: reach - 4)
    parts = XCodec(model, num_books=3, chunk_seconds=1.0).decode(codes)
    assert np.abs(parts - whole).max() > 1e-4 * np.abs(whole).max()


def test_a_chunk_hears_its_surroundings_and_nothing_more(model):
    wav = noise(16_000 * 6)
    whole = XCodec(model, num_books=3).encode(wav)
    # all of the clip around each chunk: the codes are those of the whole
    parts = XCodec(model, num_books=3, chunk_seconds=2.0, context_seconds=6.0).encode(wav)
    np.testing.assert_array_equal(parts, whole)
    # one second on either side: the middle chunk is the middle of seconds 1 to 5
    parts = XCodec(model, num_books=3, chunk_seconds=2.0, context_seconds=1.0).encode(wav)
    alone = XCodec(model, num_books=3).encode(wav[16_000 : 5 * 16_000])
    np.testing.assert_array_equal(parts[100:200], alone[50:150])
