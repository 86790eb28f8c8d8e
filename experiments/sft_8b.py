"""Fine-tuning of Bagpiper 8B on dialogues that caption first, then answer or render.

    bagpiper train --config experiments/sft_8b.py --config.init_from=runs/pretrain \\
        --config.data.sets=SETS --workdir runs/sft

`init_from` may be a converted public checkpoint as well. Sizes and all that is not named here are
those of `pretrain_8b.py`. A batch has 32 rows, which larger slices than of 32 chips share by
`--config.mesh.tensor`: 2 for 64 chips, 4 for 128, 8 for 256.
"""

from bagpiper_jax.training.config import sibling


def get_config(size: str = "pod"):
    """The settings for a size of `pretrain_8b.py`."""
    c = sibling(__file__, "pretrain_8b").get_config(size)
    c.steps = 50_000  # (paper)
    # a quarter of pre-training's: no accumulation there, against 4 (reference)
    c.data.batch_tokens = 262_144
    c.data.mixture = {"dialogue": 1.0}  # understanding and generation together (paper)
    c.optimizer.peak_lr = 1e-5  # (paper)
    c.optimizer.final_ratio = 0.1  # (paper)
    c.optimizer.warmup_steps = 1_000  # (paper)
    c.compute.accumulation = {"chips1": 32, "chips8": 4, "pod": 1}[size]
    c.keep_every = 5_000
    return c
