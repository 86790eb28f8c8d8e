"""The demonstration behind `make demo`: a short training, an evaluation, one report.

The training is too short to learn much: it shows that the loss falls. What is evaluated is the
committed checkpoint, on fewer scenes than its committed figures, which stand beside.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from bagpiper_jax.errors import UserError
from bagpiper_jax.evaluation import asr
from bagpiper_jax.evaluation.evaluate import ITEMS_FILE, evaluate, read_items
from bagpiper_jax.evaluation.figures import Evaluation, committed, figures_of
from bagpiper_jax.evaluation.report import read_curve, write_report
from bagpiper_jax.input_pipeline.packed_scenes import load_corpus
from bagpiper_jax.modeling.mel_codec import MelCodec
from bagpiper_jax.release import CODEC_FILE, MINI, TOKENIZER_FILE
from bagpiper_jax.training.config import RunConfig, load_config
from bagpiper_jax.training.loop import train

EXPERIMENT = Path(__file__).parents[2] / "experiments" / "mini.py"
REPORT_FILE, TRAIN_DIR = "report.html", "short_training"
_WARMUP_STEPS = 30


def run_demo(
    out: str,
    *,
    checkpoint: str = MINI,
    steps: int = 200,
    scenes: int = 60,
    unseen: int = 20,
    renders: int = 20,
    sweep: int = 0,
    prompts: int = 50,
    seed: int = 2,  # other scenes than those of the committed figures
) -> str:
    """Trains for a few minutes, evaluates `checkpoint`, writes `out/report.html`.

    Args:
      out: directory for everything; a training that an earlier demonstration left there is removed.
      checkpoint: a released checkpoint or a workdir, whose tokenizer and codec the training uses.
      steps: of the short training.
      scenes, unseen, renders, sweep, prompts, seed: see `evaluate`.

    Returns:
      the path of the report.

    Raises:
      UserError: an extra is missing, the checkpoint does not load, or `out` cannot be written.
    """
    if not EXPERIMENT.is_file():
        raise UserError(f"there is no {EXPERIMENT}: run the demonstration from a clone")
    asr.require()
    run = _short_run(checkpoint, steps)
    workdir = os.path.join(out, TRAIN_DIR)
    if os.path.exists(os.path.join(workdir, "config.json")):
        shutil.rmtree(workdir)
    print(f"1/3 a short training of {steps} steps", flush=True)
    train(run, workdir)
    print(
        f"2/3 the checkpoint {os.path.basename(os.path.abspath(checkpoint))} on held-out scenes",
        flush=True,
    )
    results = evaluate(
        checkpoint,
        out,
        corpus_dir=run.data.corpus,
        scenes=scenes,
        unseen=unseen,
        renders=renders,
        sweep=sweep,
        prompts=prompts,
        seed=seed,
    )
    print("3/3 the report", flush=True)
    evaluations = [*committed(checkpoint), Evaluation("this run", results)]
    path = os.path.join(out, REPORT_FILE)
    write_report(
        path,
        evaluations,
        read_items(os.path.join(out, ITEMS_FILE)),
        folder=out,
        corpus=load_corpus(run.data.corpus),
        codec=MelCodec.load(os.path.join(checkpoint, CODEC_FILE)),
        curves={
            "Short training of this run": read_curve(workdir),
            "Training of the committed checkpoint": read_curve(checkpoint),
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
    return load_config([f"--config={EXPERIMENT}", *overrides])
