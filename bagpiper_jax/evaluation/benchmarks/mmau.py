"""MMAU test-mini: accuracy with choices shown, without them, and from the model's caption alone."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bagpiper_jax.errors import UserError
from bagpiper_jax.evaluation import text_metrics
from bagpiper_jax.evaluation.benchmarks import judges
from bagpiper_jax.evaluation.benchmarks.choices import official_match, strict_choice
from bagpiper_jax.evaluation.benchmarks.generation import (
    Generator,
    Reply,
    item_fields,
    reply_figures,
    reply_to,
)
from bagpiper_jax.evaluation.benchmarks.item import Item, choose
from bagpiper_jax.evaluation.benchmarks.llm import LLM
from bagpiper_jax.evaluation.benchmarks.published import published
from bagpiper_jax.evaluation.benchmarks.readers.mmau import read_mmau
from bagpiper_jax.evaluation.benchmarks.scores import repeated
from bagpiper_jax.simulation.client import BadAnswer

MODES = ("choices", "open", "caption")
RULES = ("official", "strict")
_CAPTION_PROMPT = """\
You cannot hear the recording. All you know of it is this description:

{caption}

{question}

Answer from the description alone; where it does not say, take the choice that fits best. Write \
the text of one choice and nothing else."""


def question_with_choices(item: Item) -> str:
    """What the model is asked where it may choose."""
    listed = "\n".join(item.choices)
    return f"{item.question}\nAnswer with the text of one of these choices:\n{listed}"


def mmau(
    generator: Generator,
    data: str,
    sampling: Mapping[str, Any] | None = None,
    *,
    mode: str = "choices",
    caption_question: str = "",
    llm: LLM | None = None,
    judgements: int = 3,
    count: int = 0,
    seed: int = 1,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Accuracy by MMAU's official rule and by a stricter parser, with how often they agree.

    Args:
      generator: a pipeline.
      data: `mmau-test-mini.json` or its folder.
      sampling: settings by modality; None: the model's own.
      mode: "choices": the model sees them. "open": it does not; where an `llm` is given, it judges
        the answer too. "caption": it writes a caption, and `llm` chooses from that alone (the
        paper's probe of understanding); of a recording that was not heard it is not asked.
      caption_question: text that asks for the caption; "" for a base model.
      llm: of the modes that need one.
      judgements: answers of `llm` to each question.
      count: questions, drawn by `seed`; 0: all.
      seed: of the choice, sampling and intervals.

    Returns:
      the figures (shares), and one item per question.

    Raises:
      UserError: damaged data, an unknown mode, no `llm` where it is needed.
    """
    if mode not in MODES:
        raise UserError(f"mode {mode!r} is none of {', '.join(MODES)}")
    if mode == "caption" and llm is None:
        raise UserError("mode 'caption' needs llm: the language model that reads the captions")
    items = choose(read_mmau(data), count, seed)
    ask = {
        "choices": question_with_choices,
        "open": lambda item: item.question,
        "caption": lambda item: caption_question,
    }[mode]
    prompts = [ask(item) for item in items]
    replies = reply_to(generator, items, prompts, sampling, seed=seed, name=f"MMAU {mode}")
    out = [_item(i, mode, p, r, seed) for i, p, r in zip(items, prompts, replies, strict=True)]
    if mode == "caption":
        _choose_from_captions(llm, items, replies, out, judgements)
    else:
        for item, row in zip(items, out, strict=True):
            row["verdicts"] = [verdict(item, row["answer"])]
    if mode == "open" and llm is not None:
        _judge(llm, out, judgements)
    figures = mmau_figures(out, seed)
    if llm is not None:
        figures["llm"] = llm.label()
    if "judge" in out[0]:
        figures["judge_prompts"] = {"binary": judges.BINARY.label()}
    return figures, out


def verdict(item: Item, answer: str) -> dict[str, Any]:
    """Both rules on one answer."""
    chosen = strict_choice(answer, item.choices)
    return {
        "answer": answer,
        "official": official_match(item.answer, answer, item.choices),
        "strict": chosen == item.answer,
        "strict_choice": chosen,
    }


def mmau_figures(items: Sequence[dict[str, Any]], seed: int) -> dict[str, Any]:
    """Accuracies by rule, of all questions, by task and by difficulty; agreement of the rules.

    `chance` is what a blind choice gets.
    """
    accuracy, samples = {}, {}
    for rule in RULES:
        all_of_them = _right(items, rule)
        whole = repeated(all_of_them, seed=seed)
        accuracy[rule], samples[rule] = {"all": whole["score"]}, whole["samples"]
        for field in ("task", "difficulty"):
            for name in dict.fromkeys(item[field] for item in items):
                mine = _right([item for item in items if item[field] == name], rule)
                accuracy[rule][str(name)] = repeated(mine, seed=seed)["score"]
    same = [np.mean([v["official"] == v["strict"] for v in item["verdicts"]]) for item in items]
    figures = {
        "mode": items[0]["mode"],
        **reply_figures(items),
        "accuracy": accuracy,
        "agreement": text_metrics.bootstrap_ratio(same, np.ones(len(same)), seed=seed),
        "undecided": sum(v["strict_choice"] is None for i in items for v in i["verdicts"]),
        "chance": float(np.mean([1 / len(item["choices"]) for item in items])),
        "published": published("mmau_mini"),
    }
    if len(items[0]["verdicts"]) > 1:
        figures["samples"] = samples
    if "judge" in items[0]:
        rated = [[j["rating"] or 0 for j in item["judge"]] for item in items]
        figures["judge"] = repeated(rated, seed=seed)
        figures["judge_failed"] = sum(j["rating"] is None for i in items for j in i["judge"])
    return figures


def _right(items: Sequence[dict[str, Any]], rule: str) -> list[list[bool]]:
    return [[v[rule] for v in item["verdicts"]] for item in items]


def _item(item: Item, mode: str, prompt: str, reply: Reply, seed: int) -> dict[str, Any]:
    return {
        **item_fields("mmau", item, prompt, reply, seed),
        "mode": mode,
        "task": item.category,
        "difficulty": item.extra["difficulty"],
        "question": item.question,
        "choices": list(item.choices),
    }


def _judge(llm: LLM, rows: list[dict[str, Any]], judgements: int) -> None:
    rubric = judges.BINARY
    told = [rubric.fill(row["question"], row["truth"], row["answer"]) for row in rows]
    said = judges.grouped(llm, told, rubric.read, judgements, "judge MMAU")
    for row, prompt, answers in zip(rows, told, said, strict=True):
        row["judge_prompt"] = prompt
        row["judge"] = [{"rating": s.value, "text": s.text} for s in answers]


def _choose_from_captions(
    llm: LLM, items: Sequence[Item], replies: Sequence[Reply], out: list[dict], judgements: int
) -> None:
    asked = []
    for item, reply, row in zip(items, replies, out, strict=True):
        row["llm_prompt"], row["verdicts"] = "", [verdict(item, "")] * judgements
        if not reply.problem:  # a guess about what was never heard would count as an answer
            row["llm_prompt"] = _told(item, reply)
            asked.append((item, row))
    told = [row["llm_prompt"] for _, row in asked]
    said = judges.grouped(llm, told, _some_text, judgements, "choose from captions")
    for (item, row), answers in zip(asked, said, strict=True):
        row["verdicts"] = [verdict(item, s.value or "") for s in answers]


def _told(item: Item, reply: Reply) -> str:
    holes = {"caption": reply.output or "(nothing)", "question": question_with_choices(item)}
    return re.sub(r"\{(\w+)\}", lambda m: holes[m[1]], _CAPTION_PROMPT)


def _some_text(text: str) -> str:
    if not text.strip():
        raise BadAnswer("it is empty: write the text of one choice")
    return text.strip()
