"""Tables of names: the published checkpoint's list, and import → export to the last bit."""

import dataclasses
import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny_xcodec import CONFIG as CODEC

import bagpiper_jax as bp
from bagpiper_jax.errors import UserError
from bagpiper_jax.modeling.bagpiper import Bagpiper
from bagpiper_jax.modeling.config import get_config
from bagpiper_jax.modeling.xcodec_model import XCodecConfig, XCodecModel
from bagpiper_jax.porting.copies import contiguous
from bagpiper_jax.porting.espnet import abstract

LIST = os.path.join(os.path.dirname(__file__), "data", "bagpiper_8b_tensors.json")


def test_the_8b_model_has_the_tensors_of_the_published_checkpoint():
    with open(LIST, encoding="utf-8") as file:
        published = {name: tuple(shape) for name, shape in json.load(file).items()}
    tensors = bp.porting.to_espnet(*abstract(get_config("bagpiper_8b"), XCodecConfig()))
    assert len(published) == 1382
    assert {name: tensor.shape for name, tensor in tensors.items()} == published
    kinds = {tensor.dtype for name, tensor in tensors.items() if name != "vocab_weight"}
    assert kinds == {jnp.dtype(jnp.bfloat16)} and tensors["vocab_weight"].dtype == np.float32


@pytest.fixture(scope="module")
def config():
    return get_config("tiny")


@pytest.fixture(scope="module")
def checkpoint(config):
    """Random tensors of every name and shape, in bf16 as published."""
    rng = np.random.default_rng(0)
    tensors = {
        name: np.asarray(rng.standard_normal(shape.shape), shape.dtype)
        for name, shape in bp.porting.to_espnet(*abstract(config, CODEC)).items()
    }
    return tensors | {"vocab_weight": config.vocab.token_weights()}


def same(a, b):
    assert set(a) == set(b)
    for name, value in a.items():
        assert value.dtype == b[name].dtype and value.shape == b[name].shape, name
        np.testing.assert_array_equal(value, b[name], err_msg=name)


def test_import_then_export_is_exact(config, checkpoint):
    model, codec = bp.porting.from_espnet(checkpoint, config, CODEC)
    same(checkpoint, bp.porting.to_espnet(model, codec))
    padded = model.model.embed_tokens[...]
    assert len(padded) % 256 == 0 and not np.any(padded[config.vocab.size :])
    loss_ids = model.head.shape[0], padded.dtype
    assert loss_ids == (len(padded), jnp.float32)


def test_export_then_import_gives_the_same_model(config):
    model = Bagpiper(config, rngs=nnx.Rngs(3))
    model.stream_emb[...] += 1.0
    codec = XCodecModel(CODEC, rngs=nnx.Rngs(4))
    tensors = bp.porting.to_espnet(model, codec, dtype=None)
    again, codec_again = bp.porting.from_espnet(tensors, config, CODEC)
    size = config.vocab.size
    for a, b in ((model, again), (codec, codec_again)):
        for x, y in zip(jax.tree.leaves(nnx.state(a)), jax.tree.leaves(nnx.state(b)), strict=True):
            rows = size if x.shape[:1] == model.head.shape[:1] else None
            np.testing.assert_array_equal(x[:rows], y[:rows])


def test_tied_tables_are_one_tensor(config):
    tied = dataclasses.replace(
        config, decoder=dataclasses.replace(config.decoder, tie_word_embeddings=True)
    )
    tensors = bp.porting.to_espnet(Bagpiper(tied, rngs=nnx.Rngs(0)))
    assert "lm_head.weight" not in tensors and "model.embed_tokens.weight" in tensors


def test_what_only_training_needs_may_be_missing(config, checkpoint):
    lean = {
        k: v
        for k, v in checkpoint.items()
        if "decoder_semantic" not in k and "codec_model.fc1" not in k
    }
    _, codec = bp.porting.from_espnet(lean, config, CODEC)
    assert not np.any(codec.fc1.kernel[...]) and np.any(codec.fc2.kernel[...])


def test_all_problems_are_told_once_by_name(config, checkpoint):
    wrong = dict(checkpoint)
    wrong["lm_heed.weight"] = wrong.pop("lm_head.weight")
    wrong["stream_emb.weight"] = wrong["stream_emb.weight"][:2]
    wrong["adaptor.continuous_audio.bias"] = wrong["adaptor.continuous_audio.bias"].astype("f2")
    with pytest.raises(UserError) as error:
        bp.porting.from_espnet(wrong, config, CODEC)
    assert str(error.value) == (
        "the checkpoint does not fit the model (4 problems): "
        "adaptor.continuous_audio.bias is float16, not bfloat16 or float32; "
        "lm_head.weight is missing; lm_heed.weight is unexpected; "
        "stream_emb.weight has shape [2, 32], not [4, 32]"
    )
    with pytest.raises(UserError, match="codec_model.* is unexpected"):
        bp.porting.from_espnet(checkpoint, config)
    heavy = checkpoint | {"vocab_weight": checkpoint["vocab_weight"] * 2}
    with pytest.raises(UserError, match=r"vocab_weight\[0\] is 2, the config says 1"):
        bp.porting.from_espnet(heavy, config, CODEC)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, np.float32, np.int64])
@pytest.mark.parametrize("shape", [(), (5,), (40, 33), (33, 40), (4, 5, 6)])
def test_copies(dtype, shape):
    values = np.random.default_rng(0).integers(0, 99, shape).astype(dtype)
    for array in (values, values.T, values[..., ::-1] if shape else values):
        for kind in (None, np.float32):
            out = contiguous(array, kind)
            assert out.flags.c_contiguous and out.dtype == (kind or values.dtype)
            np.testing.assert_array_equal(out, np.asarray(array, out.dtype))
    assert contiguous(values) is values
