"""The decoder against `Qwen3ForCausalLM` of transformers."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx

from bagpiper_jax.modeling.config import DecoderConfig
from bagpiper_jax.modeling.layers import Form
from bagpiper_jax.modeling.qwen3 import Decoder

pytestmark = pytest.mark.slow

VOCAB = 300
CONFIG = DecoderConfig(
    hidden_size=48,
    intermediate_size=80,
    num_hidden_layers=3,
    num_attention_heads=6,
    num_key_value_heads=2,
    head_dim=16,  # heads · head_dim ≠ hidden_size, as in small Qwen3 models
    rope_theta=1_000_000.0,
)


# the shape of Qwen3-0.6B at a quarter of its width and a seventh of its depth
MEDIUM = DecoderConfig(
    hidden_size=256,
    intermediate_size=768,
    num_hidden_layers=4,
    num_attention_heads=8,
    num_key_value_heads=4,
    head_dim=64,
)


def make_pair(tied, shapes=CONFIG, seed=0):
    """A random Qwen3 in PyTorch, the same decoder here, and its output layer [V, D]."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    from .weights import copy_weights, randomise

    config = dataclasses.asdict(dataclasses.replace(shapes, tie_word_embeddings=tied))
    theta = config.pop("rope_theta")
    original = Qwen3ForCausalLM(
        Qwen3Config(
            **config,
            vocab_size=VOCAB,
            rope_parameters={"rope_type": "default", "rope_theta": theta},
            attn_implementation="eager",
        )
    )
    randomise(original, seed=seed)
    decoder = Decoder(shapes, VOCAB, form=Form(), attention="auto", rngs=nnx.Rngs(0))
    copy_weights(decoder, original.model)
    assert (original.lm_head.weight is original.model.embed_tokens.weight) == tied
    return original, decoder, original.lm_head.weight.detach().numpy()


def close(actual, expected):
    """Within 2e-5 of the largest value."""
    np.testing.assert_allclose(actual, expected, atol=2e-5 * np.abs(expected).max(), rtol=0)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("shapes", [CONFIG, MEDIUM], ids=["small", "medium"])
def test_hidden_states_and_logits(tied, seed, shapes):
    import torch

    original, decoder, head = make_pair(tied, shapes, seed)
    ids = np.random.default_rng(1).integers(0, VOCAB, (2, 150))
    with torch.no_grad():
        expected = original(torch.tensor(ids), output_hidden_states=True)
    positions = np.broadcast_to(np.arange(150), ids.shape)
    segments = np.ones(ids.shape, np.int32)
    with jax.default_matmul_precision("highest"):
        hidden = decoder(decoder.embed_tokens[...][ids], positions, segments)
    close(hidden, expected.hidden_states[-1].numpy())
    close(np.asarray(hidden) @ head.T, expected.logits.numpy())


def test_packed_examples():
    """Two texts in one row are the two texts on their own."""
    import torch

    original, decoder, _ = make_pair(False)
    ids = np.random.default_rng(2).integers(0, VOCAB, (1, 90))
    lengths = (70, 20)
    pieces = np.split(ids, [70], axis=1)
    with torch.no_grad():
        expected = [original.model(torch.tensor(p)).last_hidden_state.numpy() for p in pieces]
    expected = np.concatenate(expected, axis=1)
    positions = np.concatenate([np.arange(n) for n in lengths])[None]
    segments = np.repeat([1, 2], lengths)[None].astype(np.int32)
    x = decoder.embed_tokens[...][ids]
    with jax.default_matmul_precision("highest"):
        packed = decoder(x, positions, segments)
        close(packed, expected)
