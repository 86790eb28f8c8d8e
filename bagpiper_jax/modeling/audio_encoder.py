"""Audio tower of Qwen3-Omni in Flax NNX, after `Qwen3OmniMoeAudioEncoder` of `transformers`."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from bagpiper_jax.log_mel import TOKENS_PER_WINDOW, WINDOW_FRAMES, num_tokens
from bagpiper_jax.modeling import layers as layers_lib
from bagpiper_jax.modeling.config import AudioEncoderConfig
from bagpiper_jax.modeling.layers import gelu
from bagpiper_jax.ops.attention import attention, segment_mask
from bagpiper_jax.sharding import constrain

# Where the tower is trained from scratch, what it hears must not drown in its positions, nor in the
# first layers of the decoder: scales are kept through GELU (gain 2), not shrunk layer by layer.
_INIT = nnx.initializers.he_normal()


def sinusoids(length: int, channels: int) -> np.ndarray:
    """Whisper's positions: sines, then cosines, timescales up to 10,000; float32 [length, C]."""
    half = channels // 2
    inverse = np.exp(-np.log(10_000) / (half - 1) * np.arange(half))
    angles = np.arange(length)[:, None] * inverse[None]
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)


def _linear(inputs: int, outputs: int, dtype, rngs, *, bias=True) -> nnx.Linear:
    return nnx.Linear(inputs, outputs, use_bias=bias, kernel_init=_INIT, dtype=dtype, rngs=rngs)


class EncoderLayer(nnx.Module):
    """Pre-norm block: attention without position terms, then a GELU feed-forward."""

    def __init__(self, config: AudioEncoderConfig, *, dtype, rngs: nnx.Rngs):
        size = config.d_model
        self.num_heads = config.encoder_attention_heads
        self.self_attn_layer_norm = nnx.LayerNorm(size, epsilon=1e-5, dtype=dtype, rngs=rngs)
        self.q_proj = _linear(size, size, dtype, rngs)
        self.k_proj = _linear(size, size, dtype, rngs)
        self.v_proj = _linear(size, size, dtype, rngs)
        self.out_proj = _linear(size, size, dtype, rngs)
        self.final_layer_norm = nnx.LayerNorm(size, epsilon=1e-5, dtype=dtype, rngs=rngs)
        self.fc1 = _linear(size, config.encoder_ffn_dim, dtype, rngs)
        self.fc2 = _linear(config.encoder_ffn_dim, size, dtype, rngs)

    def __call__(self, x, mask):
        h = layers_lib.flat(self.self_attn_layer_norm(x))
        shape = (*x.shape[:2], self.num_heads, -1)
        q, k, v = (proj(h).reshape(shape) for proj in (self.q_proj, self.k_proj, self.v_proj))
        h = attention(q, k, v, mask).reshape(h.shape)
        x = x + self.out_proj(h).reshape(x.shape)
        h = layers_lib.flat(self.final_layer_norm(x))
        return x + self.fc2(gelu(self.fc1(h))).reshape(x.shape)


class AudioEncoder(nnx.Module):
    """Log-mel windows → 13 features a second; attention is dense inside blocks of windows."""

    def __init__(
        self, config: AudioEncoderConfig, *, form: layers_lib.Form | None = None, rngs: nnx.Rngs
    ):
        self.config = config
        self.form = form or layers_lib.Form()
        dtype = self.form.dtype
        width = config.downsample_hidden_size

        def conv(inputs):
            return nnx.Conv(
                inputs,
                width,
                (3, 3),
                strides=2,
                padding=1,
                kernel_init=_INIT,
                dtype=dtype,
                rngs=rngs,
            )

        self.conv2d1, self.conv2d2, self.conv2d3 = conv(1), conv(width), conv(width)
        bins = num_tokens(config.num_mel_bins)
        self.conv_out = _linear(width * bins, config.d_model, dtype, rngs, bias=False)
        self.layers = layers_lib.stack(
            lambda r: EncoderLayer(config, dtype=dtype, rngs=r), config.encoder_layers, rngs
        )
        self.ln_post = nnx.LayerNorm(config.d_model, epsilon=1e-5, dtype=dtype, rngs=rngs)
        self.proj1 = _linear(config.d_model, config.d_model, dtype, rngs)
        self.proj2 = _linear(config.d_model, config.output_dim, dtype, rngs)

    def __call__(self, mel: jax.Array, frames: jax.Array) -> jax.Array:
        """Features of a batch of clips.

        Args:
          mel: [B, W, 100, M]; W a multiple of the block, each clip starts on a block.
          frames: int [B, W]; valid frames per window, 0 for an empty window.

        Returns:
          [B, W · 13, output_dim]; places past the end of a clip hold nothing of meaning.

        Raises:
          ValueError: W is not a multiple of the block.
        """
        x, mask = self.front(mel, frames)
        x, _ = layers_lib.scan(
            self.layers, x, lambda layer, x, _: (layer(x, mask), None), form=self.form
        )
        return self.back(x).reshape(len(mel), -1, self.config.output_dim)

    def front(self, mel: jax.Array, frames: jax.Array) -> tuple[jax.Array, jax.Array]:
        """What enters the layers: [blocks, block · 13, d_model] and the attention mask."""
        batch, windows = frames.shape
        block = self.config.block_windows
        if windows % block:
            raise ValueError(f"{windows} windows are not a multiple of the encoder block {block}")
        inside = jnp.arange(WINDOW_FRAMES) < frames[..., None]
        x = jnp.where(inside[..., None], mel, 0)  # the convolutions look past the end of a clip
        x = x.reshape(batch * windows, WINDOW_FRAMES, self.config.num_mel_bins, 1)
        for conv in (self.conv2d1, self.conv2d2, self.conv2d3):
            x = gelu(conv(x))
        # the original flattens channels before mel bins
        x = self.conv_out(x.swapaxes(2, 3).reshape(*x.shape[:2], -1))
        x = x + sinusoids(TOKENS_PER_WINDOW, self.config.d_model).astype(x.dtype)
        valid = jnp.arange(TOKENS_PER_WINDOW) < num_tokens(frames)[..., None]
        segments = valid.reshape(-1, block * TOKENS_PER_WINDOW).astype(jnp.int32)
        x = constrain(x.reshape(*segments.shape, -1), "batch")
        return x, segment_mask(segments, segments)

    def back(self, x: jax.Array) -> jax.Array:
        """What the layers gave → features."""
        return self.proj2(gelu(self.proj1(self.ln_post(x))))
