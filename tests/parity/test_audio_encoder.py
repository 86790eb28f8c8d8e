"""The audio tower against `Qwen3OmniMoeAudioEncoder` of transformers ≥ 5.23 (blocked attention)."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx

from bagpiper_jax.log_mel import num_tokens
from bagpiper_jax.modeling.audio_encoder import AudioEncoder
from bagpiper_jax.modeling.config import AudioEncoderConfig

pytestmark = pytest.mark.slow

CONFIG = AudioEncoderConfig(
    d_model=32,
    encoder_layers=2,
    encoder_attention_heads=4,
    encoder_ffn_dim=48,
    output_dim=40,
    downsample_hidden_size=8,
    n_window_infer=200,  # blocks of two windows
)


# the blocks of the published model: eight windows
MEDIUM = AudioEncoderConfig(
    d_model=96,
    encoder_layers=4,
    encoder_attention_heads=6,
    encoder_ffn_dim=256,
    output_dim=64,
    downsample_hidden_size=24,
)


@pytest.fixture(
    scope="module",
    params=[(CONFIG, 0), (CONFIG, 1), (MEDIUM, 2)],
    ids=["small-0", "small-1", "medium-2"],
)
def pair(request):
    shapes, seed = request.param
    from transformers.models.qwen3_omni_moe import modeling_qwen3_omni_moe as qwen3_omni
    from transformers.models.qwen3_omni_moe.configuration_qwen3_omni_moe import (
        Qwen3OmniMoeAudioEncoderConfig,
    )

    from .weights import copy_weights, randomise

    config = Qwen3OmniMoeAudioEncoderConfig(
        **dataclasses.asdict(shapes), attn_implementation="eager"
    )
    original = randomise(qwen3_omni.Qwen3OmniMoeAudioEncoder(config), seed=seed)
    encoder = AudioEncoder(shapes, rngs=nnx.Rngs(0))
    copy_weights(encoder, original)
    return original, encoder


def mel_of(frames, seed=0):
    return np.random.default_rng(seed).standard_normal((frames, 128), dtype=np.float32)


def run_original(original, *mels):
    """Clips encoded in one call of the original → features of each."""
    import torch

    features = torch.tensor(np.concatenate(mels).T)
    lengths = torch.tensor([len(mel) for mel in mels])
    with torch.no_grad():
        out = original(features, feature_lens=lengths).last_hidden_state.numpy()
    counts = [len(m) // 100 * 13 + int(num_tokens(len(m) % 100)) for m in mels]
    assert len(out) == sum(counts)
    return np.split(out, np.cumsum(counts)[:-1])


@nnx.jit
def run(encoder, mel, frames):
    return encoder(mel, frames)


def run_here(encoder, mel):
    windows = -(-len(mel) // 100)
    block = encoder.config.block_windows
    windows = -(-windows // block) * block
    padded = np.zeros((windows * 100, 128), np.float32)
    padded[: len(mel)] = mel
    frames = np.clip(len(mel) - 100 * np.arange(windows), 0, 100)
    with jax.default_matmul_precision("highest"):
        out = run(encoder, padded.reshape(1, windows, 100, 128), frames[None])[0]
    valid = np.arange(13) < num_tokens(frames)[:, None]
    return np.asarray(out)[valid.reshape(-1)]


def close(actual, expected):
    np.testing.assert_allclose(actual, expected, atol=2e-5 * np.abs(expected).max(), rtol=0)


# around every edge: one frame, a stride, a window, a block of two, the published block, the longest
LENGTHS = (
    *(1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 50, 57, 63, 64, 65, 92, 98, 99),
    *(100, 101, 102, 107, 108, 109, 150, 199, 200, 201, 208, 250, 299, 300, 301, 399, 400, 401),
    *(799, 800, 801, 1234, 1601, 2999, 3000),
)


@pytest.fixture(scope="module")
def whole_window(pair):
    return mel_of(100, seed=1)


@pytest.mark.parametrize("frames", LENGTHS)
def test_features(pair, whole_window, frames):
    """The original pads the windows of a call to the longest of them. A clip shorter than a window
    is therefore given company: beside a whole window it has the features that it always has here.
    """
    original, encoder = pair
    mel = mel_of(frames)
    company = (whole_window,) if frames < 100 else ()
    close(run_here(encoder, mel), run_original(original, mel, *company)[0])


@pytest.mark.parametrize("frames", [8, 56, 96])
def test_short_clip_alone(pair, frames):
    """Of whole strides: no convolution looks past the end, so that company makes no difference."""
    original, encoder = pair
    mel = mel_of(frames)
    close(run_here(encoder, mel), run_original(original, mel)[0])


@pytest.mark.parametrize("frames", [9, 57, 91])
def test_ragged_short_clip_alone(pair, frames):
    """The known difference: alone, the original does not pad such a clip. Its convolutions then end
    in zeros, not in what they make of silence, so the last place differs, and through attention the
    others a little. In a packed batch, as in training, the original agrees with the encoder here.
    """
    original, encoder = pair
    mel = mel_of(frames)
    alone, here = run_original(original, mel)[0], run_here(encoder, mel)
    error = np.linalg.norm(here - alone, axis=1) / np.linalg.norm(alone, axis=1)
    assert error.argmax() == len(error) - 1 and 1e-3 < error[-1] < 0.2
