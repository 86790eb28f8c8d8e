"""What a scene is trained as: the turns of a conversation, for each task.

The dialogues have the layout of the published ones (see `simulation.assemble`), less the reasoning:
the caption comes first, then the answer or the audio. Their `_direct` forms leave the caption out;
`dialogue` is a question or a request, in the published proportion. `text_question` has the caption
in the place of the audio: what a language model brings along, and a small one must learn.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from bagpiper_jax.conversation import captioned_answer
from bagpiper_jax.input_pipeline.scenes.captions import TERSE
from bagpiper_jax.input_pipeline.scenes.questions import ask, request
from bagpiper_jax.input_pipeline.scenes.scene import Scene, generator

BASE_TASKS = ("text_to_audio", "audio_to_text", "text_only")
DIALOGUES = (
    "dialogue",
    "question",
    "question_direct",
    "text_question",
    "request",
    "request_direct",
)
_QUESTIONS = 845 / (845 + 1470)  # of all dialogues (arXiv 2602.05220)
TASKS = (*BASE_TASKS, *DIALOGUES)


class Turn(NamedTuple):
    """A message of a conversation; its text, or None where it is the scene's audio."""

    role: str
    modality: str
    text: str | None = None


def turns(task: str, scene: Scene, labels: Sequence[str]) -> list[Turn]:
    """The conversation that a task makes of a scene.

    Args:
      task: one of TASKS.
      scene: for dialogues, one with a full caption.
      labels: of sounds, see `questions.ask`.

    Raises:
      ValueError: an unknown task, or a dialogue of a scene with a terse caption.
    """
    if task in DIALOGUES and scene.template == TERSE:
        raise ValueError(f"the task {task!r} needs full captions, not those of {scene.profile!r}")
    if task == "dialogue":
        task = "question" if generator("dialogue", scene.key).random() < _QUESTIONS else "request"
    caption = scene.caption
    sound = Turn("assistant", "audio")
    match task:
        case "text_only":
            return [Turn("assistant", "text", caption)]
        case "text_to_audio":
            return [Turn("user", "text", caption), sound]
        case "audio_to_text":
            return [Turn("user", "audio"), Turn("assistant", "text", caption)]
        case "question" | "question_direct" | "text_question":
            question = ask(scene, labels)
            answer = question.answer
            if task == "question":
                answer = captioned_answer(caption, answer)
            heard = (
                Turn("user", "text", caption) if task == "text_question" else Turn("user", "audio")
            )
            asked = Turn("user", "text", question.text)
            return [heard, asked, Turn("assistant", "text", answer)]
        case "request":
            wish = Turn("user", "text", request(scene))
            return [wish, Turn("assistant", "text", caption), sound]
        case "request_direct":
            return [Turn("user", "text", request(scene)), sound]
    raise ValueError(f"task {task!r} is none of {TASKS}")
