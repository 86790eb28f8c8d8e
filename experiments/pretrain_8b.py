"""Pre-training of Bagpiper 8B: the decoder learns, the audio encoder stays as it is.

    bagpiper train --config experiments/pretrain_8b.py --config.init_from=runs/warmup \\
        --config.data.sets=SETS --workdir runs/pretrain
    bagpiper compile --config experiments/pretrain_8b.py --topology v5p:4x4x8

Sizes: `pretrain_8b.py:chips1`, `:chips8`, `:pod` (the default). They differ in how a step is
computed, `chips1` in its model too; the batch is the same number of tokens, in 128 rows: up to 128
chips take whole rows, 256 share them by `--config.mesh.tensor=2`. Settings are ours unless marked
(paper): arXiv 2602.05220, or (reference): ESPnet SpeechLM.
"""

import ml_collections

SIZES = ("chips1", "chips8", "pod")


def get_config(size: str = "pod") -> ml_collections.ConfigDict:
    """The settings for a size, one of SIZES."""
    if size not in SIZES:
        raise ValueError(f"there is no size {size!r}: choose one of {', '.join(SIZES)}")
    c = ml_collections.ConfigDict()
    # 8.3 B parameters with their moments need eight chips
    c.model = "bagpiper_1.7b" if size == "chips1" else "bagpiper_8b"
    c.seed = 0  # of weights, examples and their order
    c.steps = 600_000  # (paper)
    c.model_changes = ml_collections.ConfigDict()  # in which the model differs from it
    c.init_from = ""  # weights to start from, with a new optimizer: a run, or what convert wrote
    c.init_parts = ()  # the parts whose weights are taken of it; empty: all
    c.frozen = ("audio_tower",)  # (paper)

    c.data = ml_collections.ConfigDict()
    c.data.sets = ()  # (directory, task, weight) of prepared data sets; empty: scenes of corpus
    c.data.corpus = ""  # to be named
    c.data.profile = "scene"
    # share of tokens by task (paper)
    c.data.mixture = {"text_to_audio": 2.0, "audio_to_text": 1.0, "text_only": 1.0}
    c.data.cfg_dropout = 0.05  # (paper)
    c.data.batch_tokens = 1_048_576  # 600 B tokens in 600,000 steps (paper)
    c.data.length = 8192  # positions of a row (paper)
    c.data.windows = 128  # mel windows (seconds) of a row: a quarter of its tokens is captioning
    c.data.workers = 8  # processes that make the batches
    c.data.tokenizer = ""  # a file, or a model directory; empty: that of init_from
    # a file, or a model directory; empty: that of init_from, or it is fitted on the corpus
    c.data.codec = ""

    c.optimizer = ml_collections.ConfigDict()
    c.optimizer.peak_lr = 1e-4  # (paper)
    c.optimizer.encoder_lr_ratio = 1.0  # the adaptor learns like the rest
    c.optimizer.final_ratio = 0.3  # (paper)
    c.optimizer.warmup_steps = 5_000  # (paper)
    c.optimizer.b1 = 0.9  # (reference)
    c.optimizer.b2 = 0.95  # (reference)
    c.optimizer.eps = 1e-8  # (reference)
    c.optimizer.weight_decay = 3e-7  # (reference)
    c.optimizer.clip = 1.0  # (reference)
    # float32 (reference)
    c.optimizer.moments_dtype = "bfloat16" if size == "chips1" else "float32"

    c.mesh = ml_collections.ConfigDict()  # -1: the devices that are left
    c.mesh.replica = 1  # slices
    c.mesh.fsdp = -1
    c.mesh.tensor = 1

    c.compute = ml_collections.ConfigDict()
    c.compute.dtype = "bfloat16"  # (reference)
    c.compute.remat = "full"  # (reference)
    c.compute.attention = "auto"  # splash on TPUs, cuDNN on GPUs
    # micro-batches of a step: one row for each chip at a time
    c.compute.accumulation = {"chips1": 128, "chips8": 16, "pod": 1}[size]

    c.log_every = 20  # steps between metrics
    c.sample_every = 5_000  # steps between captions and renderings of development scenes
    c.save_every = 500  # steps between checkpoints
    c.keep = 3  # last checkpoints to keep
    c.keep_every = 20_000  # steps between checkpoints that are kept for good
    return c
