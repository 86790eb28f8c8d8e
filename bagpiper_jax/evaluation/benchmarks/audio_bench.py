"""AudioBench: data sets of questions rated by a judge, and of speech by word error rate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from bagpiper_jax.errors import UserError
from bagpiper_jax.evaluation.benchmarks import judges, wer
from bagpiper_jax.evaluation.benchmarks.generation import (
    Generator,
    item_fields,
    reply_figures,
    reply_to,
)
from bagpiper_jax.evaluation.benchmarks.item import Item, choose
from bagpiper_jax.evaluation.benchmarks.judges import Rubric
from bagpiper_jax.evaluation.benchmarks.llm import LLM
from bagpiper_jax.evaluation.benchmarks.published import published
from bagpiper_jax.evaluation.benchmarks.readers.audio_bench import read_audio_bench
from bagpiper_jax.evaluation.benchmarks.scores import balanced, repeated


class Task(NamedTuple):
    """How a data set is asked and scored.

    metric: "scale" (0 to 5), "binary" (0 or 1) or "wer". question: in our words, where the data
    set has none of its own (AudioBench draws one of several); "" where each row has its own.
    """

    metric: str
    question: str = ""


_FOLLOW = "Do what the person in the recording asks for."
_TRANSCRIBE = "Write down word for word what is said in the recording, and nothing else."
_CAPTION = "Describe in one sentence what can be heard in the recording."
_GENDER = "Is the speaker male or female?"
TASKS = {
    **dict.fromkeys(
        (
            "slue_p2_sqa5_test",
            "public_sg_speech_qa_test",
            "spoken_squad_test",
            "clotho_aqa_test",
            "wavcaps_qa_test",
            "audiocaps_qa_test",
            *(f"imda_part{p}_30s_{t}_human_test" for p in (3, 4, 5, 6) for t in ("sqa", "ds")),
        ),
        Task("scale"),
    ),
    **dict.fromkeys(("openhermes_audio_test", "alpaca_audio_test"), Task("scale", _FOLLOW)),
    **dict.fromkeys(("audiocaps_test", "wavcaps_test"), Task("scale", _CAPTION)),
    **dict.fromkeys(
        (
            "cn_college_listen_mcq_test",
            "dream_tts_mcq_test",
            "muchomusic_test",
            "mmau_mini",
            *(f"imda_{t}_{k}" for t in ("ar", "gr") for k in ("sentence", "dialogue")),
        ),
        Task("binary"),
    ),
    "iemocap_gender_test": Task("binary", _GENDER),
    "voxceleb_gender_test": Task("binary", _GENDER),
    "voxceleb_accent_test": Task("binary", "From which country is the speaker, by the accent?"),
    "iemocap_emotion_test": Task("binary", "Which emotion does the speaker show?"),
    "meld_emotion_test": Task("binary", "Which emotion does the speaker show?"),
    "meld_sentiment_test": Task(
        "binary", "Is the sentiment of the speaker positive, negative or neutral?"
    ),
    **dict.fromkeys(
        (
            "librispeech_test_clean",
            "librispeech_test_other",
            "common_voice_15_en_test",
            "peoples_speech_test",
            "gigaspeech_test",
            "tedlium3_test",
        ),
        Task("wer", _TRANSCRIBE),
    ),
}


def question_of(item: Item) -> str:
    """What the model is asked."""
    own = TASKS[item.category].question or item.question
    return f"{own}\nChoices:\n" + "\n".join(item.choices) if item.choices else own


def audio_bench(
    generator: Generator,
    data: str,
    sampling: Mapping[str, Any] | None = None,
    *,
    datasets: Sequence[str],
    llm: LLM | None = None,
    judge_prompt: str | None = None,
    binary_prompt: str | None = None,
    judgements: int = 3,
    count: int = 0,
    seed: int = 1,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Ratings (0 to 100) and word error rates of the data sets, and the mean of the ratings.

    Args:
      generator: a pipeline.
      data: folder that holds a folder for each data set, named as it is.
      sampling: settings by modality; None: the model's own.
      datasets: of `TASKS`.
      llm: the judge; official: Llama-3-70B-Instruct, AWQ.
      judge_prompt, binary_prompt: files with AudioBench's own prompts of 0 to 5 and of 0 or 1,
        with {question}, {reference} and {prediction}; None: in our words.
      judgements: of each answer.
      count: rows of each data set, drawn by `seed`; 0: all.
      seed: of the choice, sampling and intervals.

    Returns:
      the figures, and one item per row.

    Raises:
      UserError: an unknown data set, damaged data, no judge where one is needed.
    """
    unknown = [name for name in datasets if name not in TASKS]
    if unknown or not datasets:
        what = f"{unknown[0]!r} is not" if unknown else "datasets is empty: choose"
        raise UserError(f"{what} one of AudioBench's data sets here: {', '.join(TASKS)}")
    rubrics = {
        "scale": judges.rubric_from(judge_prompt, 5) if judge_prompt else judges.SCALE,
        "binary": judges.rubric_from(binary_prompt, 1) if binary_prompt else judges.BINARY,
    }
    judged = [name for name in datasets if TASKS[name].metric in rubrics]
    if judged and llm is None:
        raise UserError(f"{judged[0]} needs llm: the judge")
    out: list[dict[str, Any]] = []
    for name in datasets:
        items = choose(read_audio_bench(data, name), count, seed)
        rows = _answers(generator, items, sampling, seed)
        if TASKS[name].metric == "wer":
            for row in rows:
                row["errors"] = wer.count(row["truth"], row["answer"])
        else:
            _judge(llm, rubrics[TASKS[name].metric], rows, judgements)
        out += rows
    figures = audio_bench_figures(out, seed)
    if judged:
        figures["llm"] = llm.label()
        figures["judge_prompts"] = {name: rubric.label() for name, rubric in rubrics.items()}
    return figures, out


def audio_bench_figures(items: Sequence[dict[str, Any]], seed: int) -> dict[str, Any]:
    """Figures of each data set, and the mean over those that are rated, each counting the same.

    A failed judgement counts as 0, as in the official scripts, and is counted.
    """
    by_name: dict[str, list] = {}
    for item in items:
        by_name.setdefault(item["dataset"], []).append(item)
    figures: dict[str, Any] = {"datasets": {}, "published": published("audio_bench")}
    for name, mine in by_name.items():
        own: dict[str, Any] = {"metric": TASKS[name].metric, **reply_figures(mine)}
        if "errors" in mine[0]:
            own |= {"wer": wer.rates(mine, "errors", seed), "normaliser": wer.normaliser_name()}
        else:
            own |= _rated(mine, seed)
        figures["datasets"][name] = own
    rated = [item for item in items if "judge" in item]
    if rated:
        whole = _rated(rated, seed)
        figures |= {"score": whole["score"], "samples": whole["samples"]}
    return figures


def _rated(items: Sequence[dict[str, Any]], seed: int) -> dict[str, Any]:
    scores = [[100 * (j["score"] or 0) for j in item["judge"]] for item in items]
    weights = balanced([item["dataset"] for item in items])
    return {
        **repeated(scores, highest=100, weights=weights, seed=seed),
        "judge_failed": sum(j["score"] is None for item in items for j in item["judge"]),
    }


def _answers(generator, items: Sequence[Item], sampling, seed: int) -> list[dict[str, Any]]:
    questions = [question_of(item) for item in items]
    name = f"AudioBench {items[0].category}"
    replies = reply_to(generator, items, questions, sampling, seed=seed, name=name)
    return [
        {
            **item_fields("audio_bench", item, question, reply, seed),
            "dataset": item.category,
            "asked": item.extra["asked"] or question,
        }
        for item, question, reply in zip(items, questions, replies, strict=True)
    ]


def _judge(llm: LLM, rubric: Rubric, rows: list[dict[str, Any]], judgements: int) -> None:
    told = [rubric.fill(row["asked"], row["truth"], row["answer"]) for row in rows]
    name = f"judge {rows[0]['dataset']}"
    answers = judges.grouped(llm, told, rubric.read, judgements, name)
    for row, prompt, said in zip(rows, told, answers, strict=True):
        row["judge_prompt"] = prompt
        row["judge"] = [
            {
                "rating": s.value,
                "score": None if s.value is None else s.value / rubric.highest,
                "text": s.text,
            }
            for s in said
        ]
