"""TFDS data sets as sources."""

import io
import subprocess
import sys

import numpy as np
import pytest
import soundfile
from source_files import audio_file, read_all

from bagpiper_jax.errors import UserError
from bagpiper_jax.preparation.item import Damaged
from bagpiper_jax.preparation.sources import open_source, tfds

A = audio_file(1)


@pytest.fixture(scope="module")
def tfds_dir(tmp_path_factory):
    """A data set with files, one with waveforms; both as ArrayRecord."""
    import tensorflow_datasets as library

    features = library.features
    common = {"id": features.Text(), "caption": features.Text()}

    class Base(library.core.ShardBasedBuilder, skip_registration=True):
        VERSION = library.core.Version("1.0.0")
        FEATURES = {}

        def _info(self):
            made = features.FeaturesDict(self.FEATURES)
            return library.core.DatasetInfo(builder=self, features=made)

        def _shard_iterators_per_split(self, dl_manager):
            return {"train": [lambda s=s: self.examples(s) for s in range(2)]}

    class FileSet(Base, skip_registration=True):
        FEATURES = {
            "id": features.Text(),
            "audio": features.Tensor(shape=(), dtype=np.str_),
            "captions": features.Sequence(features.Text()),
            "domain": features.Text(),
            "notes": features.Text(),
        }

        def examples(self, shard):
            for n in range(3):
                texts = [f"{shard}{n}"] if n else ["first", "second"]
                audio = A if n < 2 else b""
                own = {"id": f"{shard}-{n}", "audio": audio, "captions": texts}
                yield own["id"], {**own, "domain": "sound", "notes": "{}"}

    class WaveSet(Base, skip_registration=True):
        FEATURES = common | {"speech": features.Tensor(shape=(None,), dtype=np.int64)}

        def examples(self, shard):
            for n in range(2):
                wave = np.arange(-100, 100 + n, dtype=np.int64)
                yield n, {"id": f"{shard}{n}", "caption": "Up.", "speech": wave}

    folder = tmp_path_factory.mktemp("tfds")
    for made in (FileSet, WaveSet):
        made(data_dir=folder, file_format="array_record").download_and_prepare()
    return folder


def test_tfds_by_name(tfds_dir, monkeypatch):
    source = open_source({"kind": "tfds", "path": "file_set", "data_dir": str(tfds_dir)})
    found = read_all(source)
    names = [f"{s}-{n}" for s in range(2) for n in ("0.0", "0.1", "1", "2")]
    assert [entry.id for entry in found] == names
    assert [e.caption for e in found[:3]] == ["first", "second", "01"]
    assert found[0].audios[0].data == A and found[0].domain == "sound"
    assert found[0].provenance["example"] == 0 and found[1].provenance["dataset"] == "file_set"
    assert isinstance(found[3], Damaged) and "empty" in found[3].reason
    monkeypatch.setattr(tfds, "PART_EXAMPLES", 4)
    assert source.parts() == ["train#0", "train#4"] and read_all(source) == found


def test_tfds_by_folder_and_waveforms(tfds_dir):
    folder = str(tfds_dir / "wave_set" / "1.0.0")
    found = read_all(open_source({"path": folder, "sample_rate": 8000, "split": "train[:75%]"}))
    assert [entry.id for entry in found] == ["00", "01", "10"]
    wav, rate = soundfile.read(io.BytesIO(found[1].audios[0].data), dtype="int16")
    assert rate == 8000 and wav.tolist() == list(range(-100, 101))
    (damaged, *_) = read_all(open_source(folder))
    assert "sample_rate" in damaged.reason


def test_tfds_that_is_not_there(tfds_dir):
    base = {"kind": "tfds", "data_dir": str(tfds_dir)}
    with pytest.raises(UserError, match="cannot be opened: it is not in .*DIR/no_such_set/1.0.0"):
        open_source({**base, "path": "no_such_set"}).parts()
    with pytest.raises(UserError, match="no split test: it has train"):
        open_source({**base, "path": "file_set", "split": "test"}).parts()


def test_tfds_needs_no_tensorflow(tfds_dir):
    code = (
        "import sys; from bagpiper_jax.preparation.sources import open_source;"
        "s = open_source({'kind': 'tfds', 'path': 'file_set', 'data_dir': sys.argv[1]});"
        "assert sum(1 for p in s.parts() for e in s.read(p)) == 8;"
        "loaded = {'jax', 'torch', 'tensorflow'} & set(sys.modules);"
        "sys.exit(str(loaded) if loaded else 0)"
    )
    subprocess.run([sys.executable, "-c", code, str(tfds_dir)], check=True)
