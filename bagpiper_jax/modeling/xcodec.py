"""X-codec as a codec: waveforms of any length ↔ codes, through few compiled shapes.

Clips up to a chunk are coded whole, as the original codes them once their last frame is filled with
zeros. Longer ones go in chunks that overlap. Decoding is convolution only, so its chunks, with the
decoder's reach around them, give the samples of the whole. Encoding attends over all of a clip:
there, a chunk hears some seconds of what is around it and nothing more.
"""

from __future__ import annotations

import functools
import math

import jax
import numpy as np
from flax import nnx

from bagpiper_jax.errors import UserError
from bagpiper_jax.modeling.codec import BlockStream, checked_codes
from bagpiper_jax.modeling.xcodec_model import XCodecConfig, XCodecModel

# frames that a stream decodes at once, with the decoder's reach on either side: 8 of them cost as
# much as 30, and their sound is ready 19 frames after they began
_STREAM_BLOCK = 8
_BUCKET = 50  # frames, one second: lengths are padded to multiples, so that few are compiled


def decoder_reach(config: XCodecConfig) -> int:
    """Frames on either side that a decoded sample depends on."""
    reach, rate = 3.0, 1  # the first convolution, of seven frames
    for stride in config.upsampling_ratios:
        reach += 1 / rate
        rate *= stride
        reach += 3 * (1 + 3 + 9) / rate  # three units of seven taps, dilated
    return math.ceil(reach + 3 / rate)


class XCodec:
    """A `Codec` from an `XCodecModel`."""

    def __init__(
        self,
        model: XCodecModel,
        *,
        num_books: int = 8,
        chunk_seconds: float = 30.0,
        context_seconds: float = 2.0,
    ):
        """Compiles nothing yet.

        Args:
          model: with weights.
          num_books: how many books, the first ones.
          chunk_seconds: longer clips are coded in chunks of so much.
          context_seconds: what a chunk hears on either side when it is encoded.
        """
        config = model.config
        self.config = config
        self.sample_rate, self.hop = config.sample_rate, config.hop
        self.frame_rate = config.sample_rate / config.hop
        self.codebook_sizes = (config.codebook_size,) * num_books
        self._chunk = max(1, round(chunk_seconds * self.frame_rate))
        self._context = round(context_seconds * self.frame_rate)
        self._graph, self._state = nnx.split(model)

    @functools.cached_property
    def _encode(self):
        books = len(self.codebook_sizes)
        return jax.jit(lambda state, w, n: nnx.merge(self._graph, state).encode(w, n, books))

    @functools.cached_property
    def _decode(self):
        return jax.jit(lambda state, c, n: nnx.merge(self._graph, state).decode(c, n))

    def encode(self, wav: np.ndarray) -> np.ndarray:
        """float [S] at `sample_rate` → int32 [ceil(S / hop), K]; the last frame is padded.

        Raises:
          UserError: the clip is empty, not mono, or not finite.
        """
        wav = np.asarray(wav)
        if wav.ndim != 1 or not wav.size or not np.isfinite(wav).all():
            raise UserError(
                f"X-codec needs a mono clip of finite samples, shape [samples], not {wav.shape}"
            )
        frames = -(-len(wav) // self.hop)
        padded = np.zeros(frames * self.hop, np.float32)
        padded[: len(wav)] = wav

        def code(start: int, stop: int) -> np.ndarray:
            part = padded[start * self.hop : stop * self.hop]
            batch = np.zeros((1, _bucket(stop - start) * self.hop), np.float32)
            batch[0, : len(part)] = part
            codes = self._encode(self._state, batch, np.array([len(part)]))
            return np.asarray(codes)[0, : stop - start]

        return self._in_chunks(frames, self._context, code, 1)

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """int [T, K'] of the first K' books → float32 [T · hop].

        Raises:
          UserError: a wrong shape or type, or a code outside [0, codebook size).
        """
        codes = self._checked(codes)
        if not len(codes):
            return np.zeros(0, np.float32)

        def sound(start: int, stop: int) -> np.ndarray:
            return self._sound(codes[start:stop], _bucket(stop - start))

        return self._in_chunks(len(codes), decoder_reach(self.config), sound, self.hop)

    def stream(self) -> BlockStream:
        """A `codec.CodecStream`: sound is ready `decoder_reach` frames after its block of 8.

        It gives the samples of `decode` but for the rounding of other shapes, some 1e-6.
        """
        block, reach = _STREAM_BLOCK, decoder_reach(self.config)

        def step(frames: np.ndarray, at: int) -> np.ndarray:
            wav = self._sound(frames, block + 2 * reach)
            return wav[at * self.hop : (at + block) * self.hop]

        return BlockStream(step, self._checked, hop=self.hop, block=block, reach=reach)

    def _sound(self, codes: np.ndarray, size: int) -> np.ndarray:
        """Samples of so many frames, padded to `size` of them: one compiled shape."""
        batch = np.zeros((1, size, codes.shape[1]), np.int32)
        batch[0, : len(codes)] = codes
        wav = self._decode(self._state, batch, np.array([len(codes)]))
        return np.clip(np.asarray(wav)[0, : len(codes) * self.hop], -1.0, 1.0)

    def _checked(self, codes: np.ndarray) -> np.ndarray:
        return checked_codes(codes, self.codebook_sizes)

    def _in_chunks(self, frames: int, context: int, call, scale: int) -> np.ndarray:
        """Joins what `call(start, stop)` gives for chunks, their context cut off again."""
        parts = []
        for start in range(0, frames, self._chunk):
            stop = min(start + self._chunk, frames)
            first, last = max(0, start - context), min(frames, stop + context)
            part = call(first, last)
            parts.append(part[(start - first) * scale : (stop - first) * scale])
        return np.concatenate(parts)


def _bucket(frames: int) -> int:
    return -(-frames // _BUCKET) * _BUCKET
