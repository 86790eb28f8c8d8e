"""A run of six steps that the tests of training share."""

import json
import os
import shutil

from bagpiper_jax.release import CODEC_FILE, MODEL_FILE, TOKENIZER_FILE
from bagpiper_jax.training.config import load_config

CONFIG = os.path.join(os.path.dirname(__file__), "..", "experiments", "mini.py")
TINY = [
    "--config.model=tiny",
    "--config.steps=6",
    "--config.optimizer.warmup_steps=2",
    "--config.optimizer.peak_lr=0.01",
    "--config.data.batch_tokens=1536",
    "--config.data.workers=0",
    "--config.data.profile=mixed",
    "--config.data.length=768",
    "--config.mesh.fsdp=2",
    "--config.mesh.tensor=4",
    "--config.log_every=1",
    "--config.save_every=3",
]


def settings(*overrides):
    return load_config(["--config", CONFIG, *TINY, *overrides])


def losses(workdir):
    with open(os.path.join(workdir, "metrics.jsonl"), encoding="utf-8") as f:
        return {line["step"]: line["loss"] for line in map(json.loads, f)}


def copy_assets(source, target):
    os.makedirs(target, exist_ok=True)
    for name in (TOKENIZER_FILE, CODEC_FILE, MODEL_FILE):
        shutil.copy(os.path.join(source, name), target)
