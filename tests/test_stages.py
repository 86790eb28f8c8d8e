"""Stages start from other weights: what is frozen stays, the rest moves, steps begin anew."""

import dataclasses
import os
import shutil

import jax
import numpy as np
import pytest
from tiny_run import CONFIG, TINY

from bagpiper_jax.errors import UserError
from bagpiper_jax.modeling.config import changed, get_config
from bagpiper_jax.release import MINI, MODEL_FILE, load_assets, write_config
from bagpiper_jax.training.assets import run_shapes
from bagpiper_jax.training.config import load_config
from bagpiper_jax.training.loop import initial_params, train
from bagpiper_jax.training.step import make_model, run_mesh
from bagpiper_jax.trees import dotted

CORPUS = os.path.join(os.path.dirname(CONFIG), "..", "data", "mini")


def one_device():
    run = load_config(["--config", CONFIG])
    return run_mesh(run, jax.devices()[:1])


def stage(name, *overrides):
    config = os.path.join(os.path.dirname(CONFIG), name)
    small = [*TINY, "--config.steps=2", "--config.optimizer.warmup_steps=1"]
    small += [f"--config.data.corpus={CORPUS}", "--config.data.windows=12"]
    small += ["--config.compute.accumulation=1", "--config.keep_every=0", *overrides]
    return load_config(["--config", config, *small])


def test_warm_up_moves_tables_and_adaptor_alone(finished, tmp_path):
    """In bfloat16, with everything computed again, from a run; then the run goes on from it.

    The run's weights know text id 0 as pad, unlike the preset: so do those that come of them.
    """
    before = dotted(finished[1].params)
    first, second, start = (str(tmp_path / name) for name in ("warmup", "pretrain", "start"))
    shutil.copytree(finished[0], start)
    put_shapes(start, get_config("tiny"), is_pad=True)
    state = train(stage("warmup_8b.py", f"--config.init_from={start}"), first)
    assert int(state.step) == 2
    for path, after in dotted(state.params).items():
        frozen = path.startswith(("audio_tower.", "model.layers."))
        assert np.array_equal(after, before[path]) is frozen, path
    middle = dotted(state.params)
    state = train(stage("pretrain_8b.py", f"--config.init_from={first}"), second)
    assert int(state.step) == 2
    for path, after in dotted(state.params).items():
        assert np.array_equal(after, middle[path]) is path.startswith("audio_tower."), path
    assert all(load_assets(d).config.vocab.zero_text_id_is_pad for d in (first, second))


def put_shapes(directory, config, *, is_pad):
    os.makedirs(directory, exist_ok=True)
    vocab = dataclasses.replace(config.vocab, zero_text_id_is_pad=is_pad)
    write_config(os.path.join(directory, MODEL_FILE), dataclasses.replace(config, vocab=vocab))


@pytest.mark.parametrize("name", ["warmup_8b.py", "pretrain_8b.py", "sft_8b.py"])
def test_text_id_zero_is_pad_where_the_weights_know_it_so(name, tmp_path):
    """In what comes of the published weights; never in new weights, though shapes are the same."""
    published, new = str(tmp_path / "published"), str(tmp_path / "new")
    for directory, is_pad in ((published, True), (new, False)):
        put_shapes(directory, get_config("bagpiper_8b"), is_pad=is_pad)
    config = os.path.join(os.path.dirname(CONFIG), name)
    for start, is_pad in ((published, True), (new, False), ("base.pt", True), ("", False)):
        run = dataclasses.replace(load_config(["--config", config]), init_from=start)
        shapes = run_shapes(run)
        assert shapes.vocab.zero_text_id_is_pad is is_pad
        assert shapes.decoder == get_config("bagpiper_8b").decoder


def test_a_converted_checkpoint_is_a_start(finished, tmp_path):
    """What ESPnet's form holds, of the same shapes, with tokenizer and codec named beside it."""
    pytest.importorskip("torch")
    from bagpiper_jax.porting.convert import convert

    source = str(tmp_path / "model.pt")
    convert(finished[0], source, "espnet", verify=None)
    names = {"tokenizer": "tokenizer.model", "codec": "codec.npz"}
    given = [f"--config.data.{k}={os.path.join(finished[0], v)}" for k, v in names.items()]
    run = stage("sft_8b.py", f"--config.init_from={source}", *given)
    state = train(run, str(tmp_path / "sft"))
    before = dotted(finished[1].params)
    after = dotted(state.params)
    np.testing.assert_array_equal(
        after["audio_tower.conv_out.kernel"], before["audio_tower.conv_out.kernel"]
    )
    rows = get_config("tiny").vocab.size  # the others only pad the table
    moved = np.abs(after["lm_head"] - before["lm_head"])[:rows].max()
    assert 0 < moved < 0.05  # two steps at 0.01


def test_frozen_parts_need_weights_and_training_a_corpus(tmp_path):
    with pytest.raises(UserError, match="init_from: name the weights of what is frozen"):
        train(stage("pretrain_8b.py"), str(tmp_path / "run"))
    with pytest.raises(UserError, match=r"data\.sets: name the prepared sets"):
        train(stage("pretrain_8b.py", "--config.data.corpus="), str(tmp_path / "run"))
    assert not os.path.exists(tmp_path / "run")


def test_weights_of_another_model_are_refused(tmp_path):
    run = load_config(["--config", CONFIG, *TINY, f"--config.init_from={MINI}"])
    with pytest.raises(UserError, match="init_from: .* is no tiny"):
        train(run, str(tmp_path / "run"))
    assert not os.path.exists(tmp_path / "run")


def test_parts_of_other_weights(finished, tmp_path):
    """One part is taken, the rest starts at random, and all but the frozen one moves."""
    before = dotted(finished[1].params)
    parts = ("audio_tower.conv2d1", "stream_emb")
    run = dataclasses.replace(
        load_config(["--config", CONFIG, *TINY, "--config.steps=3"]),
        init_from=finished[0],
        init_parts=parts,
        frozen=("audio_tower.conv2d1",),
    )
    taken = dotted(initial_params(run, make_model(run, run_shapes(run)), one_device()))
    fresh = dataclasses.replace(run, init_from="", init_parts=(), frozen=())
    random = dotted(initial_params(fresh, make_model(run, run_shapes(run)), one_device()))
    assert taken.keys() == before.keys()
    for path, value in taken.items():
        source = before if path.startswith(parts) else random
        assert np.array_equal(value, source[path]), path
    assert any(path.startswith("stream_emb") for path in before)
    after = dotted(train(run, str(tmp_path / "run")).params)
    for path, value in after.items():
        kept = np.array_equal(value, before[path])
        assert kept is path.startswith("audio_tower.conv2d1"), path
    wrong = dataclasses.replace(run, init_parts=("audio_towr",))
    with pytest.raises(UserError, match="init_parts: there is no 'audio_towr'; the parts are"):
        train(wrong, str(tmp_path / "other"))
    apart = ["--config.init_from=x", "--config.init_parts=('model',)"]
    with pytest.raises(UserError, match="frozen: audio_tower would stay random"):
        load_config(["--config", CONFIG, *apart, "--config.frozen=('model.layers', 'audio_tower')"])
    with pytest.raises(UserError, match="init_parts: name the weights"):
        load_config(["--config", CONFIG, "--config.init_parts=('stream_emb',)"])


def test_a_changed_model_is_trained_kept_and_told_apart(finished, tmp_path):
    """Parallel streams and another loss weight, from weights of the published layout."""
    changes = {"vocab": {"stream_delay": 0, "codec_weight": [0.4, 0.3, 0.2, 0.1]}}
    run = dataclasses.replace(
        load_config(["--config", CONFIG, *TINY]), init_from=finished[0], model_changes=changes
    )
    workdir = str(tmp_path / "run")
    train(run, workdir)
    vocab = load_assets(workdir).config.vocab
    assert vocab.stream_delay == 0 and vocab.codec_weight == (0.4, 0.3, 0.2, 0.1)
    train(run, workdir)  # it is the same run
    with pytest.raises(UserError, match=r"other settings \(model_changes.vocab.stream_delay"):
        other = {"vocab": {**changes["vocab"], "stream_delay": 2}}
        train(dataclasses.replace(run, model_changes=other), workdir)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"vocab": {"delay": 0}}, "no setting vocab.delay: choose of"),
        ({"vocab": 3}, "vocab of the model is a section"),
        ({"vocab": {"stream_delay": "none"}}, "vocab.stream_delay of the model is like 1"),
        ({"vocab": {"stream_delay": -1}}, "do not go together: stream_delay must not"),
        ({"vocab": {"codec_weight": [1.0]}}, "do not go together: codec_weight has 1 values"),
        ({"z_loss": "much"}, "z_loss of the model is like 0.0"),
        ({"z_loss": True}, "z_loss of the model is like 0.0"),
        ({"decoder": {"rope_theta": [1.0, 2.0]}}, "rope_theta of the model is like"),
        ({"vocab": {"codec_weight": ["a"] * 4}}, "codec_weight of the model is like"),
    ],
)
def test_wrong_changes_of_a_model(changes, words):
    with pytest.raises(UserError, match=words):
        changed(get_config("tiny"), changes)
    assert changed(get_config("tiny"), {"z_loss": 1}).z_loss == 1.0
