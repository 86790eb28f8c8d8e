"""Quality probe: what judges hear in clips rendered from captions, beside the scenes' own audio.

The judges know nothing of the model, but for its own caption of what it rendered.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from bagpiper_jax.errors import UserError
from bagpiper_jax.evaluation import asr, listening, text_metrics
from bagpiper_jax.evaluation.codec_eval import reconstruct
from bagpiper_jax.evaluation.controls import next_others
from bagpiper_jax.evaluation.embeddings import EncoderMeans, Voices
from bagpiper_jax.evaluation.frechet import halved_distances
from bagpiper_jax.evaluation.mini_probes import (
    MIN_SAMPLES,
    Generator,
    caption_rates,
    describe_audible,
    in_chunks,
    others,
    score_caption,
)
from bagpiper_jax.evaluation.rendering_probe import Spoken, errors_by_kind, errors_of
from bagpiper_jax.evaluation.text_metrics import Interval, word_error_rate
from bagpiper_jax.input_pipeline.scenes import Corpus, Scene, plan_scene, render_scene

SIDES = ("original", "codec", "rendered")  # the scene's own audio, that through the codec, ours
# What belongs to no scene falls to white noise of the scene's length and level.
CLIPS = (*SIDES, "noise")
OTHER_PROFILE = {"scene": "spelling"}  # another set of real scenes, else "scene"


class Judges(NamedTuple):
    """What hears the clips.

    Attributes:
      recognisers: name → with `transcribe_all`, as `asr.Whisper`.
      features: clips → vectors, with a `name`, for the Fréchet distance.
      mos: clip → quality of speech.
      tagger: clip → which of "speech" and "music", with a `name`.
      voices: clips → unit vectors of who speaks, with a `name`; None leaves voices out.
    """

    recognisers: dict[str, Any]
    features: Any
    mos: Callable[[np.ndarray], float]
    tagger: Any
    voices: Any | None = None


def load_judges(voices: bool = False) -> Judges:
    """All judges, their weights loaded; call it before a model generates anything.

    Args:
      voices: whether voices are compared, which needs the extra `speaker`, and so torch.

    Raises:
      UserError: an extra is not installed: `eval`, `probes` or `speaker`.
    """
    whisper = asr.Whisper()
    asr.need("jiwer")
    asr.need("speechmos.dnsmos", "probes")
    return Judges(
        {asr.WHISPER: whisper, asr.MOONSHINE: asr.Moonshine()},
        EncoderMeans(whisper),
        listening.dnsmos,
        listening.Tagger(),
        Voices() if voices else None,
    )


def quality_probe(
    generator: Generator,
    corpus: Corpus,
    codec: Any,
    judges: Judges,
    sampling: dict[str, Any],
    *,
    split: str,
    profile: str = "scene",
    count: int = 60,
    seed: int = 1,
) -> tuple[dict[str, Any], list[dict[str, Any]], list[np.ndarray]]:
    """Renders the captions of held-out scenes, and has the clips judged.

    Args:
      generator: a pipeline.
      codec: whose reconstruction of the scenes is judged too.
      judges: of `load_judges`.
      sampling: for "text" and "audio".
      split: of the scenes.
      profile: of the scenes. In "scene" a voice stands among sounds, hiss and echoes, where
        recognisers mishear even the scenes' own audio; in "spelling" it is alone.
      count: scenes, at least four.
      seed: of scenes, sampling and intervals.

    Returns:
      the figures, each by side:
        `wer`: recogniser → side → kind of string → rate, in scenes where one thing is said;
        `mos`: side → mean DNSMOS of those scenes;
        `voice`: mean cosine to the voice of the scene's own audio; of the sides, and of other
          scenes' own audio, spoken by the `same_voice` and by `another_voice`;
        `frechet`: see `frechet.halved_distances`; "original" is the floor, "profile" scenes of
          another profile, and `embedding` its name;
        `captions`: side → errors of the model's own captions of the clips against the scene;
        `tags`: side → F1 of speech and of music told by the tagger, where the scene has voices,
          and a bed of music. Some sounds are music to a tagger: see what it says of "original";
        `control`: what another scene's clip gives, of `mos` noise, of `voice` another voice.
      one item per scene;
      the rendered clips in the same order, float32 [S] at 16 kHz.

    Raises:
      UserError: fewer than four scenes asked for, or than two with one thing said.
    """
    if count < 4:
        raise UserError(f"the quality probe needs four scenes or more, not {count}")
    scenes = [plan_scene(corpus, seed, i, split, profile) for i in range(count)]
    spoken = [i for i, scene in enumerate(scenes) if len(_said(scene)) == 1]
    if len(spoken) < 2:
        raise UserError(
            f"of {count} scenes of {split}, fewer than two have one thing said: ask for more scenes"
        )
    one_voice = [_spoken(scenes[i]) for i in spoken]
    swap = others(scenes)
    call = functools.partial(generator.render_batch, sampling=sampling["audio"], seed=seed)
    rendered = in_chunks(call, [s.caption for s in scenes], f"render {split}")
    own = [render_scene(corpus, scene) for scene in scenes]
    clips = {
        "original": own,
        "codec": [reconstruct(codec, wav) for wav in tqdm(own, desc="codec", unit="clip")],
        "rendered": [_audible(wav) for wav in rendered],
        "noise": _noise(own, seed),
    }
    describe = functools.partial(describe_audible, generator, sampling["text"], seed)
    asked = clips | {"rendered": rendered}  # what ended at once has no caption, not silence's
    written = {side: in_chunks(describe, asked[side], f"describe {side}") for side in SIDES}
    tags = {
        side: [judges.tagger(wav) for wav in _bar(clips[side], f"tags: {side}")] for side in SIDES
    }
    heard = {
        name: _hear(recogniser, clips, spoken, name)
        for name, recogniser in judges.recognisers.items()
    }
    mos = {
        side: [round(judges.mos(clips[side][i]), 3) for i in _bar(spoken, f"DNSMOS: {side}")]
        for side in CLIPS
    }
    voice: dict[str, list[float | None]] = {}
    if judges.voices is not None:
        voice = _voices(judges.voices, clips, spoken, [s.scene for s in one_voice])
    spoken_swap = others([s.scene for s in one_voice])
    means = {side: _mean(values, seed) for side, values in mos.items()}
    figures: dict[str, Any] = {
        "split": split,
        "profile": profile,
        "scenes": count,
        "one_voice": len(spoken),
        "ended_at_once": sum(not len(wav) for wav in rendered),
        **_of_scenes(corpus, scenes, one_voice, written, tags, heard, seed),
        "mos": {"judge": listening.DNSMOS, **means},
        "frechet": _frechet(judges.features, corpus, clips, split, profile, seed),
        "control": {
            **_of_scenes(
                corpus,
                scenes,
                one_voice,
                {side: [texts[j] for j in swap] for side, texts in written.items()},
                {side: [found[j] for j in swap] for side, found in tags.items()},
                {
                    name: {side: [texts[j] for j in spoken_swap] for side, texts in by.items()}
                    for name, by in heard.items()
                },
                seed,
            ),
            "mos": dict.fromkeys(SIDES, means["noise"]),
        },
    }
    figures["tags"]["judge"] = judges.tagger.name
    if judges.voices is not None:
        known = {side: [v for v in values if v is not None] for side, values in voice.items()}
        means = {side: _mean(values, seed) for side, values in known.items() if values}
        figures["voice"] = {"embedding": judges.voices.name, **means}
        figures["control"]["voice"] = dict.fromkeys(SIDES, means.get("another_voice"))
    place = {i: k for k, i in enumerate(spoken)}
    items = [
        {
            "probe": "quality",
            "split": split,
            "profile": profile,
            "seed": seed,
            "index": scene.index,
            "caption": scene.caption,
            "truth": _said(scene),
            "seconds": {side: round(len(clips[side][i]) / 16_000, 2) for side in SIDES},
            "captions": {side: written[side][i] for side in SIDES},
            "tags": {side: sorted(tags[side][i]) for side in SIDES},
            "control": {"of": scenes[swap[i]].index},
        }
        | (_of_speech(place[i], heard, mos, voice) if i in place else {})
        for i, scene in enumerate(scenes)
    ]
    return figures, items, rendered


def _of_scenes(corpus, scenes, one_voice, written, tags, heard, seed) -> dict[str, Any]:
    """What was said of the clips, held against the scenes: by side, of words by recogniser too."""
    return {
        "wer": {
            name: {side: _word_errors(one_voice, texts, seed) for side, texts in by.items()}
            for name, by in heard.items()
        },
        "captions": {
            side: _caption_errors(corpus, scenes, texts, seed) for side, texts in written.items()
        },
        "tags": {side: _tag_f1(scenes, found, seed) for side, found in tags.items()},
    }


def _of_speech(k: int, heard, mos, voice) -> dict[str, Any]:
    return {
        "heard": {
            name: {side: texts[k] for side, texts in by.items()} for name, by in heard.items()
        },
        "mos": {side: values[k] for side, values in mos.items()},
        "voice": {side: values[k] for side, values in voice.items()},
    }


def _audible(wav: np.ndarray) -> np.ndarray:
    """The clip, or silence where the model ended at once: no judge takes an empty clip."""
    return np.asarray(wav, np.float32) if len(wav) >= MIN_SAMPLES else np.zeros(MIN_SAMPLES, "f4")


def _noise(wavs: Sequence[np.ndarray], seed: int) -> list[np.ndarray]:
    """White noise as long and as loud as each clip."""
    rng = np.random.default_rng(seed)
    return [
        (rng.standard_normal(len(wav)) * np.sqrt(np.mean(np.square(wav)))).astype(np.float32)
        for wav in wavs
    ]


def _said(scene: Scene) -> list[str]:
    return [event.text for event in scene.events if event.voice]


def _spoken(scene: Scene) -> Spoken:
    event = next(event for event in scene.events if event.voice)
    return Spoken(event.kind, scene, event.text)


def _hear(recogniser, clips, spoken, name) -> dict[str, list[str]]:
    """What a recogniser makes of each side of the scenes where one thing is said."""
    found = {}
    for side in SIDES:
        texts = recogniser.transcribe_all([clips[side][i] for i in spoken])
        found[side] = list(_bar(texts, f"{name.split(' (')[0]}: {side}", len(spoken)))
    return found


def _word_errors(spoken: Sequence[Spoken], heard: Sequence[str], seed: int) -> dict[str, Interval]:
    counts = [errors_of(s, text) for s, text in zip(spoken, heard, strict=True)]
    total = word_error_rate(counts, groups=[s.text for s in spoken], seed=seed)
    return {"all": total, **errors_by_kind(spoken, heard, seed)}


def _mean(values: Sequence[float], seed: int) -> Interval:
    return text_metrics.bootstrap_ratio(values, np.ones(len(values)), seed=seed)


def _frechet(features, corpus, clips, split, profile, seed) -> dict[str, Any]:
    """Distances of every side, and of scenes of another profile."""
    count = len(clips["original"])
    other = OTHER_PROFILE.get(profile, "scene")
    scenes = [plan_scene(corpus, seed, i, split, other) for i in range(count)]
    sets = clips | {"profile": [render_scene(corpus, scene) for scene in scenes]}
    vectors = {
        name: np.stack(list(_bar(features(wavs), f"features: {name}", count)))
        for name, wavs in sets.items()
    }
    found = halved_distances(vectors["original"], vectors, seed=seed)
    return {"embedding": features.name, "other_profile": other, **found}


def _caption_errors(corpus, scenes, texts, seed) -> dict[str, Interval]:
    names = corpus.event_labels
    return caption_rates([score_caption(s, t, names) for s, t in zip(scenes, texts)], scenes, seed)


def _tag_f1(scenes, tags, seed) -> dict[str, Interval]:
    real = {
        "speech": [bool(_said(scene)) for scene in scenes],
        "music": [scene.bed is not None for scene in scenes],
    }
    out = {}
    for tag, present in real.items():
        pairs = [({tag} if there else set(), found & {tag}) for there, found in zip(present, tags)]
        if any(there or named for there, named in pairs):
            out[tag] = text_metrics.events_f1(pairs, seed=seed)
    return out


def _voices(voices, clips, spoken, scenes) -> dict[str, list[float | None]]:
    """Cosines to each scene's own voice; None where no other scene has a fitting voice."""
    vectors = {
        side: list(_bar(voices([clips[side][i] for i in spoken]), f"voices: {side}", len(spoken)))
        for side in SIDES
    }
    own = vectors.pop("original")
    out: dict[str, list[float | None]] = {
        side: [_cosine(a, b) for a, b in zip(own, found)] for side, found in vectors.items()
    }
    names = [next(event.voice for event in scene.events if event.voice) for scene in scenes]
    for name, fits in (("same_voice", operator.eq), ("another_voice", operator.ne)):
        found = next_others(len(names), lambda i, j, fits=fits: fits(names[i], names[j]))
        out[name] = [None if j is None else _cosine(own[i], own[j]) for i, j in enumerate(found)]
    return out


def _cosine(one: np.ndarray, two: np.ndarray) -> float:
    return round(float(np.dot(one, two)), 4)


def _bar(items: Iterable, name: str, total: int | None = None):
    return tqdm(items, total=total, desc=name, unit="clip")
