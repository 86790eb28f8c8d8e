"""What is measured of a mini model on held-out scenes.

    bagpiper evaluate --workdir runs/figures
    bagpiper evaluate --config experiments/evaluate_mini.py:full --workdir runs/full
    bagpiper evaluate --config experiments/evaluate_mini.py:quick --workdir runs/quick
    bagpiper evaluate --workdir runs/mine --config.checkpoint=my_model \\
        --config.evaluators.understanding.scenes=500 --config.evaluators.cfg_sweep.use=

"full" has cycles of captions and audio too, and more judges of quality: it needs the extra
`probes`. The same command goes on where it was killed. docs/evaluation.md says what every figure
means.
"""

import os

import ml_collections

from bagpiper_jax.evaluation.config import audio_settings

SIZES = ("scenes", "full", "quick")
_HERE = os.path.dirname(os.path.abspath(__file__))


def get_config(size: str = "scenes") -> ml_collections.ConfigDict:
    """The evaluators of a size; "quick", on fewer scenes, is what `make demo` runs."""
    if size not in SIZES:
        raise ValueError(f"there is no size {size!r}: choose one of {', '.join(SIZES)}")
    quick, full = size == "quick", size == "full"
    c = ml_collections.ConfigDict()
    c.checkpoint = ""  # a release or a run's workdir; empty: the embedded mini model
    c.corpus = os.path.normpath(os.path.join(_HERE, "..", "data", "mini"))
    # of scenes, sampling and intervals; quick: other scenes than those of the committed figures
    c.seed = 2 if quick else 1

    c.dtype = "float32"  # of parameters and computation; bfloat16 takes half the memory
    c.mesh = ml_collections.ConfigDict()  # all 1: the first device; -1: the devices that are left
    c.mesh.replica = 1
    c.mesh.fsdp = 1
    c.mesh.tensor = 1  # must divide the key/value heads

    # of the audio's sampling, in place of the checkpoint's own
    c.audio = audio_settings()

    # name of the figures → `use`, an evaluator of evaluation/registry.py (empty: left out), and its
    # settings
    c.evaluators = ml_collections.ConfigDict()

    c.evaluators.codec = ml_collections.ConfigDict()
    c.evaluators.codec.use = "codec"
    c.evaluators.codec.prompts = 50 if quick else 150  # recorded phrases at most; there are 115

    c.evaluators.understanding = ml_collections.ConfigDict()
    c.evaluators.understanding.use = "understanding"
    c.evaluators.understanding.split = "test_a"  # held-out strings, combinations and wordings
    c.evaluators.understanding.profile = "scene"  # of the scenes: what they hold, and how often
    c.evaluators.understanding.scenes = 60 if quick else 500  # at least 2

    # questions about the same scenes, answered from the captions by a reader who hears nothing
    c.evaluators.caption_questions = ml_collections.ConfigDict()
    c.evaluators.caption_questions.use = "caption_questions"
    c.evaluators.caption_questions.split = "test_a"
    c.evaluators.caption_questions.profile = "scene"
    c.evaluators.caption_questions.scenes = 60 if quick else 500

    # the same questions, answered by the model, and requests: what it learns of dialogues
    c.evaluators.questions = ml_collections.ConfigDict()
    c.evaluators.questions.use = ""
    c.evaluators.questions.split = "test_a"
    c.evaluators.questions.profile = "scene"
    c.evaluators.questions.scenes = 500
    c.evaluators.requests = ml_collections.ConfigDict()
    c.evaluators.requests.use = ""
    c.evaluators.requests.split = "test_a"
    c.evaluators.requests.digits = 60
    c.evaluators.requests.keep = 8  # clips for the page

    c.evaluators.unseen = ml_collections.ConfigDict()
    c.evaluators.unseen.use = "understanding"
    c.evaluators.unseen.split = "test_b"  # a voice and takes of sounds that were not in training
    c.evaluators.unseen.profile = "scene"
    c.evaluators.unseen.scenes = 20 if quick else 100

    c.evaluators.rendering = ml_collections.ConfigDict()
    c.evaluators.rendering.use = "rendering"
    c.evaluators.rendering.split = "test_a"
    digits, others = (300, 100) if full else (20, 10) if quick else (60, 30)
    c.evaluators.rendering.digits = digits  # captions with a string of digits
    c.evaluators.rendering.letters = others  # of letters
    c.evaluators.rendering.phrases = others  # with a phrase, and sounds around it
    c.evaluators.rendering.keep = 8  # clips of each kind that are kept

    # captions and audio made of each other; both need the extra `probes`
    for start in ("audio", "caption"):
        cycle = c.evaluators[f"cycle_from_{start}"] = ml_collections.ConfigDict()
        cycle.use = "cycle" if full else ""
        cycle.split = "test_a"
        cycle.profile = "scene"
        cycle.start = start
        cycle.scenes = 500
        cycle.rounds = 3
        cycle.keep = 4  # scenes whose clips are kept

    c.evaluators.quality = ml_collections.ConfigDict()
    c.evaluators.quality.use = "quality" if full else ""
    c.evaluators.quality.split = "test_a"
    c.evaluators.quality.profile = "scene"
    c.evaluators.quality.scenes = 200
    c.evaluators.quality.voices = False  # similarity of voices needs the extra `speaker`, and torch
    c.evaluators.quality.keep = 8

    c.evaluators.cfg_sweep = ml_collections.ConfigDict()
    c.evaluators.cfg_sweep.use = "" if quick else "guidance"
    c.evaluators.cfg_sweep.split = "test_a"
    c.evaluators.cfg_sweep.profile = "spelling"
    c.evaluators.cfg_sweep.distinct = False  # each string once
    c.evaluators.cfg_sweep.digits = 30  # strings rendered at each strength
    c.evaluators.cfg_sweep.cfgs = (1.0, 1.5, 2.0, 3.0)  # strengths of guidance, 1 is none

    # captions that are nothing but the words, as in the early stages of training
    c.evaluators.bare_captions = ml_collections.ConfigDict()
    c.evaluators.bare_captions.use = "guidance" if full else ""
    c.evaluators.bare_captions.split = "test_a"
    c.evaluators.bare_captions.profile = "three_digits"
    c.evaluators.bare_captions.distinct = True
    c.evaluators.bare_captions.digits = 40
    c.evaluators.bare_captions.cfgs = (1.5,)
    return c
