"""Endless training scenes composed from a small corpus of clips, with captions that are true.

`plan_scene` decides everything but the samples, `render_scene` makes the samples. Nothing here
needs JAX.
"""

from bagpiper_jax.input_pipeline.scenes.captions import Parsed, parse_caption, truth
from bagpiper_jax.input_pipeline.scenes.compose import plan_scene, render_scene, train_captions
from bagpiper_jax.input_pipeline.scenes.corpus import Clip, Corpus
from bagpiper_jax.input_pipeline.scenes.questions import Question, ask, request
from bagpiper_jax.input_pipeline.scenes.scene import PROFILE_NAMES, Bed, Event, Scene
from bagpiper_jax.input_pipeline.scenes.tasks import TASKS, turns

__all__ = [
    "PROFILE_NAMES",
    "TASKS",
    "Bed",
    "Clip",
    "Corpus",
    "Event",
    "Parsed",
    "Question",
    "Scene",
    "ask",
    "parse_caption",
    "plan_scene",
    "render_scene",
    "request",
    "train_captions",
    "truth",
    "turns",
]
