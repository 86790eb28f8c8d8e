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
    asked = mode == "caption" or (mode == "open" and judged)
    return Outcome(
        *mmau.mmau(
            context.pipeline,
            _path(data),
            mode=mode,
            caption_question=caption_question,
            llm=_llm(llm) if asked else None,
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
    judge = _llm(llm)
    if judge is None:
        raise UserError("config key llm: AIR-Bench needs a language model that judges")
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
    llm: Mapping[str, Any] | None = None,
    count: int = 0,
) -> Outcome:
    """LibriSpeech: what the model writes down."""
    return Outcome(
        *librispeech.librispeech(
            context.pipeline,
            _path(data),
            subset=subset,
            question=question,
            llm=_llm(llm),
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
    count: int = 0,
) -> Outcome:
    """LibriSpeech's sentences, spoken by the model; `recogniser`: directory of a Whisper."""
    return _spoken(
        context,
        tts.librispeech_tts,
        data,
        recogniser,
        subset=subset,
        template=template,
        modalities=modalities,
        repeats=repeats,
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
    count: int = 0,
) -> Outcome:
    """Seed-TTS-Eval's sentences, spoken by the model; `recogniser`: directory of a Whisper."""
    return _spoken(
        context,
        tts.seed_tts_eval,
        data,
        recogniser,
        language=language,
        template=template,
        modalities=modalities,
        repeats=repeats,
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
