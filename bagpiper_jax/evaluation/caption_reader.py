"""Answers questions about a scene from a caption alone: the reader of the understanding probe.

In the place of a language model (arXiv 2602.05220 asks one): captions of the mini world are regular
enough to be read exactly.
"""

from __future__ import annotations

from collections.abc import Collection

from bagpiper_jax.input_pipeline.scenes import Parsed, Question
from bagpiper_jax.input_pipeline.scenes.captions import NUMBERS
from bagpiper_jax.input_pipeline.scenes.questions import ORDINALS


def read_answer(question: Question, caption: Parsed, music: Collection[str]) -> str:
    """The answer that a caption gives; empty where it gives none.

    Args:
      question: see `scenes.ask`; its answer is not looked at.
      caption: what `scenes.parse_caption` found.
      music: labels of music, which is no event.
    """
    events = [name for name in caption.order if name not in music]
    playing = [name for name in caption.order if name in music]
    words = " ".join(caption.quotes).split()
    digits = [word for word in words if word in NUMBERS[:10]]
    match question.kind:
        case "said":
            return " and ".join(caption.quotes)
        case "backwards":
            return " ".join(reversed(words))
        case "nth":
            place = ORDINALS.index(question.blanks["n"])
            return words[place] if place < len(words) else ""
        case "length":
            return NUMBERS[len(words)] if len(words) < len(NUMBERS) else ""
        case "largest":
            return max(digits, key=NUMBERS.index, default="")
        case "count":
            return NUMBERS[len(events)] if len(events) < len(NUMBERS) else ""
        case "first" | "last":
            return events[0 if question.kind == "first" else -1] if events else ""
        case "order":
            a, b = question.blanks["a"], question.blanks["b"]
            if a not in events or b not in events:
                return ""
            return "yes" if events.index(a) < events.index(b) else "no"
        case "present":
            return "yes" if question.blanks["a"] in events else "no"
        case "music":
            return f"yes, {playing[0]}" if playing else "no"
        case "noise":
            return "no hiss" if caption.noise == "clean" else f"{caption.noise} hiss"
        case "room":
            return "in no room" if caption.room == "none" else f"in a {caption.room}"
    raise ValueError(f"there are no questions of the kind {question.kind!r}")
