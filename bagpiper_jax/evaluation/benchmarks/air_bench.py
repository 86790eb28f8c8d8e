"""AIR-Bench chat: free answers, scored 1 to 10 against the reference by a judge in both orders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bagpiper_jax.errors import UserError
from bagpiper_jax.evaluation import text_metrics
from bagpiper_jax.evaluation.benchmarks import judges
from bagpiper_jax.evaluation.benchmarks.generation import (
    Generator,
    item_fields,
    reply_figures,
    reply_to,
)
from bagpiper_jax.evaluation.benchmarks.item import choose
from bagpiper_jax.evaluation.benchmarks.llm import LLM
from bagpiper_jax.evaluation.benchmarks.published import published
from bagpiper_jax.evaluation.benchmarks.readers.air_bench import read_air_bench_chat
from bagpiper_jax.evaluation.benchmarks.scores import balanced, repeated

MIXED = ("speech_and_sound", "speech_and_music")


def air_bench_chat(
    generator: Generator,
    data: str,
    sampling: Mapping[str, Any] | None = None,
    *,
    llm: LLM,
    judgements: int = 3,
    count: int = 0,
    seed: int = 1,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The judge's scores of the model's answers, each pair judged in both orders.

    Args:
      generator: a pipeline.
      data: the folder `Chat`, or its `Chat_meta.json`.
      sampling: settings by modality; None: the model's own.
      llm: the judge; official: gpt-4-0125-preview.
      judgements: of each pair and order.
      count: questions, drawn by `seed`; 0: all.
      seed: of the choice, sampling and intervals.

    Returns:
      the figures (1 to 10), and one item per question.

    Raises:
      UserError: damaged data, or the judge cannot be asked.
    """
    items = choose(read_air_bench_chat(data), count, seed)
    questions = [item.question for item in items]
    replies = reply_to(generator, items, questions, sampling, seed=seed, name="AIR-Bench chat")
    prompts = [
        judges.pair_prompts(item.extra["meta_info"], item.question, item.answer, reply.answer)
        for item, reply in zip(items, replies, strict=True)
    ]
    judged = judges.pair(llm, prompts, judgements, "judge AIR-Bench")
    out = [
        {
            **item_fields("air_bench_chat", item, item.question, reply, seed),
            "category": item.category,
            "task_name": item.extra["task_name"],
            "description": item.extra["meta_info"],
            "judge_prompts": list(asked),  # the reference first, and the answer first
            "judge": [
                {"model": p.model, "reference": p.reference, "texts": list(p.texts)}
                for p in pairings
            ],
        }
        for item, reply, asked, pairings in zip(items, replies, prompts, judged, strict=True)
    ]
    figures = air_bench_figures(out, seed) | {"llm": llm.label()}
    return figures | {"judge_prompts": {"pair": judges.pair_label()}}, out


def air_bench_figures(items: Sequence[dict[str, Any]], seed: int) -> dict[str, Any]:
    """Scores by category and their average, as the leaderboard takes it.

    The average is that of speech, sound, music and mixed audio, and mixed audio that of its two
    kinds. Questions of which a judgement failed are left out and counted, as the official script
    does.

    Raises:
      UserError: not one question was judged.
    """
    judged = [i for i in items if all(j["model"] is not None for j in i["judge"])]
    if not judged:
        raise UserError("the judge gave no two scores for any answer: try another model of it")
    categories = [item["category"] for item in judged]
    figures: dict[str, Any] = {}
    for side in ("model", "reference"):
        scores = [[j[side] for j in item["judge"]] for item in judged]
        weights = balanced(categories)
        kinds = len(set(MIXED) & set(categories))
        if kinds:
            weights[np.isin(categories, MIXED)] /= kinds
        figures[side] = repeated(scores, highest=10, weights=weights, seed=seed)
        figures[side]["by_category"] = {
            name: repeated(
                [s for s, c in zip(scores, categories) if c == name], highest=10, seed=seed
            )["score"]
            for name in dict.fromkeys(categories)
        }
    wins = [np.mean([j["model"] > j["reference"] for j in item["judge"]]) for item in judged]
    return {
        **reply_figures(items),
        "judge_failed": len(items) - len(judged),
        "score": figures["model"]["score"],
        **figures,
        "wins": text_metrics.bootstrap_ratio(
            wins, np.ones(len(wins)), groups=[item["key"] for item in judged], seed=seed
        ),
        "published": published("air_bench_chat"),
    }
