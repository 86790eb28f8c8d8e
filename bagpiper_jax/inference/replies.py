"""What a model answers, as people use it: text without its plan, sound that plays in a notebook."""

from __future__ import annotations

import html
from typing import NamedTuple

import numpy as np

_THINK, _END = "<think>", "</think>"


class Plan(NamedTuple):
    """The two parts of a text of the model.

    Attributes:
      plan: what stood between `<think>` and `</think>`, "" where nothing did.
      answer: the rest.
    """

    plan: str
    answer: str


def split_plan(text: str) -> Plan:
    """A text → its plan and its answer; an unfinished plan has no answer yet."""
    before, found, rest = text.partition(_THINK)
    if not found:
        return Plan("", text.strip())
    plan, _, after = rest.partition(_END)
    return Plan(plan.strip(), (before + after).strip())


class PlanStream:
    """A text that arrives in pieces → pieces of its plan and of its answer.

    All pieces together are what `split_plan` makes of the whole text.
    """

    def __init__(self):
        self._tag = _THINK  # what is looked for; "" once the plan is behind
        self._held = ""  # what may be the beginning of it
        self._plan, self._answer = _Stripped(), _Stripped()

    def push(self, text: str) -> Plan:
        """What a piece of the text adds."""
        plan = answer = ""
        text = self._held + text
        while self._tag:
            before, found, rest = text.partition(self._tag)
            kept = 0 if found else _overlap(before, self._tag)
            self._held = before[len(before) - kept :]
            if self._tag == _THINK:
                answer += before[: len(before) - kept]
            else:
                plan += before[: len(before) - kept]
            if not found:
                break
            text, self._tag = rest, (_END if self._tag == _THINK else "")
        else:
            answer += text
        return Plan(self._plan.push(plan), self._answer.push(answer))

    def finish(self) -> Plan:
        """What was held back."""
        held, self._held = self._held, ""
        if self._tag == _END:
            return Plan(self._plan.push(held), "")
        return Plan("", self._answer.push(held))


class _Stripped:
    """A text that arrives in pieces, without white space at its two ends."""

    def __init__(self):
        self._begun, self._spaces = False, ""

    def push(self, piece: str) -> str:
        piece = self._spaces + piece if self._begun else piece.lstrip()
        kept = piece.rstrip()
        self._spaces = piece[len(kept) :]
        self._begun = self._begun or bool(kept)
        return kept


def _overlap(text: str, tag: str) -> int:
    """How many characters at the end of a text begin a tag."""
    return next((n for n in range(len(tag) - 1, 0, -1) if text.endswith(tag[:n])), 0)


class Text(str):
    """The answer of a text message; `plan` is what the model thought before it."""

    plan: str

    @classmethod
    def of(cls, message: str) -> Text:
        """From a whole message, its plan included."""
        plan, answer = split_plan(message)
        text = cls(answer)
        text.plan = plan
        return text


class Sound(np.ndarray):
    """Mono audio, float32 [S] in [-1, 1], that knows its rate; a notebook shows and plays it.

    It is an array: `soundfile`, `librosa` and numpy take it as it is.
    """

    sample_rate: int

    @classmethod
    def of(cls, wav: np.ndarray, sample_rate: int) -> Sound:
        """An array with its rate, in Hz."""
        sound = np.asarray(wav, np.float32).view(cls)
        sound.sample_rate = sample_rate
        return sound

    def __array_finalize__(self, source):
        self.sample_rate = getattr(source, "sample_rate", None)

    def __reduce__(self):
        return Sound.of, (np.asarray(self), self.sample_rate)

    @property
    def seconds(self) -> float:
        return len(self) / self.sample_rate

    def _repr_html_(self) -> str:
        from bagpiper_jax.html_report.media import audio_uri, spectrogram

        wav = np.asarray(self)
        player = f'<audio controls src="{audio_uri(wav, self.sample_rate)}"></audio>'
        try:
            picture = spectrogram(wav) if self.sample_rate == 16_000 and len(wav) else ""
        except ImportError:  # matplotlib comes with the extra `notebook`
            picture = ""
        image = f'<br><img alt="spectrogram" src="{html.escape(picture)}">' if picture else ""
        return player + image


class TextStream:
    """Ids of a text that arrive one after the other → the characters that are certain by then."""

    def __init__(self, decode):
        """`decode`: list of ids → str, of the whole."""
        self._decode = decode
        self._ids: list[int] = []
        self._given = 0

    def push(self, ids) -> str:
        """The text that new ids have completed; half a character waits for the rest of it."""
        self._ids += ids
        return self._more(self._decode(self._ids).rstrip("\ufffd"))

    def finish(self) -> str:
        """What is left."""
        return self._more(self._decode(self._ids))

    def _more(self, text: str) -> str:
        new, self._given = text[self._given :], max(self._given, len(text))
        return new
