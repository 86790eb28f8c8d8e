"""Ablations of pre-training: the mini model learns to hear and say one to three digits.

    bagpiper train --config experiments/ablations/pretraining.py:parallel \\
        --config.seed=1 --workdir runs/ablations/parallel-1

`experiments/ablations/run.py` trains, measures and tabulates all of them. A variant is the base
with the changes of its function below; those of STARTS want `--config.init_from` too. The base is
`mini.py:words` with less to learn; all variants that are compared see the same number of tokens.
"""

import os

from bagpiper_jax.release import MINI
from bagpiper_jax.training.config import sibling

_EXPERIMENTS = os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir)
STEPS = 600


def _base(c):
    pass


def _parallel(c):
    c.model_changes = {"vocab": {"stream_delay": 0}}  # all eight tokens of a frame in one row


def _flat(c):
    c.model_changes = {"vocab": {"codec_weight": 0.125}}  # (paper); the base weighs early books


def _no_dropout(c):
    c.data.cfg_dropout = 0.0


def _listen_more(c):
    c.data.mixture = {"text_to_audio": 1.0, "audio_to_text": 2.0, "text_only": 0.0}


def _with_text(c):
    c.data.mixture = {"text_to_audio": 2.0, "audio_to_text": 1.0, "text_only": 1.0}  # (paper)


def _encoder_trained(c):
    c.init_from, c.init_parts = MINI, ("audio_tower",)


def _encoder_frozen(c):
    _encoder_trained(c)
    c.frozen = ("audio_tower",)  # (paper)


def _text(c):
    """A language model that has read captions and heard nothing: where the next three start."""
    c.data.profile = "scene"
    c.data.mixture = {"text_to_audio": 0.0, "audio_to_text": 0.0, "text_only": 1.0}
    c.steps = STEPS // 2


def _warmup(c):
    c.frozen = ("model.layers",)  # tables, stream_emb, adaptor and final norm learn (paper)
    c.steps = STEPS // 5
    c.optimizer.final_ratio = 1.0  # (paper)


def _warmed(c):
    c.steps = STEPS - STEPS // 5


def _not_warmed(c):
    pass


# variants that go on from the run of another one
STARTS = {"warmup": "text", "warmed": "warmup", "not_warmed": "text"}
VARIANTS = {
    "base": _base,
    "parallel": _parallel,
    "flat": _flat,
    "no_dropout": _no_dropout,
    "listen_more": _listen_more,
    "with_text": _with_text,
    "encoder_trained": _encoder_trained,
    "encoder_frozen": _encoder_frozen,
    "text": _text,
    "warmup": _warmup,
    "warmed": _warmed,
    "not_warmed": _not_warmed,
}


def get_config(variant: str = "base"):
    """The settings of a variant, one of VARIANTS."""
    if variant not in VARIANTS:
        raise ValueError(f"there is no variant {variant!r}: choose one of {', '.join(VARIANTS)}")
    c = sibling(os.path.join(_EXPERIMENTS, "mini.py"), "mini").get_config("words")
    c.steps = STEPS
    c.data.profile = "digits"
    c.sample_every = STEPS
    c.data.tokenizer = c.data.codec = MINI  # the same for all, and fitting them takes minutes
    VARIANTS[variant](c)
    return c
