"""Audio files and arrays → mono float32 at 16 kHz, and back; bad input is told in one line."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import stat
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from bagpiper_jax.errors import UserError
from bagpiper_jax.files import write_whole

SAMPLE_RATE = 16_000
MIN_SECONDS = 0.1
MAX_SECONDS = 30.0
_SILENCE = 1e-5  # −100 dB of full scale
_BLOCK = 2**20  # samples of all channels that are read at once


@contextlib.contextmanager
def open_sound(path: str | os.PathLike) -> Iterator:
    """A recording as a `soundfile.SoundFile`, by its contents and never by its ending.

    Raises:
      OSError: it cannot be read, or is no regular file; a pipe is not waited for.
      soundfile.LibsndfileError: it is no audio.
    """
    import soundfile

    flags = [getattr(os, name, 0) for name in ("O_NONBLOCK", "O_CLOEXEC", "O_BINARY")]
    file = os.open(path, os.O_RDONLY | sum(flags))
    try:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise OSError(errno.EINVAL, "it is no regular file")
        with soundfile.SoundFile(file, closefd=False) as sound:
            yield sound
    finally:
        os.close(file)


def load_audio(path: str | os.PathLike) -> np.ndarray:
    """Reads any file that libsndfile reads: first channel, resampled to 16 kHz.

    Args:
      path: WAV, FLAC, Ogg, MP3, AIFF, …; 0.1 to 30 seconds.

    Returns:
      float32 [S].

    Raises:
      UserError: missing, empty, corrupt, silent, too short or too long audio.
    """
    if not os.path.isfile(path):
        raise UserError(f"there is no audio file {path}")
    if os.path.getsize(path) == 0:
        raise UserError(f"{path} is empty: give a recording")
    return _read(lambda: open_sound(path), str(path))


def decode_audio(data: bytes, name: str = "the clip") -> np.ndarray:
    """`load_audio` of a file's bytes.

    Raises:
      UserError: empty, corrupt, silent, too short or too long audio.
    """
    import soundfile

    if not data:
        raise UserError(f"{name} is empty: give a recording")
    return _read(lambda: soundfile.SoundFile(io.BytesIO(data)), name)


def _read(open_: Callable, name: str) -> np.ndarray:
    import soundfile

    try:
        with open_() as f:
            if f.samplerate <= 0:
                raise UserError(f"{name} states a sample rate of {f.samplerate} Hz: it is damaged")
            rate = f.samplerate
            wav = _first_channel(f, int(rate * (MAX_SECONDS + 1)))
    except (soundfile.LibsndfileError, RuntimeError, OSError) as e:
        # the whole message would name a place in memory
        why = getattr(e, "error_string", e)
        raise UserError(f"{name} cannot be read as audio: {why}") from e
    return prepare_audio(wav, rate, name=name)


def _first_channel(sound, limit: int) -> np.ndarray:
    """Up to `limit` samples; neither an enormous header nor many channels cost their memory."""
    block = max(_BLOCK // sound.channels, 1)
    parts = [np.zeros(0, np.float32)]
    while limit > 0:
        part = sound.read(min(block, limit), dtype="float32", always_2d=True)
        if not len(part):
            break
        parts.append(part[:, 0].copy())
        limit -= len(part)
    return np.concatenate(parts)


def any_audio(audio: Any, sample_rate: int = SAMPLE_RATE) -> np.ndarray:
    """A clip in any form → float32 [S] at 16 kHz.

    Args:
      audio: a path, a file's bytes, an array [S] or [S, channels], or a pair (array, rate).
      sample_rate: of an array that does not know its rate, in Hz.

    Raises:
      UserError: see `load_audio` and `prepare_audio`.
    """
    if isinstance(audio, str | os.PathLike):
        return load_audio(audio)
    if isinstance(audio, bytes | bytearray):
        return decode_audio(bytes(audio))
    if isinstance(audio, tuple):
        audio, sample_rate = audio
    return prepare_audio(audio, getattr(audio, "sample_rate", None) or sample_rate)


def prepare_audio(wav: np.ndarray, sample_rate: int, *, name: str = "the clip") -> np.ndarray:
    """Checks a waveform and brings it to the model's form.

    Args:
      wav: float [S] or [S, channels]; the first channel is used, as the reference does.
      sample_rate: in Hz.
      name: for messages.

    Returns:
      float32 [S'] at 16 kHz.

    Raises:
      UserError: not finite, silent, too short or too long.
    """
    wav = np.asarray(wav, np.float32)
    if wav.ndim == 2:
        wav = wav[:, 0]
    if wav.ndim != 1:
        raise UserError(f"{name} must be [samples] or [samples, channels], not {wav.shape}")
    if sample_rate <= 0:
        raise UserError(f"{name} has a sample rate of {sample_rate} Hz: state the true one")
    seconds = len(wav) / sample_rate
    if seconds < MIN_SECONDS:
        raise UserError(f"{name} lasts {seconds:.3f} s: give at least {MIN_SECONDS} s")
    if seconds > MAX_SECONDS:
        raise UserError(f"{name} is longer than {MAX_SECONDS:.0f} s: cut it first")
    if not np.isfinite(wav).all():
        raise UserError(f"{name} holds samples that are not finite: it is damaged")
    if np.abs(wav).max() < _SILENCE:
        raise UserError(f"{name} is silent in its first channel: give a recording with sound")
    if sample_rate != SAMPLE_RATE:
        import librosa

        wav = librosa.resample(wav, orig_sr=sample_rate, target_sr=SAMPLE_RATE)
    return np.ascontiguousarray(wav, np.float32)


def writable_format(path: str | os.PathLike) -> str:
    """The libsndfile format of a file's ending.

    Raises:
      UserError: the ending is no audio format, or the directory does not exist.
    """
    import soundfile

    kind = os.path.splitext(path)[1].lstrip(".").upper()
    if kind not in soundfile.available_formats():
        raise UserError(f"{path}: choose an ending such as .wav, .flac or .ogg")
    directory = os.path.dirname(path) or "."
    if not os.path.isdir(directory):
        raise UserError(f"{path}: there is no directory {directory}")
    return kind


def save_audio(path: str | os.PathLike, wav: np.ndarray, sample_rate: int = SAMPLE_RATE) -> None:
    """Writes a mono file in the format of its ending; it appears only when it is whole.

    Raises:
      UserError: the ending is no audio format, or the place cannot be written.
    """
    import soundfile

    kind = writable_format(path)
    try:
        write_whole(path, lambda p: soundfile.write(p, wav, sample_rate, format=kind))
    except soundfile.LibsndfileError as e:
        raise UserError(f"cannot write {path}: {e}") from e
