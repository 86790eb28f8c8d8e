"""HuBERT-base in Flax NNX, the semantic branch of X-codec, after `HubertModel` of `transformers`.

Clips of a batch are padded on the right; what lies past a clip's end never reaches its features.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from bagpiper_jax.modeling import layers as layers_lib
from bagpiper_jax.modeling.layers import gelu
from bagpiper_jax.ops.attention import attention


@dataclasses.dataclass(frozen=True)
class HubertConfig:
    """Shapes; names follow `HubertConfig` of transformers."""

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    conv_dim: tuple[int, ...] = (512,) * 7
    conv_kernel: tuple[int, ...] = (10, 3, 3, 3, 3, 2, 2)
    conv_stride: tuple[int, ...] = (5, 2, 2, 2, 2, 2, 2)
    num_conv_pos_embeddings: int = 128
    num_conv_pos_embedding_groups: int = 16
    layer_norm_eps: float = 1e-5


def conv_length(length, kernel: int, stride: int = 1, padding: int = 0, dilation: int = 1):
    """Length after a convolution, as PyTorch rounds it; ints or arrays."""
    return (length + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


def keep(x: jax.Array, lengths: jax.Array) -> jax.Array:
    """[B, T, C] with zeros past each length."""
    return jnp.where((jnp.arange(x.shape[1]) < lengths[:, None])[..., None], x, 0)


class InstanceNorm(nnx.Module):
    """Normalises each channel over the time of a clip: a group norm of one channel a group."""

    def __init__(self, size: int):
        self.scale = nnx.Param(jnp.ones(size))
        self.bias = nnx.Param(jnp.zeros(size))

    def __call__(self, x, lengths):
        count = jnp.maximum(lengths, 1)[:, None, None]
        mean = keep(x, lengths).sum(1, keepdims=True) / count
        centred = keep(x - mean, lengths)
        variance = (centred * centred).sum(1, keepdims=True) / count
        return centred * jax.lax.rsqrt(variance + 1e-5) * self.scale[...] + self.bias[...]


class ConvLayer(nnx.Module):
    """Strided convolution without bias, in the first layer a norm, GELU."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, norm: bool, rngs):
        self.conv = nnx.Conv(
            inputs, outputs, (kernel,), strides=stride, padding="VALID", use_bias=False, rngs=rngs
        )
        self.layer_norm = InstanceNorm(outputs) if norm else None

    def __call__(self, x, lengths):
        x = self.conv(x)
        return gelu(x if self.layer_norm is None else self.layer_norm(x, lengths))


class FeatureExtractor(nnx.Module):
    """Waveform → 50 vectors a second."""

    def __init__(self, config: HubertConfig, *, rngs: nnx.Rngs):
        self.strides = tuple(zip(config.conv_kernel, config.conv_stride, strict=True))
        dims = (1, *config.conv_dim)
        self.conv_layers = nnx.List(
            ConvLayer(dims[i], dims[i + 1], kernel, stride, i == 0, rngs)
            for i, (kernel, stride) in enumerate(self.strides)
        )

    def __call__(self, wav, lengths):
        x = wav[..., None]
        for layer, (kernel, stride) in zip(self.conv_layers, self.strides, strict=True):
            lengths = conv_length(lengths, kernel, stride)
            x = layer(x, lengths)
        return x, lengths


class FeatureProjection(nnx.Module):
    """Layer norm and linear."""

    def __init__(self, config: HubertConfig, *, rngs: nnx.Rngs):
        inputs = config.conv_dim[-1]
        self.layer_norm = nnx.LayerNorm(inputs, epsilon=config.layer_norm_eps, rngs=rngs)
        self.projection = nnx.Linear(inputs, config.hidden_size, rngs=rngs)

    def __call__(self, x):
        return self.projection(self.layer_norm(x))


class PositionalConv(nnx.Module):
    """Grouped convolution over time with weight norm, which is kept: scale and direction.

    The kernel is original0 · original1 / ‖original1‖, the norm taken for each of its taps.
    """

    def __init__(self, config: HubertConfig, *, rngs: nnx.Rngs):
        taps, self.groups = config.num_conv_pos_embeddings, config.num_conv_pos_embedding_groups
        shape = (taps, config.hidden_size // self.groups, config.hidden_size)
        self.original0 = nnx.Param(jnp.ones((taps, 1, 1)))
        self.original1 = nnx.Param(nnx.initializers.normal(0.02)(rngs.params(), shape))
        self.bias = nnx.Param(jnp.zeros(config.hidden_size))

    def __call__(self, x):
        direction = self.original1[...]
        norm = jnp.sqrt((direction * direction).sum((1, 2), keepdims=True))
        half = len(direction) // 2
        y = jax.lax.conv_general_dilated(
            x,
            self.original0[...] * (direction / norm),
            window_strides=(1,),
            # an even kernel gives one frame too many, the last, which the original drops
            padding=[(half, half - 1 + len(direction) % 2)],
            dimension_numbers=("NWC", "WIO", "NWC"),
            feature_group_count=self.groups,
        )
        return gelu(y + self.bias[...])


class EncoderLayer(nnx.Module):
    """Post-norm block: attention, feed-forward."""

    def __init__(self, config: HubertConfig, *, rngs: nnx.Rngs):
        size, inner, eps = config.hidden_size, config.intermediate_size, config.layer_norm_eps
        self.num_heads = config.num_attention_heads
        self.q_proj = nnx.Linear(size, size, rngs=rngs)
        self.k_proj = nnx.Linear(size, size, rngs=rngs)
        self.v_proj = nnx.Linear(size, size, rngs=rngs)
        self.out_proj = nnx.Linear(size, size, rngs=rngs)
        self.layer_norm = nnx.LayerNorm(size, epsilon=eps, rngs=rngs)
        self.intermediate_dense = nnx.Linear(size, inner, rngs=rngs)
        self.output_dense = nnx.Linear(inner, size, rngs=rngs)
        self.final_layer_norm = nnx.LayerNorm(size, epsilon=eps, rngs=rngs)

    def __call__(self, x, mask):
        shape = (*x.shape[:2], self.num_heads, -1)
        q, k, v = (proj(x).reshape(shape) for proj in (self.q_proj, self.k_proj, self.v_proj))
        x = self.layer_norm(x + self.out_proj(attention(q, k, v, mask).reshape(x.shape)))
        h = self.output_dense(gelu(self.intermediate_dense(x)))
        return self.final_layer_norm(x + h)


class Hubert(nnx.Module):
    """Waveform → mean of the hidden states before, between and after all layers."""

    def __init__(self, config: HubertConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.feature_extractor = FeatureExtractor(config, rngs=rngs)
        self.feature_projection = FeatureProjection(config, rngs=rngs)
        # of no use but in pre-training; kept so that export is complete
        self.masked_spec_embed = nnx.Param(jnp.zeros(config.hidden_size))
        self.pos_conv_embed = PositionalConv(config, rngs=rngs)
        self.layer_norm = nnx.LayerNorm(
            config.hidden_size, epsilon=config.layer_norm_eps, rngs=rngs
        )
        self.layers = layers_lib.stack(
            lambda r: EncoderLayer(config, rngs=r), config.num_hidden_layers, rngs
        )

    def __call__(self, wav: jax.Array, lengths: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Features of a batch.

        Args:
          wav: float32 [B, S] at 16 kHz.
          lengths: int [B], valid samples.

        Returns:
          ([B, T, hidden_size], valid frames [B]).
        """
        x, lengths = self.feature_extractor(wav, lengths)
        x = keep(self.feature_projection(x), lengths)
        x = self.layer_norm(x + self.pos_conv_embed(x))
        mask = (jnp.arange(x.shape[1]) < lengths[:, None])[:, None, None]

        def step(layer, carry, _):
            x, total = carry
            x = layer(x, mask)
            return (x, total + x), None

        (_, total), _ = layers_lib.scan(self.layers, (x, x), step)
        return total / (self.config.num_hidden_layers + 1), lengths
