"""Evaluators by questions, requests, cycles and judges of quality: see `registry`."""

from __future__ import annotations

from bagpiper_jax.evaluation.context import Context, Outcome
from bagpiper_jax.evaluation.cycle_probe import cycle_probe
from bagpiper_jax.evaluation.embeddings import Sentences
from bagpiper_jax.evaluation.quality_probe import load_judges, quality_probe
from bagpiper_jax.evaluation.question_probe import caption_question_probe, question_probe
from bagpiper_jax.evaluation.request_probe import request_probe
from bagpiper_jax.evaluation.scene_evaluators import first_clips, of_text


def questions(
    context: Context, *, split: str = "test_a", profile: str = "scene", scenes: int = 500
) -> Outcome:
    """Questions about clips, answered by the model: see `question_probe`."""
    return of_text(context, question_probe, split, profile, scenes)


def caption_questions(
    context: Context, *, split: str = "test_a", profile: str = "scene", scenes: int = 500
) -> Outcome:
    """The same questions, answered from the model's captions: see `caption_question_probe`."""
    return of_text(context, caption_question_probe, split, profile, scenes)


def requests(
    context: Context, *, split: str = "test_a", digits: int = 60, keep: int = 8
) -> Outcome:
    """What Whisper hears where a scene is asked for: see `request_probe`; `keep` clips."""
    figures, items, wavs = request_probe(
        context.pipeline,
        context.corpus,
        context.whisper,
        context.sampling,
        split=split,
        counts={"digits": digits},
        seed=context.seed,
    )
    return Outcome(figures, items, first_clips(items, wavs, keep))


def cycle(
    context: Context,
    *,
    split: str = "test_a",
    profile: str = "scene",
    start: str = "audio",
    scenes: int = 60,
    rounds: int = 3,
    keep: int = 4,
) -> Outcome:
    """Audio and captions made of each other, round after round: see `cycle_probe`."""
    figures, items, clips = cycle_probe(
        context.pipeline,
        context.corpus,
        Sentences(),
        context.sampling,
        split=split,
        profile=profile,
        start=start,
        count=scenes,
        rounds=rounds,
        seed=context.seed,
        keep=keep,
    )
    kept = {}
    for number, (item, of_scene) in enumerate(zip(items, clips)):
        for turn, wav in enumerate(of_scene, 1):
            if len(wav):  # the page plays the last one that there is
                item["clip"] = f"{number}-round-{turn}"
                kept[item["clip"]] = wav
    return Outcome(figures, items, kept)


def quality(
    context: Context,
    *,
    split: str = "test_a",
    profile: str = "scene",
    scenes: int = 60,
    voices: bool = False,
    keep: int = 8,
) -> Outcome:
    """Rendered clips before several judges: see `quality_probe`; `voices` needs `speaker`."""
    judges = load_judges(voices)
    figures, items, wavs = quality_probe(
        context.pipeline,
        context.corpus,
        context.codec,
        judges,
        context.sampling,
        split=split,
        profile=profile,
        count=scenes,
        seed=context.seed,
    )
    kept = {str(i): wav for i, wav in enumerate(wavs[:keep]) if len(wav)}
    for name in kept:
        items[int(name)]["clip"] = name
    return Outcome(figures, items, kept)
