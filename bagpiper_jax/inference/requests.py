"""What is asked of the engine, and what it answers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from bagpiper_jax.conversation import Example
from bagpiper_jax.errors import UserError
from bagpiper_jax.inference.sampling import Sampling

MODALITIES = ("text", "audio")
MAX_MESSAGES = 4


@dataclasses.dataclass(frozen=True)
class Request:
    """What is asked.

    Attributes:
      prompt: rows up to `<|assistant|>`, from `encode_prompt`.
      sampling: settings by modality, "text" and "audio".
      modalities: of the messages to generate, in order. None leaves it to the model: the likelier
        of the two at each message, and another message after `<|eot|>`, MAX_MESSAGES at most.
      seed: of the random numbers; the same request gives the same answer in any batch.
      hypotheses: answers, independent of each other.
      max_rows: of one answer, all its messages together; None leaves it to `sampling`.
    """

    prompt: Example
    sampling: Mapping[str, Sampling]
    modalities: tuple[str, ...] | None = None
    seed: int = 0
    hypotheses: int = 1
    max_rows: int | None = None

    def __post_init__(self):
        plan = self.modalities
        if plan is not None and not (0 < len(plan) <= MAX_MESSAGES and set(plan) <= {*MODALITIES}):
            raise UserError(
                f"an answer of messages {list(plan)}: ask for 1 to {MAX_MESSAGES} of text and audio"
            )
        missing = [m for m in plan or MODALITIES if m not in self.sampling]
        if missing:
            raise UserError(
                f"there are no sampling settings for {' and '.join(missing)}: give them"
            )
        if self.hypotheses < 1:
            raise UserError(f"{self.hypotheses} hypotheses: ask for 1 at least")
        if self.max_rows is not None and self.max_rows < 1:
            raise UserError(f"an answer of {self.max_rows} rows: ask for 1 at least")

    @property
    def messages(self) -> int:
        """The most that an answer can have."""
        return MAX_MESSAGES if self.modalities is None else len(self.modalities)

    @property
    def guided(self) -> bool:
        """Whether a message of it takes a second sequence, the one without condition."""
        return any(self.sampling[m].cfg != 1 for m in self.modalities or MODALITIES)

    @property
    def sequences(self) -> int:
        """Of the batch, for all hypotheses."""
        return self.hypotheses * (1 + self.guided)


@dataclasses.dataclass(frozen=True)
class Event:
    """Rows that one message of an answer has grown by.

    Attributes:
      request: what `Engine.submit` gave.
      hypothesis, message: which one, from 0.
      modality: of the message.
      rows: int32 [n, K], the new ones.
      end: `<|eos|>`, `<|eot|>` or `steps.CUT` where the message is complete, else None.
      last: whether the answer is complete with it.
    """

    request: int
    hypothesis: int
    message: int
    modality: str
    rows: np.ndarray
    end: int | None
    last: bool


@dataclasses.dataclass(frozen=True)
class Generated:
    """A message: rows int32 [n, K] and `<|eos|>`, `<|eot|>` or `steps.CUT`."""

    modality: str
    rows: np.ndarray
    end: int
