"""Trains, measures and tabulates the ablations; the same command goes on where it was killed.

    python experiments/ablations/run.py --out runs/ablations
    python experiments/ablations/run.py --out runs/ablations --only delay caption_first
    python experiments/ablations/run.py --out runs/ablations --table   # of what there is

Every run is `bagpiper train` and `bagpiper evaluate` in a process of its own, whose commands are
printed. The table goes to OUT/ablations.md and OUT/ablations.json.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
from typing import NamedTuple

import pretraining
from table import Column, write_tables

_HERE = os.path.dirname(os.path.abspath(__file__))


class Ablation(NamedTuple):
    """Variants that are compared.

    Attributes:
      question: that it answers.
      config: file of this directory that has the variants.
      variants: the first one is what the others are compared with.
      seeds: how many runs of each.
      world: of measure.py.
      columns: figures of the table.
    """

    question: str
    config: str
    variants: tuple[str, ...]
    seeds: int
    world: str
    columns: tuple[Column, ...]


_HEARD = Column("heard strings, WER", "understanding", ("wer", "digits"))
_SPOKEN = tuple(
    Column(f"spoken strings, WER, guidance {cfg:g}", "cfg_sweep", (number, "wer"))
    for number, cfg in enumerate((1.0, 1.5, 2.0, 3.0))
)
_DIGITS = (_HEARD, *_SPOKEN)
_ANSWERS = tuple(
    Column(name, "questions", ("accuracy", key))
    for name, key in (
        ("right answers", "all"),
        ("of what is said", "of_words"),
        ("of the scene", "of_scenes"),
        ("in new wordings", "new_wording"),
    )
) + (Column("with other audio", "questions", ("control", "accuracy", "all")),)
_REQUESTS = (Column("spoken strings, WER", "requests", ("wer", "digits")),)

ABLATIONS = {
    "delay": Ablation(
        "Delayed streams or parallel ones?",
        "pretraining",
        ("base", "parallel"),
        3,
        "digits",
        _DIGITS,
    ),
    "stream_loss": Ablation(
        "A loss that weighs early streams more, or all alike?",
        "pretraining",
        ("base", "flat"),
        1,
        "digits",
        _DIGITS,
    ),
    "guidance": Ablation(
        "Conditions dropped in training, or never?",
        "pretraining",
        ("base", "no_dropout"),
        1,
        "digits",
        _DIGITS,
    ),
    "mixture": Ablation(
        "How many tokens for each task?",
        "pretraining",
        ("base", "listen_more", "with_text"),
        1,
        "digits",
        _DIGITS,
    ),
    "encoder": Ablation(
        "An encoder that is trained or frozen?",
        "pretraining",
        ("base", "encoder_trained", "encoder_frozen"),
        1,
        "digits",
        _DIGITS,
    ),
    "warmup": Ablation(
        "A language model: tables and adaptor first, or all at once?",
        "pretraining",
        ("not_warmed", "warmed"),
        1,
        "digits",
        _DIGITS,
    ),
    "caption_first": Ablation(
        "A caption before the answer, or the answer at once?",
        "dialogues",
        ("question", "question_direct"),
        3,
        "questions",
        _ANSWERS,
    ),
    "caption_then_render": Ablation(
        "A caption before the audio, or the audio at once?",
        "dialogues",
        ("request", "request_direct"),
        1,
        "requests",
        _REQUESTS,
    ),
}


def main() -> int:
    """Reads the arguments, runs what is left to run, prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="runs/ablations", help="where the runs go (%(default)s)")
    parser.add_argument("--only", nargs="+", choices=ABLATIONS, default=list(ABLATIONS))
    parser.add_argument("--seeds", type=int, help="runs of each variant, in place of the plan's")
    parser.add_argument("--table", action="store_true", help="train nothing")
    args = parser.parse_args()
    chosen = {
        name: ABLATIONS[name]._replace(seeds=args.seeds or ABLATIONS[name].seeds)
        for name in args.only
    }
    if not args.table:
        for ablation in chosen.values():  # the first seed of all before the second of any
            for variant in ablation.variants:
                run(args.out, ablation, variant, 0)
        for ablation in chosen.values():
            for seed in range(1, ablation.seeds):
                for variant in ablation.variants:
                    run(args.out, ablation, variant, seed)
    print(write_tables(args.out, chosen))
    return 0


def run(out: str, ablation: Ablation, variant: str, seed: int) -> None:
    """Trains and measures one run, if that is not done yet."""
    workdir = os.path.join(out, f"{variant}-{seed}")
    measured = os.path.join(workdir, "evaluation")
    if os.path.exists(os.path.join(measured, "results.json")):
        return
    train(out, ablation.config, variant, seed)
    config = os.path.join(_HERE, "measure.py")
    settings = [f"--config={config}:{ablation.world}", f"--config.checkpoint={workdir}"]
    _call("evaluate", *settings, "--workdir", measured)


def train(out: str, name: str, variant: str, seed: int) -> str:
    """Trains a run, and before it the one that it starts from; returns its directory."""
    config = os.path.join(_HERE, f"{name}.py")
    workdir = os.path.join(out, f"{variant}-{seed}")
    arguments = [f"--config={config}:{variant}", f"--config.seed={seed}", "--workdir", workdir]
    if variant in pretraining.STARTS:
        start = train(out, name, pretraining.STARTS[variant], seed)
        arguments.append(f"--config.init_from={start}")
    _call("train", *arguments)
    return workdir


def _call(command: str, *arguments: str) -> None:
    print("bagpiper", command, shlex.join(arguments), flush=True)
    code = "import sys; from bagpiper_jax.cli import main; sys.exit(main())"
    done = subprocess.run([sys.executable, "-c", code, command, *arguments], check=False)
    if done.returncode:
        sys.exit(done.returncode)


if __name__ == "__main__":
    sys.exit(main())
