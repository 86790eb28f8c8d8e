"""Bagpiper: audio encoder → adaptor → Qwen3 decoder → fused codec-token head, and its loss.

Source: arXiv 2602.05220 and the reference implementation (ESPnet SpeechLM, `ParallelHFModel`).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from bagpiper_jax import vocab as vocab_lib
from bagpiper_jax.modeling.audio_encoder import AudioEncoder
from bagpiper_jax.modeling.config import BagpiperConfig
from bagpiper_jax.modeling.qwen3 import Decoder, KVCache
from bagpiper_jax.ops.fused_cross_entropy import fused_cross_entropy

# tables are padded to a multiple of this, so that every mesh axis divides them
TABLE_MULTIPLE = 256


class Bagpiper(nnx.Module):
    """The model. `loss` trains it, `embed` + `decode` + `logits` generate from it."""

    def __init__(self, config: BagpiperConfig, *, dtype=jnp.float32, rngs: nnx.Rngs):
        """Builds the model with random weights.

        Args:
          config: shapes.
          dtype: of the computation; parameters are float32.
          rngs: where the initial weights come from.
        """
        self.config = config
        self.dtype = dtype
        hidden = config.decoder.hidden_size
        table = -(-config.vocab.size // TABLE_MULTIPLE) * TABLE_MULTIPLE
        self.model = Decoder(
            config.decoder, table, unroll=config.scan_unroll, dtype=dtype, rngs=rngs
        )
        init = nnx.initializers.normal(0.02)
        if not config.decoder.tie_word_embeddings:
            self.lm_head = nnx.Param(init(rngs.params(), (table, hidden)))
        self.stream_emb = nnx.Param(jnp.zeros((config.vocab.num_streams, hidden)))
        self.audio_tower = AudioEncoder(
            config.encoder, unroll=config.scan_unroll, dtype=dtype, rngs=rngs
        )
        self.adaptor = nnx.Linear(config.encoder.output_dim, hidden, dtype=dtype, rngs=rngs)

    @classmethod
    def abstract(cls, config: BagpiperConfig, *, dtype=jnp.float32) -> Bagpiper:
        """The model with shapes for weights; no memory is taken."""
        return nnx.eval_shape(lambda: cls(config, dtype=dtype, rngs=nnx.Rngs(0)))

    @property
    def head(self) -> jax.Array:
        """Rows of the output layer, [V', D]; the embedding table itself where the two are tied."""
        tied = self.config.decoder.tie_word_embeddings
        return self.model.embed_tokens[...] if tied else self.lm_head[...]

    def encode_audio(self, mel: jax.Array, mel_frames: jax.Array) -> jax.Array:
        """Mel windows [B, W, 100, M], frames [B, W] → features for the decoder [B, W·13, D]."""
        return self.adaptor(self.audio_tower(mel.astype(self.dtype), mel_frames))

    def embed(self, tokens: jax.Array, audio_index=None, features=None) -> jax.Array:
        """Input embeddings.

        Args:
          tokens: int [B, T, K]; id 0 counts in stream 0 only, and its row gets no gradient.
          audio_index: int [B, T]; row of `features` that replaces an embedding, −1 for none.
          features: [B, W·13, D] from `encode_audio`.

        Returns:
          [B, T, D].
        """
        table = self.model.embed_tokens[...]
        vectors = table[tokens]
        is_pad = (tokens == vocab_lib.PAD)[..., None]
        row0 = jax.lax.stop_gradient(table[vocab_lib.PAD])
        x = jnp.where(is_pad[:, :, 0], row0, vectors[:, :, 0])
        x = x + jnp.where(is_pad[:, :, 1:], 0.0, vectors[:, :, 1:]).sum(axis=2)
        x = x.astype(self.dtype)
        if features is None:
            return x
        index = jnp.maximum(audio_index, 0)[..., None]
        audio = jnp.take_along_axis(features.astype(x.dtype), index, axis=1)
        return jnp.where((audio_index >= 0)[..., None], audio, x)

    def decode(self, x, positions, segment_ids, cache: KVCache | None = None):
        """Hidden states [B, T, D] and the grown cache; see `Decoder`."""
        return self.model(x, positions, segment_ids, cache)

    def logits(self, hidden: jax.Array, start: int = 0, stop: int | None = None):
        """One product with rows [start, stop) of the head, for all streams.

        Args:
          hidden: [..., D].
          start: first id.
          stop: end of the ids; the whole vocabulary if None.

        Returns:
          (shared logits W·h, float32 [..., n]; offsets W·s_k, float32 [K, n], zero for k = 0).
          The logits of stream k are their sum.
        """
        stop = self.config.vocab.size if stop is None else stop
        head = self.head[start:stop].astype(self.dtype)
        shared = jnp.einsum("...d,vd->...v", hidden, head, preferred_element_type=jnp.float32)
        streams = self.stream_emb[...].at[0].set(0).astype(self.dtype)
        offsets = jnp.einsum("kd,vd->kv", streams, head, preferred_element_type=jnp.float32)
        return shared, offsets

    def loss(self, batch) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Training loss of a packed `Batch` (BAGPIPER: weighted cross-entropy over all streams).

        The sum over all targets of `vocab_weight[target] · CE + z_loss · lse²`, divided by the
        number of stream-0 targets.

        Returns:
          (scalar loss, metrics): `ce` and `accuracy` per stream [K], `targets` per stream [K].
        """
        config = self.config
        features = self.encode_audio(batch.mel, batch.mel_frames)
        x = self.embed(batch.tokens, batch.audio_index, features)
        hidden, _ = self.decode(x, batch.positions, batch.segment_ids)

        # a row predicts the next row of its own example
        same = batch.segment_ids[:, 1:] == batch.segment_ids[:, :-1]
        mask = batch.loss_mask[:, 1:] & same[..., None]
        streams = config.vocab.num_streams
        targets = batch.tokens[:, 1:].reshape(-1, streams)
        mask = mask.reshape(-1, streams)
        out = fused_cross_entropy(
            hidden[:, :-1].reshape(-1, hidden.shape[-1]),
            targets,
            mask,
            self.head.astype(self.dtype),
            self.stream_emb[...].astype(self.dtype),
            vocab_size=config.vocab.size,
            codec_start=config.vocab.codec_start,
            stream_size=config.vocab.stream_size,
            chunk=config.head_chunk,
        )
        weights = jnp.asarray(config.vocab.token_weights())[targets]
        per_target = weights * out.cross_entropy + config.z_loss * out.log_sum_exp**2
        counts = mask.sum(0).astype(jnp.float32)
        loss = per_target.sum() / jnp.maximum(counts[0], 1.0)
        per_stream = jnp.maximum(counts, 1.0)
        metrics = {
            "ce": out.cross_entropy.sum(0) / per_stream,
            "accuracy": out.correct.sum(0) / per_stream,
            "targets": counts,
        }
        return loss, metrics
