"""What is measured of an ablation's runs; the settings of `bagpiper evaluate`.

    bagpiper evaluate --config experiments/ablations/measure.py:digits \\
        --config.checkpoint=runs/ablations/base-0 --workdir runs/ablations/base-0/evaluation
"""

import os

import ml_collections

WORLDS = ("digits", "questions", "requests")
_HERE = os.path.dirname(os.path.abspath(__file__))


def get_config(world: str = "digits") -> ml_collections.ConfigDict:
    """The evaluators for what a run has learned, one of WORLDS."""
    if world not in WORLDS:
        raise ValueError(f"there is no world {world!r}: choose one of {', '.join(WORLDS)}")
    c = ml_collections.ConfigDict()
    c.checkpoint = ""  # the run
    c.corpus = os.path.normpath(os.path.join(_HERE, "..", "..", "data", "mini"))
    c.seed = 1  # of scenes and intervals: all runs are asked the same
    c.audio = ml_collections.ConfigDict()  # settings are not chosen anew for every run
    c.audio.temperature = 0.0
    c.audio.cfg = 2.0  # of requests; digits are rendered at several
    c.audio.max_rows = 408 if world == "requests" else 250  # a scene of 8 s, of 4.9 s
    c.evaluators = ml_collections.ConfigDict()
    if world == "digits":
        c.evaluators.understanding = ml_collections.ConfigDict()
        c.evaluators.understanding.use = "understanding"
        c.evaluators.understanding.split = "test_a"
        c.evaluators.understanding.profile = "three_digits"  # 47 strings are held out
        c.evaluators.understanding.scenes = 300
        c.evaluators.cfg_sweep = ml_collections.ConfigDict()
        c.evaluators.cfg_sweep.use = "guidance"
        c.evaluators.cfg_sweep.split = "test_a"
        c.evaluators.cfg_sweep.profile = "three_digits"
        c.evaluators.cfg_sweep.distinct = True  # the same caption is rendered alike
        c.evaluators.cfg_sweep.digits = 40
        c.evaluators.cfg_sweep.cfgs = (1.0, 1.5, 2.0, 3.0)
    elif world == "questions":
        c.evaluators.questions = ml_collections.ConfigDict()
        c.evaluators.questions.use = "questions"
        c.evaluators.questions.split = "test_a"
        c.evaluators.questions.profile = "scene"
        c.evaluators.questions.scenes = 600
    else:
        c.evaluators.requests = ml_collections.ConfigDict()
        c.evaluators.requests.use = "requests"
        c.evaluators.requests.split = "test_a"
        c.evaluators.requests.digits = 50
    return c
