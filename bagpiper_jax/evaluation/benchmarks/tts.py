"""Text to speech: what a recogniser hears in the model's speech against the text; LibriSpeech's
sentences and Seed-TTS-Eval's."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from bagpiper_jax.audio import SAMPLE_RATE
from bagpiper_jax.errors import UserError
from bagpiper_jax.evaluation.benchmarks import wer
from bagpiper_jax.evaluation.benchmarks.generation import Generator, speak
from bagpiper_jax.evaluation.benchmarks.item import Item, choose, load_clip
from bagpiper_jax.evaluation.benchmarks.published import published
from bagpiper_jax.evaluation.benchmarks.readers.librispeech import read_librispeech
from bagpiper_jax.evaluation.benchmarks.readers.seed_tts import read_seed_tts
from bagpiper_jax.evaluation.benchmarks.scores import spread
from bagpiper_jax.evaluation.mini_probes import in_chunks
from bagpiper_jax.evaluation.text_metrics import Errors, count_errors

TEMPLATE = 'A person speaks clearly in a quiet room and says: "{text}"'
LANGUAGES = ("en", "zh")
Found = tuple[dict[str, Any], list[dict[str, Any]], dict[str, np.ndarray]]


def librispeech_tts(
    generator: Generator,
    data: str,
    whisper: Any,
    sampling: Mapping[str, Any] | None = None,
    *,
    subset: str = "test-clean",
    template: str = TEMPLATE,
    modalities: Sequence[str] = ("audio",),
    repeats: int = 3,
    recordings: bool = True,
    keep: int = 8,
    count: int = 0,
    seed: int = 1,
) -> Found:
    """Word error rates of speech from LibriSpeech's sentences, raw and normalised.

    The text is the transcript as a sentence, "He hoped.": the corpus has neither case nor stops.

    Args:
      generator: a pipeline.
      data: the folder of the subset, or one above it.
      whisper: the recogniser, `asr.Whisper(max_new_tokens=224)`.
      sampling: settings by modality; None: the model's own.
      subset: its name.
      template: what the model is told, with {text}.
      modalities: of its answer: ("audio",), or ("text", "audio") where it writes a caption first.
      repeats: renderings of each sentence, with seeds `seed`, `seed` + 1, …
      recordings: hear the true recordings too, their first 30 s: what can be reached.
      keep: renderings whose sound is given back, the first that have one.
      count: sentences, drawn by `seed`; 0: all.
      seed: of the choice, sampling and intervals.

    Returns:
      the figures (shares); one item per rendering; the sounds that are kept, float32 [S] at
      16 kHz, by the name that their item has under "clip".

    Raises:
      UserError: damaged data, no {text} in the template; the extra `eval` is not installed.
    """
    normaliser = wer.normaliser_name()
    items = choose(read_librispeech(data, subset), count, seed)
    texts = [item.answer.capitalize() + "." for item in items]
    out, clips = _rendered(
        "librispeech_tts",
        generator,
        items,
        texts,
        whisper,
        sampling,
        wer.count,
        template=template,
        modalities=modalities,
        seeds=range(seed, seed + repeats),
        recordings=recordings,
        keep=keep,
    )
    figures = tts_figures(out, seed) | {"published": published("tts_wer")}
    return figures | {"asr": _name(whisper), "normaliser": normaliser}, out, clips


def seed_tts_eval(
    generator: Generator,
    data: str,
    whisper: Any,
    sampling: Mapping[str, Any] | None = None,
    *,
    language: str = "en",
    template: str = TEMPLATE,
    modalities: Sequence[str] = ("audio",),
    repeats: int = 3,
    recordings: bool = True,
    keep: int = 8,
    count: int = 0,
    seed: int = 1,
) -> Found:
    """Word error rate of Seed-TTS-Eval (of characters in Mandarin): the mean of the utterances'.

    Beside its form of the words stand the raw one and, in English, the normalised one of
    `librispeech_tts`; in Mandarin raw characters are those that were heard, not simplified.

    The prompt recordings are not used: the model takes a description, not a voice. Similarity of
    speakers is not measured.

    Args:
      generator: a pipeline.
      data: `meta.lst`, or its folder.
      whisper: the recogniser; official: Whisper large-v3 (en), Paraformer (zh).
      sampling: settings by modality; None: the model's own.
      language: "en" or "zh".
      template, modalities, repeats, recordings, keep, count, seed: see `librispeech_tts`;
        recordings of the texts are heard where every line names one, which few lists do.

    Returns:
      the figures (shares); one item per rendering; the sounds that are kept, float32 [S] at
      16 kHz, by the name that their item has under "clip".

    Raises:
      UserError: damaged data, an unknown language, no {text} in the template; the extra `eval` or
        zhconv is not installed.
    """
    if language not in LANGUAGES:
        raise UserError(f"language {language!r} is none of {', '.join(LANGUAGES)}")
    normaliser, count_one = _seed_tts_forms(language)

    items = choose(read_seed_tts(data), count, seed)
    out, clips = _rendered(
        "seed_tts_eval",
        generator,
        items,
        [item.answer for item in items],
        whisper,
        sampling,
        count_one,
        template=template,
        modalities=modalities,
        seeds=range(seed, seed + repeats),
        recordings=recordings and all(item.audio for item in items),
        keep=keep,
    )
    figures = tts_figures(out, seed)
    figures["wer"]["mean_of_utterances"] = wer.mean_of_utterances(out, "errors", "seed_tts", seed)
    figures |= {"language": language, "asr": _name(whisper), "normaliser": normaliser}
    return figures, out, clips


def tts_figures(items: Sequence[dict[str, Any]], seed: int) -> dict[str, Any]:
    """Word error rates over all renderings, and their spread over seeds; `recordings` is what the
    recogniser makes of the true ones."""
    seeds = list(dict.fromkeys(item["seed"] for item in items))
    by_seed = [[item for item in items if item["seed"] == s] for s in seeds]
    figures: dict[str, Any] = {
        "items": len(by_seed[0]),
        "silent": sum(item["seconds"] == 0 for item in items),
        "wer": wer.rates(items, "errors", seed),
        "over_seeds": {
            form: spread(
                [sum((Errors(*i["errors"][form]) for i in part), Errors()).rate for part in by_seed]
            )
            for form in items[0]["errors"]
        },
        "seeds": seeds,
    }
    if "recording_errors" in items[0]:
        figures["recordings"] = {"wer": wer.rates(by_seed[0], "recording_errors", seed)}
    return figures


def _rendered(
    name: str,
    generator: Generator,
    items: Sequence[Item],
    texts: Sequence[str],
    whisper: Any,
    sampling: Any,
    count_one: Callable[[str, str], dict[str, Errors]],
    *,
    template: str,
    modalities: Sequence[str],
    seeds: Sequence[int],
    recordings: bool,
    keep: int,
) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
    if "{text}" not in template:
        raise UserError(f"the template {template!r} has no {{text}}: put it where the words belong")
    if not len(seeds):
        raise UserError("repeats must be 1 or more")

    def hear_recordings(part: Sequence[Item]) -> list[str]:
        return list(whisper.transcribe_all([load_clip(item.audio)[0] for item in part]))

    prompts = [template.replace("{text}", wer.quoted_words(text)) for text in texts]
    known: dict[str, Any] = {}
    if recordings:
        known = dict(zip([i.key for i in items], in_chunks(hear_recordings, items, "recordings")))
    out: list[dict[str, Any]] = []
    clips: dict[str, np.ndarray] = {}
    for seed in seeds:

        def render(part: Sequence[tuple[Item, str]], seed: int = seed) -> list[dict[str, Any]]:
            wavs = speak(generator, [p for _, p in part], modalities, sampling, seed=seed)
            words = iter(list(whisper.transcribe_all([wav for wav in wavs if len(wav)])))
            rows = []
            for (item, prompt), wav in zip(part, wavs, strict=True):
                rows.append(_row(name, item, prompt, seed, wav, next(words) if len(wav) else ""))
                if len(wav) and len(clips) < keep:
                    rows[-1]["clip"] = str(len(clips))
                    clips[rows[-1]["clip"]] = wav
            return rows

        pairs = list(zip(items, prompts, strict=True))
        out += in_chunks(render, pairs, f"{name}, seed {seed}")
    for row in out:
        row["errors"] = count_one(row["truth"], row["heard"])
        if recordings:
            row["recording_heard"] = known[row["key"]]
            row["recording_errors"] = count_one(row["truth"], known[row["key"]])
    return out, clips


def _row(name: str, item: Item, prompt: str, seed: int, wav: Any, heard: str) -> dict[str, Any]:
    return {
        "benchmark": name,
        "key": item.key,
        "seed": seed,
        "prompt": prompt,
        "truth": item.answer,
        "seconds": round(len(wav) / SAMPLE_RATE, 2),
        "heard": heard,
    }


def _seed_tts_forms(language: str) -> tuple[str, Callable[[str, str], dict[str, Errors]]]:
    """The normaliser's name, and what counts errors in each form of the words."""

    def official(truth: str, heard: str) -> Errors:
        return count_errors(*(wer.seed_tts_words(text, language) for text in (truth, heard)))

    if language == "en":
        name = wer.normaliser_name()
        return name, lambda truth, heard: {
            "seed_tts": official(truth, heard),
            **wer.count(truth, heard),
        }
    try:
        import zhconv
    except ImportError as e:
        raise UserError("Mandarin needs zhconv (GPL): pip install 'zhconv>=1.4,<2'") from e
    return f"zhconv {importlib.metadata.version('zhconv')}, zh-cn", lambda truth, heard: {
        "seed_tts": official(truth, zhconv.convert(heard, "zh-cn")),
        "raw": official(truth, heard),
    }


def _name(whisper: Any) -> str:
    return getattr(whisper, "name", type(whisper).__name__)
