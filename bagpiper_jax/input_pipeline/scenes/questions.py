"""Questions about scenes, and requests for them: dialogues whose right answers are known.

A question's answer follows from the scene's caption alone, so a model that captions first has all
that it needs before it. Some ask for what a caption says in so many words ("What is said?"), some
for a thought more ("What is said, from the end to the beginning?").
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from bagpiper_jax.input_pipeline.scenes import captions
from bagpiper_jax.input_pipeline.scenes.scene import SPELLED, Dice, Scene, generator

NUMBERS = captions.NUMBERS
_DIGITS = NUMBERS[:10]
ORDINALS = ("first", "second", "third", "fourth", "fifth")

# Ways to ask, by kind. The last of each is held out of training.
WORDINGS = {
    "said": (
        "What is said?",
        "Which words are spoken?",
        "Write down what is said.",
        "What are the spoken words?",
        "What does the voice say?",
    ),
    "backwards": (
        "What is said, from the end to the beginning?",
        "Say the spoken words in reverse order.",
        "What is said, backwards?",
        "Turn the spoken words around.",
        "Which words are spoken, read backwards?",
    ),
    "nth": (
        "Which is the {n} thing that is spelled?",
        "Say the {n} digit or letter.",
        "What comes {n} in the spelled string?",
        "Of what is spelled, which is the {n}?",
        "What is spelled in the {n} place?",
    ),
    "length": (
        "How many digits and letters are spelled?",
        "Count the spelled digits and letters.",
        "How long is the spelled string?",
        "How many digits or letters does the voice say?",
        "Of how many digits and letters is the spelled string?",
    ),
    "largest": (
        "Which is the largest digit?",
        "Say the highest digit that is spoken.",
        "What is the largest digit that is spoken?",
        "Which of the digits is the highest?",
        "Of the spoken digits, which is the largest?",
    ),
    "count": (
        "How many things are heard, music aside?",
        "Count the voices and sounds.",
        "Without music, how many things are heard?",
        "How many voices and sounds does the clip hold?",
        "How many voices and sounds are there?",
    ),
    "first": (
        "What is heard first?",
        "What comes first?",
        "Which voice or sound comes first?",
        "What does the clip open with?",
        "With what does the clip begin?",
    ),
    "last": (
        "What is heard last?",
        "What comes last?",
        "Which voice or sound comes last?",
        "What does the clip close with?",
        "With what does the clip end?",
    ),
    "order": (
        "Is {a} heard before {b}?",
        "Does {a} come earlier than {b}?",
        "Does {b} come later than {a}?",
        "Is {a} the earlier one, and {b} the later?",
        "Is {b} heard after {a}?",
    ),
    "present": (
        "Is {a} heard?",
        "Does the clip hold {a}?",
        "Is there {a}?",
        "Do you hear {a}?",
        "Can one hear {a}?",
    ),
    "music": (
        "Is there music?",
        "Does music play?",
        "Which music plays, if any?",
        "Do you hear music?",
        "Can one hear music?",
    ),
    "noise": (
        "Is there any hiss?",
        "How loud is the hiss?",
        "Is the recording clean, or is there hiss?",
        "How much hiss is there?",
        "Does the recording hiss?",
    ),
    "room": (
        "Where was it recorded?",
        "In what room is it?",
        "Which room does one hear?",
        "Is it dry, or in what room?",
        "What does the room sound like?",
    ),
}
OF_WORDS = ("said", "backwards", "nth", "length", "largest")
_SPOKEN_SHARE = 3  # how much likelier each of these is than another kind
REQUESTS = (
    "Please make a clip with {what}. It should be {noise} and {room}.",
    "I need {what}, {noise}, {room}.",
    "Could you produce {what}? I want it {noise} and {room}.",
    "Let me hear {what}. Make it {noise} and {room}.",
)
_MUSICAL = {
    *("choir", "guitar", "synth", "bass", "drum", "tabla", "cymbal", "hi-hat", "cowbell"),
}
_NOISES = {"clean": "free of hiss", "faint": "a little hissy", "loud": "full of hiss"}
_ROOMS = {"none": "dry", "small room": "from a small room", "large hall": "from a large hall"}


class Question(NamedTuple):
    """What is asked of a scene, and the answer.

    new_wording: training never asks like this. blanks: what the wording was filled with: `n`, a
    number's name, or `a` and `b`, names of events.
    """

    kind: str
    text: str
    answer: str
    new_wording: bool
    blanks: dict[str, str]


def ask(scene: Scene, labels: Sequence[str]) -> Question:
    """The question that belongs to a scene, of a kind that it admits.

    Scenes of training are asked in the wordings of training, of the others each second one in the
    wording that is held out.

    Args:
      scene: with a full caption, not a terse one.
      labels: of sounds that a scene may hold, to ask for one that is not there.
    """
    dice = Dice(generator("question", scene.seed, scene.index, scene.split, scene.profile))
    answers = _answers(scene, dice, labels)
    kinds = sorted(answers)
    kind = dice.weighted(kinds, [_SPOKEN_SHARE if kind in OF_WORDS else 1 for kind in kinds])
    blanks, answer = answers[kind]
    ways = WORDINGS[kind]
    number = dice.below(len(ways) - 1)
    if scene.split != "train" and dice.uniform() < 0.5:
        number = len(ways) - 1
    return Question(kind, ways[number].format(**blanks), answer, number == len(ways) - 1, blanks)


def request(scene: Scene) -> str:
    """A wish for the scene in words that no caption uses; what is to be said is quoted."""
    dice = Dice(generator("request", scene.seed, scene.index, scene.split, scene.profile))
    parts = [
        f'{e.voice_kind} with the words "{e.text}"' if e.voice else e.label for e in scene.events
    ]
    groups, first = [], 0
    for size in scene.groups:
        groups.append(" together with ".join(parts[first : first + size]))
        first += size
    what = " and then ".join(groups)
    if scene.bed:
        what += f" over {scene.bed.label}"
    wording = dice.pick(REQUESTS)
    return wording.format(what=what, noise=_NOISES[scene.noise], room=_ROOMS[scene.room])


def _words(*labels: str) -> set[str]:
    """The words of labels that name something; drums are drums."""
    words = {word for label in labels for word in label.lower().split()}
    return {"drum" if word.startswith("drum") else word for word in words} - {"a", "an"}


def _answers(scene: Scene, dice: Dice, labels: Sequence[str]) -> dict[str, tuple[dict, str]]:
    """kind → (what fills the wording's blanks, the answer) of all that can be asked of a scene."""
    events = scene.events
    names = [event.voice_kind or event.label for event in events]
    known = {
        "count": ({}, NUMBERS[len(events)]),
        "first": ({}, names[0]),
        "room": ({}, {"none": "in no room"}.get(scene.room, f"in a {scene.room}")),
    }
    heard = _words(*(event.label for event in events))
    if scene.bed or not heard & _MUSICAL:  # a choir is music to some
        known["music"] = ({}, f"yes, {scene.bed.label}" if scene.bed else "no")
    if "hiss" not in heard:  # of vinyl
        known["noise"] = ({}, {"clean": "no hiss"}.get(scene.noise, f"{scene.noise} hiss"))
    if scene.groups[-1] == 1:  # of two at once, the one that begins last does not end last
        known["last"] = ({}, names[-1])
    spoken = [event for event in events if event.voice]
    if spoken:
        known["said"] = ({}, " and ".join(event.text for event in spoken))
    if len(spoken) == 1:
        words = spoken[0].text.split()
        known["backwards"] = ({}, " ".join(reversed(words)))
        if spoken[0].kind in SPELLED:
            place = dice.below(len(words))
            known["nth"] = ({"n": ORDINALS[place]}, words[place])
            known["length"] = ({}, NUMBERS[len(words)])
        if spoken[0].kind == "digits":
            known["largest"] = ({}, max(words, key=_DIGITS.index))
    if len(scene.groups) > 1 and names[0] != names[-1]:
        a, b, answer = names[0], names[-1], "yes"
        if dice.uniform() < 0.5:
            a, b, answer = b, a, "no"
        known["order"] = ({"a": a, "b": b}, answer)
    sounds = [event.label for event in events if not event.voice]
    if sounds and dice.uniform() < 0.5:
        known["present"] = ({"a": dice.pick(sounds)}, "yes")
    else:
        # a bell is not asked for where another one rings, nor a drum where drums play
        all_heard = heard | _words(scene.bed.label if scene.bed else "")
        absent = [label for label in labels if not _words(label) & all_heard]
        known["present"] = ({"a": dice.pick(absent)}, "no")
    return known
