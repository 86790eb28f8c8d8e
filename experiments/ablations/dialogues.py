"""Ablation of caption-then-process: the mini model answers questions about scenes, and requests.

    bagpiper train --config experiments/ablations/dialogues.py:question \\
        --config.init_from=runs/ablations/reader-1 --config.seed=1 \\
        --workdir runs/ablations/question-1

Supervised fine-tuning of the embedded model, with the caption before the answer or the audio
("question", "request") and without ("question_direct", "request_direct"), as many steps each. Mel
windows fill the rows of questions, so that no fewer are answered without a caption than with one.

A language model that was pre-trained on text can answer questions about a text; the embedded
model cannot. So the questions start from "reader", which has learned to answer them from captions
given as text; "question_unread" and "question_direct_unread" start from the embedded model itself.
"""

import os

from bagpiper_jax.release import MINI
from bagpiper_jax.training.config import sibling

TASKS = {
    "reader": "text_question",
    "question": "question",
    "question_direct": "question_direct",
    "question_unread": "question",
    "question_direct_unread": "question_direct",
    "request": "request",
    "request_direct": "request_direct",
}
# variants that go on from the run of another one
STARTS = {"question": "reader", "question_direct": "reader"}
_EXPERIMENTS = os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir)


def get_config(variant: str = "question"):
    """The settings of a variant, one of TASKS."""
    if variant not in TASKS:
        raise ValueError(f"there is no variant {variant!r}: choose one of {', '.join(TASKS)}")
    c = sibling(os.path.join(_EXPERIMENTS, "mini.py"), "mini").get_config("mixture")
    if variant not in STARTS:
        c.init_from = MINI
    task = TASKS[variant]
    c.steps = 1000 if variant == "reader" else 500
    c.data.profile = "scene"
    c.data.mixture = {task: 1.0}
    # what fills a row of questions: 3.6 of them with captions, 4.0 without
    c.data.windows = 28 if task == "question_direct" else 24
    c.optimizer.peak_lr = 5e-4
    c.optimizer.final_ratio = 0.1  # (paper)
    return c
