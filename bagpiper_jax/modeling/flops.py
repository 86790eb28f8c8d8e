"""FLOPs that the model needs for a training step, from its architecture alone.

A multiply-add is 2 FLOPs. Only products are counted, neither element-wise work nor anything that a
program computes again. Each product with a weight costs as much again in the backward pass for the
gradient of its input, where anything before it is trained, and for that of the weight, where the
weight is trained ("Scaling Laws for Neural Language Models", arXiv 2001.08361, §2.1, there for the
case that all is trained: 6 FLOPs per parameter and token).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from bagpiper_jax.errors import UserError
from bagpiper_jax.log_mel import TOKENS_PER_WINDOW, WINDOW_FRAMES
from bagpiper_jax.modeling.config import AudioEncoderConfig, BagpiperConfig, DecoderConfig
from bagpiper_jax.trees import is_below


@dataclasses.dataclass(frozen=True)
class StepFlops:
    """FLOPs of a step by part, and the tokens it trains on.

    Attributes:
      encoder: the audio tower, its attention included.
      adaptor: the linear layer behind it.
      decoder: products of the decoder's layers with weights.
      attention: products of queries, keys and values in the decoder.
      head: the output layer and its loss.
      tokens: rows · length.
    """

    encoder: float
    adaptor: float
    decoder: float
    attention: float
    head: float
    tokens: int

    @property
    def total(self) -> float:
        return self.encoder + self.adaptor + self.decoder + self.attention + self.head

    @property
    def per_token(self) -> float:
        return self.total / self.tokens


class _Count:
    """Adds up products in the order of the forward pass: what is trained so far costs gradients."""

    def __init__(self, frozen: Sequence[str]):
        self._frozen = frozen
        self.reached = False  # by gradients: something is trained up to here

    def trained(self, path: str) -> bool:
        return not is_below(path, self._frozen)

    def reach(self, path: str):
        """Passes parameters. Stacked layers are passed before their products are counted: all of
        them but the first have layers before them."""
        self.reached |= self.trained(path)

    def weight(self, path: str, multiply_adds: float) -> float:
        """FLOPs of a product with a weight."""
        return 2 * multiply_adds * (1 + self.reached + self.trained(path))

    def layer(self, path: str, multiply_adds: float) -> float:
        """FLOPs of a product with the weight of a layer that stands alone."""
        flops = self.weight(path, multiply_adds)
        self.reach(path)
        return flops

    def activations(self, multiply_adds: float) -> float:
        """FLOPs of a product of two activations: both want gradients, or none does."""
        return 2 * multiply_adds * (3 if self.reached else 1)


def step_flops(
    config: BagpiperConfig, *, rows: int, length: int, windows: int, frozen: Sequence[str] = ()
) -> StepFlops:
    """FLOPs of a training step.

    Decoder attention is counted causal over whole rows, half the square: an upper bound, since
    packed examples attend only inside themselves. Every mel window and every position counts, the
    empty ones too, for the program computes them.

    Args:
      config: shapes.
      rows: packed rows of the step, those of all its micro-batches.
      length: positions of a row.
      windows: mel windows of a row.
      frozen: dotted paths of parameters; what lies below them is not trained.

    Raises:
      UserError: no rows or positions, or a negative number of windows.
    """
    if rows < 1 or length < 1 or windows < 0:
        raise UserError(
            f"a step of {rows} rows, {length} positions and {windows} windows has nothing to count"
        )
    count, tokens = _Count(frozen), rows * length
    encoder = _encoder(count, config.encoder, rows * windows)
    size = config.encoder.output_dim * config.decoder.hidden_size
    adaptor = count.layer("adaptor", rows * windows * TOKENS_PER_WINDOW * size)
    count.reach("model.embed_tokens")
    count.reach("model.layers")
    decoder = _decoder(count, config.decoder, tokens)
    heads = config.decoder.num_attention_heads * config.decoder.head_dim
    layers = config.decoder.num_hidden_layers
    # two products over half of the pairs of positions
    attention = count.activations(2 * layers * tokens * length / 2 * heads)
    count.reach("model.norm")
    return StepFlops(encoder, adaptor, decoder, attention, _head(count, config, tokens), tokens)


def _encoder(count: _Count, config: AudioEncoderConfig, windows: int) -> float:
    top, size, width = "audio_tower", config.d_model, config.downsample_hidden_size
    flops, channels = 0.0, 1
    plane = [WINDOW_FRAMES, config.num_mel_bins]
    for conv in ("conv2d1", "conv2d2", "conv2d3"):  # 3×3, stride 2
        plane = [-(-n // 2) for n in plane]
        flops += count.layer(f"{top}.{conv}", windows * math.prod(plane) * 9 * channels * width)
        channels = width
    tokens = windows * TOKENS_PER_WINDOW
    flops += count.layer(f"{top}.conv_out", tokens * width * plane[1] * size)
    count.reach(f"{top}.layers")
    stacked = tokens * config.encoder_layers
    for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
        flops += count.weight(f"{top}.layers.{name}", stacked * size * size)
    for name in ("fc1", "fc2"):
        flops += count.weight(f"{top}.layers.{name}", stacked * size * config.encoder_ffn_dim)
    flops += count.activations(2 * stacked * config.block_windows * TOKENS_PER_WINDOW * size)
    count.reach(f"{top}.ln_post")
    flops += count.layer(f"{top}.proj1", tokens * size * size)
    return flops + count.layer(f"{top}.proj2", tokens * size * config.output_dim)


def _decoder(count: _Count, config: DecoderConfig, tokens: int) -> float:
    hidden, stacked = config.hidden_size, tokens * config.num_hidden_layers
    heads = config.num_attention_heads * config.head_dim
    kv_heads = config.num_key_value_heads * config.head_dim
    widths = {"self_attn": dict(q_proj=heads, k_proj=kv_heads, v_proj=kv_heads, o_proj=heads)}
    widths["mlp"] = dict.fromkeys(("gate_proj", "up_proj", "down_proj"), config.intermediate_size)
    return sum(
        count.weight(f"model.layers.{block}.{name}", stacked * hidden * width)
        for block, names in widths.items()
        for name, width in names.items()
    )


def _head(count: _Count, config: BagpiperConfig, tokens: int) -> float:
    """One product with the vocabulary for all streams, and the two that give each stream its own
    log-sum-exp (`ops.fused_cross_entropy`)."""
    vocab, hidden = config.vocab, config.decoder.hidden_size
    path = "model.embed_tokens" if config.decoder.tie_word_embeddings else "lm_head"
    flops = count.weight(path, tokens * vocab.size * hidden)
    others = (vocab.num_streams - 1) * vocab.codec_size
    offsets = 2 * others * hidden * (1 + count.trained("stream_emb") + count.trained(path))
    for name in (path, "stream_emb"):
        count.reach(name)
    return flops + offsets + count.activations(tokens * others)
