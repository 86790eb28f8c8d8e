"""Pieces of context, padded to few shapes: prompts, and what comes between two messages."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from bagpiper_jax.conversation import Example
from bagpiper_jax.inference.steps import Prompts
from bagpiper_jax.input_pipeline.batch import block_windows, pack_row
from bagpiper_jax.log_mel import WINDOW_FRAMES
from bagpiper_jax.modeling.config import BagpiperConfig

_LENGTH = 16  # rows of the shortest piece


def bucket(n: int, smallest: int, multiple: int = 1) -> int:
    """`smallest` doubled until it holds n, then up to a multiple: few shapes are compiled."""
    size = smallest
    while size < n:
        size *= 2
    return -(-size // multiple) * multiple


@dataclasses.dataclass(frozen=True)
class Piece:
    """Rows to append to a sequence.

    Attributes:
      tokens: int32 [n, K].
      prompt: where the audio of these rows is, None without audio.
    """

    tokens: np.ndarray
    prompt: Example | None = None

    @classmethod
    def of_ids(cls, ids: Sequence[int], streams: int) -> Piece:
        """Ids of stream 0."""
        tokens = np.zeros((len(ids), streams), np.int32)
        tokens[:, 0] = ids
        return cls(tokens)

    @classmethod
    def of_prompt(cls, prompt: Example, ids: Sequence[int]) -> Piece:
        """A prompt, and ids of stream 0 after it."""
        tail = cls.of_ids(ids, prompt.tokens.shape[1]).tokens
        return cls(np.concatenate([prompt.tokens, tail]), prompt if prompt.audio else None)


def pack(
    pieces: Sequence[Piece],
    rows: Sequence[int],
    starts: Sequence[int],
    config: BagpiperConfig,
    *,
    idle_row: int,
    multiple: int,
) -> Prompts:
    """Pieces as one `Prompts`, padded on the right.

    Args:
      pieces: one a sequence.
      rows, starts: see `Prompts`.
      config: the model's.
      idle_row: `rows` of padding.
      multiple: of the number of pieces.
    """
    count = bucket(len(pieces), 1, multiple)
    length = bucket(max(len(p.tokens) for p in pieces), _LENGTH)
    block = config.encoder.block_windows
    clips = [[c for _, c in p.prompt.audio] if p.prompt else [] for p in pieces]
    blocks = max(sum(block_windows(len(c.frames), block) for c in part) // block for part in clips)
    windows = bucket(blocks, 1) * block if blocks else 0
    packed = Prompts(
        rows=np.full(count, idle_row, np.int32),
        starts=np.zeros(count, np.int32),
        counts=np.ones(count, np.int32),
        tokens=np.zeros((count, length, config.vocab.num_streams), np.int32),
        mel=np.zeros((count, windows, WINDOW_FRAMES, config.encoder.num_mel_bins), np.float32),
        mel_frames=np.zeros((count, windows), np.int32),
        audio_index=np.full((count, length), -1, np.int32),
    )
    packed.rows[: len(rows)] = rows
    packed.starts[: len(starts)] = starts
    for i, piece in enumerate(pieces):
        packed.counts[i] = len(piece.tokens)
        packed.tokens[i, : len(piece.tokens)] = piece.tokens
        if piece.prompt is not None:
            row = pack_row([piece.prompt], length, windows, block)
            packed.mel[i], packed.mel_frames[i] = row.mel, row.mel_frames
            packed.audio_index[i] = row.audio_index
    return packed
