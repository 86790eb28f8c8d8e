"""Evaluates a mini checkpoint on held-out scenes: `bagpiper evaluate`.

Writes `results.json` (figures with 95 % bootstrap intervals), `items.jsonl` (per scene what was
asked, written and heard) and a few rendered clips.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
from collections.abc import Sequence
from typing import Any

from bagpiper_jax.audio import save_audio
from bagpiper_jax.errors import UserError
from bagpiper_jax.evaluation import asr, text_metrics
from bagpiper_jax.evaluation.codec_eval import codec_probe
from bagpiper_jax.evaluation.figures import RESULTS_FILE
from bagpiper_jax.evaluation.mini_probes import understanding_probe
from bagpiper_jax.evaluation.rendering_probe import (
    errors_by_kind,
    hear,
    render,
    rendering_probe,
    spoken_scenes,
)
from bagpiper_jax.evaluation.sampling_choice import CFGS, sampling_source, scene_sampling
from bagpiper_jax.files import make_directory, write_json, write_text
from bagpiper_jax.inference.pipeline import Pipeline
from bagpiper_jax.input_pipeline.packed_scenes import load_corpus
from bagpiper_jax.release import weights_digest

ITEMS_FILE, AUDIO_DIR = "items.jsonl", "audio"
UNSEEN_SPLIT = "test_b"


def evaluate(
    checkpoint: str,
    out: str,
    *,
    corpus_dir: str,
    scenes: int = 300,
    unseen: int = 100,
    renders: int = 60,
    sweep: int = 30,
    prompts: int = 150,
    split: str = "test_a",
    seed: int = 1,
    keep_audio: int = 8,
) -> dict[str, Any]:
    """Runs every probe on a checkpoint and writes the results to `out`.

    Args:
      checkpoint: a run's workdir or a released checkpoint.
      out: directory for the results.
      corpus_dir: of the mini corpus.
      scenes: held-out scenes to describe.
      unseen: scenes of the unseen voice and takes to describe; 0 leaves them out.
      renders: digit strings to render, and half as many letter strings and phrases.
      sweep: digit strings of the guidance sweep; 0 leaves it out.
      prompts: recorded phrases for the codec, at most; the mini corpus has 115.
      split: of the scenes.
      seed: of scenes, sampling and intervals.
      keep_audio: rendered clips of each kind to keep in `out`.

    Returns:
      what `results.json` holds.

    Raises:
      UserError: the extra `eval` is missing, bad arguments, or `out` cannot be written.
    """
    if scenes < 2 or renders < 2 or prompts < 1 or unseen == 1:
        raise UserError(
            "an evaluation needs 2 scenes, 2 renders and 1 codec prompt at least, and unseen "
            "scenes, where there are any, too"
        )
    asr.require()
    whisper = asr.Whisper()
    make_directory(os.path.join(out, AUDIO_DIR))
    corpus = load_corpus(corpus_dir)
    pipe = Pipeline.load(checkpoint)
    sampling = scene_sampling(pipe.sampling["text"], pipe.sampling["audio"])
    results: dict[str, Any] = {
        "checkpoint": os.path.basename(os.path.abspath(checkpoint)),
        "weights_sha256": weights_digest(checkpoint),
        "date": datetime.date.today().isoformat(),
        "split": split,
        "seed": seed,
        "sampling": {kind: dataclasses.asdict(s) for kind, s in sampling.items()},
        "sampling_source": sampling_source(checkpoint, sampling["audio"]),
        "judges": {"whisper": asr.WHISPER, "visqol": asr.VISQOL},
        "versions": asr.versions(),
    }
    results["codec"], items = codec_probe(pipe.codec, corpus, whisper, count=prompts, seed=seed)
    for name, of, count in (("understanding", split, scenes), ("unseen", UNSEEN_SPLIT, unseen)):
        if count:
            results[name], more = understanding_probe(
                pipe, corpus, sampling["text"], split=of, count=count, seed=seed
            )
            items += more
    counts = {"digits": renders, "letters": -(-renders // 2), "phrase": -(-renders // 2)}
    results["rendering"], more, wavs = rendering_probe(
        pipe, corpus, pipe.codec, whisper, sampling["audio"], split=split, counts=counts, seed=seed
    )
    _keep_audio(more, wavs, out, keep_audio)
    items += more
    if sweep:
        results["cfg_sweep"] = cfg_sweep(
            pipe, corpus, whisper, sampling["audio"], split=split, count=sweep, seed=seed
        )
    results = to_json(results)
    write_json(os.path.join(out, RESULTS_FILE), results)
    _write_items(os.path.join(out, ITEMS_FILE), items)
    return results


def cfg_sweep(
    generator: Any, corpus: Any, whisper: Any, sampling: Any, *, split: str, count: int, seed: int
) -> list[dict[str, Any]]:
    """Error rate of rendered digit strings at each strength of guidance, all else as chosen."""
    spoken = spoken_scenes(corpus, split, {"digits": count}, seed)
    out = []
    for cfg in CFGS:
        setting = dataclasses.replace(sampling, cfg=cfg)
        heard = hear(
            whisper, render(generator, spoken, setting, seed, f"cfg {cfg:g}"), f"cfg {cfg:g}"
        )
        out.append({"cfg": cfg, "wer": errors_by_kind(spoken, heard, seed)["digits"]})
    return out


def to_json(value: Any) -> Any:
    """Named figures as JSON objects, counts of errors as [errors, words]."""
    if isinstance(value, text_metrics.Interval):
        return {name: round(part, 5) for name, part in value._asdict().items()}
    if isinstance(value, dict):
        return {name: to_json(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(part) for part in value]
    return value


def read_items(path: str) -> list[dict[str, Any]]:
    """The items of an evaluation.

    Raises:
      UserError: the file is missing or damaged.
    """
    try:
        with open(path, encoding="utf-8") as file:
            return [json.loads(line) for line in file]
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read ({error}): run `bagpiper evaluate` again"
        ) from error


def _keep_audio(items: Sequence[dict[str, Any]], wavs: Sequence[Any], out: str, each: int) -> None:
    kept: dict[str, int] = {}
    for item, wav in zip(items, wavs, strict=True):
        number = kept.get(item["kind"], 0)
        if number < each and len(wav):
            item["audio"] = f"{AUDIO_DIR}/{item['kind']}-{number}.flac"
            save_audio(os.path.join(out, item["audio"]), wav)
            kept[item["kind"]] = number + 1


def _write_items(path: str, items: Sequence[dict[str, Any]]) -> None:
    lines = (json.dumps(to_json(item), ensure_ascii=False) + "\n" for item in items)
    write_text(path, "".join(lines))
