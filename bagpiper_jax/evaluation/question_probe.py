"""Questions about held-out scenes, answered by the model or read off its captions.

What a caption-then-process model gains by its caption (arXiv 2602.05220) is the difference between
two checkpoints: trained on the tasks `question` and `question_direct`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from bagpiper_jax.conversation import split_answer
from bagpiper_jax.errors import UserError
from bagpiper_jax.evaluation.caption_reader import read_answer
from bagpiper_jax.evaluation.controls import next_others
from bagpiper_jax.evaluation.mini_probes import in_chunks, words_and_events_right
from bagpiper_jax.evaluation.text_metrics import Interval, bootstrap_ratio
from bagpiper_jax.input_pipeline.scenes import (
    Corpus,
    Question,
    Scene,
    ask,
    parse_caption,
    plan_scene,
    render_scene,
)
from bagpiper_jax.input_pipeline.scenes.questions import OF_WORDS

_LOOKED_AHEAD = 19  # scenes, for one of the same kind whose audio stands in


class Describer(Protocol):
    """What the probe by captions asks of `inference.pipeline.Pipeline`."""

    def describe_batch(self, audios, *, sampling, seed=0) -> list[str]:
        """Captions of clips, float32 [S] at 16 kHz."""


class Answerer(Protocol):
    """What the probe by answers asks of `inference.pipeline.Pipeline`."""

    def describe_batch(self, audios, question, *, sampling, seed=0) -> list[str]:
        """Answers to a question for each clip, float32 [S] at 16 kHz."""


def question_probe(
    generator: Answerer,
    corpus: Corpus,
    sampling: Any,
    *,
    split: str,
    profile: str = "scene",
    count: int = 500,
    seed: int = 1,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Share of right answers to questions about clips, by kind of question.

    Beside each figure: `majority`, what the most frequent right answer of its kind would reach, and
    `control`, the same questions about another scene's audio. `read_from_caption`: of the answers
    with a caption, the share that `caption_reader` finds in it; what the model answers less often
    right than that, it cannot read.

    Args:
      generator: a pipeline.
      sampling: for text.
      split: of the scenes, see `scenes.splits`.
      profile: of the scenes; one with full captions.
      count: questions, one per scene; at least two.
      seed: of scenes, sampling and intervals.

    Returns:
      the figures, and one item per question.

    Raises:
      UserError: fewer than two questions asked for.
    """
    scenes, asked, others = _asked(corpus, split, profile, count, seed)

    def answers(heard: Sequence[int], name: str) -> list[str]:
        def call(part: Sequence[tuple[int, int]]) -> list[str]:
            wavs = [render_scene(corpus, scenes[clip]) for _, clip in part]
            questions = [asked[i].text for i, _ in part]
            return generator.describe_batch(wavs, questions, sampling=sampling, seed=seed)

        return in_chunks(call, list(enumerate(heard)), name)

    own = answers(range(count), f"questions {split}")
    control = answers(others, f"questions {split}, other audio")
    items = [
        {"output": own[i], **_answered(own[i], question, scenes[i], corpus)}
        | {"control": {"output": control[i], **_answered(control[i], question)}}
        for i, question in enumerate(asked)
    ]
    return _outcome("questions", items, scenes, asked, others, seed)


def caption_question_probe(
    generator: Describer,
    corpus: Corpus,
    sampling: Any,
    *,
    split: str,
    profile: str = "scene",
    count: int = 500,
    seed: int = 1,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Share of questions that the model's captions answer to a reader who hears nothing.

    The understanding probe of arXiv 2602.05220, with `caption_reader` in the place of a language
    model. Arguments, figures and errors are those of `question_probe`; the control reads the
    caption of another scene.
    """
    scenes, asked, others = _asked(corpus, split, profile, count, seed)

    def describe(part: Sequence[Scene]) -> list[str]:
        wavs = [render_scene(corpus, scene) for scene in part]
        return generator.describe_batch(wavs, sampling=sampling, seed=seed)

    captions = in_chunks(describe, scenes, f"describe {split}")
    music = corpus.labels["train", "music"]
    read = [parse_caption(caption, corpus.event_labels) for caption in captions]
    items = []
    for i, question in enumerate(asked):
        answer, other = (read_answer(question, read[j], music) for j in (i, others[i]))
        items.append(
            {"output": captions[i], "answer": answer, "right": same_answer(answer, question.answer)}
            | {"control": {"answer": other, "right": same_answer(other, question.answer)}}
        )
    return _outcome("caption_questions", items, scenes, asked, others, seed)


def _asked(
    corpus: Corpus, split: str, profile: str, count: int, seed: int
) -> tuple[list[Scene], list[Question], list[int]]:
    """Scenes, a question for each, and for each the scene whose audio or caption stands in."""
    if count < 2:
        raise UserError("a probe by questions needs at least two scenes")
    scenes = [plan_scene(corpus, seed, i, split, profile) for i in range(count)]
    asked = [ask(scene, corpus.labels["train", "sound"]) for scene in scenes]
    return scenes, asked, _others(asked)


def _answered(
    text: str, question: Question, scene: Scene | None = None, corpus: Corpus | None = None
) -> dict[str, Any]:
    """A text as an answer, and of a scene's own whether its caption, if there is one, is right."""
    caption, answer = split_answer(text)
    out: dict[str, Any] = {"answer": answer, "right": same_answer(answer, question.answer)}
    if caption and scene is not None:
        labels, music = corpus.event_labels, corpus.labels["train", "music"]
        found = read_answer(question, parse_caption(caption, labels), music)
        out["caption_right"] = words_and_events_right(scene, caption, labels)
        out["read_right"] = same_answer(found, question.answer)
    return out


def _outcome(
    probe: str,
    answered: Sequence[dict[str, Any]],
    scenes: Sequence[Scene],
    asked: Sequence[Question],
    others: Sequence[int],
    seed: int,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    items = [
        {
            "probe": probe,
            "split": scene.split,
            "profile": scene.profile,
            "seed": seed,
            "index": scene.index,
            "kind": question.kind,
            "question": question.text,
            "new_wording": question.new_wording,
            "truth": question.answer,
            **item,
        }
        for item, scene, question in zip(answered, scenes, asked, strict=True)
    ]
    for item, other in zip(items, others, strict=True):
        item["control"]["of"] = scenes[other].index
    where = {"split": scenes[0].split, "profile": scenes[0].profile, "questions": len(items)}
    return {**where, **_figures(items, seed)}, items


def same_answer(written: str, truth: str) -> bool:
    """Whether two answers are the same words, whatever their case and punctuation."""
    return _words(written) == _words(truth)


def _words(text: str) -> list[str]:
    return re.findall(r"[\w']+", text.lower())


def _others(asked: Sequence[Question]) -> list[int]:
    """For each question, a later scene of which the same kind is asked; never itself."""
    count = len(asked)
    found = next_others(count, lambda i, j: asked[j].kind == asked[i].kind, _LOOKED_AHEAD)
    return [(i + 1) % count if j is None else j for i, j in enumerate(found)]


def _figures(items: Sequence[dict[str, Any]], seed: int) -> dict[str, Any]:
    groups = {
        "all": items,
        "of_words": [i for i in items if i["kind"] in OF_WORDS],
        "of_scenes": [i for i in items if i["kind"] not in OF_WORDS],
        "known_wording": [i for i in items if not i["new_wording"]],
        "new_wording": [i for i in items if i["new_wording"]],
        "after_right_caption": [i for i in items if i.get("caption_right") is True],
        "after_wrong_caption": [i for i in items if i.get("caption_right") is False],
    }
    groups |= {k: [i for i in items if i["kind"] == k] for k in sorted({i["kind"] for i in items})}
    common = {kind: _majority(items, kind) for kind in {i["kind"] for i in items}}
    figures: dict[str, Any] = {"accuracy": {}, "majority": {}, "control": {"accuracy": {}}}
    for name, group in groups.items():
        if group:
            of = [item["index"] for item in group]  # which are in it, the model may decide
            guessed = [same_answer(common[i["kind"]], i["truth"]) for i in group]
            control = [i["control"]["right"] for i in group]
            figures["accuracy"][name] = _share([i["right"] for i in group], of, seed)
            figures["majority"][name] = _share(guessed, of, seed)
            figures["control"]["accuracy"][name] = _share(control, of, seed)
    if read := [item for item in items if "read_right" in item]:
        of = [item["index"] for item in read]
        figures["read_from_caption"] = _share([i["read_right"] for i in read], of, seed)
    return figures


def _majority(items: Sequence[dict[str, Any]], kind: str) -> str:
    truths = [item["truth"] for item in items if item["kind"] == kind]
    return max(sorted(set(truths)), key=truths.count)


def _share(right: Sequence[bool], of: Sequence[int], seed: int) -> Interval:
    return bootstrap_ratio(right, np.ones(len(right)), groups=of, seed=seed)
