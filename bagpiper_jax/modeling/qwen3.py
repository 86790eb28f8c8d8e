"""Qwen3 decoder in Flax NNX, after `Qwen3Model` of `transformers`, parameter names included."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from bagpiper_jax.modeling import layers as layers_lib
from bagpiper_jax.modeling.config import DecoderConfig
from bagpiper_jax.ops.attention import attend_heads
from bagpiper_jax.ops.flash_attention import causal_attention
from bagpiper_jax.sharding import constrain

_INIT = nnx.initializers.normal(0.02)


class LayerCache(NamedTuple):
    """Keys and values of one layer, rows of sequences and slots for their positions.

    Attributes:
      k, v: [R, G, S, H].
    """

    k: jax.Array
    v: jax.Array

    @classmethod
    def empty(cls, config: DecoderConfig, rows: int, slots: int, dtype) -> LayerCache:
        shape = (rows, config.num_key_value_heads, slots, config.head_dim)
        return cls(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))

    def write(self, k, v, starts) -> LayerCache:
        """With new keys and values [R, T, G, H] in slots from `starts`, int [R]."""
        put = jax.vmap(lambda old, new, at: jax.lax.dynamic_update_slice_in_dim(old, new, at, 1))
        new = (x.swapaxes(1, 2).astype(self.k.dtype) for x in (k, v))
        return LayerCache(*(put(old, x, starts) for old, x in zip(self, new, strict=True)))


def rope(positions: jax.Array, head_dim: int, theta: float) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines of rotary embedding, float32 [B, T, 1, H/2]."""
    frequencies = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    angles = positions[..., None, None].astype(jnp.float32) * frequencies
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotates [B, T, N, H] by halves, the layout of Llama and Qwen."""
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)


class RMSNorm(nnx.Module):
    """x / rms(x) · weight over the last axis, in float32."""

    def __init__(self, size: int, eps: float):
        self.weight = nnx.Param(jnp.ones(size))
        self.eps = eps

    def __call__(self, x):
        h = x.astype(jnp.float32)
        h = h * jax.lax.rsqrt(jnp.mean(h * h, axis=-1, keepdims=True) + self.eps)
        return self.weight[...].astype(x.dtype) * h.astype(x.dtype)


def _linear(inputs: int, outputs: int, dtype, rngs: nnx.Rngs) -> nnx.Linear:
    return nnx.Linear(inputs, outputs, use_bias=False, kernel_init=_INIT, dtype=dtype, rngs=rngs)


class Attention(nnx.Module):
    """Grouped-query attention with RMS norm per head on queries and keys, before RoPE."""

    def __init__(self, config: DecoderConfig, *, dtype, backend: str, rngs: nnx.Rngs):
        self.backend = backend
        hidden, dim = config.hidden_size, config.head_dim
        heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.q_proj = _linear(hidden, heads * dim, dtype, rngs)
        self.k_proj = _linear(hidden, kv_heads * dim, dtype, rngs)
        self.v_proj = _linear(hidden, kv_heads * dim, dtype, rngs)
        self.o_proj = _linear(heads * dim, hidden, dtype, rngs)
        self.q_norm = RMSNorm(dim, config.rms_norm_eps)
        self.k_norm = RMSNorm(dim, config.rms_norm_eps)

    def _heads(self, x, rotation):
        shape = (*x.shape[:2], -1, self.q_norm.weight.shape[-1])
        x = layers_lib.flat(x)
        q, k, v = (proj(x).reshape(shape) for proj in (self.q_proj, self.k_proj, self.v_proj))
        q, k = rotate(self.q_norm(q), *rotation), rotate(self.k_norm(k), *rotation)
        return tuple(constrain(heads, "batch", None, "heads") for heads in (q, k, v))

    def _output(self, heads, x):
        heads = constrain(heads.reshape(-1, self.o_proj.in_features), "batch", "heads")
        return constrain(self.o_proj(heads), "batch").reshape(x.shape)

    def __call__(self, x, rotation, segment_ids):
        """Attention of whole packed rows, [B, T, D] → [B, T, D]."""
        q, k, v = self._heads(x, rotation)
        return self._output(causal_attention(q, k, v, segment_ids, backend=self.backend), x)

    def extend(self, x, rotation, cache: LayerCache, starts):
        """Attention of the next T positions [R, T, D] of sequences whose cache they join.

        Args:
          starts: int [R]; how many positions each sequence has.

        Returns:
          ([R, T, D], the new cache).
        """
        q, k, v = self._heads(x, rotation)
        cache = cache.write(k, v, starts)
        own = starts[:, None] + jnp.arange(x.shape[1])
        mask = jnp.arange(cache.k.shape[2]) <= own[..., None]
        return self._output(attend_heads(q, *cache, mask[:, None]), x), cache


class MLP(nnx.Module):
    """SwiGLU."""

    def __init__(self, config: DecoderConfig, *, dtype, rngs: nnx.Rngs):
        self.gate_proj = _linear(config.hidden_size, config.intermediate_size, dtype, rngs)
        self.up_proj = _linear(config.hidden_size, config.intermediate_size, dtype, rngs)
        self.down_proj = _linear(config.intermediate_size, config.hidden_size, dtype, rngs)

    def __call__(self, x):
        h = layers_lib.flat(x)
        h = constrain(jax.nn.silu(self.gate_proj(h)) * self.up_proj(h), "batch", "mlp")
        return constrain(self.down_proj(h), "batch").reshape(x.shape)


class DecoderLayer(nnx.Module):
    """Pre-norm block: attention, then SwiGLU."""

    def __init__(self, config: DecoderConfig, *, dtype, backend: str, rngs: nnx.Rngs):
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config, dtype=dtype, backend=backend, rngs=rngs)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config, dtype=dtype, rngs=rngs)

    def __call__(self, x, rotation, segment_ids):
        x = x + self.self_attn(self.input_layernorm(x), rotation, segment_ids)
        return x + self.mlp(self.post_attention_layernorm(x))

    def extend(self, x, rotation, cache: LayerCache, starts):
        """The block on the next positions of sequences, with their cache; see `Attention`."""
        out, cache = self.self_attn.extend(self.input_layernorm(x), rotation, cache, starts)
        x = x + out
        return x + self.mlp(self.post_attention_layernorm(x)), cache


class Decoder(nnx.Module):
    """Token embeddings, stacked layers, final norm."""

    def __init__(
        self,
        config: DecoderConfig,
        vocab_size: int,
        *,
        form: layers_lib.Form,
        attention: str,
        rngs: nnx.Rngs,
    ):
        self.config = config
        self.form = form
        self.embed_tokens = nnx.Param(_INIT(rngs.params(), (vocab_size, config.hidden_size)))
        self.layers = layers_lib.stack(
            lambda r: DecoderLayer(config, dtype=form.dtype, backend=attention, rngs=r),
            config.num_hidden_layers,
            rngs,
        )
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def __call__(self, x, positions, segment_ids):
        """Hidden states of embedded rows.

        Args:
          x: [B, T, D].
          positions: int [B, T].
          segment_ids: int [B, T]; rows attend inside their segment, to themselves and before.

        Returns:
          [B, T, D] after the final norm.
        """
        rotation = rope(positions, self.config.head_dim, self.config.rope_theta)
        x, _ = layers_lib.scan(
            self.layers,
            x,
            lambda layer, x, _: (layer(x, rotation, segment_ids), None),
            form=self.form,
        )
        return self.norm(x)
