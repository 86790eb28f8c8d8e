"""Damages the files of a source at random and reads it, many times.

    python tests/fuzz_sources.py KIND FOLDER ROUNDS

A process of its own, so that a library in C++ that crashes, hangs or takes the memory is seen.
Prints how many readings told of damage, the growth of memory and the slowest reading.
"""

import gzip
import io
import json
import os
import random
import resource
import sys
import tarfile
import time

import numpy as np
import soundfile

from bagpiper_jax.preparation.item import Damaged, Item
from bagpiper_jax.preparation.sources import open_source
from bagpiper_jax.preparation.sources import tfds as tfds_source

COUNT = 12
FIELDS = [{"text": f"caption {n}", "domain": "sound", "n": n} for n in range(COUNT)]


def recording(seed):
    file = io.BytesIO()
    wav = np.random.default_rng(seed).normal(0, 0.1, 400)
    soundfile.write(file, wav, 8000, format="FLAC")
    return file.getvalue()


AUDIO = [recording(n) for n in range(COUNT)]


def make_jsonl(folder):
    lines = [{"audio": f"audio/{n}.flac", **FIELDS[n]} for n in range(COUNT)]
    lines[3] = {"messages": [["user", "audio", "audio/3.flac"], ["assistant", "text", "Yes."]]}
    with open(f"{folder}/set.jsonl", "w") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
    return f"{folder}/set.jsonl"


def make_folder(folder):
    with open(f"{folder}/audio/3.json", "w") as file:
        json.dump(FIELDS[3], file)
    return f"{folder}/audio/3.json"


def make_parquet(folder):
    import pyarrow as pa
    import pyarrow.parquet as pq

    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    cells = pa.array([{"bytes": a, "path": "x"} for a in AUDIO], struct)
    table = pa.table({"audio": cells, "text": [f["text"] for f in FIELDS]})
    pq.write_table(table, f"{folder}/set.parquet", row_group_size=5)
    return f"{folder}/set.parquet"


def make_webdataset(folder):
    with tarfile.open(f"{folder}/set.tar", "w") as tar:
        for n in range(COUNT):
            members = {"flac": AUDIO[n], "json": json.dumps(FIELDS[n]).encode()}
            for suffix, data in members.items():
                info = tarfile.TarInfo(f"{n:03d}.{suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return f"{folder}/set.tar"


def make_tfds(folder):
    import tensorflow_datasets as tfds

    text = tfds.features.Text()
    made = {"id": text, "caption": text, "audio": tfds.features.Tensor(shape=(), dtype=np.str_)}

    class Fuzzed(tfds.core.ShardBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(made))

        def _shard_iterators_per_split(self, dl_manager):
            return {"train": [self.examples]}

        def examples(self):
            for n in range(COUNT):
                yield n, {"id": str(n), "caption": FIELDS[n]["text"], "audio": AUDIO[n]}

    Fuzzed(data_dir=folder, file_format="array_record").download_and_prepare()
    return f"{folder}/fuzzed/1.0.0/fuzzed-train.array_record-00000-of-00001"


def damage(data, rng):
    """Cuts, flips bits, replaces a stretch by noise of another length, or by zeros."""
    data = bytearray(data)
    way, start = rng.randrange(4), rng.randrange(len(data))
    if way == 0:
        del data[start:]
    elif way == 1:
        for _ in range(rng.randrange(1, 20)):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif way == 2:
        data[start : start + rng.randrange(64)] = rng.randbytes(rng.randrange(64))
    else:
        data[start : start + 512] = bytes(512)
    return bytes(data)


def everything(spec):
    tfds_source._data_source.cache_clear()
    source = open_source(spec)
    return [entry for part in source.parts() for entry in source.read(part)]


def main(kind, folder, rounds):
    rng = random.Random(kind)
    os.makedirs(f"{folder}/audio")
    for n in range(COUNT):
        with open(f"{folder}/audio/{n}.flac", "wb") as file:
            file.write(AUDIO[n])
    path = globals()[f"make_{kind}"](folder)
    with open(path, "rb") as file:
        original = file.read()
    place = {"folder": folder, "tfds": os.path.dirname(path)}.get(kind, path)
    clean = everything({"kind": kind, "path": place})
    assert len(clean) == COUNT and all(isinstance(entry, Item) for entry in clean), clean
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    told = slowest = 0
    for number in range(rounds):
        suffix, content = "", damage(original, rng)
        if kind in ("jsonl", "webdataset") and number % 2:
            suffix, packed = ".gz", gzip.compress(original)
            content = damage(packed, rng) if number % 4 == 1 else gzip.compress(content)
        with open(path + suffix, "wb") as file:
            file.write(content)
        start = time.monotonic()
        found = everything({"kind": kind, "path": place + suffix})
        slowest = max(slowest, time.monotonic() - start)
        assert all(isinstance(entry, Item | Damaged) for entry in found)
        assert len({entry.id for entry in found}) == len(found)
        json.dumps([[e.id, getattr(e, "reason", "")] for e in found]).encode()
        is_told = any(isinstance(entry, Damaged) for entry in found)
        # lines may vanish with their line feeds, or at a cut between two of them
        assert is_told or kind == "jsonl" or len(found) >= COUNT, (number, found)
        told += is_told
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory
    print(json.dumps({"told": told, "grown_mb": grown // 1024, "slowest": slowest}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
