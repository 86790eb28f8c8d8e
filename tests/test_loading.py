"""`bp.load` from every kind of checkpoint, on a mesh or not, and the conversions in between."""

import dataclasses
import json
import os
import shutil
import signal
import time

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from tiny_xcodec import CONFIG as CODEC

import bagpiper_jax as bp
from bagpiper_jax.cli import main
from bagpiper_jax.errors import UserError
from bagpiper_jax.files import write_directory
from bagpiper_jax.modeling.config import PRESETS, QWEN3, from_dict, get_config, to_dict
from bagpiper_jax.modeling.xcodec import XCodec
from bagpiper_jax.modeling.xcodec_model import XCodecModel
from bagpiper_jax.porting.convert import outputs_of
from bagpiper_jax.porting.espnet import abstract, fit, to_espnet
from bagpiper_jax.porting.runs import open_run, write_run
from bagpiper_jax.porting.sources import LazyTensor, open_checkpoint
from bagpiper_jax.porting.writers import write_safetensors
from bagpiper_jax.release import load_xcodec
from bagpiper_jax.sharding import RULES, logical_axes, parameter_shardings
from bagpiper_jax.store import SlicedArray, open_sliced, parts, write_sliced
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
    size = a.config.vocab.size
    a, b = values(a), values(b)
    assert a.keys() == b.keys()
    for path, value in a.items():
        rows = size if path in ("model.embed_tokens", "lm_head") else None  # less their padding
        value, other = np.asarray(value)[:rows], np.asarray(b[path])[:rows]
        np.testing.assert_array_equal(value, other, err_msg=path)


@pytest.fixture(scope="module")
def model(tensors):
    return bp.porting.from_espnet(tensors, get_config("tiny"))[0]


def tiny_if(kind):
    """The preset, where a checkpoint does not bring its shapes."""
    return "tiny" if kind == "source" else None


@pytest.mark.parametrize("kind", ["source", "orbax"])
def test_every_form_gives_the_same_model(request, model, kind):
    config = tiny_if(kind)
    loaded = bp.load(request.getfixturevalue(kind), config=config)
    same(loaded, model)
    assert loaded.model.norm.weight[...].dtype == jnp.float32
    half = bp.load(request.getfixturevalue(kind), config=config, dtype="bfloat16")
    assert half.dtype == jnp.bfloat16 and half.head.dtype == jnp.bfloat16


@pytest.mark.parametrize("kind", ["source", "orbax"])
@pytest.mark.parametrize("shape", [{"fsdp": 8}, {"replica": 2, "fsdp": 2, "tensor": 2}])
def test_a_mesh_gets_its_shards(request, model, kind, shape):
    mesh = jax.make_mesh(tuple(shape.values()), tuple(shape))
    loaded = bp.load(request.getfixturevalue(kind), mesh, config=tiny_if(kind))
    same(loaded, model)
    kernel = loaded.model.layers.mlp.gate_proj.kernel[...]  # [layers, embed, mlp]
    want = (2, 32 // shape["fsdp"], 48 // shape.get("tensor", 1))
    assert {s.data.shape for s in kernel.addressable_shards} == {want}
    assert len(kernel.sharding.device_set) == 8
    tokens = np.random.default_rng(0).integers(1, 300, (2, 9, 4))
    run = nnx.jit(lambda m: m.decode(m.embed(tokens), np.arange(9)[None], np.ones((2, 9), int)))
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


def test_loading_makes_no_weights_of_its_own(source, monkeypatch):
    """Random ones, which the checkpoint then replaces, would take minutes at 8 B."""
    made, init = [], bp.Bagpiper.__init__

    def noted(self, *args, **settings):
        init(self, *args, **settings)
        leaves = jax.tree.leaves(nnx.state(self, nnx.Param))
        made.append(not any(isinstance(leaf, jax.core.Tracer) for leaf in leaves))

    monkeypatch.setattr(bp.Bagpiper, "__init__", noted)
    bp.load(source, config="tiny")
    assert made and not any(made)


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
        assert config.decoder.rope_theta == 1e6  # not 10,000, nor where a file does not tell it
        values = to_dict(config)
        values["decoder"].pop("rope_theta")
        assert from_dict(values) == config
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
    clip = 0.1 * np.random.default_rng(0).standard_normal(16_000).astype(np.float32)
    again, first = bp.Pipeline.load(out), bp.Pipeline.load()
    assert again.sampling == first.sampling
    np.testing.assert_array_equal(again.codec.encode(clip), first.codec.encode(clip))
    served = str(tmp_path / "served")  # its shapes are found again without --config
    assert main(["convert", out, served, "--to", "safetensors"]) == 0
    same(bp.load(served), bp.load(MINI))
    with pytest.raises(UserError, match="has shapes of its own"):
        bp.load(out, config="tiny")
    assert main(["convert", served, str(tmp_path / "back"), "--to", "orbax"]) == 0
    same(bp.load(tmp_path / "back"), bp.load(MINI))


def test_damaged_directories_are_told(orbax, source, tmp_path, capsys):
    with pytest.raises(UserError, match="there is no checkpoint"):
        bp.load(tmp_path / "none", config="tiny")
    assert main(["convert", source, orbax, "--to", "orbax", "--config", "tiny"]) == 2
    assert "is there already and is not empty" in capsys.readouterr().err
    copy = tmp_path / "copy"
    shutil.copytree(orbax, copy)
    norm = copy / "checkpoints" / "0" / "weights" / "model.norm.weight"
    (norm / "0").write_bytes(b"short")
    for damage in (lambda: None, (norm / "0").unlink, lambda: shutil.rmtree(norm)):
        damage()  # a truncated chunk, a missing one, a missing array
        with pytest.raises(UserError, match="is damaged"):
            bp.load(copy)
        for to in ("safetensors", "orbax"):
            assert main(["convert", str(copy), str(tmp_path / "x"), "--to", to]) == 2
            error = capsys.readouterr().err.splitlines()[-1]
            assert "is damaged" in error and "Traceback" not in error
            assert not os.path.exists(tmp_path / "x")
    (copy / "model.json").write_text("{")
    with pytest.raises(UserError, match="model.json is damaged"):
        bp.load(copy)
    shutil.rmtree(copy / "checkpoints")
    shutil.copy(os.path.join(orbax, "model.json"), copy)
    with pytest.raises(UserError, match="holds no checkpoints"):
        bp.load(copy)


def test_another_model_is_told_by_name(orbax, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(orbax, copy)
    shapes = json.loads((copy / "model.json").read_text())
    shapes["decoder"]["intermediate_size"] = 64
    (copy / "model.json").write_text(json.dumps(shapes))
    with pytest.raises(
        UserError, match=r"up_proj.kernel has shape \[2, 32, 48\], not \[2, 32, 64\]"
    ):
        bp.load(copy)


def sliced(value, asked=None):
    def cut(index):
        if asked is not None:
            asked.append(index[0])
        return value[index]

    return SlicedArray(value.shape, value.dtype, cut)


def test_a_failed_write_leaves_nothing(tmp_path):
    def cut(index):
        raise OSError(28, "No space left on device")

    items = {"weights": {"a.b": SlicedArray((4, 3), np.dtype(np.float32), cut)}}
    with pytest.raises(UserError, match="No space left on device.*free some space"):
        write_directory(tmp_path / "x", lambda partial: write_sliced(partial, items))
    assert not os.listdir(tmp_path)


def test_an_interrupted_write_stops_at_once_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "_CHUNK_BYTES", 12)
    asked = []

    def cut(index):
        asked.append(index)
        if len(asked) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.05)
        return np.zeros((1, 3), np.float32)

    items = {"weights": {"a.b": SlicedArray((200, 3), np.dtype(np.float32), cut)}}
    with pytest.raises(KeyboardInterrupt):
        write_directory(tmp_path / "x", lambda partial: write_sliced(partial, items))
    assert len(asked) < 50 and not os.listdir(tmp_path)


def test_sliced_arrays_in_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "_CHUNK_BYTES", 200)
    rng, asked, written = np.random.default_rng(0), [], []
    narrow = rng.standard_normal((8, 12), np.float32)  # halves of both axes: 4 x 12, 192 bytes
    wide = rng.standard_normal((3, 10, 8), np.float32)  # one layer of 5 x 8, 160 bytes
    items = {
        "weights": {"a.b": sliced(narrow, asked), "a.c": sliced(wide), "d": sliced(narrow[0])},
        "codec": {"0.b": sliced(wide), "0.c": sliced(narrow)},
    }
    write_sliced(str(tmp_path), items, written.append)
    assert sum(written) == sum(a.nbytes for arrays in items.values() for a in arrays.values())
    for item, arrays in items.items():
        found = open_sliced(str(tmp_path), item)
        assert found.keys() == arrays.keys()
        for name, array in arrays.items():
            whole = (slice(None),) * array.ndim
            np.testing.assert_array_equal(found[name].cut(whole), array.cut(whole))
    chunks = os.listdir(tmp_path / "checkpoints" / "0" / "weights" / "a.c")
    want = [f"{i}.{j}.0" for i in range(3) for j in (0, 1)]
    assert sorted(c for c in chunks if c[0] != ".") == want


@pytest.mark.parametrize(
    "shape, most", [((4, 2), 1.05), ((8, 1), 1.25), ((1, 8), 1.3), ((16, 4), 2.7)]
)
def test_devices_read_little_besides_their_own(shape, most):
    """Of the chunks of the published model, which are read whole, against what is asked for."""
    config = get_config("bagpiper_8b")
    state = dotted(nnx.state(bp.Bagpiper.abstract(config)))
    mesh = jax.sharding.AbstractMesh(shape, ("fsdp", "tensor"))
    asked = read = stored = whole = 0
    for path, leaf in state.items():
        array = SlicedArray(leaf.shape, np.dtype(ml_dtypes.bfloat16), None)
        chunk = parts._chunks(array)
        counts = [-(-n // c) for n, c in zip(leaf.shape, chunk, strict=True)]
        whole += array.nbytes
        stored += np.prod(counts) * np.prod(chunk) * 2
        sizes = dict(zip(mesh.axis_names, shape, strict=True))
        axes = [sizes.get(RULES.get(a), 1) for a in logical_axes(path)]
        axes += [1] * (len(leaf.shape) - len(axes))
        part = [n // s for n, s in zip(leaf.shape, axes, strict=True)]
        # every device's part starts on a multiple of its size
        touched = [
            [(start + p - 1) // c - start // c + 1 for start in range(0, n, p)]
            for n, p, c in zip(leaf.shape, part, chunk, strict=True)
        ]
        asked += array.nbytes
        read += np.prod([sum(t) for t in touched]) * np.prod(chunk) * 2
    assert read < most * asked and stored < 1.01 * whole


def test_x_codec_goes_along(tensors, tmp_path):
    config = get_config("tiny")
    model = XCodecModel(CODEC, rngs=nnx.Rngs(0))
    whole = to_espnet(bp.Bagpiper(config, rngs=nnx.Rngs(0)), model, dtype=None)
    found = {n: np.asarray(t) for n, t in whole.items() if "codec_model" in n} | tensors
    lean = {n: t for n, t in found.items() if "decoder_semantic" not in n}  # what may be missing
    for name, kept in (("whole", found), ("lean", lean)):
        lazy = {n: LazyTensor(t.shape, t.dtype, lambda t=t: t) for n, t in kept.items()}
        table, lazy = fit("the source", lazy, config, CODEC)
        path = str(tmp_path / name)
        write_run(path, table, lazy, config, codec=CODEC)
        again = open_run(path, config)
        for n, t in kept.items():
            np.testing.assert_array_equal(again[n].read(), t)
    same(bp.load(path), bp.porting.from_espnet(tensors, config)[0])
    wav = 0.1 * np.random.default_rng(0).standard_normal(8_000).astype(np.float32)
    codes = load_xcodec(path, 4).encode(wav)
    np.testing.assert_array_equal(codes, XCodec(model, num_books=4).encode(wav))
    shutil.rmtree(os.path.join(path, "checkpoints", "0", "codec"))
    with pytest.raises(UserError, match="holds no codec"):
        load_xcodec(path, 4)


def test_a_new_model_by_the_command_line(tensors, tmp_path, capsys):
    renamed = {
        n.split("continuous_audio.model.")[-1]: t for n, t in tensors.items() if "tower" in n
    }
    tower = write(tmp_path / "tower", renamed)
    text = {n: t for n, t in tensors.items() if n.startswith("model.")}
    text["model.embed_tokens.weight"] = text["model.embed_tokens.weight"][:320]
    llm, out = write(tmp_path / "llm", text), str(tmp_path / "new")
    (tmp_path / "tokenizer.json").write_text("{}")
    argv = ["convert", llm, out, "--to", "orbax", "--config", "tiny", "--tower", tower]
    assert main([*argv, "--tokenizer", str(tmp_path / "none.json")]) == 2
    assert "there is no tokenizer" in capsys.readouterr().err and not os.path.exists(out)
    argv += ["--tokenizer", str(tmp_path / "tokenizer.json")]
    config = tmp_path / "llm" / "config.json"
    for words, told in (
        ('{"rope_theta": 1', "config.json is damaged"),
        ('{"rope_scaling": {"type": "yarn"}}', "rotations of the type 'yarn' are not supported"),
    ):
        config.write_text(words)
        assert main(argv) == 2
        assert told in capsys.readouterr().err and not os.path.exists(out)
    config.write_text('{"rms_norm_eps": 1e-5, "rope_parameters": {"rope_theta": 5000000.0}}')
    assert main([*argv, "--verify", "bits"]) == 0
    assert os.path.exists(os.path.join(out, "tokenizer.json"))
    model = bp.load(out)
    decoder = model.config.decoder
    assert (decoder.rope_theta, decoder.rms_norm_eps) == (5e6, 1e-5)
    assert not model.config.vocab.zero_text_id_is_pad
    np.testing.assert_array_equal(
        model.model.embed_tokens[256:576], text["model.embed_tokens.weight"].astype(np.float32)
    )
    whole = write(tmp_path / "whole", tensors)
    assert main(["convert", whole, str(tmp_path / "y"), *argv[3:]]) == 2
    assert "is a whole Bagpiper already: leave out --tower" in capsys.readouterr().err
    assert main(["convert", out, str(tmp_path / "y"), *argv[3:]]) == 2
    assert "leave out --tower and --config" in capsys.readouterr().err
    assert main(["convert", whole, str(tmp_path / "y"), "--to", "orbax", "--codec", "z"]) == 2
    assert "--codec is for a new model" in capsys.readouterr().err


def test_a_tied_head_may_be_there_twice(tensors):
    tiny = get_config("tiny")
    tied = dataclasses.replace(
        tiny, decoder=dataclasses.replace(tiny.decoder, tie_word_embeddings=True)
    )
    embed = tensors["model.embed_tokens.weight"]
    for head, message in ((embed, None), (embed + 1, "but the config ties them")):
        both = tensors | {"lm_head.weight": head}
        lazy = {n: LazyTensor(t.shape, t.dtype, lambda t=t: t) for n, t in both.items()}
        if message:
            with pytest.raises(UserError, match=message):
                fit("the source", lazy, tied)
            continue
        table, lazy = fit("the source", lazy, tied)
        assert "lm_head.weight" not in lazy
        assert outputs_of(table, lazy, tied, "espnet").keys() == both.keys() | {"vocab_weight"}


def test_the_language_model_alone(source, tmp_path):
    out = tmp_path / "llm"
    assert main(["convert", source, str(out), "--to", "qwen3", "--config", "tiny"]) == 0
    assert all(n.startswith(("model.", "lm_head.")) for n in open_checkpoint(str(out)))
    described = json.loads((out / "config.json").read_text())
    assert described["dtype"] == "bfloat16"
    assert described["model_type"] == "qwen3" and described["rope_parameters"]["rope_theta"] == 1e4
