"""What a run of the mini model hears and says at each of its checkpoints: curves, clips, a table.

    bagpiper train --config experiments/ablations/pretraining.py --config.save_every=100 \\
        --config.keep_every=100 --workdir runs/base
    python experiments/what_to_expect.py runs/base runs/expect

Of every checkpoint that was kept, held-out strings of three digits: 60 are heard and 20 spoken,
greedily, at guidance 2, and Whisper tiny.en writes down what it hears. OUT gets `table.md`,
`curves.png`, `spectrograms.png` and a clip of each checkpoint, which all say the same words.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys

import jax
import numpy as np
from ablations.table import minutes

from bagpiper_jax.audio import save_audio
from bagpiper_jax.errors import UserError
from bagpiper_jax.evaluation.asr import Whisper
from bagpiper_jax.evaluation.mini_probes import understanding_probe
from bagpiper_jax.evaluation.rendering_probe import errors_by_kind, hear, render, spoken_scenes
from bagpiper_jax.evaluation.sampling_choice import scene_sampling
from bagpiper_jax.files import make_directory, write_text
from bagpiper_jax.html_report.media import BLUE, INK, ORANGE, new_figure
from bagpiper_jax.inference.pipeline import Pipeline
from bagpiper_jax.input_pipeline.packed_scenes import load_corpus
from bagpiper_jax.input_pipeline.scenes import Corpus
from bagpiper_jax.modeling.mel_codec import SAMPLE_RATE, log_mel
from bagpiper_jax.release import MINI, load_weights, read_config, weight_shapes

CORPUS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "data", "mini")
SPLIT, WORLD, SEED = "test_a", "three_digits", 1
LATER = tuple(f"ce/stream{k}" for k in range(1, 8))
WANTED = ("step", "ce/audio", "ce/caption", "accuracy/caption", *LATER)


def main() -> int:
    """Reads the arguments and writes everything."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", help="workdir of a training with kept checkpoints")
    parser.add_argument("out", help="directory to write")
    args = parser.parse_args()
    try:
        make_directory(args.out)
        curves(os.path.join(args.run, "metrics.jsonl"), os.path.join(args.out, "curves.png"))
        print(checkpoints(args.run, args.out))
    except UserError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    return 0


def checkpoints(run: str, out: str) -> str:
    """The table of every checkpoint of a run, and of the embedded model at last.

    Raises:
      UserError: a file of the run is missing or damaged, or one cannot be written.
    """
    corpus, whisper = load_corpus(CORPUS), Whisper()
    names = os.listdir(os.path.join(run, "checkpoints"))
    steps = sorted(int(name) for name in names if name.isdigit())
    shapes = weight_shapes(read_config(run))
    pipeline, lines, clips = Pipeline.load(run), [], {}
    for step, taken in zip(steps, minutes_at(run, steps), strict=True):
        pipeline.replace_weights(jax.device_put(load_weights(run, shapes, step)))
        heard = listened(pipeline, corpus, whisper, out, str(step), clips)
        lines.append(f"| {step} | {taken} | {heard}")
    heard = listened(Pipeline.load(MINI), corpus, whisper, out, "mini", clips)
    lines.append(f"| the mini model | | {heard}")
    spectrograms(clips, os.path.join(out, "spectrograms.png"))
    head = "| step | minutes | heard strings, WER | spoken strings, WER | said in the clip "
    head += "| Whisper hears |"
    table = "\n".join([head, "|---|---|---|---|---|---|", *lines]) + "\n"
    write_text(os.path.join(out, "table.md"), table)
    return table


def minutes_at(run: str, steps: list[int]) -> list[str]:
    """Minutes of training up to each step, "" where the run's log does not tell.

    Raises:
      UserError: a file of the run is damaged.
    """
    taken = minutes(run)
    if not taken:
        return [""] * len(steps)
    found = np.interp(steps, [0, *taken], [0, *taken.values()])
    return [f"{value:.0f}" for value in found]


def listened(
    pipeline: Pipeline, corpus: Corpus, whisper: Whisper, out: str, name: str, clips: dict
) -> str:
    """The cells of a model's line; its clip goes to a file and to `clips`."""
    sampling = scene_sampling(pipeline.sampling["text"], pipeline.sampling["audio"])
    audio = dataclasses.replace(sampling["audio"], temperature=0.0, cfg=2.0, max_rows=250)
    text = sampling["text"]
    heard, _ = understanding_probe(
        pipeline, corpus, text, split=SPLIT, profile=WORLD, count=60, seed=SEED
    )
    spoken = spoken_scenes(corpus, SPLIT, {"digits": 20}, SEED, WORLD, distinct=True)
    wavs = render(pipeline, spoken, audio, SEED, name)
    written = hear(whisper, wavs, name)
    said = errors_by_kind(spoken, written, SEED)["digits"]
    clips[name] = wavs[0]
    file = f"{name}.flac"
    save_audio(os.path.join(out, file), wavs[0])
    wers = f"{100 * heard['wer']['digits'].value:.0f} % | {100 * said.value:.0f} %"
    return f"{wers} | [{spoken[0].text}]({file}) | {written[0] or '(nothing)'} |"


def curves(metrics: str, path: str) -> None:
    """Cross-entropy of the streams, and how much of captions is right, by step.

    Raises:
      UserError: the metrics cannot be read, or lack one of these.
    """
    try:
        with open(metrics, encoding="utf-8") as file:
            rows = [json.loads(line) for line in file]
    except (OSError, ValueError) as error:
        raise UserError(f"{metrics} cannot be read: {error}") from error
    lacking = [key for key in WANTED if not rows or any(row.get(key) is None for row in rows)]
    if lacking:
        raise UserError(
            f"{metrics} lacks {', '.join(lacking)}: name the workdir of a training that hears and "
            "says audio in eight streams"
        )
    steps = [row["step"] for row in rows]
    figure, (left, right) = new_figure(9, 3, 1, 2)
    left.plot(steps, [row["ce/audio"] for row in rows], color=BLUE, label="stream 0 of audio")
    later = [np.mean([row[key] for key in LATER]) for row in rows]
    left.plot(steps, later, color=INK, label="streams 1 to 7, mean")
    left.plot(steps, [row["ce/caption"] for row in rows], color=ORANGE, label="captions of audio")
    left.set(xlabel="step", ylabel="cross-entropy, nats", ylim=(0, None))
    left.legend(frameon=False, fontsize=8, labelcolor=INK)
    right.plot(steps, [row["accuracy/caption"] for row in rows], color=ORANGE)
    right.set(xlabel="step", ylabel="tokens of captions that are right", ylim=(0, 1))
    figure.savefig(path, dpi=140, transparent=True)


def spectrograms(clips: dict[str, np.ndarray], path: str) -> None:
    """One above the other, on the same axis of time."""
    figure, axes = new_figure(9, 0.9 * len(clips), len(clips))
    seconds = max(len(wav) for wav in clips.values()) / SAMPLE_RATE
    for axis, (name, wav) in zip(axes, clips.items(), strict=True):
        frames = log_mel(np.asarray(wav, np.float32)).T
        extent = (0, len(wav) / SAMPLE_RATE, 0, len(frames))
        axis.imshow(frames, origin="lower", aspect="auto", extent=extent, vmin=np.log(2e-3), vmax=0)
        axis.set(xlim=(0, seconds), yticks=(), ylabel=name)
        axis.tick_params(labelbottom=axis is axes[-1])
    axes[-1].set(xlabel="seconds")
    figure.savefig(path, dpi=100, transparent=True)


if __name__ == "__main__":
    sys.exit(main())
