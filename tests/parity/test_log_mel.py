"""The NumPy log-mel front end against `WhisperFeatureExtractor` of transformers.

`python tests/parity/test_log_mel.py` writes tests/data/log_mel.npz anew.
"""

from pathlib import Path

import numpy as np
import pytest

from bagpiper_jax.log_mel import log_mel

GOLDEN = Path(__file__).parents[1] / "data" / "log_mel.npz"
LENGTHS = (400, 1999, 6543)

pytestmark = pytest.mark.slow


def make_clip(samples, seed=0):
    """A gliding, fading tone over noise and an offset, int16 [S]."""
    rng = np.random.default_rng(seed)
    time = np.arange(samples) / 16_000
    wav = 0.5 * np.sin(2 * np.pi * (200 + 900 * time) * time) * np.exp(-time)
    wav += 0.02 * rng.standard_normal(samples) + 0.01
    return (wav * 32767).astype(np.int16)


def whisper(wav, normalize):
    """float [S] → float32 [S // 160, 128]."""
    from transformers import WhisperFeatureExtractor

    extractor = WhisperFeatureExtractor(feature_size=128)
    out = extractor(
        wav,
        sampling_rate=16_000,
        padding=True,  # to the longest clip, which is this one
        truncation=False,
        do_normalize=normalize,
        return_tensors="np",
    )
    return out["input_features"][0].T


def golden():
    clips = {f"wav{n}": make_clip(n, seed=n) for n in LENGTHS}
    mels = {f"mel{n}": whisper(clips[f"wav{n}"] / np.float32(32768), True) for n in LENGTHS}
    return {**clips, **mels}


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("samples", [400, 559, 560, 16_000, 16_001, 52_345, 480_000])
def test_same_as_whisper(samples, normalize):
    wav = make_clip(samples, seed=samples) / np.float32(32768)
    expected = whisper(wav, normalize)
    mel = log_mel(wav, normalize=normalize)
    assert mel.shape == expected.shape == (samples // 160, 128)
    np.testing.assert_allclose(mel, expected, atol=1e-4)


@pytest.mark.parametrize("wav", [np.zeros(3200, np.float32), np.ones(3200, np.float32)])
def test_silence_and_a_constant(wav):
    np.testing.assert_allclose(log_mel(wav), whisper(wav, True), atol=1e-4)


def test_golden_file_is_what_transformers_gives():
    with np.load(GOLDEN) as stored:
        for name, value in golden().items():
            np.testing.assert_allclose(stored[name], value, atol=1e-5, err_msg=name)


if __name__ == "__main__":
    np.savez_compressed(GOLDEN, **golden())
