"""The judges' questions and how their answers are read.

AIR-Bench's question is its definition and is given as released. That of AudioBench is under a
non-commercial licence: ours is in our own words, and a file with the released one can be given.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Callable, Sequence

from bagpiper_jax.errors import UserError
from bagpiper_jax.evaluation.benchmarks.llm import LLM, Said, ask_all
from bagpiper_jax.simulation.client import BadAnswer

# Apache-2.0, word for word
_PAIR_SOURCE = "github.com/OFA-Sys/AIR-Bench, score_chat.py at 983247666e2a"
PAIR_PROMPT = (
    "You are a helpful and precise assistant for checking the quality of the answer.\n"
    "[Detailed Audio Description]\n{description}\n[Question]\n{question}\n"
    "[The Start of Assistant 1s Answer]\n{first}\n[The End of Assistant 1s Answer]\n"
    "[The Start of Assistant 2s Answer]\n{second}\n[The End of Assistant 2s Answer]\n[System]\n"
    "We would like to request your feedback on the performance of two AI assistants in response "
    "to the user question and audio description displayed above. AI assistants are provided with "
    "detailed audio descriptions and questions.\nPlease rate the helpfulness, relevance, accuracy, "
    "and comprehensiveness of their responses. Each assistant receives an overall score on a scale "
    "of 1 to 10, where a higher score indicates better overall performance. Please output a single "
    "line containing only two values indicating the scores for Assistant 1 and 2, respectively. "
    "The two scores are separated by a space."
)
_HOLES = ("question", "reference", "prediction")
_RATING = """\
Compare an answer about a recording with a reference answer.

Question: {question}

Reference answer: {reference}

Answer to rate: {prediction}

"""
_SCALE = """\
Rate how well the answer agrees with the reference, in content, exactness and relevance. Be strict \
about details. 5: all of it agrees, in full detail. 4: it agrees, but is less clear or detailed. \
3: it agrees in general, details are missing or inexact. 2: the topic is right, but it departs \
from the reference in much. 1: little agrees. 0: nothing agrees, or no definite answer is given.
"""
_BINARY = """\
Rate 1 if the answer is right: it says or covers what the reference says. Rate 0 if it is wrong, \
beside the point, or no definite answer.
"""
_FORM = """
Write one sentence that gives your reason, and then a last line of the form:
Rating: NUMBER"""


@dataclasses.dataclass(frozen=True)
class Rubric:
    """A question that asks to rate an answer.

    Attributes:
      prompt: text with {question}, {reference} and {prediction}.
      highest: rating; the lowest is 0.
      source: whose wording it is.
    """

    prompt: str
    highest: int
    source: str = "own wording"

    def fill(self, question: str, reference: str, prediction: str) -> str:
        """The prompt of one answer."""
        return _fill(
            self.prompt, {"question": question, "reference": reference, "prediction": prediction}
        )

    def read(self, text: str) -> int:
        """The rating, which ends the answer.

        Raises:
          BadAnswer: it ends otherwise.
        """
        last = (text.split() or [""])[-1].strip("*.()[]")
        if not re.fullmatch(r"\d+(\.0)?", last) or not 0 <= float(last) <= self.highest:
            raise BadAnswer(f"its last word must be a whole number from 0 to {self.highest}")
        return int(float(last))

    def label(self) -> dict:
        """For the figures."""
        return _label(self.source, self.prompt) | {"highest": self.highest}


SCALE = Rubric(_RATING + _SCALE + _FORM, 5)
BINARY = Rubric(_RATING + _BINARY + _FORM, 1)


def rubric_from(path: str, highest: int) -> Rubric:
    """A rubric whose wording is in a file, such as AudioBench's own.

    Raises:
      UserError: the file cannot be read or lacks a hole.
    """
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
    except (OSError, ValueError) as e:
        raise UserError(f"the judge's prompt {path} cannot be read: {e}") from e
    for hole in _HOLES:
        if f"{{{hole}}}" not in text:
            raise UserError(f"the judge's prompt {path} has no {{{hole}}}: put it where it belongs")
    return Rubric(text, highest, path)


def read_pair(text: str) -> tuple[int, int]:
    """The two scores of AIR-Bench's judge; 0 is taken too, as the official script takes it.

    Raises:
      BadAnswer: the answer is not two whole numbers up to 10.
    """
    words = text.split()
    if len(words) != 2 or not all(w.isdecimal() and int(w) <= 10 for w in words):
        raise BadAnswer("it must be two whole numbers from 1 to 10, separated by a space")
    return int(words[0]), int(words[1])


@dataclasses.dataclass(frozen=True)
class Pairing:
    """Scores of model and reference, each the mean over both positions.

    Attributes:
      model, reference: 1 to 10; None where a position was not judged.
      texts: what the judge wrote, first with the reference first.
    """

    model: float | None
    reference: float | None
    texts: tuple[str, str]


def pair_label() -> dict:
    """AIR-Bench's prompt, for the figures."""
    return _label(_PAIR_SOURCE, PAIR_PROMPT)


def pair_prompts(
    description: str, question: str, reference: str, prediction: str
) -> tuple[str, str]:
    """AIR-Bench's prompt with the reference first, and with the prediction first."""
    told = {"description": description, "question": question}
    return tuple(
        _fill(PAIR_PROMPT, {**told, "first": first, "second": second})
        for first, second in ((reference, prediction), (prediction, reference))
    )


def pair(
    llm: LLM, prompts: Sequence[tuple[str, str]], samples: int, name: str
) -> list[list[Pairing]]:
    """Judgements of each pair of `pair_prompts`, `samples` times."""
    said = grouped(llm, [one for both in prompts for one in both], read_pair, samples, name)
    return [
        [_pairing(a, b) for a, b in zip(said[i], said[i + 1], strict=True)]
        for i in range(0, len(said), 2)
    ]


def _pairing(reference_first: Said, model_first: Said) -> Pairing:
    a, b, texts = reference_first.value, model_first.value, (reference_first.text, model_first.text)
    if a is None or b is None:
        return Pairing(None, None, texts)
    return Pairing((a[1] + b[0]) / 2, (a[0] + b[1]) / 2, texts)


def grouped(
    llm: LLM, prompts: Sequence[str], check: Callable, samples: int, name: str
) -> list[list[Said]]:
    """`samples` answers to each prompt.

    Raises:
      UserError: fewer than one is asked for; or see `ask_all`.
    """
    if samples < 1:
        raise UserError(f"a judge must be asked once at least, not {samples} times")
    asked = [(prompt, k) for prompt in prompts for k in range(samples)]
    said = ask_all(llm, asked, check, name)
    return [said[i : i + samples] for i in range(0, len(said), samples)]


def _label(source: str, prompt: str) -> dict:
    return {"source": source, "sha256": hashlib.sha256(prompt.encode()).hexdigest()[:16]}


def _fill(prompt: str, values: dict[str, str]) -> str:
    # in one pass: braces and holes inside the values stay as they are
    return re.sub(r"\{(\w+)\}", lambda m: values.get(m[1], m[0]), prompt)
