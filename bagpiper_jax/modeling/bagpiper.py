"""Bagpiper: audio encoder → adaptor → Qwen3 decoder → fused codec-token head, and its loss.

Source: arXiv 2602.05220 and the reference implementation (ESPnet SpeechLM, `ParallelHFModel`).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from bagpiper_jax.modeling import layers as layers_lib
from bagpiper_jax.modeling.audio_encoder import AudioEncoder
from bagpiper_jax.modeling.config import BagpiperConfig
from bagpiper_jax.modeling.qwen3 import Decoder
from bagpiper_jax.ops.fused_cross_entropy import HeadShape, fused_cross_entropy
from bagpiper_jax.ops.tables import embed_rows
from bagpiper_jax.sharding import constrain

# tables are padded to a multiple of this, so that every mesh axis divides them
TABLE_MULTIPLE = 256
# what a target is, and after what: the tasks of the mixture as the loss sees them
KINDS = ("text", "caption", "audio")


class Bagpiper(nnx.Module):
    """The model as it is trained; `inference.Engine` lays it out anew to generate from it."""

    def __init__(
        self,
        config: BagpiperConfig,
        *,
        dtype=jnp.float32,
        remat: str = "none",
        attention: str = "auto",
        rngs: nnx.Rngs,
    ):
        """Builds the model with random weights.

        Args:
          config: shapes.
          dtype: of the computation; parameters are float32.
          remat: what the backward pass of the layers computes again, one of `layers.REMAT`.
          attention: backend of the decoder's attention in training, one of
            `ops.flash_attention.BACKENDS`.
          rngs: where the initial weights come from.

        Raises:
          UserError: there is no such remat policy.
        """
        self.config = config
        self.dtype = dtype
        hidden = config.decoder.hidden_size
        table = -(-config.vocab.size // TABLE_MULTIPLE) * TABLE_MULTIPLE
        form = layers_lib.Form(dtype, config.scan_unroll, remat)
        self.model = Decoder(config.decoder, table, form=form, attention=attention, rngs=rngs)
        init = nnx.initializers.normal(0.02)
        if not config.decoder.tie_word_embeddings:
            self.lm_head = nnx.Param(init(rngs.params(), (table, hidden)))
        self.stream_emb = nnx.Param(jnp.zeros((config.vocab.num_streams, hidden)))
        self.audio_tower = AudioEncoder(config.encoder, form=form, rngs=rngs)
        self.adaptor = nnx.Linear(config.encoder.output_dim, hidden, dtype=dtype, rngs=rngs)

    @classmethod
    def abstract(cls, config: BagpiperConfig, **settings) -> Bagpiper:
        """The model with shapes for weights; no memory is taken. `settings` as for building it."""
        return nnx.eval_shape(lambda: cls(config, rngs=nnx.Rngs(0), **settings))

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
        x = constrain(embed_rows(self.model.embed_tokens[...], tokens, self.dtype), "batch")
        if features is None:
            return x
        index = jnp.maximum(audio_index, 0)[..., None]
        audio = jnp.take_along_axis(features.astype(x.dtype), index, axis=1)
        return constrain(jnp.where((audio_index >= 0)[..., None], audio, x), "batch")

    def decode(self, x, positions, segment_ids) -> jax.Array:
        """Hidden states [B, T, D]; see `Decoder`."""
        return self.model(x, positions, segment_ids)

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
          (scalar loss, metrics): `ce` and `accuracy` per stream [K], `targets` per stream [K]; the
          same of stream 0 by kind of target [3], KINDS: `kind_ce`, `kind_accuracy`, `kind_targets`.
        """
        total, sums = self.loss_sums(batch)
        return total / jnp.maximum(sums["targets"][0], 1.0), mean_metrics(sums)

    def loss_sums(self, batch) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The loss before its division, and sums in place of the means of `loss`.

        Those of several batches can be added: `mean_metrics` gives the means.
        """
        config = self.config
        features = self.encode_audio(batch.mel, batch.mel_frames)
        x = self.embed(batch.tokens, batch.audio_index, features)
        hidden = self.decode(x, batch.positions, batch.segment_ids)

        targets, mask = next_rows(batch)
        total, out = fused_cross_entropy(
            hidden,
            targets,
            mask,
            jnp.asarray(config.vocab.token_weights())[targets],
            self.head,
            self.stream_emb[...],
            HeadShape(
                vocab_size=config.vocab.size,
                codec_start=config.vocab.codec_start,
                stream_size=config.vocab.stream_size,
                z_loss=config.z_loss,
                chunk=config.head_chunk,
                dtype=self.dtype,
            ),
        )
        kinds = self._kinds(batch, targets[..., 0]) & mask[..., 0]
        over_kinds = lambda x: (x[..., 0] * kinds).sum((1, 2))  # noqa: E731
        return total, {
            "ce": out.cross_entropy.sum((0, 1)),
            "accuracy": out.correct.sum((0, 1)),
            "targets": mask.sum((0, 1)).astype(jnp.float32),
            "kind_ce": over_kinds(out.cross_entropy),
            "kind_accuracy": over_kinds(out.correct),
            "kind_targets": kinds.sum((1, 2)).astype(jnp.float32),
        }

    def _kinds(self, batch, targets) -> jax.Array:
        """Which rows predict text, text after audio, audio: bool [3, B, T]. Markers are none."""
        vocab = self.config.vocab
        audio = targets >= vocab.codec_start
        text = (targets >= vocab.text_start) & ~audio
        slots = jnp.arange(targets.shape[1])
        last_audio = jax.lax.cummax(jnp.where(batch.audio_index >= 0, slots, -1), axis=1)
        heard = last_audio >= slots - batch.positions  # in the row's own example
        return jnp.stack([text & ~heard, text & heard, audio])


def next_rows(batch) -> tuple[jax.Array, jax.Array]:
    """Targets int32 [B, T, K] and their mask: a row predicts the next row of its own example."""
    targets = jnp.pad(batch.tokens[:, 1:], ((0, 0), (0, 1), (0, 0)))
    same = batch.segment_ids[:, 1:] == batch.segment_ids[:, :-1]
    mask = batch.loss_mask[:, 1:] & same[..., None]
    return targets, jnp.pad(mask, ((0, 0), (0, 1), (0, 0)))


def mean_metrics(sums: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """The metrics of `Bagpiper.loss` from the sums of `Bagpiper.loss_sums`."""
    means = dict(sums)
    for prefix in ("", "kind_"):
        count = jnp.maximum(sums[f"{prefix}targets"], 1.0)
        for name in ("ce", "accuracy"):
            means[prefix + name] = sums[prefix + name] / count
    return means
