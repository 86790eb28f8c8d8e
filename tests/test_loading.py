"""`bp.load` from every kind of checkpoint, on a mesh or not, and the conversions in between."""

import json
import os
import shutil

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx

import bagpiper_jax as bp
from bagpiper_jax.cli import main
from bagpiper_jax.errors import UserError
from bagpiper_jax.modeling.config import PRESETS, QWEN3, get_config
from bagpiper_jax.porting.espnet import abstract, to_espnet
from bagpiper_jax.porting.sources import LazyTensor, open_checkpoint
from bagpiper_jax.porting.writers import write_safetensors
from bagpiper_jax.sharding import parameter_shardings
from bagpiper_jax.store import SlicedArray, open_sliced, write_sliced
from bagpiper_jax.trees import dotted


@pytest.fixture(scope="module")
def tensors():
    """A random checkpoint of the tiny model, as ESPnet names it."""
    config, rng = get_config("tiny"), np.random.default_rng(0)
    return {
        name: (0.1 * rng.standard_normal(shape.shape)).astype(ml_dtypes.bfloat16)
        for name, shape in to_espnet(*abstract(config, None)).items()
        if name != "vocab_weight"
    }


def write(path, tensors):
    lazy = {n: LazyTensor(t.shape, t.dtype, lambda t=t: t) for n, t in tensors.items()}
    write_safetensors(str(path), lazy)
    return str(path)


@pytest.fixture(scope="module")
def source(tensors, tmp_path_factory):
    return write(tmp_path_factory.mktemp("source") / "served", tensors)


@pytest.fixture(scope="module")
def orbax(source, tmp_path_factory):
    path = str(tmp_path_factory.mktemp("orbax") / "model")
    argv = ["convert", source, path, "--to", "orbax", "--config", "tiny", "--verify", "bits"]
    assert main(argv) == 0
    return path


def values(model):
    return {path: leaf[...] for path, leaf in dotted(nnx.state(model, nnx.Param)).items()}


def same(a, b):
    a, b = values(a), values(b)
    assert a.keys() == b.keys()
    for path, value in a.items():
        np.testing.assert_array_equal(np.asarray(value), np.asarray(b[path]), err_msg=path)


@pytest.fixture(scope="module")
def model(tensors):
    return bp.porting.from_espnet(tensors, get_config("tiny"))[0]


@pytest.mark.parametrize("kind", ["source", "orbax"])
def test_every_form_gives_the_same_model(request, model, kind):
    loaded = bp.load(request.getfixturevalue(kind), config="tiny")
    same(loaded, model)
    assert loaded.model.norm.weight[...].dtype == jnp.float32
    half = bp.load(request.getfixturevalue(kind), config="tiny", dtype="bfloat16")
    assert half.dtype == jnp.bfloat16 and half.head.dtype == jnp.bfloat16


@pytest.mark.parametrize("kind", ["source", "orbax"])
@pytest.mark.parametrize("shape", [{"fsdp": 8}, {"replica": 2, "fsdp": 2, "tensor": 2}])
def test_a_mesh_gets_its_shards(request, model, kind, shape):
    mesh = jax.make_mesh(tuple(shape.values()), tuple(shape))
    loaded = bp.load(request.getfixturevalue(kind), mesh, config="tiny")
    same(loaded, model)
    kernel = loaded.model.layers.mlp.gate_proj.kernel[...]  # [layers, embed, mlp]
    want = (2, 32 // shape["fsdp"], 48 // shape.get("tensor", 1))
    assert {s.data.shape for s in kernel.addressable_shards} == {want}
    assert len(kernel.sharding.device_set) == 8
    tokens = np.random.default_rng(0).integers(1, 300, (2, 9, 4))
    run = nnx.jit(lambda m: m.decode(m.embed(tokens), np.arange(9)[None], np.ones((2, 9), int))[0])
    np.testing.assert_allclose(run(loaded), run(model), atol=2e-5)


def test_no_shard_is_read_twice_over(source, monkeypatch):
    """Each device asks for its own part of a stacked parameter and nothing else."""
    from bagpiper_jax.porting import state

    asked, cutter = [], state._cutter

    def counting(members, read, shape):
        cut = cutter(members, read, shape)

        def counted(index):
            part = cut(index)
            if members[0].target.endswith("gate_proj.kernel"):
                asked.append(part.shape)
            return part

        return counted

    monkeypatch.setattr(state, "_cutter", counting)
    bp.load(source, jax.make_mesh((8,), ("fsdp",)), config="tiny")
    assert asked == [(2, 4, 48)] * 8


def test_wrong_meshes_are_told(source):
    with pytest.raises(UserError, match="mesh axes data are none of replica, fsdp, tensor"):
        bp.load(source, jax.make_mesh((8,), ("data",)), config="tiny")
    shapes = {"lm_head": (515, 32), "stream_emb": (4, 33)}
    with pytest.raises(UserError, match=r"does not divide 2 parameters \(lm_head \[515, 32\] by"):
        parameter_shardings(jax.make_mesh((2, 4), ("fsdp", "tensor")), shapes)


def test_every_parameter_has_logical_axes():
    mesh = jax.make_mesh((4, 2), ("fsdp", "tensor"))
    for name in PRESETS:
        state = nnx.state(bp.Bagpiper.abstract(get_config(name)))
        shapes = {path: leaf.shape for path, leaf in dotted(state).items()}
        found = parameter_shardings(mesh, shapes)
        split = sum(np.prod(s) for p, s in shapes.items() if not found[p].is_fully_replicated)
        assert split > 0.9 * sum(np.prod(s) for s in shapes.values())


def test_qwen3_presets_have_the_published_sizes():
    """Parameters outside the tables, in billions, as the model cards give them."""
    published = {"0.6b": 0.44, "1.7b": 1.4, "4b": 3.6, "8b": 6.95}
    for size, billions in published.items():
        config = get_config(f"bagpiper_{size}")
        state = nnx.state(bp.Bagpiper.abstract(config).model)
        count = sum(np.prod(leaf.shape) for p, leaf in dotted(state).items() if "embed" not in p)
        assert abs(count / 1e9 - billions) < 0.05
        assert config.decoder is QWEN3[size]
        # the quirk of the published weights, which no new training takes over
        assert config.vocab.zero_text_id_is_pad == (size == "8b")


def test_there_and_back_is_exact(orbax, tensors, tmp_path):
    back = str(tmp_path / "back")
    assert main(["convert", orbax, back, "--to", "safetensors", "--verify", "bits"]) == 0
    written = open_checkpoint(back)
    assert written.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert written[name].dtype == tensor.dtype
        np.testing.assert_array_equal(written[name].read(), tensor)


def test_a_run_is_converted(tmp_path, tensors):
    """What training writes (OCDBT, float32), cast on the way."""
    from bagpiper_jax.release import write_config
    from bagpiper_jax.store import Checkpoints

    config = get_config("tiny")
    model, _ = bp.porting.from_espnet(tensors, config)
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    with Checkpoints(str(tmp_path / "run"), keep=1) as checkpoints:
        checkpoints.save(7, params, {"step": np.int32(7)}, {"batches": 7})
    write_config(str(tmp_path / "run" / "model.json"), config)
    out = str(tmp_path / "out")
    argv = ["convert", str(tmp_path / "run"), out, "--to", "safetensors"]
    assert main([*argv, "--dtype", "bfloat16", "--verify", "bits"]) == 0
    for name, tensor in open_checkpoint(out).items():
        assert tensor.dtype == ml_dtypes.bfloat16
        np.testing.assert_array_equal(tensor.read(), tensors[name])


def test_the_embedded_model_is_converted_and_loads(tmp_path):
    from bagpiper_jax.release import MINI

    out = str(tmp_path / "out")
    assert main(["convert", MINI, out, "--to", "orbax"]) == 0
    same(bp.load(out), bp.load(MINI))


def test_damaged_directories_are_told(orbax, source, tmp_path, capsys):
    with pytest.raises(UserError, match="there is no checkpoint"):
        bp.load(tmp_path / "none", config="tiny")
    assert main(["convert", source, orbax, "--to", "orbax", "--config", "tiny"]) == 2
    assert "is there already: choose another directory" in capsys.readouterr().err
    copy = tmp_path / "copy"
    shutil.copytree(orbax, copy)
    weights = copy / "checkpoints" / "0" / "weights"
    shutil.rmtree(weights / "model.norm.weight")
    with pytest.raises(UserError, match="do not fit the model"):
        bp.load(copy)
    assert main(["convert", str(copy), str(tmp_path / "x"), "--to", "safetensors"]) == 2
    assert "is damaged" in capsys.readouterr().err
    (copy / "model.json").write_text("{")
    with pytest.raises(UserError, match="model.json is damaged"):
        bp.load(copy)
    shutil.rmtree(copy / "checkpoints")
    shutil.copy(os.path.join(orbax, "model.json"), copy)
    with pytest.raises(UserError, match="holds no checkpoints"):
        bp.load(copy)


def test_a_failed_write_leaves_nothing(tmp_path):
    def cut(index):
        raise OSError(28, "No space left on device")

    broken = SlicedArray((4, 3), np.dtype(np.float32), cut)
    with pytest.raises(UserError, match="No space left on device"):
        write_sliced(str(tmp_path), {"weights": {"a.b": broken}})
    assert not os.listdir(tmp_path)


def test_sliced_arrays_in_chunks(tmp_path, monkeypatch):
    from bagpiper_jax import store

    monkeypatch.setattr(store, "_CHUNK_BYTES", 100)
    value = np.arange(7 * 20, dtype=np.float32).reshape(7, 20)
    asked, written = [], []

    def cut(index):
        asked.append(index[0])
        return value[index]

    array = SlicedArray(value.shape, value.dtype, cut)
    write_sliced(str(tmp_path), {"weights": {"a.b": array}}, written.append)
    assert len(asked) == 7 and sum(written) == value.nbytes
    found = open_sliced(str(tmp_path))["a.b"]
    np.testing.assert_array_equal(found.cut((slice(2, 4), slice(None))), value[2:4])


def test_the_language_model_alone(source, tmp_path):
    out = tmp_path / "llm"
    assert main(["convert", source, str(out), "--to", "qwen3", "--config", "tiny"]) == 0
    assert all(n.startswith(("model.", "lm_head.")) for n in open_checkpoint(str(out)))
    described = json.loads((out / "config.json").read_text())
    assert described["model_type"] == "qwen3" and described["rope_parameters"]["rope_theta"] == 1e4
