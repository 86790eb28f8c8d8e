"""Damaged audio files by the hundred: (name, bytes, whether they must be turned away)."""

import random
import struct

import numpy as np
from sound_sources import encoded, sound

RATE = 16_000


def whole_files(seconds=0.6):
    """A file of each common kind."""
    wav = sound(seconds, rate=RATE)
    kinds = ("WAV", "FLAC", "OGG", "MP3", "AIFF", "AU", "CAF", "W64", "RF64")
    return {kind: encoded(wav, RATE, kind) for kind in kinds}


def damaged_files(seed=0):
    """Yields more than 500 of them."""
    rng = random.Random(seed)
    whole = whole_files()
    for kind, data in whole.items():
        ending = kind.lower()
        yield f"zero-length.{ending}", b"", True
        # MP3 is a stream of frames: a file that lacks a few is a shorter recording
        longest = len(data) // 2 if kind == "MP3" else len(data) - 1
        for number in range(24):
            cut = rng.randrange(1, longest)
            yield f"truncated-{number}.{ending}", data[:cut], True
        for number in range(24):
            flipped = bytearray(data)
            for _ in range(rng.choice((1, 4, 64))):
                # headers are where it hurts
                span = rng.choice((min(64, len(data)), len(data)))
                flipped[rng.randrange(span)] ^= 1 << rng.randrange(8)
            yield f"flipped-{number}.{ending}", bytes(flipped), False
        yield f"noise.{ending}", rng.randbytes(len(data)), True
        yield f"header-only.{ending}", data[:48], True
        tail = bytearray(data)
        tail[len(data) // 3 :] = rng.randbytes(len(data) - len(data) // 3)
        yield f"noisy-tail.{ending}", bytes(tail), False
    yield from _wrong_endings(whole)
    yield from _wav_headers()
    yield from _bad_samples()


def _wrong_endings(whole):
    for text in (b"A caption, not a recording.\n", b"<html>404</html>", b"\x89PNG\r\n\x1a\n" * 9):
        for ending in ("wav", "flac", "ogg", "mp3", "raw", "vox", "gsm"):
            yield f"text-{len(text)}.{ending}", text, True
    for kind, data in whole.items():  # libsndfile goes by the contents
        yield f"really-{kind.lower()}.raw", data, False


def wav_header(rate=RATE, channels=1, bits=16, stated=None, data=b"", form=1):
    """A WAV file that states what it is told to."""
    block = max(channels * bits // 8, 1) & 0xFFFF
    size = len(data) if stated is None else stated
    body = struct.pack("<HHIIHH", form, channels, rate, rate * block & 0xFFFFFFFF, block, bits)
    riff = b"WAVEfmt " + struct.pack("<I", 16) + body + b"data" + struct.pack("<I", size) + data
    return b"RIFF" + struct.pack("<I", size + 36 & 0xFFFFFFFF) + riff


def _wav_headers():
    pcm = (sound(0.5) * 32767).astype("<i2").tobytes()
    for rate in (0, 1, 7, 1_999, 800_000, 0x7FFFFFFF, 0xFFFFFFFF):
        yield f"rate-{rate}.wav", wav_header(rate, data=pcm), True
    for channels in (0, 1025, 65_535):
        yield f"channels-{channels}.wav", wav_header(channels=channels, data=pcm), True
    for stated in (len(pcm) + 2, 1 << 28, 1 << 30, 3 << 30, 0xFFFFFFF0):
        yield f"enormous-{stated}.wav", wav_header(stated=stated, data=pcm), True
        name = f"enormous-many-channels-{stated}.wav"
        yield name, wav_header(channels=1000, stated=stated, data=pcm), True
    for bits in (0, 200):
        yield f"bits-{bits}.wav", wav_header(bits=bits, data=pcm), True
    flac = bytearray(encoded(sound(0.5), RATE, "FLAC"))
    flac[21] |= 0x0F  # the upper bits of the number of samples: 2^35 and more
    yield "enormous.flac", bytes(flac), True
    huge_block = bytearray(flac)
    huge_block[5:8] = b"\xff\xff\xff"
    yield "enormous-block.flac", bytes(huge_block), True


def _bad_samples():
    wav = sound(0.5)
    for value in (np.nan, np.inf, -np.inf, 1e30, 40_000.0):
        for at in (0, len(wav) // 2, len(wav) - 1):
            bad = wav.copy()
            bad[at] = value
            yield f"sample-{value}-{at}.wav", encoded(bad, RATE, subtype="FLOAT"), True
    yield "silent.wav", encoded(np.zeros(RATE, np.float32)), True
    yield "whisper.wav", encoded(1e-4 * wav), True
    yield "short.wav", encoded(wav[:800]), True
    yield "no-samples.flac", encoded(wav[:0], RATE, "FLAC"), True
