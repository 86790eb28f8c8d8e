"""The 17 dimensions that a dialogue is judged in, and the pass rule.

Paper: request 5, alignment 5, caption 4, training value 3; all ≥ 3 and mean ≥ 3.5. Names and
definitions are ours.
"""

from __future__ import annotations

from collections.abc import Mapping

DIMENSIONS: dict[str, dict[str, str]] = {
    "request": {
        "request_naturalness": "a person would write it so, in this tone and at this length",
        "request_clarity": "it has one reading; what is wanted is plain at first sight",
        "request_specificity": "it says enough of what is to be heard, or asked, to be acted upon",
        "request_feasibility": "one recording of at most 30 seconds can fulfil or answer it, by "
        "sound alone",
        "request_independence": "it is the person's own: it neither copies the caption's wording "
        "nor lets on that a caption exists, nor gives its own answer away",
    },
    "alignment": {
        "content_alignment": "everything that is asked for is in the caption, or in the answer, "
        "and nothing there goes against it",
        "speech_fidelity": "quoted speech is word for word the same in request, reasoning, caption "
        "and answer; 5 where nothing is quoted and nothing had to be",
        "detail_consistency": "voices, counts, order, times and places agree in all parts",
        "intent_understanding": "the reasoning states what the user wants, and what for, as the "
        "request shows it",
        "inference_soundness": "what the reasoning adds follows from the request or from what is "
        "heard, and guesses are marked",
    },
    "caption": {
        "caption_completeness": "speech, voices, events, music, room and recording quality are "
        "described as far as they matter",
        "caption_specificity": "it tells this recording from others of its kind",
        "caption_coherence": "it follows time and does not contradict itself",
        "caption_audibility": "it says only what can be heard: nothing seen, no names or facts "
        "from elsewhere",
    },
    "training_value": {
        "reasoning_usefulness": "the reasoning leads step by step from the request to the result, "
        "so that a model can learn to do it",
        "informativeness": "the example teaches more than a stock phrase would; it is neither "
        "trivial nor repetitive",
        "cleanliness": "no leftovers of prompts or formats, no talk about the task, no broken text",
    },
}
NAMES = tuple(name for group in DIMENSIONS.values() for name in group)
LOWEST, HIGHEST = 1, 5


def passes(
    scores: Mapping[str, float], *, min_score: float = 3, min_mean: float = 3.5
) -> tuple[bool, float, list[str]]:
    """The pass rule.

    Args:
      scores: of every dimension, 1 to 5.
      min_score, min_mean: of each dimension, and of all.

    Returns:
      whether it passes, the mean, and the dimensions that are too low.
    """
    if set(scores) != set(NAMES):
        raise ValueError(f"scores must be those of {NAMES}")
    mean = sum(scores.values()) / len(NAMES)
    low = [name for name in NAMES if scores[name] < min_score]
    return not low and mean >= min_mean, mean, low


def definitions() -> str:
    """All dimensions for the judge."""
    lines = []
    for group, names in DIMENSIONS.items():
        lines.append(f"{group.replace('_', ' ').capitalize()}:")
        lines += [f"- {name}: {meaning}." for name, meaning in names.items()]
    return "\n".join(lines)
