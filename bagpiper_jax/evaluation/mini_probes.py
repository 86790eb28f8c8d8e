"""Understanding probe: the captions that a model writes for held-out scenes against the scenes.

The truth is known exactly, since scenes are composed. `rendering_probe` is the other direction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import numpy as np
from tqdm import tqdm

from bagpiper_jax.errors import UserError
from bagpiper_jax.evaluation import text_metrics
from bagpiper_jax.evaluation.controls import next_others
from bagpiper_jax.evaluation.text_metrics import DIGITS, Errors, align_quotes
from bagpiper_jax.input_pipeline.scenes import (
    Corpus,
    Parsed,
    Scene,
    parse_caption,
    plan_scene,
    render_scene,
    truth,
)
from bagpiper_jax.input_pipeline.scenes.scene import SPELLED

KINDS = (*SPELLED, "phrase")
# name of a figure → kinds of strings, and their least number of units: of the pairs of digits, so
# few are held out that three and more are also counted alone
GROUPS = {
    "spelled": (SPELLED, 0),
    "spelled_long": (SPELLED, 3),
    **{kind: ((kind,), 0) for kind in KINDS},
}
MIN_SAMPLES = 1_600  # the shortest clip that a pipeline takes: 0.1 s
CHUNK = 20  # clips or captions handed to the pipeline at once, one compiled shape


class Generator(Protocol):
    """What the probes ask of `inference.pipeline.Pipeline`."""

    def describe_batch(self, wavs, *, sampling, seed=0) -> list[str]:
        """Captions of clips, float32 [S] at 16 kHz."""

    def render_batch(self, texts, *, sampling, seed=0) -> list[np.ndarray]:
        """Clips, float32 [S] at 16 kHz, of captions."""


def in_chunks(call: Callable[[Sequence], list], items: Sequence, name: str) -> list:
    """call on CHUNK items after the other, with a progress bar."""
    out: list = []
    with tqdm(total=len(items), desc=name, unit="clip") as bar:
        for start in range(0, len(items), CHUNK):
            part = items[start : start + CHUNK]
            out.extend(call(part))
            bar.update(len(part))
    return out


def describe_audible(
    generator: Generator, sampling: Any, seed: int, wavs: Sequence[np.ndarray]
) -> list[str]:
    """Captions of clips; empty where a clip is too short for one."""
    heard = [i for i, wav in enumerate(wavs) if len(wav) >= MIN_SAMPLES]
    texts = [""] * len(wavs)
    if heard:
        found = generator.describe_batch([wavs[i] for i in heard], sampling=sampling, seed=seed)
        for i, text in zip(heard, found, strict=True):
            texts[i] = str(text)
    return texts


def understanding_probe(
    generator: Generator,
    corpus: Corpus,
    sampling: Any,
    *,
    split: str,
    profile: str = "scene",
    count: int = 300,
    seed: int = 1,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Captions of held-out scenes, scored against the scenes.

    The control scores each scene against the caption written for another one, so for other audio:
    what it gets right there, it guessed. A scene with a spelled string meets one with another.

    Args:
      generator: a pipeline.
      sampling: for text.
      split: of the scenes, see `scenes.splits`.
      profile: of the scenes.
      count: scenes, at least two.
      seed: of scenes, sampling and intervals.

    Returns:
      the figures, and one item per scene.

    Raises:
      UserError: fewer than two scenes asked for.
    """
    if count < 2:
        raise UserError("the understanding probe needs at least two scenes")
    scenes = [plan_scene(corpus, seed, i, split, profile) for i in range(count)]

    def describe(part: Sequence[Scene]) -> list[str]:
        wavs = [render_scene(corpus, scene) for scene in part]
        return generator.describe_batch(wavs, sampling=sampling, seed=seed)

    written = in_chunks(describe, scenes, f"describe {split}")
    names = corpus.event_labels
    items = [
        {
            "probe": "understanding",
            "split": split,
            "profile": profile,
            "seed": seed,
            "index": scene.index,
            "caption": scene.caption,
            "output": text,
            **score_caption(scene, text, names),
            "control": {"of": other_scene.index, **score_caption(scene, other, names)},
        }
        for scene, text, other_scene, other in (
            (scenes[i], written[i], scenes[j], written[j]) for i, j in enumerate(others(scenes))
        )
    ]
    figures = caption_figures(items, seed)
    figures["control"] = caption_figures([item["control"] for item in items], seed)
    return {"split": split, "profile": profile, "scenes": count, **figures}, items


def others(scenes: Sequence[Scene]) -> list[int]:
    """For each scene the next one that has a spelled string too, of other words, or has none too.

    The next one of all where there is none such; never the scene itself.
    """
    words = [[e.text for e in s.events if e.kind in SPELLED] for s in scenes]

    def fits(i: int, j: int) -> bool:
        return bool(words[i]) == bool(words[j]) and (not words[i] or words[i] != words[j])

    found = next_others(len(scenes), fits)
    return [(i + 1) % len(scenes) if j is None else j for i, j in enumerate(found)]


def score_caption(scene: Scene, text: str, names: Iterable[str]) -> dict[str, Any]:
    """What a written caption gets right of a scene.

    Returns:
      quotes: one entry per string spoken or written, with kind, truth, written (None where there is
        none) and the word errors; events: those there and those named; noise, room: right or not.
    """
    kinds = [event.kind for event in scene.events if event.voice]
    return compare_captions(truth(scene), parse_caption(text, names), kinds)


def compare_captions(
    real: Parsed, parsed: Parsed, kinds: Sequence[str] | None = None
) -> dict[str, Any]:
    """`score_caption` against what another caption says; kinds: of its quotes, told if known."""
    true_words = [quote.lower().split() for quote in real.quotes]
    words = [quote.lower().split() for quote in parsed.quotes]
    if kinds is None:
        kinds = [kind_of(quote) for quote in true_words]
    quotes = []
    for i, j in align_quotes(true_words, words):
        quotes.append(
            {
                "kind": kind_of(words[j]) if i is None else kinds[i],
                "truth": None if i is None else real.quotes[i],
                "written": None if j is None else parsed.quotes[j],
                "errors": text_metrics.count_errors(
                    [] if i is None else true_words[i], [] if j is None else words[j]
                ),
            }
        )
    return {
        "quotes": quotes,
        "events": {"truth": sorted(real.events), "named": sorted(parsed.events)},
        **_surroundings(real, parsed),
    }


def words_and_events_right(scene: Scene, text: str, names: Iterable[str]) -> bool:
    """Whether a written caption has all strings and events of a scene, and no others."""
    scored = score_caption(scene, text, names)
    events = scored["events"]
    wrong = sum(quote["errors"].errors for quote in scored["quotes"])
    return events["truth"] == events["named"] and not wrong


def _surroundings(real: Parsed, parsed: Parsed) -> dict[str, bool]:
    return {"noise": real.noise == parsed.noise, "room": real.room == parsed.room}


def kind_of(words: Sequence[str]) -> str:
    """Kind of a quote that nothing spoken belongs to."""
    digits = [word in DIGITS for word in words]
    letters = [len(word) == 1 for word in words]
    if not words or not all(d or s for d, s in zip(digits, letters)):
        return "phrase"
    return "digits" if all(digits) else "letters" if all(letters) else "mixed"


def caption_figures(items: Sequence[dict[str, Any]], seed: int) -> dict[str, Any]:
    """Error rates of quoted strings by kind, F1 of events, share of surroundings told right."""
    rates, exact = {}, {}
    for group, (kinds, least) in GROUPS.items():
        of_kind = [
            [
                q
                for q in item["quotes"]
                if q["kind"] in kinds and len((q["truth"] or q["written"]).split()) >= least
            ]
            for item in items
        ]
        counts = [sum((q["errors"] for q in quotes), Errors()) for quotes in of_kind]
        if any(c.words for c in counts):
            asked = [[q for q in quotes if q["truth"] is not None] for quotes in of_kind]
            said = [tuple(q["truth"] for q in quotes) or i for i, quotes in enumerate(asked)]
            rates[group] = text_metrics.word_error_rate(counts, groups=said, seed=seed)
            exact[group] = text_metrics.bootstrap_ratio(
                [sum(q["errors"].errors == 0 for q in quotes) for quotes in asked],
                [len(quotes) for quotes in asked],
                groups=said,
                seed=seed,
            )
    pairs = [(set(item["events"]["truth"]), set(item["events"]["named"])) for item in items]
    figures: dict[str, Any] = {"wer": rates, "exact": exact}
    figures["events_f1"] = text_metrics.events_f1(pairs, seed=seed)
    sounds = [tuple({n for n in names if ":" not in n} for names in pair) for pair in pairs]
    if any(real for real, _ in sounds):
        figures["sounds_f1"] = text_metrics.events_f1(sounds, seed=seed)
    for name in ("noise", "room"):
        right = [item[name] for item in items]
        figures[name] = text_metrics.bootstrap_ratio(right, np.ones(len(right)), seed=seed)
    return figures


def caption_rates(
    scores: Sequence[dict[str, Any]], scenes: Sequence[Scene], seed: int
) -> dict[str, text_metrics.Interval]:
    """Error rate of all quoted strings and F1 of events, of scores of captions of scenes.

    Scenes that say the same are drawn together. What there is nothing to measure of is left out.
    """
    out = {}
    counts = [sum((q["errors"] for q in score["quotes"]), Errors()) for score in scores]
    if any(c.words for c in counts):
        said = [tuple(e.text for e in s.events if e.voice) or i for i, s in enumerate(scenes)]
        out["wer"] = text_metrics.word_error_rate(counts, groups=said, seed=seed)
    pairs = [(set(score["events"]["truth"]), set(score["events"]["named"])) for score in scores]
    if any(real or named for real, named in pairs):
        out["events_f1"] = text_metrics.events_f1(pairs, seed=seed)
    return out
