"""LibriSpeech test-clean, understanding: the transcript in the model's captions against the words
that are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bagpiper_jax.errors import UserError
from bagpiper_jax.evaluation.benchmarks import judges, wer
from bagpiper_jax.evaluation.benchmarks.generation import (
    Generator,
    item_fields,
    reply_figures,
    reply_to,
)
from bagpiper_jax.evaluation.benchmarks.item import choose
from bagpiper_jax.evaluation.benchmarks.llm import LLM
from bagpiper_jax.evaluation.benchmarks.published import published
from bagpiper_jax.evaluation.benchmarks.readers.librispeech import read_librispeech
from bagpiper_jax.simulation.client import BadAnswer
from bagpiper_jax.simulation.quotes import lines_of

_TAKE_OUT = """\
This is a description of a recording:

{caption}

Write down every word that is spoken in the recording, in order, as far as the description quotes \
them, each once. Write the words alone. If it quotes none, write: NOTHING"""


def librispeech(
    generator: Generator,
    data: str,
    sampling: Mapping[str, Any] | None = None,
    *,
    subset: str = "test-clean",
    question: str = "",
    llm: LLM | None = None,
    count: int = 0,
    seed: int = 1,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Word error rates of what the model writes down, raw and normalised.

    Args:
      generator: a pipeline.
      data: the folder of the subset, or one above it.
      sampling: settings by modality; None: the model's own.
      subset: its name.
      question: text that asks for the transcript, so that the answer is taken as it is. "": the
        model writes a caption, and its stated transcription or else its quotes are taken.
      llm: takes the words out of captions too, beside the rule; None: none is asked.
      count: utterances, drawn by `seed`; 0: all.
      seed: of the choice, sampling and intervals.

    Returns:
      the figures (shares), and one item per utterance.

    Raises:
      UserError: damaged data; both question and llm; the extra `eval` is not installed.
    """
    if question and llm is not None:
        raise UserError("words are taken out of captions alone: leave out question, or by_llm")
    normaliser = wer.normaliser_name()
    items = choose(read_librispeech(data, subset), count, seed)
    prompts = [question] * len(items)
    replies = reply_to(generator, items, prompts, sampling, seed=seed, name=f"LibriSpeech {subset}")
    said = [r.answer if question else " ".join(lines_of({}, r.output)) for r in replies]
    out = [
        {
            **item_fields("librispeech", item, question, reply, seed),
            "transcript": words,
            "errors": wer.count(item.answer, words),
        }
        for item, reply, words in zip(items, replies, said, strict=True)
    ]
    if llm is not None:
        _take_out(llm, out)
    figures = librispeech_figures(out, seed) | {"normaliser": normaliser}
    if llm is not None:
        figures["llm"] = llm.label()
    return figures, out


def librispeech_figures(items: Sequence[dict[str, Any]], seed: int) -> dict[str, Any]:
    """Word error rates; `wer_by_llm` where a language model took the words out."""
    figures = {
        **reply_figures(items),
        "without_words": sum(not item["transcript"] for item in items),
        "wer": wer.rates(items, "errors", seed),
        "published": published("wer"),
    }
    if "llm_errors" in items[0]:
        figures["wer_by_llm"] = wer.rates(items, "llm_errors", seed)
    return figures


def _take_out(llm: LLM, items: list[dict[str, Any]]) -> None:
    told = [_TAKE_OUT.replace("{caption}", item["output"]) for item in items]
    answers = judges.grouped(llm, told, _words, 1, "transcripts")
    for item, prompt, [answer] in zip(items, told, answers, strict=True):
        item["llm_prompt"] = prompt
        item["llm_transcript"] = answer.value or ""
        item["llm_errors"] = wer.count(item["truth"], item["llm_transcript"])


def _words(text: str) -> str:
    if not text.strip():
        raise BadAnswer("it is empty: write the words, or NOTHING")
    return "" if text.strip().strip(".") == "NOTHING" else text.strip()
