"""Evaluators of the mini world, by the names that configs use: see `registry`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from bagpiper_jax.errors import UserError
from bagpiper_jax.evaluation.codec_eval import codec_probe
from bagpiper_jax.evaluation.context import Context, Outcome
from bagpiper_jax.evaluation.mini_probes import understanding_probe
from bagpiper_jax.evaluation.rendering_probe import (
    control_by_kind,
    errors_by_kind,
    hear,
    render,
    rendering_probe,
    spoken_scenes,
)
from bagpiper_jax.evaluation.sampling_choice import CFGS


def codec(context: Context, *, prompts: int = 150) -> Outcome:
    """Recorded phrases, `prompts` at most, before and after the codec: see `codec_probe`."""
    return Outcome(
        *codec_probe(
            context.codec, context.corpus, context.whisper, count=prompts, seed=context.seed
        )
    )


def understanding(
    context: Context, *, split: str = "test_a", profile: str = "scene", scenes: int = 300
) -> Outcome:
    """Captions of held-out scenes against the scenes: see `understanding_probe`."""
    return of_text(context, understanding_probe, split, profile, scenes)


def of_text(
    context: Context, probe: Callable[..., tuple], split: str, profile: str, scenes: int
) -> Outcome:
    """What a probe finds that needs a pipeline, scenes and the sampling of text, and no more."""
    return Outcome(
        *probe(
            context.pipeline,
            context.corpus,
            context.sampling["text"],
            split=split,
            profile=profile,
            count=scenes,
            seed=context.seed,
        )
    )


def rendering(
    context: Context,
    *,
    split: str = "test_a",
    digits: int = 60,
    letters: int = 30,
    phrases: int = 30,
    keep: int = 8,
) -> Outcome:
    """What Whisper hears in rendered captions: see `rendering_probe`; `keep` clips of each kind."""
    counts = {"digits": digits, "letters": letters, "phrase": phrases}
    if not any(counts.values()):
        raise UserError("rendering needs a caption at least: digits, letters or phrases")
    figures, items, wavs = rendering_probe(
        context.pipeline,
        context.corpus,
        context.codec,
        context.whisper,
        context.sampling["audio"],
        split=split,
        counts={kind: count for kind, count in counts.items() if count},
        seed=context.seed,
    )
    return Outcome(figures, items, first_clips(items, wavs, keep))


def first_clips(
    items: Sequence[dict[str, Any]], wavs: Sequence[np.ndarray], keep: int
) -> dict[str, np.ndarray]:
    """The first clips of each kind that have a sound; their items name them."""
    clips: dict[str, np.ndarray] = {}
    kept: dict[str, int] = {}
    for item, wav in zip(items, wavs, strict=True):
        number = kept.get(item["kind"], 0)
        if number < keep and len(wav):
            item["clip"] = f"{item['kind']}-{number}"
            clips[item["clip"]] = wav
            kept[item["kind"]] = number + 1
    return clips


def guidance(
    context: Context,
    *,
    split: str = "test_a",
    profile: str = "spelling",
    distinct: bool = False,
    digits: int = 30,
    cfgs: Sequence[float] = CFGS,
) -> Outcome:
    """Error rate of rendered digit strings at strengths of guidance, all else as chosen."""
    if digits < 1:
        raise UserError("guidance needs a string of digits at least")
    counts = {"digits": digits}
    spoken = spoken_scenes(context.corpus, split, counts, context.seed, profile, distinct)
    figures = []
    for cfg in cfgs:
        name, sampling = f"cfg {cfg:g}", dataclasses.replace(context.sampling["audio"], cfg=cfg)
        wavs = render(context.pipeline, spoken, sampling, context.seed, name)
        heard = hear(context.whisper, wavs, name)
        figures.append({"cfg": cfg, "wer": errors_by_kind(spoken, heard, context.seed)["digits"]})
        if chance := control_by_kind(spoken, heard, context.seed):
            figures[-1]["control"] = {"wer": chance["digits"]}
    return Outcome(figures)
