"""A Bagpiper laid out for generation: what is read once a row lies as it is read.

Differences from the training layout, none of which changes a value: layers one by one in place of
stacked (a scan would copy every weight at every row), tables cut between text and codec ids, and
the streams' offsets W·s_k computed once.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from bagpiper_jax.errors import UserError
from bagpiper_jax.modeling.bagpiper import Bagpiper
from bagpiper_jax.modeling.qwen3 import LayerCache, rope

QUANTIZED = ("int8",)


class QuantizedLinear(nnx.Module):
    """x W with W [in, out] in int8 and one scale per output."""

    def __init__(self, kernel: jax.Array, quantize: str):
        """Raises UserError where qwix is not installed."""
        self.in_features = kernel.shape[0]
        quantized = _qwix().quantize(kernel, quantize, channelwise_axes=(1,))
        self.kernel, self.scale = nnx.Param(quantized.qvalue), nnx.Param(quantized.scale[0])

    def __call__(self, x: jax.Array) -> jax.Array:
        """[n, in] → [n, out]."""
        # tied to x, so that the compiler does not widen all kernels once before a loop over rows
        kernel, x = jax.lax.optimization_barrier((self.kernel[...], x))
        return (x @ kernel.astype(x.dtype)) * self.scale[...].astype(x.dtype)


class ServedModel(nnx.Module):
    """Embeddings, layers with a cache, and the logits of one row's streams."""

    def __init__(self, model: Bagpiper, quantize: str | None = None):
        """Takes a model's weights over, in its computation's type.

        Args:
          model: its arrays are copied where their layout changes.
          quantize: "int8" for the weights of the layers' products (needs qwix); None keeps them.

        Raises:
          UserError: there is no such quantisation, or qwix is not installed.
        """
        if quantize is not None and quantize not in QUANTIZED:
            raise UserError(f"there is no quantisation {quantize!r}: choose {QUANTIZED[0]} or none")
        self.config = model.config
        self.dtype = model.dtype
        self.layers = nnx.List(_layers(model, quantize))
        self.norm = model.model.norm
        self.audio_tower, self.adaptor = model.audio_tower, model.adaptor
        vocab = model.config.vocab
        cast = lambda x: nnx.Param(x.astype(model.dtype))  # noqa: E731
        start, stop = vocab.codec_start, vocab.size
        embed = model.model.embed_tokens[...]
        self.text_rows, self.codec_rows = cast(embed[:start]), cast(embed[start:stop])
        if model.config.decoder.tie_word_embeddings:
            self.text_head, self.codec_head = self.text_rows, self.codec_rows
        else:
            head = model.head
            self.text_head, self.codec_head = cast(head[:start]), cast(head[start:stop])
        streams = model.stream_emb[...].at[0].set(0).astype(model.dtype)
        own = self.codec_head[...].reshape(vocab.num_streams, vocab.stream_size, -1)
        # of each stream over its own ids, [K, stream_size]
        self.offsets = nnx.Param(
            jnp.einsum("kd,kvd->kv", streams, own, preferred_element_type=jnp.float32)
        )

    def embed(self, tokens: jax.Array) -> jax.Array:
        """Summed embeddings of rows, [..., K] → [..., D].

        Streams after the first hold codec ids, or 0, which does not count there.
        """
        start = self.config.vocab.codec_start
        first, others = tokens[..., 0], tokens[..., 1:]
        rows = jnp.where(
            (first < start)[..., None],
            self.text_rows[...][jnp.minimum(first, start - 1)],
            self.codec_rows[...][jnp.maximum(first - start, 0)],
        ).astype(jnp.float32)
        coded = self.codec_rows[...][jnp.maximum(others - start, 0)].astype(jnp.float32)
        return (rows + jnp.where((others > 0)[..., None], coded, 0).sum(-2)).astype(self.dtype)

    def encode_audio(self, mel: jax.Array, mel_frames: jax.Array) -> jax.Array:
        """As `Bagpiper.encode_audio`."""
        return self.adaptor(self.audio_tower(mel.astype(self.dtype), mel_frames))

    def extend(self, x, caches: list[LayerCache], starts) -> tuple[jax.Array, list[LayerCache]]:
        """The next T positions of R sequences.

        Args:
          x: [R, T, D], embedded.
          caches: one a layer.
          starts: int [R]; how many positions each sequence has.

        Returns:
          (hidden states [R, T, D] after the final norm, the caches with the new positions).
        """
        decoder = self.config.decoder
        rotation = rope(
            starts[:, None] + jnp.arange(x.shape[1]), decoder.head_dim, decoder.rope_theta
        )
        grown = []
        for layer, cache in zip(self.layers, caches, strict=True):
            x, cache = layer.extend(x, rotation, cache, starts)
            grown.append(cache)
        return self.norm(x), grown

    def text_logits(self, hidden: jax.Array) -> jax.Array:
        """Stream 0's logits over special and text ids, [n, D] → float32 [n, codec_start]."""
        return _product(self.text_head[...], hidden)

    def special_logits(self, hidden: jax.Array, start: int, stop: int) -> jax.Array:
        """Stream 0's logits over ids [start, stop) below `codec_start`, float32 [n, ids]."""
        return _product(self.text_head[start:stop], hidden)

    def codec_logits(self, hidden: jax.Array) -> jax.Array:
        """Each stream's logits over its own ids, [n, D] → float32 [n, K, stream_size].

        One product serves all streams: W·(h + s_k) = W·h + W·s_k.
        """
        shared = _product(self.codec_head[...], hidden)
        return shared.reshape(-1, *self.offsets.shape) + self.offsets[...]


def _qwix():
    try:
        import qwix
    except ImportError as e:
        raise UserError(f"quantisation needs: pip install 'bagpiper_jax[int8]' ({e})") from e
    return qwix


def _product(head: jax.Array, hidden: jax.Array) -> jax.Array:
    logits = jnp.einsum("vd,nd->vn", head, hidden, preferred_element_type=jnp.float32)
    return logits.T


def _layers(model: Bagpiper, quantize: str | None) -> list[nnx.Module]:
    graph, stacked = nnx.split(model.model.layers)
    layers = []
    for i in range(model.config.decoder.num_hidden_layers):
        one = jax.tree.map(lambda w, i=i: w[i].astype(model.dtype), stacked)
        layer = nnx.merge(graph, one)
        for part in (layer.self_attn, layer.mlp) if quantize else ():
            for name, child in list(vars(part).items()):
                if isinstance(child, nnx.Linear):
                    setattr(part, name, QuantizedLinear(child.kernel[...], quantize))
        layers.append(layer)
    return layers
