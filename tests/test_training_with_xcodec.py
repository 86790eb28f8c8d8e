"""X-codec from a converted checkpoint: data is prepared with it, and a run takes it along."""

import dataclasses
import os

import jax
import numpy as np
import pytest
from flax import nnx
from sound_sources import Listed, encoded, sound
from tiny_run import settings
from tiny_xcodec import CONFIG

from bagpiper_jax.errors import UserError
from bagpiper_jax.modeling.config import get_config
from bagpiper_jax.modeling.xcodec_model import XCodecModel
from bagpiper_jax.porting.espnet import fit, to_espnet
from bagpiper_jax.porting.runs import open_run, write_run
from bagpiper_jax.porting.sources import LazyTensor
from bagpiper_jax.preparation.item import Audio, Item
from bagpiper_jax.preparation.options import Options
from bagpiper_jax.preparation.prepare import prepare
from bagpiper_jax.release import XCODEC_FILE, load_assets, load_xcodec, xcodec_fingerprint
from bagpiper_jax.training.loop import train

MODEL = get_config("tiny")
CODEC = dataclasses.replace(CONFIG, codebook_size=MODEL.vocab.codebook_size)


@pytest.fixture(scope="module")
def converted(make_model, small_tokenizer, tmp_path_factory):
    """What convert would write of a checkpoint with another X-codec each."""
    folder, model = tmp_path_factory.mktemp("converted"), make_model(MODEL)
    small_tokenizer.save(str(folder / "tokenizer.model"))
    beside = {"tokenizer.model": str(folder / "tokenizer.model")}
    made = []
    codec = XCodecModel(CODEC, rngs=nnx.Rngs(0))
    for scale in (1.0, 1.5):
        nnx.update(codec, jax.tree.map(lambda x, s=scale: s * x, nnx.state(codec)))
        tensors = to_espnet(model, codec, dtype=None)
        lazy = {n: np.asarray(t) for n, t in tensors.items()}
        lazy = {n: LazyTensor(t.shape, t.dtype, lambda t=t: t) for n, t in lazy.items()}
        table, lazy = fit("the source", lazy, MODEL, CODEC)
        made.append(str(folder / str(scale)))
        write_run(made[-1], table, lazy, MODEL, codec=CODEC, beside=beside)
    return made


@pytest.fixture(scope="module")
def spoken(converted, tmp_path_factory):
    """Eight clips, prepared with the first of them."""
    items = [
        Item(f"{i}", (Audio(data=encoded(sound(1.5, i))),), f"a sound, number {i}")
        for i in range(8)
    ]
    out = tmp_path_factory.mktemp("prepared") / "set"
    options = Options(model=converted[0], timeout=600)
    return prepare([Listed(tuple(items))], out, options, workers=1, quiet=True)


def run_settings(spoken, init_from, *overrides):
    sets = tuple((spoken.directory, t, 1.0) for t in ("text_to_audio", "audio_to_text"))
    mixture = {"text_to_audio": 1.0, "audio_to_text": 1.0, "text_only": 0.0}
    told = [f"--config.data.sets={sets!r}", f"--config.data.mixture={mixture!r}"]
    told += [
        "--config.data.corpus=",
        "--config.steps=2",
        "--config.optimizer.warmup_steps=1",
        f"--config.init_from={init_from}",
    ]
    return settings(*told, *overrides)


def test_codes_are_those_of_the_models_codec(spoken, converted):
    codec = load_xcodec(converted[0], MODEL.vocab.num_streams)
    assert len(spoken) == 8
    for record in map(spoken.__getitem__, range(8)):
        number = int(record.id.removeprefix("listed/"))
        want = codec.encode(sound(1.5, number))
        codes = record.clips[0].codes
        assert codes.shape == want.shape
        assert np.mean(codes == want) > 0.98  # the file holds 16 bits


def test_a_run_takes_the_codec_along(spoken, converted, tmp_path):
    workdir = str(tmp_path / "run")
    train(run_settings(spoken, converted[0]), workdir)
    mine, theirs = (xcodec_fingerprint(d) for d in (workdir, converted[0]))
    assert mine == theirs == spoken.info["assets"]["codec"]
    wav = sound(1.5, 3)
    here, there = load_assets(workdir).codec, load_assets(converted[0]).codec
    np.testing.assert_array_equal(here.encode(wav), there.encode(wav))
    ours, theirs = open_run(workdir, MODEL), open_run(converted[0], MODEL)
    assert set(ours) == set(theirs)
    for name in (n for n in theirs if "codec_model" in n):  # and convert takes it back
        np.testing.assert_array_equal(ours[name].read(), theirs[name].read())


def test_codes_of_another_codec_are_refused(spoken, converted, tmp_path):
    workdir = str(tmp_path / "run")
    with pytest.raises(UserError, match="was prepared with another codec than the model has"):
        train(run_settings(spoken, converted[1]), workdir)
    assert not os.path.exists(workdir)  # told before anything is written
    named = f"--config.data.codec={converted[0]}"  # a model directory names its codec, too
    train(run_settings(spoken, converted[1], named), str(tmp_path / "other"))
    assert os.path.exists(tmp_path / "other" / XCODEC_FILE)
