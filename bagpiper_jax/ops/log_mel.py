"""The log-mel front end in JAX, for clips that are on the device already; see `log_mel`.

The input pipeline computes it in NumPy. This one takes batches of padded clips; what lies past the
end of a clip never reaches its values.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from bagpiper_jax.log_mel import HOP, N_FFT, mel_filters, window

_HIGHEST = jax.lax.Precision.HIGHEST


def log_mel(wav: jax.Array, lengths: jax.Array, *, normalize: bool = True) -> jax.Array:
    """Log-mel spectrograms of a batch.

    Args:
      wav: float32 [B, S], mono at 16 kHz.
      lengths: int [B], valid samples of each clip, at least 201.
      normalize: zero mean and unit variance over each clip first, as the reference does.

    Returns:
      float32 [B, S // 160, 128]; zero past the `lengths // 160` frames of a clip.
    """
    size = wav.shape[1]
    lengths = lengths[:, None]
    valid = jnp.arange(size) < lengths
    wav = jnp.where(valid, wav, 0.0)
    if normalize:
        mean = wav.sum(1, keepdims=True) / lengths
        centred = jnp.where(valid, wav - mean, 0.0)
        variance = (centred * centred).sum(1, keepdims=True) / lengths
        wav = centred / jnp.sqrt(variance + 1e-7)
    # each clip is reflected at its own end
    frames = size // HOP
    places = jnp.abs(jnp.arange(frames)[:, None] * HOP + jnp.arange(N_FFT) - N_FFT // 2)
    last = lengths[:, :, None] - 1
    places = jnp.where(places > last, 2 * last - places, places)
    places = jnp.clip(places, 0, size - 1)  # of frames past the end, whatever
    segments = jnp.take_along_axis(wav, places.reshape(len(wav), -1), axis=1)
    segments = segments.reshape(len(wav), frames, N_FFT) * window()
    spectrum = jnp.fft.rfft(segments)
    power = spectrum.real**2 + spectrum.imag**2
    mel = jnp.matmul(power, mel_filters(), precision=_HIGHEST)
    log = jnp.log10(jnp.maximum(mel, 1e-10))
    there = (jnp.arange(frames) < lengths // HOP)[..., None]
    top = jnp.where(there, log, -jnp.inf).max((1, 2), keepdims=True)
    log = jnp.maximum(log, top - 8.0)
    return jnp.where(there, (log + 4.0) / 4.0, 0.0)
