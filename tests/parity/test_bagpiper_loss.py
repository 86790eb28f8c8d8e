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
from bagpiper_jax.modeling.bagpiper import Bagpiper

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


class Original:
    """The published graph from the originals' modules."""

    def __init__(self, config):
        import torch
        from transformers import Qwen3Config, Qwen3Model
        from transformers.models.qwen3_omni_moe import modeling_qwen3_omni_moe as qwen3_omni
        from transformers.models.qwen3_omni_moe.configuration_qwen3_omni_moe import (
            Qwen3OmniMoeAudioEncoderConfig,
        )

        from .weights import randomise

        self.config = config
        decoder = dataclasses.asdict(config.decoder)
        theta = decoder.pop("rope_theta")
        decoder.pop("tie_word_embeddings")
        encoder = dataclasses.asdict(config.encoder)
        qwen3 = Qwen3Config(
            **decoder,
            vocab_size=config.vocab.size,
            rope_parameters={"rope_type": "default", "rope_theta": theta},
            attn_implementation="eager",
        )
        audio = Qwen3OmniMoeAudioEncoderConfig(**encoder, attn_implementation="eager")
        hidden = config.decoder.hidden_size
        self.decoder = randomise(Qwen3Model(qwen3), seed=1)
        self.audio_tower = randomise(qwen3_omni.Qwen3OmniMoeAudioEncoder(audio), seed=2)
        self.adaptor = randomise(torch.nn.Linear(config.encoder.output_dim, hidden), seed=3)
        self.head = randomise(torch.nn.Linear(hidden, config.vocab.size, bias=False), seed=4)
        self.stream_emb = randomise(torch.nn.Embedding(config.vocab.num_streams, hidden), seed=5)

    def hidden(self, example):
        """Hidden states of all streams [T, K, D]."""
        import torch

        tokens = torch.tensor(example.tokens)
        table = self.decoder.embed_tokens.weight
        vectors = torch.nn.functional.embedding(tokens, table, padding_idx=0)
        later = torch.where((tokens[:, 1:] == 0)[..., None], 0.0, vectors[:, 1:])
        x = vectors[:, 0] + later.sum(1)
        for start, clip in example.audio:
            mel = torch.tensor(np.concatenate([m[:f] for m, f in zip(clip.mel, clip.frames)]))
            lengths = torch.tensor([len(mel)])
            features = self.audio_tower(mel.T, feature_lens=lengths).last_hidden_state
            x = torch.cat([x[:start], self.adaptor(features), x[start + len(features) :]])
        h = self.decoder(inputs_embeds=x[None]).last_hidden_state[0]
        added = torch.cat([torch.zeros(1, h.shape[1]), self.stream_emb.weight[1:]])
        return h[:, None] + added

    def loss(self, examples):
        """Weighted sum over the targets of all streams, by the number of stream-0 targets."""
        import torch

        vocab = self.config.vocab
        weight = torch.tensor(vocab.token_weights())
        codec = slice(vocab.codec_start, vocab.size)
        total, count = 0.0, 0
        for example in examples:
            hidden = self.hidden(example)[:-1]
            tokens = torch.tensor(example.tokens[1:]).long()
            mask = torch.tensor(example.loss_mask[1:])
            for k in range(vocab.num_streams):
                rows = mask[:, k]
                targets = tokens[rows, k]
                logits = hidden[rows, k] @ self.head.weight.T
                offset = 0
                if k > 0:
                    logits, offset = logits[:, codec], vocab.codec_start
                ce = torch.nn.functional.cross_entropy(logits, targets - offset, reduction="none")
                square = torch.logsumexp(logits, -1) ** 2
                total = total + (weight[targets] * ce + self.config.z_loss * square).sum()
            count += int(mask[:, 0].sum())
        return total / count


@pytest.fixture(scope="module")
def pair(config):
    from .weights import copy_weights

    original = Original(config)
    model = Bagpiper(config, rngs=nnx.Rngs(0))
    copy_weights(model.model, original.decoder)
    copy_weights(model.audio_tower, original.audio_tower)
    copy_weights(model.adaptor, original.adaptor)
    size = config.vocab.size
    model.lm_head[...] = model.lm_head[...].at[:size].set(original.head.weight.detach().numpy())
    model.stream_emb[...] = original.stream_emb.weight.detach().numpy()
    return original, model


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
