"""Stage `requests`: a captioned clip → a persona and a request, for each direction and level."""

from __future__ import annotations

import re
from collections.abc import Sequence

from bagpiper_jax.simulation.client import BadAnswer
from bagpiper_jax.simulation.config import RequestConfig, Settings
from bagpiper_jax.simulation.prompts import PERSONA, QUESTION, REQUEST
from bagpiper_jax.simulation.quotes import (
    broken_quotes,
    contains,
    lines_of,
    quotes,
    without_quotes,
    words_of,
)
from bagpiper_jax.simulation.rich_caption import parse
from bagpiper_jax.simulation.schema import Persona, UserRequest, query
from bagpiper_jax.simulation.stage import (
    Context,
    Row,
    Stage,
    Unit,
    account,
    text_of,
    with_provenance,
)

GENERATION, UNDERSTANDING = "text_to_audio", "audio_to_text"
LEVEL_MEANING = {
    "realistic": "an everyday need that such a person really has, plainly put.",
    "imaginary": "a setting of fancy: a game, a story, a play, an invented world or an odd idea, "
    "in which this very recording has its place.",
}
TASKS = {
    GENERATION: "ask such a program for this recording.",
    UNDERSTANDING: "send this recording to such a program and ask about it.",
}
# a person knows of no caption, and of no speaker S1
_LEAK = re.compile(r"\b(captions?|S\d+|described (above|below))\b")


def check_request(
    text: str, direction: str, caption: str, lines: Sequence[str], config: RequestConfig
) -> str:
    """The request without white space around it, if it keeps the rules.

    Raises:
      BadAnswer: too short or long, speech not quoted word for word, or it gives a caption away.
    """
    text = text.strip()
    least = config.min_words if direction == GENERATION else config.min_question_words
    count = len(without_quotes(text).split())
    if not least <= count <= config.max_words:
        limits = f"{least} to {config.max_words}"
        raise BadAnswer(f"the request has {count} words beside quoted speech, not {limits}")
    if leak := _LEAK.search(text):
        raise BadAnswer(f"the request must not say {leak[0]!r}")
    if direction == GENERATION:
        broken = broken_quotes(text, lines)
    else:
        known = words_of(caption)
        broken = [
            f'"{quote}" is quoted, but it does not occur'
            for quote in quotes(text)
            if not contains(known, words_of(quote))
        ]
    if broken:
        raise BadAnswer("; ".join(broken))
    return text


def _units(row: Row, settings: Settings) -> list[Unit]:
    text_of(row, "caption")
    return [
        Unit(f"{row['id']}/{direction}/{level}", row, {"direction": direction, "level": level})
        for direction in settings.requests.directions
        for level in settings.requests.levels
    ]


async def _request(context: Context, unit: Unit) -> Row:
    client, config = context.client, context.settings.requests
    direction, level = unit.choice["direction"], unit.choice["level"]
    caption = text_of(unit.row, "caption")
    lines = lines_of(unit.row, caption)
    shared = {"level": level, "level_meaning": LEVEL_MEANING[level], "caption": caption}
    asked = query(client.model, PERSONA, Persona, task=TASKS[direction], **shared)
    persona = await client.ask(asked, lambda text: parse(Persona, text))
    who = persona.value
    shared |= {
        "persona": f"{who.who} Goal: {who.goal} Tone: {who.tone}",
        "max_words": str(config.max_words),
    }
    if direction == GENERATION:
        prompt, shared["speech"] = REQUEST, _speech_rule(lines)
        shared["min_words"] = str(config.min_words)
    else:
        prompt, shared["min_words"] = QUESTION, str(config.min_question_words)

    def check(text: str) -> str:
        request = parse(UserRequest, text).request
        return check_request(request, direction, caption, lines, config)

    accepted = await client.ask(query(client.model, prompt, UserRequest, **shared), check)
    row = unit.row | {
        "id": unit.id,
        "source_id": unit.row["id"],
        "direction": direction,
        "level": level,
        "persona": who.model_dump(),
        "request": accepted.value,
    }
    entry = account(client, prompt, accepted)
    entry["persona"] = account(client, PERSONA, persona)
    return with_provenance(row, REQUESTS_STAGE.name, unit, entry)


def _speech_rule(lines: Sequence[str]) -> str:
    if not lines:
        return "there is none. Quote nothing."
    quoted = "\n".join(f'  "{line}"' for line in lines)
    return (
        "all of the following is said. Quote every line word for word, complete, in double quotes "
        f"and in this order, and quote nothing else:\n{quoted}"
    )


REQUESTS_STAGE = Stage(
    name="requests",
    model=lambda settings: settings.writer,
    basis=lambda settings: [
        PERSONA.sha256, REQUEST.sha256, QUESTION.sha256, LEVEL_MEANING, TASKS,
        vars(settings.requests),
    ],
    units=_units,
    work=_request,
)  # fmt: skip
