"""Whisper's log-mel front end in NumPy, cut into the audio encoder's windows.

Source: `WhisperFeatureExtractor` of `transformers` with 128 bins and `do_normalize=True`, which the
published Bagpiper uses for continuous audio (arXiv 2602.05220).
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

SAMPLE_RATE = 16_000
N_FFT = 400
HOP = 160
NUM_MELS = 128
WINDOW_FRAMES = 100  # one second; the encoder's convolutions see one window at a time
TOKENS_PER_WINDOW = 13


@dataclasses.dataclass(frozen=True)
class MelWindows:
    """Log-mel of one clip in windows of 100 frames; the last one may be shorter.

    Attributes:
      mel: float32 [W, 100, M], zero after the last valid frame.
      frames: int32 [W], valid frames of each window, at least 1.
    """

    mel: np.ndarray
    frames: np.ndarray

    @property
    def num_tokens(self) -> int:
        """Encoder tokens of the clip."""
        return int(num_tokens(self.frames).sum())


def num_tokens(frames):
    """Encoder tokens of windows with so many valid frames: three halvings, each rounded up."""
    for _ in range(3):
        frames = (frames + 1) // 2
    return frames


def clip_tokens(num_samples: int) -> int:
    """Encoder tokens of a clip at 16 kHz."""
    full, rest = divmod(num_samples // HOP, WINDOW_FRAMES)
    return full * TOKENS_PER_WINDOW + int(num_tokens(rest))


def num_windows(num_samples: int) -> int:
    """Windows of a clip at 16 kHz."""
    return -(-(num_samples // HOP) // WINDOW_FRAMES)


@functools.cache
def mel_filters() -> np.ndarray:
    """Whisper's mel filters, float32 [N_FFT // 2 + 1, 128]."""
    import librosa

    # computed in double precision, as transformers does, then cast
    mel = librosa.filters.mel(
        sr=SAMPLE_RATE, n_fft=N_FFT, n_mels=NUM_MELS, norm="slaney", htk=False, dtype=np.float64
    )
    return mel.T.astype(np.float32).copy()


@functools.cache
def _sparse_filters():
    from scipy import sparse

    return sparse.csr_array(mel_filters().T)


@functools.cache
def window() -> np.ndarray:
    """Periodic Hann window, float32 [N_FFT]."""
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(N_FFT) / N_FFT)
    return hann.astype(np.float32)


def log_mel(wav: np.ndarray, *, normalize: bool = True) -> np.ndarray:
    """Log-mel spectrogram.

    Args:
      wav: float [S], mono at 16 kHz.
      normalize: zero mean and unit variance over the clip first, as the reference does. The vLLM
        server of the published model does not.

    Returns:
      float32 [S // 160, 128].

    Raises:
      ValueError: fewer than 201 samples, too few for the reflected edges.
    """
    wav = np.asarray(wav, np.float32)
    if wav.ndim != 1 or len(wav) <= N_FFT // 2:
        raise ValueError(f"log-mel needs a mono clip of at least {N_FFT // 2 + 1} samples")
    if normalize:
        wav = (wav - wav.mean()) / np.sqrt(wav.var() + 1e-7)
    padded = np.pad(wav, N_FFT // 2, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(padded, N_FFT)[::HOP][: len(wav) // HOP]
    spectrum = np.fft.rfft(frames * window(), axis=-1)
    power = (spectrum.real**2 + spectrum.imag**2).astype(np.float32)
    # a sparse product: each filter spans few bins, and the sums do not depend on BLAS's threads
    mel = (_sparse_filters() @ power.T).T
    log = np.log10(np.maximum(mel, 1e-10))
    log = np.maximum(log, log.max() - 8.0)  # the floor belongs to the clip, never to a batch
    return ((log + 4.0) / 4.0).astype(np.float32)


def mel_windows(wav: np.ndarray, *, normalize: bool = True) -> MelWindows:
    """Log-mel of a clip, cut into windows; see `log_mel`."""
    mel = log_mel(wav, normalize=normalize)
    count = -(-len(mel) // WINDOW_FRAMES)
    padded = np.zeros((count * WINDOW_FRAMES, NUM_MELS), np.float32)
    padded[: len(mel)] = mel
    frames = np.full(count, WINDOW_FRAMES, np.int32)
    frames[-1] = len(mel) - (count - 1) * WINDOW_FRAMES
    return MelWindows(padded.reshape(count, WINDOW_FRAMES, NUM_MELS), frames)
