"""Stage `judge`: a dialogue → 17 scores from 1 to 5, and whether it passes."""

from __future__ import annotations

import statistics
from typing import Any

from bagpiper_jax.simulation.captioner import read_audio
from bagpiper_jax.simulation.client import Unusable
from bagpiper_jax.simulation.config import Settings
from bagpiper_jax.simulation.dimensions import NAMES, definitions, passes
from bagpiper_jax.simulation.prompts import JUDGE
from bagpiper_jax.simulation.rich_caption import parse
from bagpiper_jax.simulation.schema import Verdict, query
from bagpiper_jax.simulation.stage import Context, Row, Stage, Unit, account, with_provenance

TELL = {
    "audio_to_text": "shows how to answer a question about a recording",
    "text_to_audio": "shows how to make a recording from a request",
}


def transcript(messages: list) -> str:
    """A dialogue as the judge reads it; audio stands as a mark."""
    lines = []
    for role, modality, content in messages:
        lines.append(f"[{role}] " + ("(the recording)" if modality == "audio" else content))
    return "\n\n".join(lines)


def _units(row: Row, settings: Settings) -> list[Unit]:
    messages = row.get("messages")
    if not isinstance(messages, list) or not messages:
        raise Unusable("the row has no messages")
    for message in messages:
        if not (isinstance(message, list) and [type(m) for m in message] == [str] * 3):
            raise Unusable("messages must be [role, modality, content] of texts")
    if row.get("direction") not in TELL:
        raise Unusable(f"the row's direction is none of {tuple(TELL)}")
    return [Unit(row["id"], row)]


async def _judge(context: Context, unit: Unit) -> Row:
    client, config = context.client, context.settings.judge
    wav, seconds = None, 0.0
    hearing = "The recording itself is not attached: the caption stands for it."
    if config.audio:
        wav, seconds = await read_audio(context, unit.row)
        hearing = "The recording is attached: the caption is judged by it."
    votes, accounts = [], []
    for vote in range(config.votes):
        asked = query(
            client.model,
            JUDGE,
            Verdict,
            audio=wav,
            audio_seconds=seconds,
            sample=vote,
            dimensions=definitions(),
            direction=TELL[unit.row["direction"]],
            hearing=hearing,
            dialogue=transcript(unit.row["messages"]),
        )
        accepted = await client.ask(asked, lambda text: parse(Verdict, text))
        votes.append(accepted.value)
        accounts.append(account(client, JUDGE, accepted))
    verdict = judgement(votes, config.min_score, config.min_mean)
    entry = accounts[0] if len(accounts) == 1 else {"votes": accounts}
    return with_provenance(unit.row | {"judge": verdict}, JUDGE_STAGE.name, unit, entry)


def judgement(votes: list, min_score: float, min_mean: float) -> dict[str, Any]:
    """The median of each dimension, and the pass rule applied to them.

    Args:
      votes: verdicts.
      min_score, min_mean: see `dimensions.passes`.
    """
    scores = {n: float(statistics.median(getattr(v, n).score for v in votes)) for n in NAMES}
    passed, mean, low = passes(scores, min_score=min_score, min_mean=min_mean)
    reasons = {name: [getattr(v, name).reason for v in votes] for name in low}
    return {"passed": passed, "mean": round(mean, 4), "low": reasons, "scores": scores}


JUDGE_STAGE = Stage(
    name="judge",
    model=lambda settings: settings.judge_model,
    basis=lambda settings: [JUDGE.sha256, definitions(), vars(settings.judge)],
    units=_units,
    work=_judge,
    judges=True,
)
