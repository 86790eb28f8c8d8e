"""Files of PyTorch: written and read tensor by tensor, and what is wrong with them told."""

import json
import os
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from bagpiper_jax.cli import main
from bagpiper_jax.errors import UserError
from bagpiper_jax.modeling.config import get_config
from bagpiper_jax.porting.convert import compare
from bagpiper_jax.porting.espnet import abstract, from_espnet, to_espnet
from bagpiper_jax.porting.parts import assemble
from bagpiper_jax.porting.rows import CODEC, TOWER
from bagpiper_jax.porting.sources import LazyTensor, fold_norms, open_checkpoint
from bagpiper_jax.porting.writers import write_safetensors, write_torch


@pytest.fixture(scope="module")
def tensors():
    rng = np.random.default_rng(0)
    return {
        "a.weight": rng.standard_normal((30, 40)).astype(ml_dtypes.bfloat16),
        "b": rng.standard_normal(7).astype(np.float32),
        "c": rng.standard_normal((1, 5)).astype(ml_dtypes.bfloat16),
    }


def lazy(array):
    return LazyTensor(array.shape, array.dtype, lambda: array)


def outputs(tensors):
    return {name: lazy(tensor) for name, tensor in tensors.items()}


def same(path, tensors):
    opened = open_checkpoint(str(path))
    assert set(opened) == set(tensors)
    for name, tensor in tensors.items():
        assert opened[name].shape == tensor.shape and opened[name].dtype == tensor.dtype
        np.testing.assert_array_equal(opened[name].read(), tensor)


def test_safetensors_in_shards(tensors, tmp_path):
    seen = []
    write_safetensors(str(tmp_path), outputs(tensors), seen.append, shard_bytes=2000)
    same(tmp_path, tensors)
    assert sum(seen) == sum(t.nbytes for t in tensors.values())
    names = sorted(os.listdir(tmp_path))
    assert names == [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)] + [
        "model.safetensors.index.json"
    ]
    # the library reads what is written, and what it writes is read
    shards = [safetensors.numpy.load_file(str(tmp_path / name)) for name in names[:2]]
    assert {n for shard in shards for n in shard} == set(tensors)
    safetensors.numpy.save_file(tensors, str(tmp_path / "whole.safetensors"))
    same(tmp_path / "whole.safetensors", tensors)


def test_damaged_safetensors_are_told(tensors, tmp_path):
    write_safetensors(str(tmp_path), outputs(tensors), shard_bytes=2000)
    shard = tmp_path / "model-00001-of-00002.safetensors"
    data = shard.read_bytes()
    shard.write_bytes(data[:-10])
    with pytest.raises(UserError, match="is truncated: it has"):
        open_checkpoint(str(tmp_path))
    shard.write_bytes(b"\x00" * 50)
    with pytest.raises(UserError, match="no safetensors file"):
        open_checkpoint(str(tmp_path))
    shard.unlink()
    with pytest.raises(UserError, match="lacks the shards model-00001-of-00002.safetensors"):
        open_checkpoint(str(tmp_path))
    shard.write_bytes(data)
    index = tmp_path / "model.safetensors.index.json"
    values = json.loads(index.read_text())
    values["weight_map"]["b"] = shard.name
    index.write_text(json.dumps(values))
    with pytest.raises(UserError, match="b in model-00001"):
        open_checkpoint(str(tmp_path))
    index.write_text("{")
    with pytest.raises(UserError, match="index.json is damaged"):
        open_checkpoint(str(tmp_path))
    with pytest.raises(UserError, match="holds no checkpoint"):
        open_checkpoint(str(tmp_path.parent))


def test_a_full_disk_is_told(tmp_path):
    """A limit on file size stands in for it."""
    import resource

    big = lazy(np.zeros((300, 1000), np.float32))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        with pytest.raises(UserError, match="cannot write .*model-00001-of-00001.safetensors"):
            write_safetensors(str(tmp_path), {"a": big})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    "entry",
    [
        {"shape": [1], "data_offsets": [0, 4]},
        {"dtype": "F32", "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]},
        {"dtype": "F32", "shape": [1], "data_offsets": [0.0, 4.0]},
        [],
    ],
)
def test_a_damaged_header_is_told(tmp_path, entry):
    header = json.dumps({"a": entry}).encode()
    file = tmp_path / "a.safetensors"
    file.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(UserError, match="no safetensors file, or is damaged"):
        open_checkpoint(str(file))


@pytest.mark.slow
def test_a_full_disk_is_told_before_a_torch_file_is_written(tensors, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_bavail=0, f_frsize=1))
    with pytest.raises(UserError, match="needs 0.0 GB, there are 0.0 GB free"):
        write_torch(str(tmp_path / "a.pt"), outputs(tensors))
    assert not os.listdir(tmp_path)


@pytest.mark.slow
def test_torch_files(tensors, tmp_path):
    import torch

    path = str(tmp_path / "base.pt")
    write_torch(path, outputs(tensors))
    assert os.listdir(tmp_path) == ["base.pt"]
    same(path, tensors)
    loaded = torch.load(path, weights_only=True)["module"]
    assert loaded["a.weight"].dtype == torch.bfloat16
    np.testing.assert_array_equal(loaded["b"].numpy(), tensors["b"])
    torch.save(loaded, path)  # a bare state dict
    same(path, tensors)
    folder = tmp_path / "step"  # DeepSpeed's
    folder.mkdir()
    torch.save({"module": loaded, "steps": 3}, folder / "mp_rank_00_model_states.pt")
    same(folder, tensors)


@pytest.mark.slow
def test_damaged_and_dangerous_torch_files_are_told(tmp_path, capfd):
    import torch

    class Bomb:
        def __reduce__(self):
            return os.system, ("echo boom",)

    path = tmp_path / "base.pt"
    torch.save({"module": Bomb()}, path)
    with pytest.raises(UserError, match="wants to run code"):
        open_checkpoint(str(path))
    assert "boom" not in capfd.readouterr().out
    torch.save({"a": torch.zeros(1000)}, path)
    path.write_bytes(path.read_bytes()[:1500])
    with pytest.raises(UserError, match="truncated"):
        open_checkpoint(str(path))
    torch.save({"a": torch.zeros(2), "epoch": 3}, path)
    with pytest.raises(UserError, match="more than tensors: epoch"):
        open_checkpoint(str(path))
    with pytest.raises(UserError, match="there is no checkpoint"):
        open_checkpoint(str(tmp_path / "none.pt"))


def test_weight_norm_by_either_name_is_folded(tmp_path):
    rng = np.random.default_rng(0)
    g, v = rng.standard_normal((4, 1, 1)), rng.standard_normal((4, 3, 5))
    g, v = g.astype(np.float32), v.astype(np.float32)
    want = g * v / np.linalg.norm(v.reshape(4, -1), axis=1)[:, None, None]
    present = "x.parametrizations.weight.original"
    for names in (("x.weight_g", "x.weight_v"), (f"{present}0", f"{present}1")):
        path = tmp_path / names[0]
        write_safetensors(str(path), outputs(dict(zip(names, (g, v), strict=True))))
        opened = open_checkpoint(str(path))
        assert sorted(opened) == [f"{present}0", f"{present}1"]
        folded = fold_norms(opened, ["x.weight"])
        assert list(folded) == ["x.weight"]
        np.testing.assert_allclose(folded["x.weight"].read(), want, rtol=1e-6)


def test_a_new_model_from_parts():
    config = get_config("tiny")
    vocab, hidden = config.vocab, config.decoder.hidden_size
    rng = np.random.default_rng(1)
    whole = {
        name: rng.standard_normal(shape.shape).astype(ml_dtypes.bfloat16)
        for name, shape in to_espnet(*abstract(config, None)).items()
    }
    tower = {n.replace(TOWER, "thinker.audio_tower."): t for n, t in whole.items() if TOWER in n}
    text = rng.standard_normal((vocab.text_size, hidden)).astype(ml_dtypes.bfloat16)
    qwen3 = {n: t for n, t in whole.items() if n.startswith("model.")}
    qwen3 |= {"model.embed_tokens.weight": text}
    parts = [{n: lazy(t) for n, t in part.items()} for part in (qwen3, tower)]
    parts[1]["thinker.model.norm.weight"] = lazy(text)  # another part of Qwen3-Omni
    found = {n: t.read() for n, t in assemble(*parts, None, config).items()}
    model, _ = from_espnet(found, config)
    table, head = np.asarray(model.model.embed_tokens[...]), np.asarray(model.head)
    span = slice(vocab.text_start, vocab.codec_start)
    np.testing.assert_array_equal(table[span], text.astype(np.float32))
    np.testing.assert_array_equal(head[span], table[span])  # of a tied model
    new = np.concatenate([table[: span.start], table[span.stop : vocab.size]])
    assert abs(new.std() - 0.02) < 0.002 and abs(new.mean()) < 0.002
    assert not np.any(model.stream_emb[...])
    assert {n for n in found if CODEC in n} == set()
    with pytest.raises(UserError, match="no audio tower"):
        assemble(parts[0], parts[0], None, config)
    with pytest.raises(UserError, match="give a Qwen3 directory"):
        assemble(parts[1], parts[1], None, config)


def test_convert_writes_what_it_read(tmp_path, capsys):
    config = get_config("tiny")
    rng = np.random.default_rng(2)
    whole = {
        name: rng.standard_normal(shape.shape).astype(shape.dtype)
        for name, shape in to_espnet(*abstract(config, None)).items()
    }
    whole["vocab_weight"] = config.vocab.token_weights()
    source, target = tmp_path / "source", str(tmp_path / "target")
    write_safetensors(str(source), outputs(whole))
    argv = ["convert", str(source), target, "--to", "safetensors", "--config", "tiny"]
    assert main([*argv, "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "stream_emb.weight  [4, 32]  bfloat16  ↔  stream_emb" in lines
    name = "model.layers.1.mlp.up_proj"
    place = "model.layers.mlp.up_proj.kernel[1]"
    assert f"{name}.weight  [48, 32]  bfloat16  ↔  {place}" in lines
    assert not os.path.exists(target)
    assert main([*argv, "--verify", "bits"]) == 0
    assert "every bit as in" in capsys.readouterr().out
    whole.pop("vocab_weight")  # the served form has none
    same(target, whole)
    with open(os.path.join(target, "config.json"), encoding="utf-8") as file:
        assert json.load(file)["model_type"] == "bagpiper"


def test_convert_tells_what_does_not_fit(tensors, tmp_path, capsys):
    write_safetensors(str(tmp_path / "a"), outputs(tensors))
    argv = ["convert", str(tmp_path / "a"), str(tmp_path / "b"), "--to", "safetensors"]
    assert main([*argv, "--config", "tiny"]) == 2
    error = capsys.readouterr().err
    assert "a.weight is unexpected" in error and "lm_head.weight is missing" in error
    assert error.count("\n") == 1 and not os.path.exists(tmp_path / "b")
    qwen3 = {"model.embed_tokens.weight": tensors["c"]}
    write_safetensors(str(tmp_path / "c"), outputs(qwen3))
    argv[1] = str(tmp_path / "c")
    assert main(argv) == 2
    assert "a language model without audio: give --tower" in capsys.readouterr().err


def test_verify_finds_one_wrong_bit(tensors, tmp_path):
    write_safetensors(str(tmp_path), outputs(tensors))
    compare(str(tmp_path), outputs(tensors), open_checkpoint(str(tmp_path)))
    other = {n: t.copy() for n, t in tensors.items()}
    other["b"].view(np.uint8)[3] ^= 1
    with pytest.raises(UserError, match="differs in 1 tensors: b"):
        compare(str(tmp_path), outputs(other), open_checkpoint(str(tmp_path)))
