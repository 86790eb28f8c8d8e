"""Small sources of recordings for tests of the preparation; module level, so that they pickle."""

import dataclasses
import io
import json
import os

import numpy as np
import soundfile

from bagpiper_jax.preparation.item import Audio, Damaged, Item


def sound(seconds, seed=0, rate=16_000, gaps=()):
    """A noisy tone that swells, float32 [S], silent in the spans (start, stop) of `gaps`."""
    rng = np.random.default_rng(seed)
    t = np.arange(round(seconds * rate)) / rate
    tone = np.sin(2 * np.pi * (200 + 40 * seed % 700) * t) * (0.3 + 0.2 * np.sin(t * 5))
    wav = 0.5 * tone + 0.02 * rng.standard_normal(len(t))
    for start, stop in gaps:
        wav[round(start * rate) : round(stop * rate)] *= 1e-4
    return wav.astype(np.float32)


def encoded(wav, rate=16_000, kind="WAV", **settings):
    """Bytes of an audio file."""
    buffer = io.BytesIO()
    soundfile.write(buffer, wav, rate, format=kind, **settings)
    return buffer.getvalue()


@dataclasses.dataclass(frozen=True)
class Listed:
    """Items given as they are, `per_part` to a part."""

    items: tuple
    per_part: int = 3
    name: str = "listed"

    def parts(self):
        return [str(start) for start in range(0, len(self.items), self.per_part)]

    def stamp(self):
        return str(len(self.items))

    def read(self, part):
        yield from self.items[int(part) : int(part) + self.per_part]


@dataclasses.dataclass(frozen=True)
class Files:
    """Audio files named in `captions.json` of a directory, `per_part` to a part."""

    directory: str
    per_part: int = 4
    name: str = "files"

    def _captions(self):
        with open(os.path.join(self.directory, "captions.json"), encoding="utf-8") as f:
            return json.load(f)

    def parts(self):
        return [str(start) for start in range(0, len(self._captions()), self.per_part)]

    def stamp(self):
        return str(len(self._captions()))

    def read(self, part):
        chosen = sorted(self._captions().items())[int(part) : int(part) + self.per_part]
        for file, caption in chosen:
            if caption is None:
                yield Damaged(file, "it has no caption")
            else:
                path = os.path.join(self.directory, file)
                yield Item(file, (Audio(path=path),), caption, domain="sound", licence="CC0-1.0")


def write_corpus(directory, count=24):
    """Files of several formats, rates and faults; with `Files` as its source."""
    os.makedirs(directory, exist_ok=True)
    captions = {}
    for i in range(count):
        kind, rate = (("wav", 16_000), ("flac", 44_100), ("ogg", 22_050), ("mp3", 24_000))[i % 4]
        name = f"{i:03d}.{kind}"
        # every eighth is the one before it again, under another name
        seed = i - (i % 8 == 7) * 4
        wav = sound(1 + seed % 3, seed, rate)
        soundfile.write(os.path.join(directory, name), wav, rate, format=kind.upper())
        captions[name] = f"A tone number {seed} swells."
    for name in ("broken.wav", "empty.wav"):
        captions[name] = "Nothing."
    with open(os.path.join(directory, "broken.wav"), "wb") as f:
        f.write(b"no audio at all")
    open(os.path.join(directory, "empty.wav"), "w").close()
    captions["gone.wav"] = "Nothing."
    captions["without.wav"] = None
    with open(os.path.join(directory, "captions.json"), "w", encoding="utf-8") as f:
        json.dump(captions, f)
    return Files(str(directory))
