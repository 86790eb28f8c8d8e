"""Evaluators of public benchmarks: see `registry` and docs/evaluation-benchmarks.md.

`data` is where the released files lie, `llm` the section that `benchmarks.llm` describes (None: no
language model is asked), `count` how many items are drawn (0: all).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bagpiper_jax.errors import UserError
from bagpiper_jax.evaluation.asr import Whisper
from bagpiper_jax.evaluation.benchmarks import air_bench, audio_bench, librispeech, mmau, tts
from bagpiper_jax.evaluation.benchmarks.llm import LLM, llm_from
from bagpiper_jax.evaluation.context import Context, Outcome

_MAX_WORDS = 224  # tokens of Whisper for a long sentence


def mmau_mini(
    context: Context,
    *,
    data: str = "",
    mode: str = "choices",
    caption_question: str = "",
    llm: Mapping[str, Any] | None = None,
    judged: bool = False,
    judgements: int = 3,
    count: int = 0,
) -> Outcome:
    """MMAU's test-mini: choices shown, open (`judged`: by `llm` too), or from captions alone."""
    if judged and mode != "open":
        raise UserError(f"config key judged is for mode 'open', not {mode!r}: set it to False")
    reader = None
    if judged or mode == "caption":
        reader = _needed(llm, "mode 'caption' and judged answers need a language model")
    return Outcome(
        *mmau.mmau(
            context.pipeline,
            _path(data),
            mode=mode,
            caption_question=caption_question,
            llm=reader,
            judgements=judgements,
            count=count,
            seed=context.seed,
        )
    )


def air_bench_chat(
    context: Context,
    *,
    data: str = "",
    llm: Mapping[str, Any] | None = None,
    judgements: int = 3,
    count: int = 0,
) -> Outcome:
    """AIR-Bench's chat, judged against the reference in both orders."""
    judge = _needed(llm, "AIR-Bench needs a language model that judges")
    found = air_bench.air_bench_chat(
        context.pipeline,
        _path(data),
        llm=judge,
        judgements=judgements,
        count=count,
        seed=context.seed,
    )
    return Outcome(*found)


def audio_bench_tasks(
    context: Context,
    *,
    data: str = "",
    datasets: Sequence[str] = (),
    llm: Mapping[str, Any] | None = None,
    judge_prompt: str = "",
    binary_prompt: str = "",
    judgements: int = 3,
    count: int = 0,
) -> Outcome:
    """Data sets of AudioBench."""
    return Outcome(
        *audio_bench.audio_bench(
            context.pipeline,
            _path(data),
            datasets=datasets,
            llm=_llm(llm),
            judge_prompt=judge_prompt or None,
            binary_prompt=binary_prompt or None,
            judgements=judgements,
            count=count,
            seed=context.seed,
        )
    )


def librispeech_words(
    context: Context,
    *,
    data: str = "",
    subset: str = "test-clean",
    question: str = "",
    by_llm: bool = False,
    llm: Mapping[str, Any] | None = None,
    count: int = 0,
) -> Outcome:
    """LibriSpeech: what the model writes down; `by_llm`: taken out of captions by `llm` too."""
    return Outcome(
        *librispeech.librispeech(
            context.pipeline,
            _path(data),
            subset=subset,
            question=question,
            llm=_needed(llm, "by_llm needs a language model") if by_llm else None,
            count=count,
            seed=context.seed,
        )
    )


def librispeech_tts(
    context: Context,
    *,
    data: str = "",
    subset: str = "test-clean",
    template: str = tts.TEMPLATE,
    modalities: Sequence[str] = ("audio",),
    recogniser: str = "",
    repeats: int = 3,
    recordings: bool = True,
    keep: int = 8,
    count: int = 0,
) -> Outcome:
    """LibriSpeech's sentences, spoken by the model; `recogniser`: directory of a Whisper, which
    hears the true `recordings` too; `keep` clips."""
    return _spoken(
        context,
        tts.librispeech_tts,
        data,
        recogniser,
        subset=subset,
        template=template,
        modalities=modalities,
        repeats=repeats,
        recordings=recordings,
        keep=keep,
        count=count,
    )


def seed_tts_eval(
    context: Context,
    *,
    data: str = "",
    language: str = "en",
    template: str = tts.TEMPLATE,
    modalities: Sequence[str] = ("audio",),
    recogniser: str = "",
    repeats: int = 3,
    recordings: bool = True,
    keep: int = 8,
    count: int = 0,
) -> Outcome:
    """Seed-TTS-Eval's sentences, spoken by the model; `recogniser`: directory of a Whisper, which
    hears the true `recordings` too, where the list names them; `keep` clips."""
    return _spoken(
        context,
        tts.seed_tts_eval,
        data,
        recogniser,
        language=language,
        template=template,
        modalities=modalities,
        repeats=repeats,
        recordings=recordings,
        keep=keep,
        count=count,
    )


def _spoken(
    context: Context, benchmark: Callable[..., tuple], data: str, recogniser: str, **settings: Any
) -> Outcome:
    language = settings.get("language", "en")
    ears = Whisper(max_new_tokens=_MAX_WORDS, path=recogniser or None, language=language)
    found = benchmark(context.pipeline, _path(data), ears, seed=context.seed, **settings)
    return Outcome(*found)


def _path(data: str) -> str:
    if not data:
        raise UserError("config key data: name where the benchmark's files lie")
    return data


def _needed(section: Mapping[str, Any] | None, why: str) -> LLM:
    llm = _llm(section)
    if llm is None:
        raise UserError(f"config key llm: {why}")
    return llm


def _llm(section: Mapping[str, Any] | None) -> LLM | None:
    """The language model of a section; its package is looked for before anything is generated."""
    if not section:
        return None
    llm = llm_from(dict(section))
    package = "google.genai" if llm.model.api == "gemini" else "openai"
    try:
        importlib.import_module(package)
    except ImportError as e:
        raise UserError(
            f"config key llm needs the package {package}: pip install 'bagpiper_jax[simulate]'"
        ) from e
    return llm
