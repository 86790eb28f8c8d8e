"""Stage `assemble`: caption, request and trace → a dialogue of [role, modality, content].

The layout is that of the published dialogues. Understanding: audio and question, then caption,
reasoning and answer. Generation: request, then reasoning and caption, then audio.
"""

from __future__ import annotations

from collections.abc import Mapping

from bagpiper_jax.conversation import captioned_answer
from bagpiper_jax.simulation.client import Unusable
from bagpiper_jax.simulation.config import DIRECTIONS, Settings
from bagpiper_jax.simulation.requests import GENERATION
from bagpiper_jax.simulation.stage import Context, Row, Stage, Unit, text_of, with_provenance
from bagpiper_jax.simulation.traces import PARTS

Message = list[str]


def generation_dialogue(request: str, trace: Mapping[str, str], caption: str, audio: str):
    """The messages of a request for a recording: three, the last one audio."""
    parts = [f"{i}. {PARTS[name]}: {text}" for i, (name, text) in enumerate(trace.items(), 1)]
    thought = "<think>\n" + "\n\n".join(parts) + "\n</think>"
    return [
        ["user", "text", request],
        ["assistant", "text", f"{thought}\n\n{caption}"],
        ["assistant", "audio", audio],
    ]


def understanding_dialogue(
    request: str, trace: Mapping[str, str], caption: str, answer: str, audio: str
) -> list[Message]:
    """The messages of a question about a recording: three, the first one audio."""
    plan = "\n".join(f"- {PARTS[name]}: {text}" for name, text in trace.items())
    return [
        ["user", "audio", audio],
        ["user", "text", request],
        ["assistant", "text", captioned_answer(caption, answer, plan)],
    ]


def _units(row: Row, settings: Settings) -> list[Unit]:
    for key in ("caption", "request", "audio"):
        text_of(row, key)
    direction = row.get("direction")
    if direction not in DIRECTIONS:
        raise Unusable(f"the row's direction is none of {DIRECTIONS}")
    last = "generation_plan" if direction == GENERATION else "answer_plan"
    names = ("user_intent", "inferred_details", "audio_quality", last)
    trace = row.get("trace")
    if not isinstance(trace, dict) or set(trace) != set(names):
        raise Unusable(f"the row's trace must have the parts {names}")
    for name in names:
        text_of(trace, name)
    if direction != GENERATION:
        text_of(row, "answer")
    return [Unit(row["id"], row)]


async def _assemble(context: Context, unit: Unit) -> Row:
    row = unit.row
    told = (row["request"], row["trace"], row["caption"])
    if row["direction"] == GENERATION:
        messages = generation_dialogue(*told, row["audio"])
    else:
        messages = understanding_dialogue(*told, row["answer"], row["audio"])
    # what the messages hold is not kept a second time
    parts = ("request", "trace", "answer", "caption", "rich")
    new = {key: value for key, value in row.items() if key not in parts}
    return with_provenance(new | {"messages": messages}, ASSEMBLE_STAGE.name, unit, {})


ASSEMBLE_STAGE = Stage(
    name="assemble", model=None, basis=lambda settings: 1, units=_units, work=_assemble
)
