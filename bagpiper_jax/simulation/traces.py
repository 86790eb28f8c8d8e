"""Stage `traces`: a request → reasoning in four parts, and an answer where one is due."""

from __future__ import annotations

from collections.abc import Sequence

from bagpiper_jax.simulation.client import BadAnswer, Unusable
from bagpiper_jax.simulation.config import DIRECTIONS, Settings
from bagpiper_jax.simulation.prompts import ANSWER, PLAN
from bagpiper_jax.simulation.quotes import MANY_WORDS, contains, lines_of, quotes, words_of
from bagpiper_jax.simulation.requests import GENERATION
from bagpiper_jax.simulation.rich_caption import Strict, parse
from bagpiper_jax.simulation.schema import Plan, Understanding, need_words, query
from bagpiper_jax.simulation.stage import (
    Context,
    Row,
    Stage,
    Unit,
    account,
    text_of,
    with_provenance,
)

PARTS = {
    "user_intent": "User Intent",
    "inferred_details": "Inferred Details",
    "audio_quality": "Audio Quality",
    "generation_plan": "Generation Plan",
    "answer_plan": "Answering Plan",
}


def parse_trace(text: str, direction: str, sources: Sequence[str]) -> Strict:
    """A trace whose parts say something and whose longer quotes are true.

    Args:
      text: the answer.
      direction: of the dialogue.
      sources: request, caption and lines of speech, which quotes must come from.

    Raises:
      BadAnswer: it is no such trace.
    """
    kind = Plan if direction == GENERATION else Understanding
    trace = parse(kind, text)
    need_words(trace, kind.model_fields)
    known = [words_of(source) for source in sources]
    for name in kind.model_fields:
        part = getattr(trace, name)
        if direction == GENERATION and "caption" in part.lower():
            raise BadAnswer(f"{name} must argue from the request, not from a caption")
        for quote in quotes(part):
            words = words_of(quote)
            if len(words) >= MANY_WORDS and not any(contains(k, words) for k in known):
                raise BadAnswer(f'{name} quotes "{quote}", which nobody says')
    return trace


def _units(row: Row, settings: Settings) -> list[Unit]:
    for key in ("caption", "request"):
        text_of(row, key)
    if row.get("direction") not in DIRECTIONS:
        raise Unusable(f"the row's direction is none of {DIRECTIONS}")
    return [Unit(row["id"], row)]


async def _trace(context: Context, unit: Unit) -> Row:
    client, row = context.client, unit.row
    caption, request, direction = row["caption"], row["request"], row["direction"]
    prompt, kind = (PLAN, Plan) if direction == GENERATION else (ANSWER, Understanding)
    asked = query(client.model, prompt, kind, request=request, caption=caption)
    said = " ".join(lines_of(row, caption))
    accepted = await client.ask(
        asked, lambda text: parse_trace(text, direction, (request, caption, said))
    )
    values = {name: text.strip() for name, text in accepted.value.model_dump().items()}
    answer = values.pop("answer", None)
    new = row | {"trace": values} | ({"answer": answer} if answer is not None else {})
    return with_provenance(new, TRACES_STAGE.name, unit, account(client, prompt, accepted))


TRACES_STAGE = Stage(
    name="traces",
    model=lambda settings: settings.writer,
    basis=lambda settings: [PLAN.sha256, ANSWER.sha256],
    units=_units,
    work=_trace,
)
