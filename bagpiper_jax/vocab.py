"""Token ranges, streams and the delay pattern: the contract of data, model and codec.

The layout is part of the checkpoint format (arXiv 2602.05220): special tokens, then text, then the
codec's streams, each with a pad of its own in front of its codes. It is a pure function of three
sizes, so that no config file's key order can permute rows.
"""

from __future__ import annotations

import dataclasses

import numpy as np

NUM_SPECIAL = 256

PAD = 0
BOS = 1
EOS = 2
EOT = 3
ROLES = {"system": 4, "user": 5, "assistant": 6}
MODALITIES = {"text": 7, "audio": 8, "image": 9, "video": 10, "toolcall": 11}

_SPECIAL_NAMES = {
    PAD: "pad",
    BOS: "bos",
    EOS: "eos",
    EOT: "eot",
    **{i: name for name, i in ROLES.items()},
    **{i: name for name, i in MODALITIES.items()},
}


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """Sizes that fix every id of the model's tables.

    Attributes:
      text_size: number of text ids of the tokenizer (Qwen3: 151,936).
      num_streams: codec tokens per frame, K.
      codebook_size: codes per stream; every stream has one id more, its pad.
      zero_text_id_is_pad: text id 0 is stored as `<|pad|>` instead of 256, the quirk with which the
        published checkpoints were trained. Off for new trainings.
      codec_weight: loss weight of codec targets: one number for all streams, or one per stream.
        The published value is 1/8.
      stream_delay: frames by which each stream follows the one before it: 1 as published, 0 for
        parallel streams (an ablation).
    """

    text_size: int = 151_936
    num_streams: int = 8
    codebook_size: int = 1024
    zero_text_id_is_pad: bool = False
    codec_weight: float | tuple[float, ...] = 0.125
    stream_delay: int = 1

    def __post_init__(self):
        if min(self.text_size, self.num_streams, self.codebook_size) < 1:
            raise ValueError(f"every size of {self} must be at least 1")
        if self.stream_delay < 0:
            raise ValueError(f"stream_delay must not be negative: {self.stream_delay}")
        weights = self.codec_weight
        if isinstance(weights, tuple) and len(weights) != self.num_streams:
            raise ValueError(
                f"codec_weight has {len(weights)} values for {self.num_streams} streams"
            )

    @property
    def text_start(self) -> int:
        return NUM_SPECIAL

    @property
    def codec_start(self) -> int:
        return NUM_SPECIAL + self.text_size

    @property
    def stream_size(self) -> int:
        """Ids of one stream: its pad and its codes."""
        return self.codebook_size + 1

    @property
    def codec_size(self) -> int:
        return self.num_streams * self.stream_size

    @property
    def size(self) -> int:
        return self.codec_start + self.codec_size

    def stream_range(self, stream: int) -> tuple[int, int]:
        """Half-open id range of a stream, pad first."""
        if not 0 <= stream < self.num_streams:
            raise ValueError(f"stream {stream} is not in [0, {self.num_streams})")
        start = self.codec_start + stream * self.stream_size
        return start, start + self.stream_size

    @property
    def delays(self) -> np.ndarray:
        """Rows by which each stream is late, int [K]."""
        return self.stream_delay * np.arange(self.num_streams)

    @property
    def delay_rows(self) -> int:
        """Rows that an audio message has beyond its frames, for the last stream to come in."""
        return self.stream_delay * (self.num_streams - 1)

    @property
    def stream_pads(self) -> np.ndarray:
        """Pad id of each stream, int32 [K]."""
        starts = self.codec_start + np.arange(self.num_streams) * self.stream_size
        return starts.astype(np.int32)

    def token_weights(self) -> np.ndarray:
        """`vocab_weight` of the checkpoint, float32 [V]: 1 for special and text ids."""
        weights = np.ones(self.size, np.float32)
        per_stream = np.broadcast_to(np.asarray(self.codec_weight, np.float32), self.num_streams)
        weights[self.codec_start :] = np.repeat(per_stream, self.stream_size)
        return weights

    def text_to_tokens(self, text_ids) -> np.ndarray:
        """Tokenizer ids → model ids, int32 [n].

        Raises:
          ValueError: an id is outside the text range.
        """
        ids = np.asarray(text_ids, np.int64).reshape(-1)
        if ids.size and (ids.min() < 0 or ids.max() >= self.text_size):
            raise ValueError(f"text ids must lie in [0, {self.text_size}): {ids.min()}…{ids.max()}")
        tokens = ids + self.text_start
        if self.zero_text_id_is_pad:
            tokens[ids == 0] = PAD
        return tokens.astype(np.int32)

    def tokens_to_text(self, tokens) -> list[int]:
        """Model ids → tokenizer ids; ids outside the text range are dropped."""
        ids = np.asarray(tokens, np.int64).reshape(-1)
        if self.zero_text_id_is_pad:
            ids = np.where(ids == PAD, self.text_start, ids)
        ids = ids[(ids >= self.text_start) & (ids < self.codec_start)]
        return (ids - self.text_start).tolist()

    def interleave(self, codes) -> np.ndarray:
        """Codec codes [T, K] → delay-interleaved rows, int32 [T + delay_rows, K].

        Stream k is shifted right by `delays[k]` frames; the holes hold that stream's pad.

        Raises:
          ValueError: wrong shape, or a code outside [0, codebook_size).
        """
        codes = np.asarray(codes)
        if codes.ndim != 2 or codes.shape[1] != self.num_streams:
            raise ValueError(f"codes must be [T, {self.num_streams}], not {list(codes.shape)}")
        if codes.size and (codes.min() < 0 or codes.max() >= self.codebook_size):
            raise ValueError(f"codes must lie in [0, {self.codebook_size})")
        frames = len(codes)
        rows = np.tile(self.stream_pads, (frames + self.delay_rows, 1))
        for k, late in enumerate(self.delays):
            rows[late : late + frames, k] += codes[:, k].astype(np.int32) + 1
        return rows

    def deinterleave(self, rows) -> np.ndarray:
        """Delay-interleaved rows [T + delay_rows, K] → codes, int32 [T, K].

        Ids that are not codes of their stream (pads, or what a model sampled at an edge) are
        clipped into range. Up to `delay_rows` rows hold no whole frame: the result is [0, K].
        """
        rows = np.asarray(rows, np.int64).reshape(-1, self.num_streams)
        frames = max(len(rows) - self.delay_rows, 0)
        columns = [rows[late : late + frames, k] for k, late in enumerate(self.delays)]
        codes = np.stack(columns, axis=1) - self.stream_pads - 1
        return np.clip(codes, 0, self.codebook_size - 1).astype(np.int32)

    def name(self, token: int) -> str:
        """A readable name of an id, for inspection and error messages."""
        token = int(token)
        if not 0 <= token < self.size:
            raise ValueError(f"token {token} is not in [0, {self.size})")
        if token < NUM_SPECIAL:
            return f"<|{_SPECIAL_NAMES.get(token, f'unused_{token}')}|>"
        if token < self.codec_start:
            return f"text:{token - self.text_start}"
        stream, code = divmod(token - self.codec_start, self.stream_size)
        return f"s{stream}:{'pad' if code == 0 else code - 1}"
