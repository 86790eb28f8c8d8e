"""Conversions, checked by running both sides; and what transformers makes of the export."""

import dataclasses
import json

import jax
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from tiny_xcodec import CONFIG as CODEC

import bagpiper_jax as bp
from bagpiper_jax.cli import main
from bagpiper_jax.errors import UserError
from bagpiper_jax.modeling.config import QWEN3, get_config
from bagpiper_jax.modeling.xcodec_model import XCodecModel
from bagpiper_jax.porting.espnet import abstract, to_espnet
from bagpiper_jax.porting.sources import LazyTensor, open_checkpoint
from bagpiper_jax.porting.verify import compare_numbers
from bagpiper_jax.porting.writers import write_safetensors, write_torch

pytestmark = pytest.mark.slow


def lazy(tensors):
    return {n: LazyTensor(t.shape, t.dtype, lambda t=t: t) for n, t in tensors.items()}


@pytest.fixture(scope="module")
def tensors():
    """A random checkpoint of the tiny model, without a codec."""
    config, rng = get_config("tiny"), np.random.default_rng(0)
    found = {}
    for name, shape in to_espnet(*abstract(config, None)).items():
        scale = 0.1 * rng.standard_normal(shape.shape)
        found[name] = (1 + scale if "norm" in name else scale).astype(ml_dtypes.bfloat16)
    found["vocab_weight"] = config.vocab.token_weights()
    return found


@pytest.fixture(scope="module")
def codec():
    """Tensors of a small X-codec whose codes are all in use."""
    model = XCodecModel(CODEC, rngs=nnx.Rngs(0))
    x = np.random.default_rng(0).standard_normal(model.quantizer.embed.shape)
    model.quantizer.embed[...] = 0.3 * x.astype(np.float32)
    whole = to_espnet(bp.Bagpiper(get_config("tiny"), rngs=nnx.Rngs(0)), model, dtype=None)
    return {n: np.asarray(t) for n, t in whole.items() if "codec_model" in n}


def test_all_forms_in_a_row_with_both_sides_run(tensors, tmp_path, capsys):
    """.pt → safetensors → Orbax → .pt, the last as the first."""
    paths = [str(tmp_path / name) for name in ("a.pt", "b", "c", "d.pt")]
    write_torch(paths[0], lazy(tensors))
    forms = ("safetensors", "orbax", "espnet")
    for source, target, to in zip(paths, paths[1:], forms, strict=False):
        argv = ["convert", source, target, "--to", to, "--verify"]
        argv += ["--config", "tiny"] if source == paths[0] else []  # later ones bring their shapes
        assert main(argv) == 0, capsys.readouterr().err
        out = capsys.readouterr().out
        assert "every bit as in" in out and "logits: KL divergence at most" in out
        assert "first choice alike in 100.00%" in out
    first, last = (open_checkpoint(paths[i]) for i in (0, 3))
    assert first.keys() == last.keys()
    for name, tensor in first.items():
        assert tensor.dtype == last[name].dtype
        np.testing.assert_array_equal(tensor.read(), last[name].read())


@pytest.mark.parametrize(
    "name, what",
    [
        ("model.layers.1.mlp.up_proj.weight", "logits"),
        ("stream_emb.weight", "logits"),
        ("lm_head.weight", "logits"),
        ("multimodal_io_dict.continuous_audio.model.audio_tower.layers.1.fc1.bias", "features"),
        ("multimodal_io_dict.discrete_audio.codec_model.quantizer.quantizers.0.codebook.embed", ""),
    ],
)
def test_running_both_sides_finds_what_is_wrong(tensors, codec, name, what):
    good = {n: t for n, t in tensors.items() if n != "vocab_weight"} | codec
    config = get_config("tiny")
    lines = compare_numbers(lazy(good), lazy(good), config, CODEC)
    assert len(lines) == 3 and "codec: 100.00% of codes alike" in lines[2]
    rng = np.random.default_rng(5)
    bad = good | {name: (good[name] + 0.2 * rng.standard_normal(good[name].shape)).astype("f4")}
    with pytest.raises(UserError, match=f"source and target differ: .*{what or 'codec'}"):
        compare_numbers(lazy(good), lazy(bad), config, CODEC)


@pytest.mark.parametrize("tied", [False, True])
def test_transformers_runs_the_exported_language_model(tmp_path, tied):
    import torch
    from transformers import Qwen3ForCausalLM

    from bagpiper_jax.porting.convert import outputs_of
    from bagpiper_jax.porting.espnet import fit
    from bagpiper_jax.porting.served import qwen3_config

    tiny = get_config("tiny")
    decoder = dataclasses.replace(tiny.decoder, tie_word_embeddings=tied)
    config = dataclasses.replace(tiny, decoder=decoder)
    model = bp.Bagpiper(config, rngs=nnx.Rngs(3))
    whole = lazy({n: np.asarray(t) for n, t in to_espnet(model, dtype=None).items()})
    table, whole = fit("the model", whole, config)
    write_safetensors(str(tmp_path), outputs_of(table, whole, config, "qwen3"))
    (tmp_path / "config.json").write_text(json.dumps(qwen3_config(config)))
    original, report = Qwen3ForCausalLM.from_pretrained(
        str(tmp_path), dtype=torch.float32, output_loading_info=True
    )
    assert not report["missing_keys"] and not report["unexpected_keys"]
    tokens = np.random.default_rng(0).integers(256, config.vocab.size, (2, 33))
    with torch.no_grad():
        want = original.eval()(torch.tensor(tokens)).logits.numpy()
    streams = np.zeros((2, 33, config.vocab.num_streams), int)
    streams[..., 0] = tokens
    with jax.default_matmul_precision("highest"):
        x = model.embed(streams)
        hidden = model.decode(x, np.arange(33)[None].repeat(2, 0), np.ones((2, 33), int))
        got = np.asarray(model.logits(hidden)[0])
    np.testing.assert_allclose(got, want, atol=2e-5 * np.abs(want).max(), rtol=0)


@pytest.mark.parametrize("size", sorted(QWEN3))
def test_presets_are_the_shapes_of_transformers(size):
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = get_config(f"bagpiper_{size}")
    shapes = dataclasses.asdict(config.decoder)
    theta = shapes.pop("rope_theta")
    with torch.device("meta"):
        original = Qwen3ForCausalLM(
            Qwen3Config(
                **shapes,
                vocab_size=config.vocab.size,
                rope_parameters={"rope_type": "default", "rope_theta": theta},
            )
        )
    want = {name: tuple(p.shape) for name, p in original.named_parameters()}
    mine = to_espnet(*abstract(config, None))
    got = {n: t.shape for n, t in mine.items() if n.startswith(("model.", "lm_head."))}
    assert got == want
