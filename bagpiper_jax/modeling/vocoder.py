"""From mel magnitudes to a waveform in JAX: non-negative mel inversion, then fast Griffin-Lim.

Fast Griffin-Lim: Perraudin, Balazs and Søndergaard, "A fast Griffin-Lim algorithm", WASPAA 2013.
Multiplicative updates: Lee and Seung, "Algorithms for non-negative matrix factorization", 2001.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

ITERATIONS = 48
MOMENTUM = 0.99
INVERSION_STEPS = 30
HIGHEST = jax.lax.Precision.HIGHEST


def bucket(frames: int) -> int:
    """Length to pad to: 64, 96, 128, 192, 256, … so that few programs serve all lengths."""
    size = 64
    while size < frames:
        if 3 * size // 2 >= frames:
            return 3 * size // 2
        size *= 2
    return size


def _overlap_add(segments_TxN: jax.Array, hop: int) -> jax.Array:
    """[T, N] → [(T + ceil(N / hop) - 1) * hop], segment t added at sample t * hop."""
    frames, size = segments_TxN.shape
    parts = -(-size // hop)
    blocks = jnp.pad(segments_TxN, ((0, 0), (0, parts * hop - size)))
    blocks = blocks.reshape(frames, parts, hop)
    shifted = [jnp.pad(blocks[:, j], ((j, parts - 1 - j), (0, 0))) for j in range(parts)]
    return sum(shifted).reshape(-1)


def _frames(signal: jax.Array, size: int, hop: int) -> jax.Array:
    """The segments that `_overlap_add` adds up: [L] → [T, N]."""
    parts = -(-size // hop)
    blocks = signal.reshape(-1, hop)
    frames = blocks.shape[0] - parts + 1
    return jnp.concatenate([blocks[j : j + frames] for j in range(parts)], axis=1)[:, :size]


def invert_mel(mel_TxM: jax.Array, filters_FxM: jax.Array) -> jax.Array:
    """Non-negative least squares for magnitudes [T, F] with magnitudes @ filters ≈ mel."""
    target = jnp.matmul(mel_TxM, filters_FxM.T, precision=HIGHEST)
    gram = jnp.matmul(filters_FxM, filters_FxM.T, precision=HIGHEST)

    def step(_, magnitude):
        return magnitude * target / (jnp.matmul(magnitude, gram, precision=HIGHEST) + 1e-12)

    return jax.lax.fori_loop(0, INVERSION_STEPS, step, target)


@partial(jax.jit, static_argnames=("n_fft", "hop"))
def _synthesize(mel_TxM, frames, filters_FxM, *, n_fft: int, hop: int):
    window = jnp.asarray(0.5 - 0.5 * np.cos(2.0 * np.pi * np.arange(n_fft) / n_fft), jnp.float32)
    valid_T = (jnp.arange(mel_TxM.shape[0]) < frames)[:, None]
    magnitude = jnp.where(valid_T, invert_mel(mel_TxM, filters_FxM), 0.0)
    # Padding frames count neither in the sum nor in its weight, so a clip sounds the same in any
    # bucket.
    weight = _overlap_add(jnp.where(valid_T, jnp.square(window), 0.0), hop)
    weight = jnp.where(weight > 1e-8, 1.0 / jnp.maximum(weight, 1e-8), 0.0)

    def inverse(spectrum):
        return _overlap_add(jnp.fft.irfft(spectrum, n_fft) * window, hop) * weight

    def forward(signal):
        return jnp.fft.rfft(_frames(signal, n_fft, hop) * window)

    def with_magnitude(spectrum):
        return magnitude * spectrum / jnp.maximum(jnp.abs(spectrum), 1e-12)

    def step(_, state):
        guess, previous = state
        rebuilt = forward(inverse(with_magnitude(guess)))
        return rebuilt + MOMENTUM * (rebuilt - previous), rebuilt

    # Zero initial phase: a peak tracker or random phases ended at the same ViSQOL.
    start = magnitude.astype(jnp.complex64)
    guess, _ = jax.lax.fori_loop(0, ITERATIONS, step, (start, jnp.zeros_like(start)))
    signal = inverse(with_magnitude(guess))
    wanted = jnp.sum(jnp.where(valid_T, jnp.square(mel_TxM), 0.0))
    got = jnp.matmul(
        jnp.where(valid_T, jnp.abs(forward(signal)), 0.0), filters_FxM, precision=HIGHEST
    )
    level = jnp.sqrt(wanted / jnp.maximum(jnp.sum(jnp.square(got)), 1e-12))
    left = (n_fft - hop) // 2
    signal = level * signal[left : left + mel_TxM.shape[0] * hop]
    return jnp.clip(signal, -1.0, 1.0)


def synthesize(mel: np.ndarray, filters: np.ndarray, *, n_fft: int, hop: int) -> np.ndarray:
    """Waveform whose mel magnitudes are as given; deterministic.

    Args:
        mel: float32 [T, M] mel magnitudes (not log), frame t centred on sample hop * t + hop / 2.
        filters: float32 [n_fft // 2 + 1, M] mel filters.

    Returns:
        float32 [T * hop] in [-1, 1].
    """
    frames = len(mel)
    if frames == 0:
        return np.zeros(0, np.float32)
    padded = np.pad(mel.astype(np.float32), ((0, bucket(frames) - frames), (0, 0)))
    wav = _synthesize(padded, np.int32(frames), filters, n_fft=n_fft, hop=hop)
    return np.asarray(wav)[: frames * hop]
