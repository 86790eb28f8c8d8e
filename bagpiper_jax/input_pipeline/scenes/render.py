"""Renders a planned scene to samples."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from scipy import fft

from bagpiper_jax.input_pipeline.scenes.corpus import SAMPLE_RATE, Corpus
from bagpiper_jax.input_pipeline.scenes.scene import REVERB, Scene, generator

ROOM_VARIANTS = 8  # of each kind of room
KNEE = 0.8  # the soft limit leaves samples below it alone
BED_FADE = SAMPLE_RATE // 2


def render_scene(corpus: Corpus, scene: Scene) -> np.ndarray:
    """The scene's audio: float32 [scene.num_samples], 16 kHz, within ±1."""
    rng = generator("render", scene.key)
    mix = np.zeros(scene.num_samples, np.float32)
    for event in scene.events:
        gain = np.float32(10 ** (event.gain_db / 20) / 32768)
        ramp = _ramp(event.fade)
        for part in event.parts:
            wav = corpus.audio[part.clip][part.start : part.start + part.length] * gain
            if part.length >= 2 * event.fade:
                # A sound keeps its attack: only its end takes the whole fade.
                rise = ramp if event.voice else _ramp(80)
                wav[: len(rise)] *= rise
                wav[-event.fade :] *= ramp[::-1]
            mix[part.onset : part.onset + part.length] += wav
    if scene.room in REVERB:
        mix = _reverberate(mix, scene.room, int(rng.integers(ROOM_VARIANTS)))
    if scene.bed:
        mix += _bed(corpus, scene)
    hiss = rng.standard_normal(scene.num_samples, dtype=np.float32)
    mix += hiss * np.float32(10 ** (scene.noise_db / 20))
    over = np.flatnonzero(np.abs(mix) > KNEE)
    if len(over):
        loud = mix[over]
        bent = KNEE + (1 - KNEE) * np.tanh((np.abs(loud) - KNEE) / (1 - KNEE))
        mix[over] = np.sign(loud) * bent
    return mix


@lru_cache(maxsize=1024)
def _ramp(length: int) -> np.ndarray:
    return np.linspace(0, 1, length, endpoint=False, dtype=np.float32)


def _bed(corpus: Corpus, scene: Scene) -> np.ndarray:
    clip, count = corpus.audio[scene.bed.clip], scene.num_samples
    wav = clip[scene.bed.start : scene.bed.start + count]
    if len(wav) < count:
        wav = np.resize(clip, count)
    wav = wav * np.float32(10 ** (scene.bed.gain_db / 20) / 32768)
    ramp = _ramp(min(BED_FADE, count // 4))
    wav[: len(ramp)] *= ramp
    wav[-len(ramp) :] *= ramp[::-1]
    return wav


@lru_cache(maxsize=64)
def _room(room: str, variant: int) -> np.ndarray:
    """Impulse response of the reverberation alone: decaying noise of a set energy, float32."""
    seconds, level_db, _ = REVERB[room]
    rng = generator("room", room, variant)
    seconds *= rng.uniform(0.85, 1.15)
    time = np.arange(int(seconds * 0.75 * SAMPLE_RATE)) / SAMPLE_RATE
    noise = rng.standard_normal(len(time)) * 10 ** (-3 * time / seconds)
    noise[: int(0.004 * SAMPLE_RATE * rng.uniform(0.5, 2))] = 0  # before the first reflection
    noise = noise + np.roll(noise, 1)  # walls swallow the treble
    noise *= 10 ** (level_db / 20) / np.sqrt(np.sum(noise**2))
    return noise.astype(np.float32)


def _reverberate(wav: np.ndarray, room: str, variant: int) -> np.ndarray:
    response = _room(room, variant)
    size = fft.next_fast_len(len(wav) + len(response) - 1, real=True)
    spectrum = fft.rfft(wav, size) * fft.rfft(response, size)
    return wav + fft.irfft(spectrum, size)[: len(wav)]
