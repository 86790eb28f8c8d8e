"""Cycle consistency: audio → caption → audio → caption …, round after round (arXiv 2602.05220).

A model that understands what it renders, and renders what it writes, keeps what the first caption
says; what it loses in a round shows as drift.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from bagpiper_jax.errors import UserError
from bagpiper_jax.evaluation.mini_probes import (
    Generator,
    caption_rates,
    compare_captions,
    describe_audible,
    in_chunks,
    others,
    score_caption,
)
from bagpiper_jax.evaluation.text_metrics import Interval, bootstrap_ratio
from bagpiper_jax.input_pipeline.scenes import (
    Corpus,
    Scene,
    parse_caption,
    plan_scene,
    render_scene,
)

STARTS = ("audio", "caption")


def cycle_probe(
    generator: Generator,
    corpus: Corpus,
    embed: Any,
    sampling: dict[str, Any],
    *,
    split: str,
    start: str = "audio",
    profile: str = "scene",
    count: int = 60,
    rounds: int = 3,
    seed: int = 1,
    keep: int = 4,
) -> tuple[dict[str, Any], list[dict[str, Any]], list[list[np.ndarray]]]:
    """Captions of every round against the scene, and against the caption of the first round.

    From "audio", a round describes the clip, at first the scene's own, and renders the caption for
    the next round. From "caption", a round renders the caption, at first the scene's true one, and
    describes the clip. A clip that ended at once has an empty caption, and that an empty clip.

    Each figure stands beside its control, the same of another scene's caption of the same round:
    what it gets right, was guessed. `chance` is that of another scene's true caption; captions of
    scenes are much alike as sentences, so their similarity means little without it.

    Args:
      generator: a pipeline.
      embed: texts → unit vectors [N, D], with a name: `embeddings.Sentences`.
      sampling: for "text" and "audio".
      split, profile: of the scenes.
      start: "audio" or "caption".
      count: scenes, at least two.
      rounds: captions written of each scene.
      seed: of scenes, sampling and intervals.
      keep: scenes whose clips are returned.

    Returns:
      the figures: `rounds` is a list, each round with `scene` (against the scene and its true
        caption) and, from the second on, `drift` (against the first round's caption): mean cosine
        `similarity`, `wer` of quoted strings, `events_f1`, left out where there is nothing to
        measure; `control` has `rounds` of the same form; `empty` counts the empty captions of each.
      one item per scene, with all its captions;
      of the first `keep` scenes, the clips: float32 [S] at 16 kHz, one described in each round.

    Raises:
      UserError: a bad argument.
    """
    if count < 2 or rounds < 1 or start not in STARTS:
        raise UserError(
            f"a cycle needs 2 scenes, 1 round and a start of {STARTS}: {count}, {rounds}, {start!r}"
        )
    scenes = [plan_scene(corpus, seed, i, split, profile) for i in range(count)]
    written, clips = run_cycle(generator, corpus, scenes, sampling, start, rounds, seed, keep)
    scored = _Scores(corpus, embed, scenes, written[0])
    pairs = others(scenes)
    of_rounds: list[dict[str, Any]] = []
    of_controls: list[dict[str, Any]] = []
    for number, texts in enumerate(written):
        swapped = [texts[j] for j in pairs]
        own, control = scored.against_scene(texts), scored.against_scene(swapped)
        of_rounds.append({"scene": own})
        of_controls.append({"scene": control})
        if number:
            of_rounds[-1]["drift"] = scored.against_first(texts)
            of_controls[-1]["drift"] = scored.against_first(swapped)
    chance = scored.against_scene([scenes[j].caption for j in pairs])
    figures = {
        "split": split,
        "profile": profile,
        "scenes": count,
        "start": start,
        "embedding": embed.name,
        "rounds": [
            {"round": number, **_figures(part, scenes, seed)}
            for number, part in enumerate(of_rounds, 1)
        ],
        "empty": [sum(not text for text in texts) for texts in written],
        "chance": _rates(chance, scenes, seed),
        "control": {"rounds": [_figures(part, scenes, seed) for part in of_controls]},
    }
    items = [
        {
            "probe": "cycle",
            "start": start,
            "split": split,
            "profile": profile,
            "seed": seed,
            "index": scenes[i].index,
            "caption": scenes[i].caption,
            "outputs": [texts[i] for texts in written],
            "rounds": [
                {name: part[name][i] for name in ("scene", "drift") if name in part}
                for part in of_rounds
            ],
            "control": {"of": scenes[pairs[i]].index},
        }
        for i in range(count)
    ]
    return figures, items, clips


def run_cycle(
    generator: Generator,
    corpus: Corpus,
    scenes: Sequence[Scene],
    sampling: dict[str, Any],
    start: str,
    rounds: int,
    seed: int,
    keep: int,
) -> tuple[list[list[str]], list[list[np.ndarray]]]:
    """Captions [round][scene], and the clips [scene][round] of the first `keep` scenes."""
    describe = functools.partial(describe_audible, generator, sampling["text"], seed)
    render = functools.partial(_render_written, generator, sampling["audio"], seed)
    texts = [scene.caption for scene in scenes]
    written: list[list[str]] = []
    clips: list[list[np.ndarray]] = [[] for _ in scenes[:keep]]
    for number in range(rounds):
        name = f"round {number + 1} of {rounds}"
        if number == 0 and start == "audio":
            wavs = [render_scene(corpus, scene) for scene in scenes]
        else:
            wavs = in_chunks(render, texts, f"{name}: render")
        texts = in_chunks(describe, wavs, f"{name}: describe")
        written.append(texts)
        for kept, wav in zip(clips, wavs):
            kept.append(wav)
    return written, clips


def _render_written(
    generator: Generator, sampling: Any, seed: int, texts: Sequence[str]
) -> list[np.ndarray]:
    some = [i for i, text in enumerate(texts) if text.strip()]
    wavs = [np.zeros(0, np.float32)] * len(texts)
    if some:
        found = generator.render_batch([texts[i] for i in some], sampling=sampling, seed=seed)
        for i, wav in zip(some, found, strict=True):
            wavs[i] = np.asarray(wav, np.float32)
    return wavs


class _Scores:
    """Scores of captions against the scenes, and against the captions of the first round."""

    def __init__(self, corpus: Corpus, embed: Any, scenes: Sequence[Scene], first: Sequence[str]):
        self._scenes, self._names, self._embed = scenes, corpus.event_labels, embed
        self._first = [parse_caption(text, self._names) for text in first]
        self._true_vectors = embed([scene.caption for scene in scenes])
        self._first_vectors = embed(first)

    def against_scene(self, texts: Sequence[str]) -> list[dict[str, Any]]:
        found = [score_caption(s, text, self._names) for s, text in zip(self._scenes, texts)]
        return self._with_similarity(found, texts, self._true_vectors)

    def against_first(self, texts: Sequence[str]) -> list[dict[str, Any]]:
        parsed = [parse_caption(text, self._names) for text in texts]
        found = [compare_captions(real, said) for real, said in zip(self._first, parsed)]
        return self._with_similarity(found, texts, self._first_vectors)

    def _with_similarity(self, found, texts, vectors) -> list[dict[str, Any]]:
        cosines = np.sum(self._embed(texts) * vectors, axis=1)
        return [
            {"similarity": round(float(cosine), 4), **score}
            for cosine, score in zip(cosines, found, strict=True)
        ]


def _figures(part: dict[str, Any], scenes: Sequence[Scene], seed: int) -> dict[str, Any]:
    return {name: _rates(found, scenes, seed) for name, found in part.items()}


def _rates(
    scores: Sequence[dict[str, Any]], scenes: Sequence[Scene], seed: int
) -> dict[str, Interval]:
    alike = [score["similarity"] for score in scores]
    mean = bootstrap_ratio(alike, np.ones(len(alike)), seed=seed)
    return {"similarity": mean, **caption_rates(scores, scenes, seed)}
