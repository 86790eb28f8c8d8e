"""`Batch`, the one pytree of fixed shapes that every stage of training reads, and its packing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from bagpiper_jax.conversation import Example, Message, encode_conversation
from bagpiper_jax.errors import UserError
from bagpiper_jax.log_mel import (
    NUM_MELS,
    TOKENS_PER_WINDOW,
    WINDOW_FRAMES,
    num_tokens,
)
from bagpiper_jax.modeling.config import BagpiperConfig
from bagpiper_jax.tokenizer import Tokenizer


class Batch(NamedTuple):
    """B packed rows of T positions, K streams, W mel windows.

    Attributes:
      tokens: int32 [B, T, K]; 0 where a stream is empty or audio features go.
      loss_mask: bool [B, T, K]; which tokens are targets.
      segment_ids: int32 [B, T]; 0 is padding, examples count from 1.
      positions: int32 [B, T]; restart at 0 with each example.
      mel: float32 [B, W, 100, 128]; windows of continuous audio. A clip starts on a multiple of
        the encoder's block, so that its attention is dense inside blocks.
      mel_frames: int32 [B, W]; valid frames of each window.
      audio_index: int32 [B, T]; encoder token (window · 13 + t, within the row of the batch) whose
        feature replaces the embedding, −1 for none.
    """

    tokens: np.ndarray
    loss_mask: np.ndarray
    segment_ids: np.ndarray
    positions: np.ndarray
    mel: np.ndarray
    mel_frames: np.ndarray
    audio_index: np.ndarray


def block_windows(num_windows: int, block: int) -> int:
    """Windows a clip takes in a batch: its own, rounded up to whole encoder blocks."""
    return -(-num_windows // block) * block


def pack_row(examples: Sequence[Example], length: int, windows: int, block: int) -> Batch:
    """Packs examples into one row: a `Batch` without its leading axis.

    Args:
      examples: what goes into the row, in order.
      length: rows T.
      windows: mel windows W.
      block: windows of one encoder attention block.

    Raises:
      ValueError: the examples do not fit.
    """
    streams = examples[0].tokens.shape[1]
    row = Batch(
        tokens=np.zeros((length, streams), np.int32),
        loss_mask=np.zeros((length, streams), bool),
        segment_ids=np.zeros(length, np.int32),
        positions=np.zeros(length, np.int32),
        mel=np.zeros((windows, WINDOW_FRAMES, NUM_MELS), np.float32),
        mel_frames=np.zeros(windows, np.int32),
        audio_index=np.full(length, -1, np.int32),
    )
    at, window = 0, 0
    for segment, example in enumerate(examples, start=1):
        span = slice(at, at + len(example))
        if span.stop > length:
            raise ValueError(f"examples of {span.stop} rows do not fit a row of {length}")
        row.tokens[span] = example.tokens
        row.loss_mask[span] = example.loss_mask
        row.segment_ids[span] = segment
        row.positions[span] = np.arange(len(example))
        for start, clip in example.audio:
            count = len(clip.frames)
            if window + count > windows:
                raise ValueError(f"clips of more than {windows} windows do not fit a row")
            row.mel[window : window + count] = clip.mel
            row.mel_frames[window : window + count] = clip.frames
            index = _token_index(clip.frames) + window * TOKENS_PER_WINDOW
            row.audio_index[at + start : at + start + len(index)] = index
            window += block_windows(count, block)
        at = span.stop
    return row


def _token_index(frames: np.ndarray) -> np.ndarray:
    """Flat index of each valid encoder token of a clip, int32 [n]."""
    tokens = [np.arange(num_tokens(int(f))) + w * TOKENS_PER_WINDOW for w, f in enumerate(frames)]
    return np.concatenate(tokens).astype(np.int32)


def stack_rows(rows: Sequence[Batch]) -> Batch:
    """Rows of equal shapes → a `Batch`."""
    return Batch(*(np.stack(field) for field in zip(*rows, strict=True)))


def build_batch(
    conversations: Sequence[Sequence[Message]],
    config: BagpiperConfig,
    tokenizer: Tokenizer,
    *,
    length: int = 8192,
    windows: int | None = None,
    loss_region: str = "assistant",
) -> Batch:
    """Conversations → one `Batch`, first-fit into rows; for notebooks and tests.

    Args:
      conversations: lists of messages.
      config: the model's, for its id ranges and the encoder's block.
      tokenizer: text ↔ ids.
      length: rows T of a packed row.
      windows: mel windows W of a packed row; as many as needed if None.
      loss_region: see `encode_conversation`.

    Raises:
      UserError: a conversation is longer than `length`.
    """
    encoded = [
        encode_conversation(c, config.vocab, tokenizer, loss_region=loss_region)
        for c in conversations
    ]
    block = config.encoder.block_windows
    rows: list[list[Example]] = []
    for i, example in enumerate(encoded):
        if len(example) > length:
            raise UserError(
                f"conversation {i} takes {len(example)} rows, the context holds {length}: "
                "shorten it"
            )
        for row in rows:
            if sum(map(len, row)) + len(example) <= length:
                row.append(example)
                break
        else:
            rows.append([example])
    needed = [
        sum(block_windows(len(clip.frames), block) for e in row for _, clip in e.audio)
        for row in rows
    ]
    windows = max([*needed, block]) if windows is None else windows
    return stack_rows([pack_row(row, length, windows, block) for row in rows])
