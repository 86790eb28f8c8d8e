"""What a scene is, how often it holds what, and where its chance comes from.

A scene is one to three events: spelled strings, phrases, sounds, in sequence or a sound together
with one other event, in a room, over a noise floor, perhaps over music. Speech never overlaps
speech.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import NamedTuple

import numpy as np

from bagpiper_jax.input_pipeline.scenes.corpus import SAMPLE_RATE

MAX_SAMPLES = 8 * SAMPLE_RATE
BLOCK = 320  # scenes are whole codec frames of 20 ms

SPELLED = ("digits", "letters", "mixed")
LENGTHS = {"digits": (2, 3, 4, 5), "letters": (2, 3, 4), "mixed": (3, 4)}


class Profile(NamedTuple):
    """Weights of what a scene holds."""

    events: tuple[float, ...]  # of one, two, three events
    kinds: dict[str, float]  # of an event
    bed: float  # share of scenes with music
    rooms: tuple[float, ...]  # of captions.ROOMS
    noises: tuple[float, ...]  # of captions.NOISES
    overlap: float  # chance that a sound and the event before it sound together
    lengths: dict[str, tuple[int, ...]] = LENGTHS  # of spelled strings
    terse: bool = False  # the caption lists words and labels and says nothing else


# `digits` is the least there is to hear and say, for ablations; `three_digits` is to measure them
# by, since of shorter strings only a handful is held out.
# `words` is where a training starts: as long as nothing is read, the few words of a full caption
# that depend on the audio are lost among its wording, and of a long string it is hard to find out
# where to listen. `list` goes on to sounds, music and two events, in any room and noise: a caption
# of few tokens teaches as many names as a full one. `spelling` is the easy half of what follows:
# with half of the examples like it, reading and speaking digits took about a third of the training.
# `crowded` and `crowded_list` are the hard half: of the words that a sound plays over, which may be
# louder than they are, a model that had seen them as often as `scene` has them got one in six
# wrong, of all others one in a hundred.
PROFILES = {
    "words": Profile(
        (1,),
        {"digits": 0.5, "letters": 0.5},
        0,
        (1, 0, 0),
        (1, 0, 0),
        0,
        {"digits": (1, 1, 2, 3), "letters": (1, 1, 2, 3)},
        True,
    ),
    "digits": Profile((1,), {"digits": 1}, 0, (1, 0, 0), (1, 0, 0), 0, {"digits": (1, 2, 3)}, True),
    "three_digits": Profile(
        (1,), {"digits": 1}, 0, (1, 0, 0), (1, 0, 0), 0, {"digits": (3,)}, True
    ),
    "list": Profile(
        (0.6, 0.4),
        {"digits": 0.25, "letters": 0.25, "mixed": 0.05, "phrase": 0.1, "sound": 0.35},
        0.25,
        (0.7, 0.15, 0.15),
        (0.6, 0.2, 0.2),
        0.35,
        {"digits": (1, 2, 3), "letters": (1, 2, 3), "mixed": (3,)},
        True,
    ),
    "spelling": Profile(
        (1,), {"digits": 0.6, "letters": 0.3, "mixed": 0.1}, 0, (1, 0, 0), (1, 0, 0), 0
    ),
    "scene": Profile(
        (0.3, 0.45, 0.25),
        {"digits": 0.24, "letters": 0.15, "mixed": 0.06, "phrase": 0.2, "sound": 0.35},
        0.3,
        (0.7, 0.15, 0.15),
        (0.6, 0.2, 0.2),
        0.35,
    ),
}
PROFILES["crowded_list"] = PROFILES["list"]._replace(
    events=(0.4, 0.6),
    kinds={"digits": 0.2, "letters": 0.25, "mixed": 0.05, "phrase": 0.1, "sound": 0.4},
    overlap=0.7,
)
PROFILES["crowded"] = PROFILES["scene"]._replace(
    events=(0, 0.6, 0.4),
    kinds={"digits": 0.18, "letters": 0.25, "mixed": 0.07, "phrase": 0.1, "sound": 0.4},
    bed=0.4,
    rooms=(0.8, 0.1, 0.1),
    overlap=0.9,
)
# profiles that take turns, by the index of the scene
MIXES = {
    "mixed": ("spelling", "scene"),
    "full": ("list", "scene", "list", "spelling"),
    "crowded_mixed": ("spelling", "scene", "crowded", "scene"),
    "crowded_full": ("crowded_list", "crowded", "crowded_list", "scene"),
    # A long training without any bare captions forgot how to speak them.
    "crowded_whole": ("spelling", "scene", "crowded", "words", "scene", "crowded_list"),
}
# In these mixes mere lists are rendered only, never the answer to audio: with some of them among
# whole captions a model described one scene in ten by a list. `full` and `crowded_full`, of an
# earlier stage, have both.
LISTS_SAID_ALONE = ("crowded_whole",)
PROFILE_NAMES = (*PROFILES, *MIXES)


def world_of(profile: str, index: int) -> Profile:
    """What the scene number `index` of a profile is drawn from."""
    names = MIXES.get(profile, (profile,))
    return PROFILES[names[index % len(names)]]


def full_captions(profile: str) -> bool:
    """Whether a profile has captions that are whole, not all of them mere lists."""
    return not all(PROFILES[name].terse for name in MIXES.get(profile, (profile,)))


VOICE_SHARES = {"allison": 0.4}  # the other voices share the rest

NOISE_DB = {"clean": -75.0, "faint": -54.0, "loud": -40.0}
# Seconds to fall by 60 dB, level of the reverberation against the direct sound, tail kept.
REVERB = {"small room": (0.35, -4.0, 0.1), "large hall": (1.6, -3.0, 0.4)}
MAX_SOUND = 3 * SAMPLE_RATE
DUCK_DB = -6.0  # of a sound under speech


@dataclass(frozen=True, slots=True)
class Part:
    """A stretch of one clip: which, from which sample, how many, and where in the scene."""

    clip: str
    start: int
    length: int
    onset: int


@dataclass(frozen=True, slots=True)
class Event:
    """One thing heard. Onset and offset in samples of the scene; gain in dB; fade in samples.

    kind: "digits", "letters", "mixed", "phrase" or "sound". label: of a sound, else empty.
    text, voice, voice_kind: of speech, else empty.
    """

    kind: str
    label: str
    text: str
    voice: str
    voice_kind: str
    parts: tuple[Part, ...]
    onset: int
    offset: int
    gain_db: float
    fade: int

    @property
    def name(self) -> str:
        """What a caption's reader should find: the label, or "speech:<voice kind>"."""
        return f"speech:{self.voice_kind}" if self.voice_kind else self.label

    @property
    def clips(self) -> tuple[str, ...]:
        """Ids of the clips."""
        return tuple(part.clip for part in self.parts)


@dataclass(frozen=True, slots=True)
class Bed:
    """Music under the whole scene, looped if it is shorter; gain in dB against the events."""

    label: str
    clip: str
    start: int
    gain_db: float


@dataclass(frozen=True, slots=True)
class Scene:
    """All that is known of a scene. `groups` counts the events that sound at once, in order."""

    seed: int
    index: int
    split: str
    profile: str
    events: tuple[Event, ...]
    groups: tuple[int, ...]
    bed: Bed | None
    noise: str
    noise_db: float
    room: str
    num_samples: int
    template: str
    caption: str

    @property
    def seconds(self) -> float:
        """Length in seconds."""
        return self.num_samples / SAMPLE_RATE

    @property
    def key(self) -> str:
        """A name that is this scene's alone."""
        return f"{self.profile}/{self.split}/{self.seed}/{self.index}"


def generator(purpose: str, *key) -> np.random.Generator:
    """A generator that depends on its arguments only, in any process."""
    text = "/".join(map(str, (purpose, *key)))
    digest = blake2b(text.encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))


class Dice:
    """Cheap draws: uniform numbers come in blocks, since a call of numpy costs as much as many."""

    def __init__(self, generator: np.random.Generator):
        self._generator = generator
        self._numbers: list[float] = []

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        """In [low, high)."""
        if not self._numbers:
            self._numbers = self._generator.random(128).tolist()
        return low + (high - low) * self._numbers.pop()

    def below(self, count: int) -> int:
        """An integer in [0, count)."""
        return int(self.uniform() * count)

    def samples(self, low: float, high: float) -> int:
        """Seconds → samples."""
        return int(self.uniform(low, high) * SAMPLE_RATE)

    def pick(self, items: Sequence):
        """One of the items, all alike."""
        return items[self.below(len(items))]

    def weighted(self, items: Sequence, weights: Sequence[float]):
        """One of the items by weight."""
        rest = self.uniform() * math.fsum(weights)
        for item, weight in zip(items, weights):
            rest -= weight
            if rest < 0:
                return item
        return next(item for item, weight in zip(items[::-1], weights[::-1]) if weight > 0)
