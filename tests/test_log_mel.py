"""Log-mel front end: values, lengths, normalisation, windows."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bagpiper_jax.log_mel import (
    NUM_MELS,
    clip_tokens,
    log_mel,
    mel_windows,
    num_tokens,
    num_windows,
)

GOLDEN = Path(__file__).parent / "data" / "log_mel.npz"


def noise(samples, seed=0):
    return 0.1 * np.random.default_rng(seed).standard_normal(samples).astype(np.float32)


@pytest.mark.parametrize("samples", [400, 1999, 6543])
def test_same_as_whisper(samples):
    """`WhisperFeatureExtractor`, transformers 5.23.0; see tests/parity/test_log_mel.py."""
    with np.load(GOLDEN) as stored:
        wav, expected = stored[f"wav{samples}"] / np.float32(32768), stored[f"mel{samples}"]
    mel = log_mel(wav)
    assert mel.dtype == np.float32 and mel.shape == (samples // 160, NUM_MELS)
    np.testing.assert_allclose(mel, expected, atol=1e-4)


def test_a_tone_lands_in_its_bin():
    time = np.arange(16_000) / 16_000
    low, high = (log_mel(np.sin(2 * np.pi * f * time)).mean(0).argmax() for f in (500, 4000))
    # Slaney scale: 0…8 kHz are 0…45.2 mel, linear up to 15 mel (1 kHz), logarithmic above
    mels = [500 * 3 / 200, 15 + np.log(4) / (np.log(6.4) / 27)]
    np.testing.assert_allclose([low, high], np.array(mels) / 45.245 * 129 - 1, atol=1.0)


def test_normalisation_removes_gain_and_offset():
    wav = noise(8000)
    plain = log_mel(wav)
    np.testing.assert_allclose(log_mel(0.3 * wav + 0.2), plain, atol=1e-3)
    unit = (wav - wav.mean()) / wav.std()
    np.testing.assert_allclose(log_mel(unit, normalize=False), plain, atol=1e-4)
    # ten times the amplitude is two decades of power, of which the scale takes a quarter
    louder = log_mel(10 * wav, normalize=False) - log_mel(wav, normalize=False)
    np.testing.assert_allclose(louder, 0.5, atol=1e-4)


def test_floor_is_eight_decades_below_the_loudest_of_the_clip():
    wav = np.concatenate([noise(8000), np.zeros(8000, np.float32)])
    mel = log_mel(wav, normalize=False)
    np.testing.assert_allclose(mel.max() - mel.min(), 2.0, atol=1e-6)
    softer = log_mel(0.01 * wav, normalize=False)
    assert softer.min() < mel.min()


def test_silence():
    np.testing.assert_allclose(log_mel(np.zeros(1600)), -1.5, atol=1e-6)


@pytest.mark.parametrize(
    "wav", [np.zeros(0), np.zeros(200), np.zeros((2, 400)), np.zeros((400, 1))]
)
def test_clips_that_it_refuses(wav):
    with pytest.raises(ValueError, match="mono clip of at least 201 samples"):
        log_mel(wav)


def test_shortest_clip():
    assert log_mel(noise(201)).shape == (1, NUM_MELS)
    windows = mel_windows(noise(201))
    assert windows.frames.tolist() == [1] and windows.num_tokens == 1


@given(st.integers(0, 100))
def test_tokens_of_a_window(frames):
    """Three convolutions of kernel 3, stride 2, padding 1."""
    length = frames
    for _ in range(3):
        length = (length - 1) // 2 + 1
    assert num_tokens(frames) == length


def test_tokens_by_hand():
    frames = np.array([0, 1, 8, 9, 16, 17, 96, 97, 100])
    assert num_tokens(frames).tolist() == [0, 1, 1, 2, 2, 3, 12, 13, 13]
    assert clip_tokens(480_000) == 390
    assert clip_tokens(16_000 + 9 * 160 + 159) == 15


@settings(max_examples=25)
@given(samples=st.integers(201, 60_000), seed=st.integers(0, 9))
def test_windows_hold_the_clip(samples, seed):
    wav = noise(samples, seed)
    mel, windows = log_mel(wav), mel_windows(wav)
    assert len(mel) == samples // 160 == windows.frames.sum()
    assert len(windows.frames) == num_windows(samples)
    assert windows.num_tokens == clip_tokens(samples)
    assert (windows.frames[:-1] == 100).all() and 1 <= windows.frames[-1] <= 100
    assert windows.frames.dtype == np.int32
    rows = windows.mel.reshape(-1, NUM_MELS)
    np.testing.assert_array_equal(rows[: len(mel)], mel)
    assert not rows[len(mel) :].any()
