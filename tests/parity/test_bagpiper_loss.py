"""Loss and gradients of the whole model against a literal PyTorch computation.

There every example runs alone through the originals' modules, the hidden states are expanded to all
streams, and the logits exist; here the examples are packed and the head is fused.
"""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx

from bagpiper_jax.conversation import Message, drop_condition, encode_conversation
from bagpiper_jax.input_pipeline.batch import pack_row, stack_rows
from bagpiper_jax.log_mel import NUM_MELS, MelWindows

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def config(tiny_config):
    vocab = dataclasses.replace(tiny_config.vocab, codec_weight=(0.6, 0.2, 0.1, 0.05))
    return dataclasses.replace(tiny_config, vocab=vocab, z_loss=0.01, head_chunk=32)


@pytest.fixture(scope="module")
def examples(config, small_tokenizer):
    """Audio to text with a system prompt, text to audio, and the latter without its condition."""
    rng = np.random.default_rng(0)
    mel = rng.standard_normal((3, 100, NUM_MELS), dtype=np.float32)
    mel[2, 30:] = 0
    clip = MelWindows(mel, np.array([100, 100, 30], np.int32))
    conversations = (
        [
            Message("system", "text", "Listen."),
            Message("user", "audio", clip),
            Message("assistant", "text", "rain, then a gong"),
        ],
        [
            Message("user", "text", "a quiet room"),
            Message("assistant", "audio", rng.integers(0, 16, (20, 4))),
        ],
    )
    heard, spoken = (encode_conversation(c, config.vocab, small_tokenizer) for c in conversations)
    return heard, spoken, drop_condition(spoken)


@pytest.fixture(scope="module")
def pair(config):
    from .original import Original, copy_original

    original = Original(config)
    return original, copy_original(original)


def test_loss_and_gradients(config, pair, examples):
    original, model = pair
    heard, spoken, dropped = examples
    block = config.encoder.block_windows
    rows = [pack_row(e, 100, 4, block) for e in ([heard, spoken], [dropped])]
    batch = stack_rows(rows)
    expected = original.loss(examples)
    expected.backward()
    with jax.default_matmul_precision("highest"):
        loss, grads = nnx.value_and_grad(lambda m: m.loss(batch)[0])(model)
    np.testing.assert_allclose(loss, expected.item(), rtol=1e-5)

    size = config.vocab.size
    layer, mine = original.decoder.layers[0], grads.model.layers
    pairs = {
        "q_proj": (mine.self_attn.q_proj.kernel[0], layer.self_attn.q_proj.weight.grad.T),
        "down_proj": (mine.mlp.down_proj.kernel[0], layer.mlp.down_proj.weight.grad.T),
        "k_norm": (mine.self_attn.k_norm.weight[0], layer.self_attn.k_norm.weight.grad),
        "head": (grads.lm_head, original.head.weight.grad),
        "embed": (grads.model.embed_tokens, original.decoder.embed_tokens.weight.grad),
        "stream_emb": (grads.stream_emb, original.stream_emb.weight.grad),
        "adaptor": (grads.adaptor.kernel, original.adaptor.weight.grad.T),
        "conv": (grads.audio_tower.conv2d1.bias, original.audio_tower.conv2d1.bias.grad),
        "norm": (grads.model.norm.weight, original.decoder.norm.weight.grad),
    }
    for name, (mine, theirs) in pairs.items():
        mine, theirs = np.asarray(mine[...]), theirs.numpy()
        if name in ("head", "embed"):
            assert not mine[size:].any()  # rows that only pad the table
            mine = mine[:size]
        scale = np.abs(theirs).max()
        assert scale > 0
        np.testing.assert_allclose(mine, theirs, atol=1e-4 * scale, rtol=0, err_msg=name)
    assert not np.asarray(grads.model.embed_tokens[0]).any()
    assert not np.asarray(grads.stream_emb[0]).any()
