"""Recordings and readings that the tests of sources share."""

import io

import numpy as np
import soundfile


def write_audio(path, seconds=0.2, rate=16_000, channels=1):
    path.parent.mkdir(parents=True, exist_ok=True)
    wav = np.random.default_rng(0).normal(0, 0.1, (int(seconds * rate), channels))
    soundfile.write(path, wav, rate)
    return path


def read_all(source):
    return [entry for part in source.parts() for entry in source.read(part)]


def by_id(source):
    found = read_all(source)
    assert len({entry.id for entry in found}) == len(found)
    assert found == read_all(source), "a second reading gives the same"
    return {entry.id: entry for entry in found}


def audio_file(seed=0, kind="FLAC", seconds=0.1, rate=16_000):
    file = io.BytesIO()
    wav = np.random.default_rng(seed).normal(0, 0.1, int(seconds * rate))
    soundfile.write(file, wav, rate, format=kind)
    return file.getvalue()
