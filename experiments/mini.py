"""A small Bagpiper that learns the embedded real corpus on two CPU cores.

    bagpiper train --config experiments/mini.py --workdir runs/mini

Settings are ours unless marked (paper): arXiv 2602.05220, or (reference): ESPnet SpeechLM.
"""

import os

import ml_collections

_HERE = os.path.dirname(os.path.abspath(__file__))


def get_config() -> ml_collections.ConfigDict:
    """The settings of the committed mini checkpoint."""
    c = ml_collections.ConfigDict()
    c.model = "mini"  # preset of bagpiper_jax.get_config
    c.seed = 0  # of weights, scenes and their order
    c.steps = 7000  # optimizer steps
    c.init_from = ""  # run or checkpoint whose weights to start from, with a fresh optimizer

    c.data = ml_collections.ConfigDict()
    c.data.corpus = os.path.normpath(os.path.join(_HERE, "..", "data", "mini"))
    c.data.profile = "mixed"  # half short spelled strings, half full scenes
    # hearing and speaking are found soonest in a world of digits in one voice
    c.data.first_profile = "digits"
    c.data.first_steps = 900
    # share of tokens by task (paper)
    c.data.mixture = {"text_to_audio": 2.0, "audio_to_text": 1.0, "text_only": 1.0}
    c.data.cfg_dropout = 0.1  # 0.05 (paper); a short training sees few of them
    c.data.rows = 4  # packed rows of a batch
    c.data.length = 512  # positions of a row: a scene of 8 s and its caption fit
    c.data.windows = 12  # mel windows (seconds, in blocks of 4) of a row
    c.data.workers = 1  # processes that make the batches
    c.data.tokenizer = ""  # file to use; empty: fitted on captions of the corpus
    c.data.codec = ""  # file to use; empty: fitted on scenes of the corpus

    c.optimizer = ml_collections.ConfigDict()
    c.optimizer.peak_lr = 2e-3
    c.optimizer.encoder_lr_ratio = 0.5  # at the full rate its features grow without bound
    c.optimizer.final_ratio = 0.03
    c.optimizer.warmup_steps = 150
    c.optimizer.b1 = 0.9  # (reference)
    c.optimizer.b2 = 0.95  # (reference)
    c.optimizer.eps = 1e-8  # (reference)
    c.optimizer.weight_decay = 0.1
    c.optimizer.clip = 1.0  # (reference)

    c.log_every = 20  # steps between metrics
    c.sample_every = 1000  # steps between captions and renderings of development scenes
    c.save_every = 250  # steps between checkpoints
    c.keep = 2  # last checkpoints to keep
    return c
