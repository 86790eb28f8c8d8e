"""Captions: true, regular, in varied wording, and readable back without loss.

A caption is made in two steps. `template` turns a wording (a tuple of choices) and the shape of a
scene into text with blanks; `fill` puts the contents in. The template is what is held out as a
wording (`splits.wording_allowed`), so equal texts can never be on both sides.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

from bagpiper_jax.input_pipeline.scenes.corpus import ANY_VOICE_KIND

NOISES = ("clean", "faint", "loud")
ROOMS = ("none", "small room", "large hall")

# (clause, noun phrase) of a speech event.
SPEECH = (
    ("{v} says {q}", "{v} saying {q}"),
    ("{v} reads out {q}", "{v} reading out {q}"),
    ("{v} announces {q}", "{v} announcing {q}"),
    ("{q} is spoken by {v}", "{q} spoken by {v}"),
    ("{v} pronounces {q}", "{v} pronouncing {q}"),
    ("{v} recites {q}", "{v} reciting {q}"),
)
# Labels are singular, plural or mass nouns, so no verb may agree with them.
SOUND = (
    ("we hear {s}", "{s}"),
    ("{s} can be heard", "{s}"),
    ("the sound of {s} is heard", "the sound of {s}"),
    ("one can hear {s}", "the sound of {s}"),
)
# (clause, noun phrase) of two events at once: a, b noun phrases, A, B clauses.
OVERLAP = (
    ("{A} while {B}", "{a} while {B}"),
    ("{A}, and at the same time {B}", "{a} at the same time as {b}"),
    ("{A} as {B}", "{a} together with {b}"),
    ("{A}, and meanwhile {B}", "{a} overlapped by {b}"),
)
# Plans by number of groups: C1.. clauses, N1.. noun phrases.
PLANS = {
    1: (
        "{C1}.",
        "{N1}.",
        "We hear {N1}.",
        "The clip contains {N1}.",
        "In this clip, {C1}.",
        "This is a recording of {N1}.",
        "Here, {C1}.",
        "The scene consists of {N1}.",
    ),
    2: (
        "{C1}, then {C2}.",
        "First {C1}, then {C2}.",
        "{N1}, followed by {N2}.",
        "The clip opens with {N1} and ends with {N2}.",
        "{C1}. After that, {C2}.",
        "We hear {N1}, next {N2}.",
        "After {N1}, {C2}.",
        "Beginning with {N1}, the recording moves on to {N2}.",
    ),
    3: (
        "{C1}, then {C2}, and then {C3}.",
        "First {C1}, then {C2}, and finally {C3}.",
        "{N1}, followed by {N2}, and after that {N3}.",
        "The clip opens with {N1}, goes on with {N2} and ends with {N3}.",
        "{C1}. After that, {C2}. Finally, {C3}.",
        "We hear {N1}, next {N2}, and lastly {N3}.",
        "After {N1}, {C2}, and later {C3}.",
        "Beginning with {N1}, the recording moves on to {N2} and then to {N3}.",
    ),
}
# (before, end of the last sentence, after) of a music bed.
BED = (
    ("With {m} in the background, ", "", ""),
    ("", ", with {m} in the background", ""),
    ("", "", " {m} can be heard softly behind it."),
    ("", "", " In the background there is the sound of {m}."),
)
# (sentence, phrases by noise, phrases by room).
QUALITY = (
    (
        "The recording {n} and {r}.",
        ("is clean", "has faint hiss", "has loud hiss"),
        ("sounds dry", "sounds like a small room", "sounds like a large hall"),
    ),
    (
        "There is {n}, and {r}.",
        ("no noise", "faint hiss throughout", "loud hiss throughout"),
        ("there is no echo", "a small room echoes softly", "a large hall echoes for long"),
    ),
    (
        "Recorded {r}, {n}.",
        ("without any noise", "with faint hiss", "with loud hiss"),
        ("close up and dry", "in a small room", "in a large hall"),
    ),
    (
        "The sound is {r}, {n}.",
        ("and perfectly clean", "with faint hiss behind it", "with loud hiss behind it"),
        ("close and dry", "that of a small room", "that of a large hall"),
    ),
    (
        "The quality is {n}; {r}.",
        ("high and clean", "fair, with faint hiss", "poor, with loud hiss"),
        (
            "there is no reverberation",
            "reverberation suggests a small room",
            "reverberation suggests a large hall",
        ),
    ),
    (
        "This is {n} {r}.",
        ("clean audio", "audio with faint hiss", "audio with loud hiss"),
        ("without any reverberation", "in a small room", "in a large hall"),
    ),
)
# A last sentence; half of the captions leave the length out.
LENGTH = (
    "",
    "",
    "",
    " It lasts about {t}.",
    " The clip is about {t} long.",
    " All of this takes about {t}.",
)
TERSE = "terse"  # in the place of a template: what is heard and nothing else
NUMBERS = "zero one two three four five six seven eight nine ten".split()


def _numbered(forms):
    """The forms with their blanks numbered for event 0, 1, 2."""
    return tuple(
        tuple(tuple(re.sub(r"\{(\w)\}", rf"{{\g<1>{i}}}", text) for text in form) for form in forms)
        for i in range(3)
    )


_SPEECH, _SOUND = _numbered(SPEECH), _numbered(SOUND)


class Wording(NamedTuple):
    """The choices that make a caption's wording; each is an index into the table of its name."""

    plan: int
    speech: int
    sound: int
    overlap: int
    bed: int
    quality: int
    quality_first: int
    length: int


SIZES = Wording(8, len(SPEECH), len(SOUND), len(OVERLAP), len(BED), len(QUALITY), 2, len(LENGTH))
NUM_WORDINGS = 1
for _size in SIZES:
    NUM_WORDINGS *= _size


def wording(number: int) -> Wording:
    """The wording with this number, 0 ≤ number < NUM_WORDINGS."""
    choices = []
    for size in SIZES:
        number, choice = divmod(number, size)
        choices.append(choice)
    return Wording(*choices)


def _start(text: str) -> str:
    return ". ".join(part[:1].upper() + part[1:] for part in text.split(". "))


@lru_cache(maxsize=1 << 15)
def template(shape: tuple[str, ...], bed: bool, w: Wording) -> str:
    """The text with blanks {v0} {q0} {s1} {m} {n2} {r2} {t}.

    shape: one string per group of events that sound at once, a letter per event: "v" speech, "s"
    sound; ("v", "sv") is speech, then a sound that speech overlaps.
    """
    clauses, nouns, number, spoken = [], [], 0, 0
    for group in shape:
        forms = []
        for letter in group:
            if letter == "v":  # a second speaker gets another verb
                forms.append(_SPEECH[number][(w.speech + 2 * spoken) % len(SPEECH)])
                spoken += 1
            else:
                forms.append(_SOUND[number][(w.sound + number) % len(SOUND)])
            number += 1
        if len(forms) == 2:
            (upper, lower), (second_upper, second_lower) = forms
            parts = {"A": upper, "a": lower, "B": second_upper, "b": second_lower}
            forms = [tuple(form.format(**parts) for form in OVERLAP[w.overlap])]
        clauses.append(forms[0][0])
        nouns.append(forms[0][1])
    names = {f"C{i + 1}": text for i, text in enumerate(clauses)}
    names |= {f"N{i + 1}": text for i, text in enumerate(nouns)}
    text = PLANS[len(shape)][w.plan].format(**names)
    if bed:
        before, end, after = BED[w.bed]
        if before:
            text = before + text[0].lower() + text[1:]
        text = text[:-1] + end + "." + after
    quality = QUALITY[w.quality][0].format(n=f"{{n{w.quality}}}", r=f"{{r{w.quality}}}")
    parts = [quality, text] if w.quality_first else [text, quality]
    return " ".join(parts) + LENGTH[w.length]


def seconds_in_words(seconds: float) -> str:
    """Seconds rounded to halves, as after "about": "three and a half seconds"."""
    whole, half = divmod(max(1, int(seconds * 2 + 0.5)), 2)
    if not whole:
        return "half a second"
    if half:
        return f"{NUMBERS[whole]} and a half seconds"
    return "one second" if whole == 1 else f"{NUMBERS[whole]} seconds"


def fill(
    blank: str, events: Sequence, bed_label: str | None, noise: str, room: str, seconds: float
) -> str:
    """The caption: a template with its blanks filled.

    events: in the order of the template, with the fields voice_kind and text (speech) or label.
    """
    quality = int(blank[blank.index("{n") + 2])
    values = {
        f"n{quality}": QUALITY[quality][1][NOISES.index(noise)],
        f"r{quality}": QUALITY[quality][2][ROOMS.index(room)],
        "m": bed_label,
        "t": seconds_in_words(seconds),
    }
    for i, event in enumerate(events):
        if event.voice_kind:
            values[f"v{i}"], values[f"q{i}"] = event.voice_kind, f'"{event.text}"'
        else:
            values[f"s{i}"] = event.label
    return _start(blank.format(**values))


def terse(events: Sequence, bed_label: str | None) -> str:
    """Quoted words and labels in the order heard, music last: `"eight Q", a burp`."""
    names = [f'"{event.text}"' if event.voice_kind else event.label for event in events]
    return ", ".join([*names, bed_label] if bed_label else names)


@dataclass(frozen=True)
class Parsed:
    """What a caption says.

    `speech` pairs each quote with its voice where the counts agree; `order` has the names of
    sounds, music and voices as they are found, from left to right.
    """

    quotes: list[str]
    events: set[str]
    speech: list[tuple[str, str]]
    noise: str
    room: str
    seconds: float | None
    # not compared: where in it the music stands is a matter of wording
    order: tuple[str, ...] = field(default=(), compare=False)


def truth(scene) -> Parsed:
    """What a true caption of the scene must say, the length left out."""
    spoken = [(event.voice_kind, event.text) for event in scene.events if event.voice_kind]
    names = {e.name for e in scene.events} | ({scene.bed.label} if scene.bed else set())
    return Parsed([q for _, q in spoken], names, spoken, scene.noise, scene.room, None)


@lru_cache(maxsize=16)
def _finder(names: tuple[str, ...]) -> re.Pattern:
    longest_first = sorted(names, key=len, reverse=True)
    return re.compile(
        r"(?<![\w-])(" + "|".join(map(re.escape, longest_first)) + r")(?![\w-])", re.IGNORECASE
    )


def parse_caption(
    text: str, labels: Iterable[str], voice_kinds: Iterable[str] = ANY_VOICE_KIND
) -> Parsed:
    """Reads a caption back; exact on true captions, forgiving on generated ones.

    labels: sound and music labels, matched as whole phrases outside of quotes, the longest first.
    voice_kinds: noun phrases of voices; one found makes the event "speech:<voice kind>".
    """
    quotes = [" ".join(q.split()) for q in re.findall(r'"([^"]*)"', text)]
    rest = re.sub(r'"[^"]*"', '""', text)
    names = {label.lower(): label for label in labels}
    voices = {kind.lower(): kind for kind in voice_kinds}
    found = [m.lower() for m in _finder((*names, *voices)).findall(rest)]
    speakers = [voices[name] for name in found if name in voices]
    events = {names[name] for name in found if name in names}
    events |= {f"speech:{kind}" for kind in speakers}
    noise = next((n for n in NOISES[1:] if f"{n} hiss" in rest.lower()), "clean")
    room = next((r for r in ROOMS[1:] if r in rest.lower()), "none")
    match = re.search(r"about (half a|\w+ and a half|\w+) seconds?\b", rest)
    seconds = None
    if match and match[1] == "half a":
        seconds = 0.5
    elif match and match[1].split()[0] in NUMBERS:
        words = match[1].split()
        seconds = NUMBERS.index(words[0]) + 0.5 * (len(words) > 1)
    speech = list(zip(speakers, quotes)) if len(speakers) == len(quotes) else []
    order = tuple(names.get(name) or voices[name] for name in found)
    return Parsed(quotes, events, speech, noise, room, seconds, order)
