"""Events of the engine → text and sound as they become certain."""

from __future__ import annotations

import dataclasses

import numpy as np

from bagpiper_jax.inference.replies import TextStream
from bagpiper_jax.inference.requests import Event
from bagpiper_jax.modeling.codec import Codec
from bagpiper_jax.tokenizer import Tokenizer
from bagpiper_jax.vocab import Vocabulary

# rows between two pieces of a stream: as many as the first frame of audio needs
STREAM_ROWS = 8


@dataclasses.dataclass(frozen=True)
class Delta:
    """What an answer has grown by.

    Attributes:
      message: which of the answer's messages, from 0.
      modality: "text" or "audio".
      text: new characters of a text message.
      wav: new samples of an audio message, float32 [S] at the codec's rate.
      end: whether the message is complete with it.
      cut: whether it ended because `max_rows` came first.
    """

    message: int
    modality: str
    text: str = ""
    wav: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.float32))
    end: bool = False
    cut: bool = False


class AnswerStream:
    """One hypothesis as it grows: the delay undone and the codec decoded on the fly."""

    def __init__(self, vocab: Vocabulary, tokenizer: Tokenizer, codec: Codec):
        self._vocab, self._tokenizer, self._codec = vocab, tokenizer, codec
        self._message = -1

    def push(self, event: Event) -> Delta:
        """What the answer has grown by with an event of the engine."""
        if event.message != self._message:
            self._message = event.message
            self._text = TextStream(self._tokenizer.decode)
            self._sound = None
            self._rows = np.zeros((0, self._vocab.num_streams), np.int32)
        end = event.end is not None
        of = {"message": event.message, "modality": event.modality, "end": end}
        of["cut"] = end and event.end < 0
        if event.modality == "text":
            text = self._text.push(self._vocab.tokens_to_text(event.rows[:, 0]))
            return Delta(text=text + (self._text.finish() if end else ""), **of)
        # stream k of a frame comes k rows later
        rows = np.concatenate([self._rows, event.rows])
        codes = self._vocab.deinterleave(rows)
        self._rows = rows[len(codes) :]
        if self._sound is None:
            self._sound = self._codec.stream()
        parts = [self._sound.push(codes)] + ([self._sound.finish()] if end else [])
        return Delta(wav=np.concatenate(parts), **of)
