"""Queries whose answers have a schema, and the structures of the stages that write text."""

from __future__ import annotations

import json
from collections.abc import Iterable

import pydantic

from bagpiper_jax.simulation.client import BadAnswer
from bagpiper_jax.simulation.config import ModelConfig
from bagpiper_jax.simulation.dimensions import HIGHEST, LOWEST, NAMES
from bagpiper_jax.simulation.endpoints import Query
from bagpiper_jax.simulation.prompts import Prompt
from bagpiper_jax.simulation.rich_caption import Strict

MIN_PART_WORDS = 5


class Persona(Strict):
    """Somebody who asks."""

    who: str
    goal: str
    tone: str


class UserRequest(Strict):
    """What they write."""

    request: str


class Plan(Strict):
    """Reasoning from a request to a recording."""

    user_intent: str
    inferred_details: str
    audio_quality: str
    generation_plan: str


class Understanding(Strict):
    """Reasoning from a caption to an answer, and the answer."""

    user_intent: str
    inferred_details: str
    audio_quality: str
    answer_plan: str
    answer: str


class Score(Strict):
    """Of one dimension."""

    reason: str
    score: int = pydantic.Field(ge=LOWEST, le=HIGHEST)


Verdict = pydantic.create_model(
    "Verdict", __base__=Strict, **{name: (Score, ...) for name in NAMES}
)


def query(
    model: ModelConfig,
    prompt: Prompt,
    kind: type[Strict],
    *,
    audio: bytes | None = None,
    audio_seconds: float = 0.0,
    sample: int = 0,
    **values: str,
) -> Query:
    """A filled prompt; where the endpoint does not enforce the schema, the prompt tells it."""
    schema = kind.model_json_schema()
    text = prompt.fill(**values)
    if model.structured != "schema":
        text += "\n\nThe answer is one JSON object and nothing else. Its JSON schema:\n"
        text += json.dumps(schema)
    return Query(prompt.system, text, schema, audio, audio_seconds, sample)


def need_words(parts: Strict, names: Iterable[str]) -> None:
    """Checks that texts say something, and hold no tags that dialogues are made with.

    Raises:
      BadAnswer: one does not.
    """
    for name in names:
        text = getattr(parts, name)
        if len(text.split()) < MIN_PART_WORDS:
            raise BadAnswer(f"{name} must be a sentence or more")
        if "<think>" in text or "</think>" in text:
            raise BadAnswer(f"{name} must not hold the tag <think>")
