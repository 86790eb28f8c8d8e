"""Ablation of caption-then-process: the mini model answers questions about scenes, and requests.

    bagpiper train --config experiments/ablations/dialogues.py:question --config.seed=1 \\
        --workdir runs/ablations/question-1

Supervised fine-tuning of the embedded model, with the caption before the answer or the audio
("question", "request") and without ("question_direct", "request_direct"), as many steps each. Mel
windows fill the rows of questions, so that no fewer are answered without a caption than with one.
The embedded model has seen questions about captions as text (`mini.py:longer`) and none about
audio: it brings along what a language model that was pre-trained on text does.
"""

import os

from bagpiper_jax.release import MINI
from bagpiper_jax.training.config import sibling

TASKS = ("question", "question_direct", "request", "request_direct")
_EXPERIMENTS = os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir)


def get_config(variant: str = "question"):
    """The settings of a variant, one of TASKS."""
    if variant not in TASKS:
        raise ValueError(f"there is no variant {variant!r}: choose one of {', '.join(TASKS)}")
    c = sibling(os.path.join(_EXPERIMENTS, "mini.py"), "mini").get_config("mixture")
    c.init_from = MINI
    c.steps = 500
    c.data.profile = "scene"
    c.data.mixture = {variant: 1.0}
    # what fills a row of questions: 3.6 of them with captions, 4.0 without
    c.data.windows = 28 if variant == "question_direct" else 24
    c.optimizer.peak_lr = 5e-4
    c.optimizer.final_ratio = 0.1  # (paper)
    return c
