"""The published graph built from the originals' modules, and a model here with its weights.

Nothing is packed, fused or cached: every example alone, hidden states expanded to all streams, and
the logits exist.
"""

import dataclasses

import numpy as np
from flax import nnx

from bagpiper_jax.modeling.bagpiper import Bagpiper


class Original:
    """The published graph from the originals' modules, with random weights."""

    def __init__(self, config, scale=0.1):
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
        self.decoder = randomise(Qwen3Model(qwen3), 1, scale)
        self.audio_tower = randomise(qwen3_omni.Qwen3OmniMoeAudioEncoder(audio), 2, scale)
        self.adaptor = randomise(torch.nn.Linear(config.encoder.output_dim, hidden), 3, scale)
        self.head = randomise(torch.nn.Linear(hidden, config.vocab.size, bias=False), 4, scale)
        self.stream_emb = randomise(torch.nn.Embedding(config.vocab.num_streams, hidden), 5, scale)

    def embed(self, tokens, audio=()):
        """Input embeddings [T, D]: of tokens [T, K], with clips (first row, windows) in place."""
        import torch

        tokens = torch.as_tensor(tokens)
        table = self.decoder.embed_tokens.weight
        vectors = torch.nn.functional.embedding(tokens, table, padding_idx=0)
        later = torch.where((tokens[:, 1:] == 0)[..., None], 0.0, vectors[:, 1:])
        x = vectors[:, 0] + later.sum(1)
        for start, clip in audio:
            mel = torch.tensor(np.concatenate([m[:f] for m, f in zip(clip.mel, clip.frames)]))
            lengths = torch.tensor([len(mel)])
            features = self.audio_tower(mel.T, feature_lens=lengths).last_hidden_state
            x = torch.cat([x[:start], self.adaptor(features), x[start + len(features) :]])
        return x

    def hidden(self, x):
        """Hidden states of all streams [T, K, D] of embedded rows [T, D]."""
        import torch

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
            hidden = self.hidden(self.embed(example.tokens, example.audio))[:-1]
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


def copy_original(original):
    """A `Bagpiper` with the weights of an `Original`."""
    from .weights import copy_weights

    model = Bagpiper(original.config, rngs=nnx.Rngs(0))
    copy_weights(model.model, original.decoder)
    copy_weights(model.audio_tower, original.audio_tower)
    copy_weights(model.adaptor, original.adaptor)
    size = original.config.vocab.size
    model.lm_head[...] = model.lm_head[...].at[:size].set(original.head.weight.detach().numpy())
    model.stream_emb[...] = original.stream_emb.weight.detach().numpy()
    return model
