"""Warm-up of Bagpiper 8B: new rows and the adaptor learn, encoder and decoder layers stay.

    bagpiper convert Qwen3-8B-Base new_8b --to orbax --tower TOWER --codec CODEC \\
        --tokenizer tokenizer.json
    bagpiper train --config experiments/warmup_8b.py --config.init_from=new_8b \\
        --config.data.sets=SETS --workdir runs/warmup

Embeddings, head, stream embeddings, adaptor and the final norm are trained. Sizes and all that is
not named here are those of `pretrain_8b.py`.
"""

from bagpiper_jax.training.config import sibling


def get_config(size: str = "pod"):
    """The settings for a size of `pretrain_8b.py`."""
    c = sibling(__file__, "pretrain_8b").get_config(size)
    c.steps = 10_000  # (paper)
    c.frozen = ("audio_tower", "model.layers")  # (paper)
    c.optimizer.peak_lr = 5e-4  # (paper)
    c.optimizer.final_ratio = 1.0  # constant (paper)
    c.optimizer.warmup_steps = 100  # (paper)
    c.keep_every = 0
    return c
