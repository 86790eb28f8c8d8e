"""Rendering probe: what Whisper hears in audio rendered from a caption against the words it quotes.

The same scenes' own audio, and its reconstruction by the codec, are heard beside it.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from bagpiper_jax.errors import UserError
from bagpiper_jax.evaluation import text_metrics
from bagpiper_jax.evaluation.codec_eval import reconstruct
from bagpiper_jax.evaluation.controls import next_others
from bagpiper_jax.evaluation.mini_probes import Generator, in_chunks
from bagpiper_jax.evaluation.text_metrics import Errors, Interval
from bagpiper_jax.input_pipeline.scenes import Corpus, Scene, plan_scene, render_scene

SIDES = ("original", "codec", "rendered")
_SCENES_SEARCHED = 400  # for one spoken string of a kind


class Spoken(NamedTuple):
    """A scene with one thing said: its kind, the scene, the words."""

    kind: str
    scene: Scene
    text: str


def spoken_scenes(
    corpus: Corpus,
    split: str,
    counts: dict[str, int],
    seed: int,
    profile: str = "spelling",
    distinct: bool = False,
) -> list[Spoken]:
    """Scenes with one thing said, so many of each kind.

    Spelled strings come alone, from `profile`; `distinct`: no words twice. Phrases come from the
    profile "scene", with sounds around them, since held-out scenes without a spelled string are
    combinations.

    Raises:
      UserError: the split has too few of a kind.
    """
    found: list[Spoken] = []
    for kind, count in counts.items():
        world = "scene" if kind == "phrase" else profile
        some = (plan_scene(corpus, seed, i, split, world) for i in range(count * _SCENES_SEARCHED))
        one = (s for s in some if _says_only(s, kind))
        all_ = (Spoken(kind, s, next(e.text for e in s.events if e.voice)) for s in one)
        mine = list(itertools.islice(_once(all_) if distinct else all_, count))
        if len(mine) < count:
            raise UserError(f"split {split} has only {len(mine)} scenes of kind {kind}")
        found.extend(mine)
    return found


def _once(spoken: Iterator[Spoken]) -> Iterator[Spoken]:
    """The first scene of each text."""
    texts: set[str] = set()
    for s in spoken:
        if s.text not in texts:
            texts.add(s.text)
            yield s


def _says_only(scene: Scene, kind: str) -> bool:
    spoken = [event for event in scene.events if event.voice]
    if len(spoken) != 1 or spoken[0].kind != kind:
        return False
    return kind != "phrase" or len(spoken[0].text.split()) > 1


def normal_form(kind: str, text: str) -> list[str]:
    """Words or units that error rates of this kind are taken on."""
    if kind == "phrase":
        return text_metrics.normalize(text)
    return text_metrics.normalize_spelled(text, letters=kind != "digits")


def render(
    generator: Generator, spoken: Sequence[Spoken], sampling: Any, seed: int, name: str = "render"
) -> list[np.ndarray]:
    """Clips of the captions: float32 [S] at 16 kHz each."""
    captions = [s.scene.caption for s in spoken]
    call = functools.partial(generator.render_batch, sampling=sampling, seed=seed)
    return in_chunks(call, captions, name)


def hear(whisper: Any, wavs: Sequence[np.ndarray], name: str) -> list[str]:
    """What Whisper makes of clips."""
    bar = tqdm(whisper.transcribe_all(wavs), total=len(wavs), desc=f"Whisper: {name}", unit="clip")
    return list(bar)


def errors_of(spoken: Spoken, heard: str) -> Errors:
    """Word errors of what was heard of a scene."""
    truth, text = (normal_form(spoken.kind, words) for words in (spoken.text, heard))
    return text_metrics.count_errors(truth, text)


def errors_by_kind(
    spoken: Sequence[Spoken], heard: Sequence[str], seed: int
) -> dict[str, Interval]:
    """Word error rate of each kind."""
    out = {}
    for kind in dict.fromkeys(s.kind for s in spoken):
        mine = [(s, text) for s, text in zip(spoken, heard, strict=True) if s.kind == kind]
        out[kind] = text_metrics.word_error_rate(
            [errors_of(s, text) for s, text in mine],
            groups=[s.text for s, _ in mine],
            seed=seed,
        )
    return out


def control_by_kind(
    spoken: Sequence[Spoken], heard: Sequence[str], seed: int
) -> dict[str, Interval]:
    """The same of what was heard of the next scene of the kind with other words: what chance gives.

    A kind without two strings is left out.
    """
    others = next_others(
        len(spoken),
        lambda i, j: spoken[i].kind == spoken[j].kind and spoken[i].text != spoken[j].text,
    )
    pairs = [(s, heard[j]) for s, j in zip(spoken, others, strict=True) if j is not None]
    return errors_by_kind([s for s, _ in pairs], [text for _, text in pairs], seed)


def rendering_probe(
    generator: Generator,
    corpus: Corpus,
    codec: Any,
    whisper: Any,
    sampling: Any,
    *,
    split: str,
    counts: dict[str, int],
    seed: int = 1,
) -> tuple[dict[str, Any], list[dict[str, Any]], list[np.ndarray]]:
    """Word error rate of what Whisper hears in rendered clips, beside the same scenes' own audio.

    Args:
      generator: a pipeline.
      codec: whose reconstruction of the scenes is heard too.
      whisper: `asr.Whisper`.
      sampling: for audio.
      split: of the scenes.
      counts: how many scenes of each kind ("digits", "letters", "mixed", "phrase").
      seed: of scenes, sampling and intervals.

    Returns:
      the figures, one item per caption, the rendered clips in the same order.

    Raises:
      UserError: the split has too few scenes of a kind.
    """
    spoken = spoken_scenes(corpus, split, counts, seed)
    originals = [render_scene(corpus, s.scene) for s in spoken]
    wavs = {
        "original": originals,
        "codec": [reconstruct(codec, wav) for wav in tqdm(originals, desc="codec", unit="clip")],
        "rendered": render(generator, spoken, sampling, seed, f"render {split}"),
    }
    heard = {side: hear(whisper, clips, side) for side, clips in wavs.items()}
    items = [
        {
            "probe": "rendering",
            "split": split,
            "profile": s.scene.profile,
            "seed": seed,
            "index": s.scene.index,
            "kind": s.kind,
            "caption": s.scene.caption,
            "truth": s.text,
            "seconds": {side: round(len(wavs[side][i]) / 16_000, 2) for side in SIDES},
            "heard": {side: heard[side][i] for side in SIDES},
            "errors": {side: errors_of(s, heard[side][i]) for side in SIDES},
        }
        for i, s in enumerate(spoken)
    ]
    rates, chance = (
        {side: of_side(spoken, heard[side], seed) for side in SIDES}
        for of_side in (errors_by_kind, control_by_kind)
    )
    figures = {"split": split, "counts": counts, "wer": rates, "control": {"wer": chance}}
    return figures, items, wavs["rendered"]
