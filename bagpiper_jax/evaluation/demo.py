"""The demonstration behind `make demo`: a short training, an evaluation, one report.

The training is too short to learn much: it shows that the loss falls. What is evaluated is the
committed checkpoint, on fewer scenes than its committed figures, which stand beside.
"""

from __future__ import annotations

import os
import shutil

from bagpiper_jax.evaluation import registry
from bagpiper_jax.evaluation.config import experiment
from bagpiper_jax.evaluation.config import load_config as load_evaluation
from bagpiper_jax.evaluation.context import Scenes
from bagpiper_jax.evaluation.evaluate import evaluate
from bagpiper_jax.evaluation.figures import Evaluation, committed, figures_of
from bagpiper_jax.evaluation.report import read_curve, write_report
from bagpiper_jax.evaluation.workdir import HEAD_FILE
from bagpiper_jax.release import CODEC_FILE, TOKENIZER_FILE
from bagpiper_jax.training.config import RunConfig, load_config
from bagpiper_jax.training.loop import train

REPORT_FILE, TRAIN_DIR, EVALUATION_DIR = "report.html", "short_training", "evaluation"
_WARMUP_STEPS = 30


def run_demo(out: str, *, steps: int = 200) -> str:
    """Trains for a few minutes, evaluates the mini checkpoint, writes `out/report.html`.

    The evaluation is `experiments/evaluate_mini.py:quick`, in `out/evaluation`.

    Args:
      out: directory for everything; what an earlier demonstration left there is removed.
      steps: of the short training.

    Returns:
      the path of the report.

    Raises:
      UserError: an extra is missing, it is run from no clone, or `out` cannot be written.
    """
    config = load_evaluation(f"{experiment('evaluate_mini')}:quick")
    for instance in config.evaluators:
        registry.require(instance.use)
    run = _short_run(config.checkpoint, steps)
    workdir, measured = os.path.join(out, TRAIN_DIR), os.path.join(out, EVALUATION_DIR)
    for directory, mark in ((workdir, "config.json"), (measured, HEAD_FILE)):
        if os.path.exists(os.path.join(directory, mark)):
            shutil.rmtree(directory)
    print(f"1/3 a short training of {steps} steps", flush=True)
    train(run, workdir)
    name = os.path.basename(os.path.abspath(config.checkpoint))
    print(f"2/3 the checkpoint {name} on held-out scenes", flush=True)
    results = evaluate(config, measured)
    print("3/3 the report", flush=True)
    evaluations = [*committed(config.checkpoint), Evaluation("this run", results)]
    path = os.path.join(out, REPORT_FILE)
    write_report(
        path,
        evaluations,
        measured,
        Scenes(config.checkpoint, config.corpus),
        curves={
            "Short training of this run": read_curve(workdir),
            "Training of the committed checkpoint": read_curve(config.checkpoint),
        },
    )
    for evaluation in evaluations:
        print("\n".join(figures_of(evaluation.results, evaluation.name)))
    print(f"report: {path}", flush=True)
    return path


def _short_run(checkpoint: str, steps: int) -> RunConfig:
    """`experiments/mini.py`, shortened, with the checkpoint's tokenizer and codec."""
    changes = {
        "steps": steps,
        "log_every": max(1, steps // 40),
        "save_every": steps,
        "sample_every": steps,
        "optimizer.warmup_steps": min(_WARMUP_STEPS, steps - 1),
        "data.tokenizer": os.path.join(checkpoint, TOKENIZER_FILE),
        "data.codec": os.path.join(checkpoint, CODEC_FILE),
    }
    overrides = [f"--config.{key}={value}" for key, value in changes.items()]
    return load_config([f"--config={experiment('mini')}", *overrides])
