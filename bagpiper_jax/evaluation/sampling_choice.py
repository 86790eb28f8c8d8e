"""Sampling settings of a checkpoint, chosen on the development split and kept beside it."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
from typing import Any

from bagpiper_jax.evaluation import text_metrics
from bagpiper_jax.evaluation.rendering_probe import (
    Spoken,
    errors_of,
    hear,
    render,
    spoken_scenes,
)
from bagpiper_jax.files import write_json
from bagpiper_jax.inference.pipeline import Pipeline
from bagpiper_jax.inference.sampling import AUDIO, TEXT, Sampling
from bagpiper_jax.input_pipeline.scenes import Corpus
from bagpiper_jax.release import SAMPLING_FILE

TRIALS_FILE = "sampling_trials.json"
CHOSEN = "chosen on development scenes"  # a `sampling_source`
TEMPERATURES = (0.0, 0.6, 0.8)
CFGS = (1.0, 1.5, 2.0, 3.0)
MIN_ROWS = (20, 40, 60)  # the shortest scenes have about 60 frames
# the best of the grid, and on how many times as many scenes they are tried again: on twenty the
# first and the sixth differ by a word or two
FINALISTS, FINAL_TIMES = 3, 5
# Of scenes: 8 s in frames and the delay of the streams; captions of at most 45 words.
MAX_AUDIO_ROWS, MAX_TEXT_ROWS = 408, 128


def scene_sampling(text: Sampling, audio: Sampling) -> dict[str, Sampling]:
    """Settings for scenes: text greedy, and no answer longer than a scene's."""
    limit = min(text.max_rows, MAX_TEXT_ROWS)
    text = dataclasses.replace(text, temperature=0.0, cfg=1.0, max_rows=limit)
    audio = dataclasses.replace(audio, max_rows=min(audio.max_rows, MAX_AUDIO_ROWS))
    return {"text": text, "audio": audio}


def choose_sampling(
    pipe: Pipeline,
    corpus: Corpus,
    whisper: Any,
    checkpoint: str,
    *,
    counts: dict[str, int],
    seed: int = 1,
) -> dict[str, Sampling]:
    """Picks temperature and guidance, then the least number of rows, by Whisper's error rate.

    The grid is tried on some scenes, the best of it, and other least numbers of rows, on those and
    more, all of the split dev. Of equal settings the earlier in the grid wins, so the lower
    temperature and guidance. Writes the choice to `sampling.json` in `checkpoint`, which
    `Pipeline.load` reads, and every trial to `sampling_trials.json`.

    Args:
      pipe: the checkpoint's pipeline.
      whisper: `asr.Whisper`.
      checkpoint: directory to write to.
      counts: how many development scenes of each kind the grid is tried on.
      seed: of scenes and sampling.

    Returns:
      the settings by modality.
    """
    settings = scene_sampling(TEXT, AUDIO)  # not what an earlier choice left behind
    more = {kind: count * FINAL_TIMES for kind, count in counts.items()}
    trials: list[dict[str, Any]] = []

    def trial(stage: str, spoken: list[Spoken], sampling: Sampling) -> float:
        name = f"{stage}: T={sampling.temperature:g} cfg={sampling.cfg:g} least={sampling.min_rows}"
        heard = hear(whisper, render(pipe, spoken, sampling, seed, name), name)
        counted = [errors_of(s, text) for s, text in zip(spoken, heard, strict=True)]
        rate = text_metrics.word_error_rate(counted, seed=seed)
        trials.append({"stage": stage, **dataclasses.asdict(sampling), "wer": rate._asdict()})
        return rate.value

    def best_first(reached: dict[Sampling, float]) -> list[Sampling]:
        return sorted(reached, key=reached.__getitem__)

    some = spoken_scenes(corpus, "dev", counts, seed)
    grid = [
        dataclasses.replace(settings["audio"], temperature=temperature, cfg=cfg)
        for temperature, cfg in itertools.product(TEMPERATURES, CFGS)
    ]
    finalists = best_first({option: trial("grid", some, option) for option in grid})[:FINALISTS]
    all_ = spoken_scenes(corpus, "dev", more, seed)
    final = {option: trial("final", all_, option) for option in grid if option in finalists}
    best = best_first(final)[0]
    lengths = {best: final[best]}
    for rows in MIN_ROWS:
        option = dataclasses.replace(best, min_rows=rows)
        if option != best:
            lengths[option] = trial("min_rows", all_, option)
    settings["audio"] = best_first(lengths)[0]

    chosen = {kind: dataclasses.asdict(sampling) for kind, sampling in settings.items()}
    notes = {"split": "dev", "counts": {"grid": counts, "final": more}, "seed": seed}
    notes |= {"chosen": chosen["audio"], "trials": trials}
    write_json(os.path.join(checkpoint, TRIALS_FILE), notes)
    write_json(os.path.join(checkpoint, SAMPLING_FILE), chosen)
    return settings


def sampling_source(checkpoint: str, audio: Sampling) -> str:
    """Where a checkpoint's audio settings come from, as far as the files beside it prove.

    Trials that do not tell what was chosen prove nothing.
    """
    path = os.path.join(checkpoint, TRIALS_FILE)
    try:
        with open(path, encoding="utf-8") as file:
            chosen = json.load(file)["chosen"]
    except (OSError, ValueError, KeyError, TypeError):
        return "not chosen"
    return CHOSEN if chosen == dataclasses.asdict(audio) else "not chosen"
