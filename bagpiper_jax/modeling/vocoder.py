"""From mel magnitudes to a waveform, block by block, in JAX: mel inversion, then phases.

Phases are found as in RTISI-LA, by iterations on a window of frames that moves a block at a time:
what leaves it is final, what follows is fitted to it (Zhu, Beauregard and Wyse, "Real-time signal
estimation from modified short-time Fourier transform magnitude spectra", 2007). The iterations are
those of fast Griffin-Lim (Perraudin, Balazs and Søndergaard, "A fast Griffin-Lim algorithm",
WASPAA 2013).
Multiplicative updates: Lee and Seung, "Algorithms for non-negative matrix factorization", 2001.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

BLOCK = 4  # frames that become final at once
LOOK_AHEAD = 6  # frames after them that are fitted along
ITERATIONS = 32
MOMENTUM = 0.99
INVERSION_STEPS = 15
HIGHEST = jax.lax.Precision.HIGHEST


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
    matmul = partial(jnp.matmul, precision=HIGHEST)
    target = matmul(mel_TxM, filters_FxM.T)

    def step(_, magnitude):
        found = matmul(matmul(magnitude, filters_FxM), filters_FxM.T)
        return magnitude * target / (found + 1e-12)

    return jax.lax.fori_loop(0, INVERSION_STEPS, step, target)


class _State(NamedTuple):
    """What one block leaves to the next: R samples of final frames, A = LOOK_AHEAD open frames."""

    sound_R: jax.Array  # final windowed segments, summed, where they reach into open frames
    weight_R: jax.Array  # their squared windows, summed
    guess_AxF: jax.Array  # complex spectra
    magnitude_AxF: jax.Array
    valid_A: jax.Array  # whether the clip has this frame


@partial(jax.jit, static_argnames=("n_fft", "hop"))
def _step(state: _State, mel_BxM, valid_B, filters_FxM, *, n_fft: int, hop: int):
    """Takes BLOCK more frames in; gives the state and the BLOCK * hop samples that became final."""
    window = jnp.asarray(0.5 - 0.5 * np.cos(2.0 * np.pi * np.arange(n_fft) / n_fft), jnp.float32)
    entering = jnp.where(valid_B[:, None], invert_mel(mel_BxM, filters_FxM), 0.0)
    magnitude = jnp.concatenate([state.magnitude_AxF, entering])
    valid = jnp.concatenate([state.valid_A, valid_B])
    # Frames that the clip does not have count neither in the sum nor in its weight.
    squares = jnp.where(valid[:, None], jnp.square(window), 0.0)

    def add(final_R, segments):
        sums = _overlap_add(segments, hop)
        return sums + jnp.pad(final_R, (0, len(sums) - len(final_R)))

    weight = add(state.weight_R, squares)
    weight = jnp.where(weight > 1e-8, 1.0 / jnp.maximum(weight, 1e-8), 0.0)

    def segments(spectrum):
        return jnp.fft.irfft(spectrum, n_fft) * window

    def with_magnitude(spectrum):
        square = jnp.square(spectrum.real) + jnp.square(spectrum.imag)
        return magnitude * jax.lax.rsqrt(jnp.maximum(square, 1e-24)) * spectrum

    def iterate(_, carry):
        guess, previous = carry
        signal = add(state.sound_R, segments(with_magnitude(guess))) * weight
        rebuilt = jnp.fft.rfft(_frames(signal, n_fft, hop) * window)
        return rebuilt + MOMENTUM * (rebuilt - previous), rebuilt

    # Entering frames start as impulses in the middle of their windows. Impulses at the edges (zero
    # phase), random phases, or those of what older frames hold of them, all ended farther from the
    # original in Whisper's log-mel.
    impulse_F = (-1.0) ** jnp.arange(entering.shape[1])
    start = jnp.concatenate([state.guess_AxF, entering * impulse_F])
    guess, _ = jax.lax.fori_loop(0, ITERATIONS, iterate, (start, jnp.zeros_like(start)))

    final = segments(with_magnitude(guess)[:BLOCK])
    sound = add(state.sound_R, final)
    reach = len(sound) - BLOCK * hop
    state = _State(
        sound[-reach:],
        add(state.weight_R, squares[:BLOCK])[-reach:],
        guess[BLOCK:],
        magnitude[BLOCK:],
        valid[BLOCK:],
    )
    samples = (sound * weight[: len(sound)])[: BLOCK * hop]
    return state, jnp.clip(samples, -1.0, 1.0)


class Synthesis:
    """Synthesis of one clip whose mel magnitudes come BLOCK frames at a time; deterministic.

    Samples lag LOOK_AHEAD frames and (n_fft - hop) / 2 samples behind the magnitudes.
    """

    def __init__(self, filters: np.ndarray, *, n_fft: int, hop: int):
        """
        Args:
            filters: float32 [n_fft // 2 + 1, M] mel filters.
            n_fft: samples of a frame's Hann window.
            hop: samples; frame t is centred on sample hop * t + hop / 2.
        """
        self._sizes = {"n_fft": n_fft, "hop": hop}
        self._filters = jnp.asarray(filters)
        reach = (-(-n_fft // hop) - 1) * hop
        spectra = (LOOK_AHEAD, n_fft // 2 + 1)
        self._state = _State(
            jnp.zeros(reach),
            jnp.zeros(reach),
            jnp.zeros(spectra, jnp.complex64),
            jnp.zeros(spectra),
            jnp.zeros(LOOK_AHEAD, bool),
        )
        self._early = LOOK_AHEAD * hop + (n_fft - hop) // 2  # samples still to come before the clip

    def push(self, mel: np.ndarray) -> np.ndarray:
        """The next mel magnitudes (not log) → the samples in [-1, 1] that became final, float32.

        Args:
            mel: float32 [BLOCK, M]; [n, M] with n < BLOCK at the clip's end, [0, M] after it.
        """
        padded = np.zeros((BLOCK, mel.shape[1]), np.float32)
        padded[: len(mel)] = mel
        valid = np.arange(BLOCK) < len(mel)
        self._state, wav = _step(self._state, padded, valid, self._filters, **self._sizes)
        early = min(self._early, len(wav))
        self._early -= early
        return np.asarray(wav)[early:]
