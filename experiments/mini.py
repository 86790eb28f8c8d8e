"""A small Bagpiper that learns the embedded real corpus on two CPU cores, in six stages.

    bagpiper train --config experiments/mini.py:words --workdir runs/words
    bagpiper train --config experiments/mini.py:list --config.init_from=runs/words \\
        --workdir runs/list
    bagpiper train --config experiments/mini.py:scenes --config.init_from=runs/list \\
        --workdir runs/scenes
    bagpiper train --config experiments/mini.py --config.init_from=runs/scenes --workdir runs/mini
    bagpiper train --config experiments/mini.py:longer --config.init_from=runs/mini \\
        --workdir runs/longer
    bagpiper train --config experiments/mini.py:dialogues --config.init_from=runs/longer \\
        --workdir runs/dialogues

"words" (a quarter of an hour) hears and says one to three words under captions that are nothing but
the words: without it, reading did not begin within 2,500 steps. "list" (half an hour) goes on to
sounds, music, rooms and noise under captions as bare, most words under a sound. "scenes" (three
quarters of an hour) is the whole world of scenes and rich captions, both directions alike, since
what there is to learn of captions as text is learned with them. "mixture" (25 minutes) has the
published mixture and lets the rate fall to its end. "longer" (an hour and a half on one core) goes
on with other scenes, a rate that rises and falls once more, and more to render than to hear.
"dialogues" goes on to questions about scenes and requests for them, each answered after a caption
(caption-then-process), without forgetting what came before. The embedded model was made by the
other five, some of them twice and more, and by means of weights: docs/mini-model.md.
Settings are ours unless marked (paper): arXiv 2602.05220, or (reference): ESPnet SpeechLM.
"""

import os

import ml_collections

STAGES = ("words", "list", "scenes", "mixture", "longer", "dialogues")
_HERE = os.path.dirname(os.path.abspath(__file__))


def get_config(stage: str = "mixture") -> ml_collections.ConfigDict:
    """The settings of a stage, one of STAGES."""
    if stage not in STAGES:
        raise ValueError(f"there is no stage {stage!r}: choose one of {', '.join(STAGES)}")
    c = ml_collections.ConfigDict()
    c.model = "mini"  # preset of bagpiper_jax.get_config
    c.model_changes = ml_collections.ConfigDict()  # in which the model differs from it
    c.seed = 0  # of weights, scenes and their order
    c.steps = 1500  # optimizer steps
    c.init_from = ""  # run or checkpoint whose weights, tokenizer and codec to start from
    c.init_parts = ()  # the parts whose weights are taken of it, like ("audio_tower",); empty: all
    c.frozen = ()  # there is nothing yet that could stay as it is

    c.data = ml_collections.ConfigDict()
    c.data.sets = ()  # (directory, task, weight) of prepared data sets; empty: scenes of corpus
    c.data.corpus = os.path.normpath(os.path.join(_HERE, "..", "data", "mini"))
    c.data.profile = "crowded_mixed"  # short spelled strings, scenes, scenes full of overlaps
    # share of tokens by task (paper)
    c.data.mixture = {"text_to_audio": 2.0, "audio_to_text": 1.0, "text_only": 1.0}
    c.data.cfg_dropout = 0.1  # 0.05 (paper); a short training sees few of them
    c.data.batch_tokens = 2048  # positions of a step's batch
    c.data.length = 512  # positions of a row: a scene of 8 s and its caption fit
    c.data.windows = 12  # mel windows (seconds, in blocks of 4) of a row
    c.data.workers = 1  # processes that make the batches
    # files or model directories; empty: those of init_from, or they are fitted on the corpus
    c.data.tokenizer = ""
    c.data.codec = ""

    c.optimizer = ml_collections.ConfigDict()
    c.optimizer.peak_lr = 4e-4
    c.optimizer.encoder_lr_ratio = 0.5  # at the full rate its features grow without bound
    c.optimizer.final_ratio = 0.03
    c.optimizer.warmup_steps = 100
    c.optimizer.b1 = 0.9  # (reference)
    c.optimizer.b2 = 0.95  # (reference)
    c.optimizer.eps = 1e-8  # (reference)
    c.optimizer.weight_decay = 0.1
    c.optimizer.clip = 1.0  # (reference)
    c.optimizer.moments_dtype = "float32"  # (reference)

    c.mesh = ml_collections.ConfigDict()  # one device is enough; -1: those that are left
    c.mesh.replica = 1
    c.mesh.fsdp = 1
    c.mesh.tensor = 1

    c.compute = ml_collections.ConfigDict()
    c.compute.dtype = "float32"  # CPUs gain nothing from bfloat16
    c.compute.remat = "none"  # none, dots, full or offload
    c.compute.attention = "auto"  # auto, xla, splash or cudnn
    c.compute.accumulation = 1  # micro-batches of a step

    c.log_every = 20  # steps between metrics
    c.sample_every = 1000  # steps between captions and renderings of development scenes
    c.save_every = 250  # steps between checkpoints
    c.keep = 2  # last checkpoints to keep
    c.keep_every = 0  # steps between checkpoints that are kept for good; 0 keeps none

    if stage == "words":
        c.steps = 1000
        c.optimizer.peak_lr = 1.5e-3
        c.optimizer.warmup_steps = 50
        c.data.profile = "words"
        c.data.mixture = {"text_to_audio": 1.4, "audio_to_text": 1.0, "text_only": 0.0}
        c.data.windows = 24  # short clips, and each takes a block of 4
    elif stage == "list":
        c.steps = 1500
        c.optimizer.peak_lr = 1.5e-3
        c.optimizer.final_ratio = 0.5
        c.data.profile = "crowded_list"
        c.data.mixture = {"text_to_audio": 1.0, "audio_to_text": 1.0, "text_only": 0.0}
        c.data.windows = 24
    elif stage == "scenes":
        c.steps = 2400
        c.optimizer.peak_lr = 1.2e-3
        c.optimizer.final_ratio = 0.3
        c.data.profile = "crowded_full"  # lists go on among captions
        c.data.mixture = {"text_to_audio": 1.0, "audio_to_text": 1.0, "text_only": 0.0}
        c.data.windows = 24
    elif stage == "longer":
        c.seed = 11  # other scenes than before
        c.steps = 3600
        # with some mere lists to render: without any, how to speak them is forgotten
        c.data.profile = "crowded_whole"
        c.optimizer.peak_lr = 1e-3
        # rendering is what is learned last; a few questions about captions, to be answered as text
        c.data.mixture = {"text_to_audio": 1.5, "audio_to_text": 1.0, "text_question": 0.3}
        c.data.windows = 16
        c.sample_every = 1200
        c.save_every = 300  # divides the next one
        c.keep_every = 600
    elif stage == "dialogues":
        c.steps = 1000
        c.optimizer.warmup_steps = 50
        c.optimizer.final_ratio = 0.1  # (paper)
        c.data.mixture = {"text_to_audio": 1.0, "audio_to_text": 1.0, "dialogue": 2.0}
        c.data.windows = 24
    return c
