"""Audio files → mono float32 at 16 kHz in chunks, in little memory, whatever a header claims."""

from __future__ import annotations

import io
import math
import os
import re
import stat
from collections.abc import Iterator

import numpy as np

from bagpiper_jax.audio import SAMPLE_RATE
from bagpiper_jax.preparation.item import Audio

# what a recording may state; beyond it a header is damaged, and resampling would explode
LOWEST_RATE, HIGHEST_RATE = 2_000, 768_000
_BLOCK = 1 << 18  # samples of all channels that are decoded at a time
_LOUDEST = 4.0  # over full scale: floats of another scale, not a peak that overshoots
_SLACK = 0.1  # seconds that a file may be shorter than it states (padding of MP3)
# how libsndfile tells, in its log, that a file ends before its samples do
_CUT_OFF = re.compile(
    r"^\s*(?:data|SSND|Data Size|riff|Riff size)\s*:\s*(\d+) \(should be (\d+)\)", re.M
)
# sizes that writers into a pipe leave in a header, which they cannot go back to
_UNKNOWN_SIZES = (0, *range(0x7FFFF000, 0x80000001), 0xFFFFFFFF)


class Rejected(Exception):
    """An item that goes to quarantine.

    Attributes:
      kind: one or two words to count by.
      reason: one line, the same on every machine.
    """

    def __init__(self, kind: str, reason: str):
        super().__init__(kind, reason)
        self.kind, self.reason = kind, reason


def decode(audio: Audio, max_hours: float) -> Iterator[np.ndarray]:
    """First channel of a recording's span at 16 kHz, as the reference reads it.

    Args:
      audio: what to read.
      max_hours: how long the span may be.

    Yields:
      float32 [n], chunks of some seconds.

    Raises:
      Rejected: missing, empty, no audio, cut off, not finite, of another scale, or too long.
    """
    import soundfile

    file = _open(audio)
    try:
        with soundfile.SoundFile(file, closefd=False) as sound:
            yield from _resample(_read(sound, audio, max_hours), sound.samplerate)
    except soundfile.LibsndfileError as e:
        raise Rejected("unreadable", e.error_string.strip().rstrip(".")) from e
    except (RuntimeError, TypeError, ValueError, OverflowError) as e:  # soundfile's own checks
        raise Rejected("unreadable", f"libsndfile cannot read it ({type(e).__name__})") from e
    finally:
        if isinstance(file, int):
            os.close(file)


def _open(audio: Audio) -> int | io.BytesIO:
    """A descriptor, so that libsndfile goes by the contents and never by an ending."""
    if audio.data is not None:
        if not audio.data:
            raise Rejected("empty", "the file is empty")
        _check_end(io.BytesIO(audio.data))
        return io.BytesIO(audio.data)
    try:
        # without blocking: a pipe has no writer
        file = os.open(audio.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError as e:
        raise Rejected("missing", "there is no such file") from e
    except (OSError, ValueError) as e:
        raise Rejected("unreadable", getattr(e, "strerror", None) or "no valid path") from e
    try:
        status = os.fstat(file)
        if not stat.S_ISREG(status.st_mode):
            raise Rejected("unreadable", "it is no regular file")
        if status.st_size == 0:
            raise Rejected("empty", "the file is empty")
        with open(file, "rb", closefd=False) as f:
            _check_end(f)
        os.lseek(file, 0, os.SEEK_SET)
    except BaseException:
        os.close(file)
        raise
    return file


def _check_end(file) -> None:
    """Rejects an Ogg file whose last page does not say that it is the last one."""
    if file.read(4) != b"OggS":
        return
    file.seek(0, os.SEEK_END)
    file.seek(max(file.tell() - (1 << 17), 0))  # a page has at most 64 KB
    tail = file.read()
    at = tail.rfind(b"OggS")
    page = tail[at:]
    whole = len(page) > 26 and len(page) >= 27 + page[26] + sum(page[27 : 27 + page[26]])
    if at < 0 or not whole or not page[5] & 4:
        raise Rejected("truncated", "the Ogg stream has no end: the file is cut off")


def _read(sound, audio: Audio, max_hours: float) -> Iterator[np.ndarray]:
    """First channel of the span as decoded, float32 [n] each."""
    rate = sound.samplerate
    if not LOWEST_RATE <= rate <= HIGHEST_RATE:
        raise Rejected("unreadable", f"the header states a sample rate of {rate} Hz")
    for stated, there in _CUT_OFF.findall(sound.extra_info):
        if int(stated) > int(there) and int(stated) not in _UNKNOWN_SIZES:
            raise Rejected("truncated", f"{there} of {stated} bytes of samples are there")
    stop = math.inf if audio.stop is None else audio.stop
    if not (0 <= audio.start < stop):
        raise Rejected("span", f"there is no span from {audio.start} s to {audio.stop} s")
    known = 0 < sound.frames < 1 << 62
    first = round(min(audio.start, 1e9) * rate)
    last = min(stop * rate, sound.frames if known else math.inf)
    if first >= last:
        raise Rejected("span", f"the span starts at {audio.start} s, after the end")
    if known and last - first > max_hours * 3600 * rate:
        hours = (last - first) / rate / 3600
        raise Rejected("too long", f"it lasts {hours:.1f} hours, over {max_hours}: cut it first")
    if first:
        sound.seek(first)
    at = first
    while at < last:
        count = min(max(_BLOCK // sound.channels, 1), math.ceil(min(last - at, _BLOCK)))
        block = sound.read(count, dtype="float32", always_2d=True)[:, 0]
        if not len(block):
            break
        at += len(block)
        if at - first > max_hours * 3600 * rate:
            raise Rejected("too long", f"it lasts over {max_hours} hours: cut it first")
        peak = np.abs(block).max()
        if not np.isfinite(peak):
            raise Rejected("not finite", "it holds samples that are not finite")
        if peak > _LOUDEST:
            raise Rejected("scale", f"it holds samples of {peak:.3g}: they must lie in [-1, 1]")
        yield block
    wanted = stop * rate if math.isfinite(stop) else (sound.frames if known else at)
    if at < wanted - _SLACK * rate:
        raise Rejected("truncated", f"it ends after {at / rate:.2f} s of {wanted / rate:.2f} s")


def _resample(blocks: Iterator[np.ndarray], rate: int) -> Iterator[np.ndarray]:
    """Blocks at `rate` → blocks at 16 kHz, together as long as `audio.prepare_audio` makes them."""
    if rate == SAMPLE_RATE:
        yield from blocks
        return
    import soxr

    stream = soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32", quality="HQ")
    taken = given = 0
    for block in blocks:
        taken += len(block)
        out = stream.resample_chunk(np.ascontiguousarray(block))
        given += len(out)
        if len(out):
            yield out
    out = stream.resample_chunk(np.zeros(0, np.float32), last=True)
    rest = -(-taken * SAMPLE_RATE // rate) - given
    yield np.pad(out, (0, max(rest - len(out), 0)))[: max(rest, 0)]
