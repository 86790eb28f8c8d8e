"""(role, modality, content) → rows of tokens, loss mask and audio slots; CFG dropout.

The layout follows the reference (ESPnet SpeechLM; arXiv 2602.05220):
`<|bos|>`, then for each message `<|role|> <|modality|> content <|eot|>` where the next message has
the same role, else `<|eos|>`. Assistant audio is discrete (delay-interleaved codec codes); audio of
the user or the system is continuous (encoder features take the rows of the content).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from bagpiper_jax import vocab as vocab_lib
from bagpiper_jax.log_mel import MelWindows
from bagpiper_jax.tokenizer import Tokenizer
from bagpiper_jax.vocab import Vocabulary

MARKERS_PER_MESSAGE = 3  # role, modality, end token
_CAPTION, _THINK, _THOUGHT = "Caption of the audio: ", "<think>", "</think>"


@dataclasses.dataclass(frozen=True)
class Message:
    """One turn.

    Attributes:
      role: "system", "user" or "assistant".
      modality: "text" or "audio".
      content: text: a string. Assistant audio: codec codes, int [T, K]. User and system audio:
        `MelWindows` of the clip.
    """

    role: str
    modality: str
    content: Any

    def __post_init__(self):
        if self.role not in vocab_lib.ROLES:
            raise ValueError(f"role {self.role!r} is none of {sorted(vocab_lib.ROLES)}")
        if self.modality not in ("text", "audio"):
            raise ValueError(f"modality {self.modality!r} is neither 'text' nor 'audio'")

    @property
    def is_discrete_audio(self) -> bool:
        return self.modality == "audio" and self.role == "assistant"


@dataclasses.dataclass(frozen=True)
class Example:
    """A conversation as rows, before packing.

    Attributes:
      tokens: int32 [T, K].
      loss_mask: bool [T, K], the tokens that are targets.
      audio: (first row, windows) of each continuous clip.
      cfg_span: rows [start, stop) of an assistant-audio message (content and end token) that CFG
        dropout may keep; None where there is none.
    """

    tokens: np.ndarray
    loss_mask: np.ndarray
    audio: tuple[tuple[int, MelWindows], ...] = ()
    cfg_span: tuple[int, int] | None = None

    def __len__(self) -> int:
        return len(self.tokens)


def encode_conversation(
    messages: Sequence[Message],
    vocab: Vocabulary,
    tokenizer: Tokenizer,
    *,
    loss_region: str = "assistant",
) -> Example:
    """Lays a conversation out as rows.

    Args:
      messages: the turns, in order.
      vocab: id ranges.
      tokenizer: text ↔ ids.
      loss_region: "assistant" (targets are the assistant's messages, markers and end tokens
        included) or "all".

    Raises:
      ValueError: no message, an unknown `loss_region`, or codes that do not fit the vocabulary.
    """
    if not messages:
        raise ValueError("a conversation needs at least one message")
    if loss_region not in ("assistant", "all"):
        raise ValueError(f"loss_region {loss_region!r} is neither 'assistant' nor 'all'")
    streams = vocab.num_streams
    blocks = [_stream0([vocab_lib.BOS], streams)]
    masks = [np.zeros((1, streams), bool)]
    audio, cfg_spans = [], []
    row = 1
    for message, following in zip(messages, [*messages[1:], None], strict=True):
        counts = loss_region == "all" or message.role == "assistant"
        markers = [vocab_lib.ROLES[message.role], vocab_lib.MODALITIES[message.modality]]
        content, mask = _content(message, vocab, tokenizer)
        same_role = following is not None and following.role == message.role
        end = _stream0([vocab_lib.EOT if same_role else vocab_lib.EOS], streams)
        block = np.concatenate([_stream0(markers, streams), content, end])
        block_mask = np.zeros(block.shape, bool)
        block_mask[:, 0] = True
        block_mask[2:-1] = mask
        start, stop = row + 2, row + len(block)
        if message.is_discrete_audio:
            cfg_spans.append((start, stop))
        elif message.modality == "audio":
            audio.append((start, message.content))
        blocks.append(block)
        masks.append(block_mask & counts)
        row = stop
    return Example(
        tokens=np.concatenate(blocks),
        loss_mask=np.concatenate(masks),
        audio=tuple(audio),
        cfg_span=cfg_spans[-1] if cfg_spans else None,
    )


def drop_condition(example: Example) -> Example:
    """CFG dropout: only the assistant's audio remains; every other row becomes 0, without loss.

    The length does not change. The continuous features are dropped.

    Raises:
      ValueError: the example has no assistant audio.
    """
    if example.cfg_span is None:
        raise ValueError("CFG dropout needs an assistant-audio message")
    keep = np.zeros((len(example), 1), bool)
    keep[slice(*example.cfg_span)] = True
    return dataclasses.replace(
        example,
        tokens=np.where(keep, example.tokens, vocab_lib.PAD),
        loss_mask=example.loss_mask & keep,
        audio=(),
    )


def captioned_answer(caption: str, answer: str, plan: str = "") -> str:
    """The text of an answer that captions first, as in the published dialogues (arXiv 2602.05220).

    Args:
      caption: of the audio that was asked about.
      answer: what follows from it.
      plan: the reasoning between them; "" leaves it out.
    """
    thought = [f"{_THINK}\n{plan}\n{_THOUGHT}"] if plan else []
    return "\n\n".join([_CAPTION + caption, *thought, answer])


def split_answer(text: str) -> tuple[str, str]:
    """(caption, answer) of a text of the assistant, the plan left out.

    The caption is "" where there is none; the answer is "" where the text was cut off before it.
    """
    before, ended, answer = text.strip().rpartition(_THOUGHT)
    head = _CAPTION.strip()
    if not ended and _THINK in answer:  # cut off in the plan
        before, answer = answer, ""
    elif not ended and answer.startswith(head):  # without a plan
        before, _, answer = answer.partition("\n\n")
    told = before.partition(_THINK)[0]
    caption = told.removeprefix(head) if told.startswith(head) else ""
    return caption.strip(), answer.strip()


def encode_prompt(messages: Sequence[Message], vocab: Vocabulary, tokenizer: Tokenizer) -> Example:
    """Rows that come before an answer: the conversation without loss, then `<|assistant|>`."""
    example = encode_conversation(messages, vocab, tokenizer)
    tail = _stream0([vocab_lib.ROLES["assistant"]], vocab.num_streams)
    tokens = np.concatenate([example.tokens, tail])
    if messages[-1].role == "assistant":  # the answer goes on after this message
        tokens[-2, 0] = vocab_lib.EOT
    return dataclasses.replace(
        example, tokens=tokens, loss_mask=np.zeros(tokens.shape, bool), cfg_span=None
    )


def _stream0(ids, streams: int) -> np.ndarray:
    """Ids in stream 0, zeros elsewhere, int32 [n, K]."""
    rows = np.zeros((len(ids), streams), np.int32)
    rows[:, 0] = ids
    return rows


def _content(message: Message, vocab: Vocabulary, tokenizer: Tokenizer):
    """Rows [n, K] of a message's content, and which of their tokens can be targets [n, K]."""
    if message.modality == "text":
        rows = _stream0(vocab.text_to_tokens(tokenizer.encode(message.content)), vocab.num_streams)
        mask = np.zeros(rows.shape, bool)
        mask[:, 0] = rows[:, 0] != vocab_lib.PAD
        return rows, mask
    if message.is_discrete_audio:
        rows = vocab.interleave(message.content)
        return rows, np.ones(rows.shape, bool)
    rows = np.zeros((message.content.num_tokens, vocab.num_streams), np.int32)
    return rows, np.zeros(rows.shape, bool)
