"""Signal helpers of the mini corpus build: reading, trimming, levels, reproducible Ogg pages."""

from __future__ import annotations

import struct
from math import gcd
from pathlib import Path

import av
import numpy as np
import soundfile as sf
from scipy.signal import resample_poly

RATE = 16000
SPEECH_DBFS = -23.0


def read_g722(path: Path) -> np.ndarray:
    """Decodes headerless 64 kbit/s G.722 to float32 [S] at 16 kHz."""
    with av.open(str(path), format="g722") as container:
        parts = [f.to_ndarray().reshape(-1) for f in container.decode(audio=0)]
    return np.concatenate(parts).astype(np.float32) / 32768


def read_any(file) -> np.ndarray:
    """Reads a sound file, mixes it to mono and resamples it; float32 [S] at 16 kHz."""
    wav, rate = sf.read(file, dtype="float64", always_2d=True)
    return to_rate(wav.mean(axis=1), rate)


def to_rate(wav: np.ndarray, rate: int) -> np.ndarray:
    """Resamples [S] from `rate` Hz to 16 kHz, float32."""
    if rate != RATE:
        step = gcd(rate, RATE)
        wav = resample_poly(wav, RATE // step, rate // step)
    return wav.astype(np.float32)


def frame_db(wav: np.ndarray, hop: int = 160) -> np.ndarray:
    """Level of 10 ms frames in dB after pre-emphasis, which keeps weak fricatives visible."""
    emphasised = np.append(wav[:1], wav[1:] - 0.9 * wav[:-1])
    padded = np.pad(emphasised, (0, -len(emphasised) % hop))
    return 10 * np.log10(np.mean(padded.reshape(-1, hop) ** 2, axis=1) + 1e-12)


def trim(wav: np.ndarray, range_db: float = 42.0, keep_frames: int = 3) -> np.ndarray:
    """Cuts silence off both ends, leaving `keep_frames` frames of 10 ms around the sound.

    A frame counts as sound above the loudest frame less `range_db`; where the noise floor
    is higher than that, above the floor plus 6 dB, but never less than 30 dB below the top.
    """
    level = frame_db(wav)
    top = level.max()
    threshold = max(top - range_db, min(np.percentile(level, 5) + 6, top - 30))
    loud = np.flatnonzero(level > threshold)
    first = max(0, loud[0] - keep_frames) * 160
    return wav[first : (loud[-1] + 1 + keep_frames) * 160]


def fade(wav: np.ndarray, start: float, end: float) -> np.ndarray:
    """Raised-cosine fades of `start` and `end` seconds."""
    wav = wav.copy()
    head, tail = (min(int(s * RATE), len(wav) // 2) for s in (start, end))
    wav[:head] *= 0.5 - 0.5 * np.cos(np.pi * np.arange(head) / head)
    wav[len(wav) - tail :] *= 0.5 + 0.5 * np.cos(np.pi * (np.arange(tail) + 1) / tail)
    return wav


def to_level(wav: np.ndarray, dbfs: float) -> np.ndarray:
    """Scales to an RMS of `dbfs` over the frames within 30 dB of the loudest; peak <= 0.9."""
    frames = np.pad(wav, (0, -len(wav) % 160)).reshape(-1, 160)
    power = np.mean(frames.astype(np.float64) ** 2, axis=1)
    active = power[power > power.max() * 1e-3].mean()
    gain = min(10 ** (dbfs / 20) / np.sqrt(active), 0.9 / np.abs(wav).max())
    return wav * np.float32(gain)


def speech(wav: np.ndarray) -> np.ndarray:
    """Trims, fades and levels a speech clip."""
    return to_level(fade(trim(wav - wav.mean()), 0.005, 0.005), SPEECH_DBFS)


def _crc_table() -> list[int]:
    table = []
    for i in range(256):
        value = i << 24
        for _ in range(8):
            value = (value << 1 ^ 0x04C11DB7 if value & 1 << 31 else value << 1) & 0xFFFFFFFF
        table.append(value)
    return table


CRC = _crc_table()


def with_serial(ogg: bytes, serial: int) -> bytes:
    """Rewrites the stream serial number of every Ogg page (RFC 3533), which encoders draw
    at random, so that a rebuild gives the same bytes."""
    out, at = bytearray(ogg), 0
    while at < len(out):
        segments = out[at + 26]
        end = at + 27 + segments + sum(out[at + 27 : at + 27 + segments])
        out[at + 14 : at + 18] = struct.pack("<I", serial)
        out[at + 22 : at + 26] = bytes(4)
        crc = 0
        for byte in out[at:end]:
            crc = (crc << 8 & 0xFFFFFFFF) ^ CRC[crc >> 24 ^ byte]
        out[at + 22 : at + 26] = struct.pack("<I", crc)
        at = end
    return bytes(out)
