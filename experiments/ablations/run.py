"""Trains, measures and tabulates the ablations; the same command goes on where it was killed.

    python experiments/ablations/run.py --out runs/ablations
    python experiments/ablations/run.py --out runs/ablations --only delay caption_first
    python experiments/ablations/run.py --out runs/ablations --table   # of what there is

Every run is `bagpiper train` and `bagpiper evaluate` in a process of its own, whose commands are
printed. The tables go to OUT/ablations.md and OUT/ablations.json. A run that is done is left as it
is; one that was done with other settings than those of today ends it all before anything runs.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import pretraining
from table import Column, write_tables

from bagpiper_jax.errors import UserError
from bagpiper_jax.evaluation import config as measuring
from bagpiper_jax.evaluation.figures import RESULTS_FILE
from bagpiper_jax.evaluation.workdir import read_json
from bagpiper_jax.training import config as training

_HERE = os.path.dirname(os.path.abspath(__file__))
# settings of a training that no figure depends on
_FREE = ("data.workers", "log_every", "sample_every", "save_every", "keep", "keep_every")


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
    Column(f"spoken strings, WER, guidance {cfg:g}", "cfg_sweep", (str(number), "wer"))
    for number, cfg in enumerate((1.0, 1.5, 2.0, 3.0))
)
_OTHER_SCENE = Column("with another scene's audio", "understanding", ("control", "wer", "digits"))
_DIGITS = (_HEARD, _OTHER_SCENE, *_SPOKEN)
_ANSWERS = tuple(
    Column(name, "questions", ("accuracy", key))
    for name, key in (
        ("right answers", "all"),
        ("of what is said", "of_words"),
        ("of the scene", "of_scenes"),
        ("in known wordings", "known_wording"),
        ("in new wordings", "new_wording"),
        ("after a right caption", "after_right_caption"),
        ("after a wrong one", "after_wrong_caption"),
    )
) + (
    Column("a program's, from its captions", "questions", ("read_from_caption",)),
    Column("with other audio", "questions", ("control", "accuracy", "all")),
)
_REQUESTS = (
    Column("spoken strings, WER", "requests", ("wer", "digits")),
    Column("with another request's audio", "requests", ("control", "wer", "digits")),
)

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
        ("encoder_frozen", "encoder_trained", "base"),
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
    parser.add_argument("--seeds", type=_count, help="runs of each variant, not the plan's number")
    parser.add_argument("--table", action="store_true", help="train nothing")
    args = parser.parse_args()
    chosen = {name: ABLATIONS[name] for name in args.only}
    if args.seeds is not None:
        chosen = {name: each._replace(seeds=args.seeds) for name, each in chosen.items()}
    plan = [
        (ablation, variant, seed)
        for ablation in chosen.values()
        for seed in range(ablation.seeds)
        for variant in ablation.variants
    ]
    plan.sort(key=lambda planned: planned[2] > 0)  # the first seed of all before others of any
    try:
        if not args.table:
            for planned in plan:  # what does not fit is told before anything runs
                is_done(args.out, *planned)
            for planned in plan:
                run(args.out, *planned)
        recipes = {name: recipe(args.out, ablation) for name, ablation in chosen.items()}
        print(write_tables(args.out, chosen, recipes, pretraining.STARTS))
    except UserError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    return 0


def run(out: str, ablation: Ablation, variant: str, seed: int) -> None:
    """Trains and measures one run, if that is not done yet."""
    if not is_done(out, ablation, variant, seed):
        for line in commands(out, ablation, variant, seed):
            _call(*line)


def is_done(out: str, ablation: Ablation, variant: str, seed: int) -> bool:
    """Whether a run is trained and measured.

    Raises:
      UserError: it is, but with other settings than it would be now.
    """
    workdir = os.path.join(out, f"{variant}-{seed}")
    results = read_json(os.path.join(workdir, "evaluation", RESULTS_FILE))
    if results is None:
        return False
    asked = measuring.load_config(f"{_file('measure')}:{ablation.world}")
    evaluators = {i.name: {"use": i.use, **i.settings} for i in asked.evaluators}
    now = {"seed": asked.seed, "audio": asked.audio, "evaluators": evaluators}
    found = {"evaluation": _differences({key: results.get(key) for key in now}, now)}
    for trained, arguments in trainings(out, ablation.config, variant, seed):
        then = read_json(os.path.join(trained, "config.json"))
        now = dataclasses.asdict(training.load_config(arguments))
        found[os.path.basename(trained)] = (
            ["no config.json"] if then is None else _differences(then, json.loads(json.dumps(now)))
        )
    changed = [f"{part}: {', '.join(what)}" for part, what in found.items() if what]
    if changed:
        raise UserError(
            f"{workdir} was made with other settings ({'; '.join(changed)}): delete it, or name "
            "another --out"
        )
    return True


def _differences(then: Any, now: Any, name: str = "") -> list[str]:
    """What two nested settings differ in, as "key=then (not now)".

    Of paths the last part counts: clones lie in other places.
    """
    if isinstance(then, dict) and isinstance(now, dict):
        keys = {**then, **now}
        below = {key: f"{name}.{key}" if name else key for key in keys}
        return [d for key in keys for d in _differences(then.get(key), now.get(key), below[key])]
    if isinstance(then, str) and isinstance(now, str):
        same = os.path.basename(then) == os.path.basename(now)
    else:
        same = then == now
    return [] if same or name in _FREE else [f"{name}={then} (not {now})"]


def trainings(
    out: str, config: str, variant: str, seed: int | str
) -> list[tuple[str, tuple[str, ...]]]:
    """(directory, settings) of a run's training, after those of the runs that it starts from."""
    before, settings = [], (f"--config={_file(config)}:{variant}", f"--config.seed={seed}")
    if variant in pretraining.STARTS:
        before = trainings(out, config, pretraining.STARTS[variant], seed)
        settings += (f"--config.init_from={before[-1][0]}",)
    return [*before, (os.path.join(out, f"{variant}-{seed}"), settings)]


def commands(out: str, ablation: Ablation, variant: str, seed: int | str) -> list[list[str]]:
    """Arguments of `bagpiper` that make a run: its trainings, and the evaluation."""
    trained = trainings(out, ablation.config, variant, seed)
    lines = [["train", *settings, "--workdir", workdir] for workdir, settings in trained]
    workdir = trained[-1][0]
    settings = [f"--config={_file('measure')}:{ablation.world}", f"--config.checkpoint={workdir}"]
    return [*lines, ["evaluate", *settings, "--workdir", os.path.join(workdir, "evaluation")]]


def recipe(out: str, ablation: Ablation) -> str:
    """Command lines that make the rows of a table, for any SEED; VARIANT where all are alike."""
    alike = pretraining.STARTS.keys().isdisjoint(ablation.variants)
    lines = [
        _shown(line)
        for variant in (("VARIANT",) if alike else ablation.variants)
        for line in commands(out, ablation, variant, "SEED")
    ]
    return "\n".join(dict.fromkeys(lines))  # two may start from the same one


def _call(*arguments: str) -> None:
    print(_shown(arguments), flush=True)
    code = "import sys; from bagpiper_jax.cli import main; sys.exit(main())"
    done = subprocess.run([sys.executable, "-c", code, *arguments], check=False)
    if done.returncode:
        sys.exit(done.returncode)


def _shown(arguments: Sequence[str]) -> str:
    return shlex.join(["bagpiper", *arguments])


def _file(name: str) -> str:
    """A config of this directory, as a path that says nothing of the machine."""
    return os.path.relpath(os.path.join(_HERE, f"{name}.py"))


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number from 1 on")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
