"""Prepared data sets in memory: records of random captions and clips, and sizes alone."""

import numpy as np

from bagpiper_jax.input_pipeline.packed_records import PackedRecords
from bagpiper_jax.input_pipeline.packing import RowShape
from bagpiper_jax.input_pipeline.records import TASKS, Clip, Record, sizes
from bagpiper_jax.log_mel import mel_windows
from bagpiper_jax.modeling.config import get_config

SHAPE = RowShape(512, 16)


class MemorySet:
    """Records in memory, with the interface of `PreparedSet`."""

    def __init__(self, name, records, config, tokenizer):
        self.name, self.fingerprint, self._records = name, f"print of {name}", records
        self._sizes = {}
        for task in TASKS:
            found = [
                sizes(r, task, config, tokenizer) if task in r.tasks() else (-1, -1)
                for r in records
            ]
            self._sizes[task] = np.array(found, np.int32).reshape(-1, 2)

    def __len__(self):
        return len(self._records)

    def __getitem__(self, i):
        return self._records[i]

    def rows(self, task):
        return self._sizes[task][:, 0]

    def windows(self, task):
        return self._sizes[task][:, 1]


class Sizes:
    """A set whose sizes are all there is: what planning needs."""

    def __init__(self, name, rows, windows=None):
        self.name, self.fingerprint = name, f"print of {name}"
        self._rows = np.asarray(rows, np.int32)
        self._windows = np.asarray(np.zeros(len(rows)) if windows is None else windows, np.int32)

    def __len__(self):
        return len(self._rows)

    def __getitem__(self, i):
        raise AssertionError("planning reads no record")

    def rows(self, task):
        return self._rows

    def windows(self, task):
        return self._windows


def captioned(number, rng, words, config, *, seconds=(0.3, 3.0), kept="mel"):
    """A captioned clip that can serve all three tasks; `kept`: mel or audio."""
    samples = int(rng.uniform(*seconds) * 16_000)
    wav = rng.standard_normal(samples).astype(np.float32) * 0.1
    codes = rng.integers(
        0, config.vocab.codebook_size, (-(-samples // 320), config.vocab.num_streams)
    )
    caption = " ".join(rng.choice(words, rng.integers(2, 20)))
    if kept == "mel":
        mel = mel_windows(wav)
        mel = type(mel)(mel.mel.astype(np.float16).astype(np.float32), mel.frames)
        clip = Clip(samples, codes=codes.astype(np.uint16), mel=mel)
    else:
        clip = Clip(samples, codes=codes.astype(np.uint16), audio=flac(wav))
    return Record(f"clip-{number}", caption=caption, clips=(clip,))


def flac(wav):
    import io

    import soundfile

    file = io.BytesIO()
    soundfile.write(file, wav, 16_000, format="FLAC")
    return file.getvalue()


def make_set(name, count, tokenizer, *, seed=0, model="tiny", **settings):
    rng, config = np.random.default_rng(seed), get_config(model)
    words = "a dog barks twice near some slow rain while the old man says seven".split()
    records = [captioned(i, rng, words, config, **settings) for i in range(count)]
    return MemorySet(name, records, config, tokenizer)


def packed(sources, shape=SHAPE, num_rows=10_000, seed=0, tokenizer=None, **rest):
    settings = {"shape": shape, "num_rows": num_rows, "seed": seed, **rest}
    return PackedRecords(sources, get_config("tiny"), tokenizer, **settings)
