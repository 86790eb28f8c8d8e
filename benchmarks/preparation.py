"""Speed of each stage of the preparation: hours of audio in a CPU second of one core.

    python benchmarks/preparation.py [--repeats 5]

30 s of the mini corpus at 44.1 kHz go through every stage, in one process and one thread. CPU
seconds are counted, so that a busy machine tells the same.
"""

import argparse
import glob
import io
import os
import time
from collections.abc import Callable

import numpy as np
import soundfile
import soxr
import threadpoolctl

from bagpiper_jax.log_mel import mel_windows
from bagpiper_jax.preparation.decode import decode
from bagpiper_jax.preparation.example import content_digest, prepare_item, to_flac
from bagpiper_jax.preparation.item import Audio, Item
from bagpiper_jax.preparation.options import Options, load_tools
from bagpiper_jax.preparation.pieces import check_level, cut

CORPUS = os.path.join(os.path.dirname(os.path.dirname(__file__)), "data", "mini", "audio")
SECONDS, RATE = 30, 44_100


def recording() -> np.ndarray:
    """float32 [S] at 44.1 kHz."""
    parts = []
    for path in sorted(glob.glob(os.path.join(CORPUS, "*.ogg"))):
        wav, rate = soundfile.read(path, dtype="float32", always_2d=True)
        parts.append(soxr.resample(wav[:, 0], rate, RATE))
        if sum(map(len, parts)) >= SECONDS * RATE:
            break
    return np.clip(np.concatenate(parts)[: SECONDS * RATE], -1, 1)


def encoded(wav: np.ndarray, kind: str) -> bytes:
    """An audio file."""
    buffer = io.BytesIO()
    soundfile.write(buffer, wav, RATE, format=kind)
    return buffer.getvalue()


def hours_per_second(stage: Callable[[], object], repeats: int) -> float:
    """Of the fastest of so many times, in CPU seconds."""
    stage()
    times = []
    for _ in range(repeats):
        start = time.process_time()
        stage()
        times.append(time.process_time() - start)
    return SECONDS / 3600 / min(times)


def main() -> None:
    """Command line entry."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    threadpoolctl.threadpool_limits(1)
    wav, options = recording(), Options()
    tools = load_tools(options)
    files = {kind: Audio(data=encoded(wav, kind)) for kind in ("WAV", "FLAC", "OGG", "MP3")}
    chunks = list(decode(files["WAV"], 1.0))
    (piece,) = cut(chunks)
    heard = piece.wav()
    item = Item("a", (files["WAV"],), "Many short recordings, one after the other. " * 20)
    stages: dict[str, Callable[[], object]] = {}
    for kind, audio in files.items():
        stages[f"decode {kind} and resample"] = lambda a=audio: list(decode(a, 1.0))
    stages |= {
        "cut": lambda: list(cut(chunks)),
        "loudness": lambda: check_level(piece),
        "codec codes": lambda: tools.codec.encode(heard),
        "FLAC": lambda: to_flac(piece.pcm),
        "mel windows": lambda: mel_windows(heard),
        "digest": lambda: content_digest(item, (piece,)),
    }
    for kind, audio in files.items():
        whole = Item("a", (audio,), item.caption)
        stages[f"whole item, {kind}"] = lambda i=whole: prepare_item(i, "", options, tools)
    for name, stage in stages.items():
        speed = hours_per_second(stage, repeats)
        print(f"{name:28s} {speed:8.3f} h/s  {speed * 3600:8.0f} x real time")


if __name__ == "__main__":
    main()
