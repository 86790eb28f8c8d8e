"""X-codec in Flax NNX, after `XcodecModel` of `transformers`: 16 kHz, 50 frames/s, residual VQ.

Waveform → DAC encoder ‖ HuBERT and a small convolutional encoder → linear → books; codes → vectors
→ linear → DAC decoder → waveform. Clips of a batch are padded on the right; every convolution sees
zeros past a clip's end, so a clip's codes and samples do not depend on its company.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import nnx

from bagpiper_jax.modeling.hubert import Hubert, HubertConfig, conv_length, keep


@dataclasses.dataclass(frozen=True)
class XCodecConfig:
    """Shapes; names follow `XcodecConfig` of transformers. Defaults: xcodec-hubert-general."""

    encoder_hidden_size: int = 64
    downsampling_ratios: tuple[int, ...] = (8, 5, 4, 2)
    decoder_hidden_size: int = 1024
    upsampling_ratios: tuple[int, ...] = (8, 5, 4, 2)
    acoustic_hidden_size: int = 256
    codebook_size: int = 1024
    num_quantizers: int = 8
    kernel_size: int = 3
    unit_kernel_size: int = 3
    block_dilations: tuple[int, ...] = (1, 1)
    num_semantic_blocks: int = 2
    sample_rate: int = 16_000
    semantic: HubertConfig = HubertConfig()

    @property
    def hop(self) -> int:
        """Samples per frame."""
        return math.prod(self.downsampling_ratios)

    @property
    def hidden_size(self) -> int:
        """Size of a code vector."""
        return self.acoustic_hidden_size + self.semantic.hidden_size


class Buffer(nnx.Variable):
    """State of a checkpoint that is no weight: statistics of the codebooks' training."""


def _conv(inputs, outputs, kernel, rngs, *, stride=1, padding=None, dilation=1, bias=True):
    if padding is None:
        padding = (kernel - 1) // 2 * dilation
    return nnx.Conv(
        inputs,
        outputs,
        (kernel,),
        strides=stride,
        padding=[(padding, padding)],
        kernel_dilation=dilation,
        use_bias=bias,
        rngs=rngs,
    )


class Snake(nnx.Module):
    """x + sin²(αx) / α (DAC)."""

    def __init__(self, size: int):
        self.alpha = nnx.Param(jnp.ones(size))

    def __call__(self, x):
        alpha = self.alpha[...]
        return x + jnp.sin(alpha * x) ** 2 / (alpha + 1e-9)


class ResidualUnit(nnx.Module):
    """DAC: dilated convolution of 7, then of 1."""

    def __init__(self, size: int, dilation: int, *, rngs):
        self.snake1 = Snake(size)
        self.conv1 = _conv(size, size, 7, rngs, dilation=dilation)
        self.snake2 = Snake(size)
        self.conv2 = _conv(size, size, 1, rngs)

    def __call__(self, x, lengths):
        return x + self.conv2(self.snake2(self.conv1(keep(self.snake1(x), lengths))))


class EncoderBlock(nnx.Module):
    """DAC: three units, then a strided convolution that doubles the channels."""

    def __init__(self, size: int, stride: int, *, rngs):
        self.stride = stride
        self.res_unit1 = ResidualUnit(size, 1, rngs=rngs)
        self.res_unit2 = ResidualUnit(size, 3, rngs=rngs)
        self.res_unit3 = ResidualUnit(size, 9, rngs=rngs)
        self.snake1 = Snake(size)
        self.conv1 = _conv(size, 2 * size, 2 * stride, rngs, stride=stride, padding=-(-stride // 2))

    def __call__(self, x, lengths):
        for unit in (self.res_unit1, self.res_unit2, self.res_unit3):
            x = unit(x, lengths)
        x = self.conv1(keep(self.snake1(x), lengths))
        return x, conv_length(lengths, 2 * self.stride, self.stride, -(-self.stride // 2))


class AcousticEncoder(nnx.Module):
    """DAC encoder: waveform → frames."""

    def __init__(self, config: XCodecConfig, *, rngs):
        size = config.encoder_hidden_size
        self.conv1 = _conv(1, size, 7, rngs)
        self.block = nnx.List()
        for stride in config.downsampling_ratios:
            self.block.append(EncoderBlock(size, stride, rngs=rngs))
            size *= 2
        self.snake1 = Snake(size)
        self.conv2 = _conv(size, config.acoustic_hidden_size, 3, rngs)

    def __call__(self, wav, lengths):
        x = self.conv1(keep(wav[..., None], lengths))
        for block in self.block:
            x, lengths = block(x, lengths)
        return self.conv2(keep(self.snake1(x), lengths)), lengths


class ConvTranspose(nnx.Module):
    """PyTorch's transposed convolution of 2·stride taps, cut so that T frames give T·stride."""

    def __init__(self, inputs: int, outputs: int, stride: int, *, rngs):
        self.stride = stride
        shape = (2 * stride, inputs, outputs)
        self.kernel = nnx.Param(nnx.initializers.lecun_normal()(rngs.params(), shape))
        self.bias = nnx.Param(jnp.zeros(outputs))

    def __call__(self, x):
        left = 2 * self.stride - 1 - -(-self.stride // 2)
        y = jax.lax.conv_general_dilated(
            x,
            self.kernel[...][::-1],
            window_strides=(1,),
            padding=[(left, left + self.stride % 2)],
            lhs_dilation=(self.stride,),
            dimension_numbers=("NWC", "WIO", "NWC"),
        )
        return y + self.bias[...]


class DecoderBlock(nnx.Module):
    """DAC: a transposed convolution that halves the channels, then three units."""

    def __init__(self, size: int, stride: int, *, rngs):
        self.stride = stride
        self.snake1 = Snake(size)
        self.conv_t1 = ConvTranspose(size, size // 2, stride, rngs=rngs)
        self.res_unit1 = ResidualUnit(size // 2, 1, rngs=rngs)
        self.res_unit2 = ResidualUnit(size // 2, 3, rngs=rngs)
        self.res_unit3 = ResidualUnit(size // 2, 9, rngs=rngs)

    def __call__(self, x, lengths):
        x = self.conv_t1(keep(self.snake1(x), lengths))
        lengths = lengths * self.stride
        for unit in (self.res_unit1, self.res_unit2, self.res_unit3):
            x = unit(x, lengths)
        return x, lengths


class AcousticDecoder(nnx.Module):
    """DAC decoder without the last tanh: frames → waveform."""

    def __init__(self, config: XCodecConfig, *, rngs):
        size = config.decoder_hidden_size
        self.conv1 = _conv(config.acoustic_hidden_size, size, 7, rngs)
        self.block = nnx.List()
        for stride in config.upsampling_ratios:
            self.block.append(DecoderBlock(size, stride, rngs=rngs))
            size //= 2
        self.snake1 = Snake(size)
        self.conv2 = _conv(size, 1, 7, rngs)

    def __call__(self, x, lengths):
        x = self.conv1(keep(x, lengths))
        for block in self.block:
            x, lengths = block(x, lengths)
        return keep(self.conv2(keep(self.snake1(x), lengths)), lengths)[..., 0]


class SemanticUnit(nnx.Module):
    """ELU, convolution, ELU, convolution of 1, residual."""

    def __init__(self, size: int, config: XCodecConfig, dilation: int, *, rngs):
        self.conv1 = _conv(size, size, config.unit_kernel_size, rngs, dilation=dilation, bias=False)
        self.conv2 = _conv(size, size, 1, rngs, bias=False)

    def __call__(self, x, lengths):
        return x + self.conv2(jax.nn.elu(self.conv1(keep(jax.nn.elu(x), lengths))))


class SemanticBlock(nnx.Module):
    """Units and a convolution; which comes first differs between encoder and decoder."""

    def __init__(self, config: XCodecConfig, *, rngs):
        size = config.semantic.hidden_size
        self.res_units = nnx.List(
            SemanticUnit(size, config, dilation, rngs=rngs) for dilation in config.block_dilations
        )
        self.conv = _conv(size, size, 3, rngs)

    def __call__(self, x, lengths):
        for unit in self.res_units:
            x = unit(x, lengths)
        return self.conv(keep(x, lengths))


class SemanticEncoder(nnx.Module):
    """Convolutions on HuBERT's features."""

    def __init__(self, config: XCodecConfig, *, rngs):
        size = config.semantic.hidden_size
        self.conv = _conv(size, size, config.kernel_size, rngs, bias=False)
        self.conv_blocks = nnx.List(
            SemanticBlock(config, rngs=rngs) for _ in range(config.num_semantic_blocks)
        )

    def __call__(self, x, lengths):
        x = self.conv(keep(x, lengths))
        for block in self.conv_blocks:
            x = block(x, lengths)
        return x


class SemanticDecoder(nnx.Module):
    """Weights of a training loss. Nothing runs them; they are kept so that export is complete."""

    def __init__(self, config: XCodecConfig, *, rngs):
        size, kernel = config.semantic.hidden_size, config.kernel_size
        self.conv1 = _conv(size, size, kernel, rngs, bias=False)
        self.conv_blocks = nnx.List(
            SemanticBlock(config, rngs=rngs) for _ in range(config.num_semantic_blocks)
        )
        self.conv2 = _conv(size, size, kernel, rngs, bias=False)


class Quantizer(nnx.Module):
    """Residual vector quantiser with Euclidean books, all in one array [K, V, D]."""

    def __init__(self, config: XCodecConfig, *, rngs):
        shape = (config.num_quantizers, config.codebook_size, config.hidden_size)
        self.embed = Buffer(nnx.initializers.normal(1.0)(rngs.params(), shape))
        self.embed_avg = Buffer(jnp.zeros(shape))
        self.cluster_size = Buffer(jnp.zeros(shape[:2]))
        self.inited = Buffer(jnp.ones((config.num_quantizers, 1)))

    def encode(self, x, num_books: int):
        """[B, T, D] → int32 [B, T, num_books]."""

        def step(residual, book):
            scores = 2 * residual @ book.T - (book * book).sum(-1)
            index = jnp.argmax(scores, axis=-1)
            return residual - book[index], index

        _, codes = jax.lax.scan(step, x, self.embed[...][:num_books])
        return jnp.moveaxis(codes, 0, -1).astype(jnp.int32)

    def decode(self, codes):
        """int [B, T, K'] → [B, T, D]; K' books, the first ones."""
        books = self.embed[...]
        return sum(books[k][codes[..., k]] for k in range(codes.shape[-1]))


class XCodecModel(nnx.Module):
    """The graph; `XCodec` makes it a codec."""

    def __init__(self, config: XCodecConfig = XCodecConfig(), *, rngs: nnx.Rngs):
        self.config = config
        size = config.hidden_size
        self.acoustic_encoder = AcousticEncoder(config, rngs=rngs)
        self.acoustic_decoder = AcousticDecoder(config, rngs=rngs)
        self.encoder_semantic = SemanticEncoder(config, rngs=rngs)
        self.decoder_semantic = SemanticDecoder(config, rngs=rngs)
        self.semantic_model = Hubert(config.semantic, rngs=rngs)
        self.fc = nnx.Linear(size, size, rngs=rngs)
        # to the semantic decoder, so of no use here
        self.fc1 = nnx.Linear(size, config.semantic.hidden_size, rngs=rngs)
        self.fc2 = nnx.Linear(size, config.acoustic_hidden_size, rngs=rngs)
        self.quantizer = Quantizer(config, rngs=rngs)

    def acoustic_length(self, length):
        """Frames of the acoustic branch for so many samples; ints or arrays."""
        for stride in self.config.downsampling_ratios:
            length = conv_length(length, 2 * stride, stride, -(-stride // 2))
        return length

    def semantic_length(self, length):
        """Frames of the semantic branch, which sees half a frame of zeros on either side."""
        length = length + self.config.hop // 2 * 2
        semantic = self.config.semantic
        for kernel, stride in zip(semantic.conv_kernel, semantic.conv_stride, strict=True):
            length = conv_length(length, kernel, stride)
        return length

    def encode(self, wav: jax.Array, lengths: jax.Array, num_books: int) -> jax.Array:
        """Codes of a batch; frames past `semantic_length(lengths)` mean nothing.

        Args:
          wav: float32 [B, S], mono at the codec's rate.
          lengths: int [B], valid samples of each clip, at least 80.
          num_books: how many books, the first ones: 8 are 4 kbit/s.

        Returns:
          int32 [B, semantic_length(S), num_books].
        """
        half = self.config.hop // 2
        with jax.default_matmul_precision("highest"):
            wav = keep(wav[..., None], lengths)[..., 0]
            padded = jnp.pad(wav, ((0, 0), (half, half)))
            semantic, frames = self.semantic_model(padded, lengths + 2 * half)
            semantic = self.encoder_semantic(semantic, frames)
            # where the branches would differ by a frame, the acoustic one is padded like the other
            short = self.acoustic_length(lengths) != frames
            shifted = jnp.where(short[:, None], padded, jnp.pad(wav, ((0, 0), (0, 2 * half))))
            acoustic, _ = self.acoustic_encoder(shifted, lengths + 2 * half * short)
            acoustic = acoustic[:, : semantic.shape[1]]
            x = self.fc(jnp.concatenate([acoustic, semantic], axis=-1))
            return self.quantizer.encode(x, num_books)

    def decode(self, codes: jax.Array, lengths: jax.Array) -> jax.Array:
        """Waveforms of a batch.

        Args:
          codes: int [B, T, K'], of the first K' books.
          lengths: int [B], valid frames.

        Returns:
          float32 [B, T · hop], zero past each length.
        """
        with jax.default_matmul_precision("highest"):
            return self.acoustic_decoder(self.fc2(self.quantizer.decode(codes)), lengths)
