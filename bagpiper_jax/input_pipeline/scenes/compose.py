"""Plans scenes: everything but the samples.

`plan_scene` is cheap and needs no audio, so an index of examples with their lengths and captions
is made without rendering. It depends on nothing but its arguments.
"""

from __future__ import annotations

from bagpiper_jax.errors import UserError
from bagpiper_jax.input_pipeline.scenes import captions, splits
from bagpiper_jax.input_pipeline.scenes.corpus import SAMPLE_RATE, Corpus
from bagpiper_jax.input_pipeline.scenes.render import render_scene
from bagpiper_jax.input_pipeline.scenes.scene import (
    BLOCK,
    DUCK_DB,
    MAX_SAMPLES,
    MAX_SOUND,
    NOISE_DB,
    PROFILE_NAMES,
    REVERB,
    SPELLED,
    VOICE_SHARES,
    Bed,
    Dice,
    Event,
    Part,
    Profile,
    Scene,
    generator,
    world_of,
)

__all__ = ["plan_scene", "render_scene", "train_captions"]

# Draws before a constructive choice takes over; nothing here can loop for ever.
MAX_DRAFTS, MAX_LABEL_DRAWS, MAX_WORDINGS = 6, 96, 24
MIN_WORDS, MAX_WORDS = 12, 45
# Strides that visit every string and every wording once; the second is near the golden section
# of their number, so that neighbours differ in all choices.
STRING_STRIDE, WORDING_STRIDE = 15_485_863, 136_699


def plan_scene(
    corpus: Corpus, seed: int, index: int, split: str = "train", profile: str = "mixed"
) -> Scene:
    """The scene number `index`; see `splits` for what each split may hold.

    Raises UserError for an unknown split or profile, and where the corpus has no voice that a
    scene of this split could spell with.
    """
    if split not in splits.SPLITS:
        raise UserError(f"unknown split {split!r}; one of {', '.join(splits.SPLITS)}")
    if profile not in PROFILE_NAMES:
        raise UserError(f"unknown profile {profile!r}; one of {', '.join(PROFILE_NAMES)}")
    dice = Dice(generator("plan", seed, index, split, profile))
    planner = _Planner(corpus, split, world_of(profile, index), dice)
    return planner.scene(seed, index, profile)


def train_captions(corpus: Corpus, seed: int, n: int) -> list[str]:
    """n captions of training scenes, for a text tokenizer or as text-only examples."""
    return [plan_scene(corpus, seed, i, "train", "mixed").caption for i in range(n)]


class _Planner:
    """One scene's draws, from kinds down to samples."""

    def __init__(self, corpus: Corpus, split: str, world: Profile, dice: Dice):
        self.corpus, self.split, self.world, self.dice = corpus, split, world, dice
        self.pool = splits.clip_split(split)
        self.spellers = {kind: corpus.spellers[self.pool, kind] for kind in SPELLED}
        if not any(self.spellers.values()):
            raise UserError(
                f"the corpus has no voice of split {self.pool} that could spell, so "
                f"it has no scenes of split {split}"
            )

    def scene(self, seed: int, index: int, profile: str) -> Scene:
        dice, world = self.dice, self.world
        room = dice.weighted(captions.ROOMS, world.rooms)
        tail = dice.samples(0.05, 0.3) + int(REVERB[room][2] * SAMPLE_RATE if room in REVERB else 0)
        lead = dice.samples(0.05, 0.4)
        for _ in range(MAX_DRAFTS):
            kinds = self.kinds()
            names = self.names(kinds)
            if names is None:
                continue
            events, groups = self.layout(kinds, names, lead, MAX_SAMPLES - tail)
            kept = [event.label or event.kind for event in events]
            if events and self.qualifies([event.kind for event in events], kept):
                break
        else:
            kind = next(kind for kind in SPELLED if self.spellers[kind])
            events, groups = self.layout([kind], [kind], lead, MAX_SAMPLES - tail)
        end = max(event.offset for event in events) + tail
        num_samples = min(MAX_SAMPLES, -(-end // BLOCK) * BLOCK)
        bed = self.bed(num_samples)
        noise = dice.weighted(captions.NOISES, world.noises)
        noise_db = NOISE_DB[noise] + dice.uniform(-2, 2)
        template, caption = self.tell(events, groups, bed, noise, room, num_samples / SAMPLE_RATE)
        return Scene(
            seed,
            index,
            self.split,
            profile,
            tuple(events),
            tuple(groups),
            bed,
            noise,
            noise_db,
            room,
            num_samples,
            template,
            caption,
        )

    def kinds(self) -> list[str]:
        """Kinds of the events: at most two speeches, one phrase, and what the pool can give."""
        dice, pool = self.dice, self.pool
        weights = dict(self.world.kinds)
        for kind in SPELLED:
            if not self.spellers[kind]:
                weights[kind] = 0
        if not self.corpus.phrase_voices[pool]:
            weights["phrase"] = 0
        sounds_left = len(self.corpus.labels[pool, "sound"])
        several = len({self.corpus.voice_kinds[v] for v in self.corpus.voices[pool]}) > 1
        kinds: list[str] = []
        for _ in range(1 + dice.weighted(range(len(self.world.events)), self.world.events)):
            speeches = sum(kind != "sound" for kind in kinds)
            if speeches == 1 + several:
                weights = {"sound": 1.0}
            if "phrase" in kinds:
                weights["phrase"] = 0
            if kinds.count("sound") >= sounds_left:
                weights["sound"] = 0
            if not any(weights.values()):
                break
            kinds.append(dice.weighted(tuple(weights), tuple(weights.values())))
        return kinds

    def qualifies(self, kinds: list[str], names: list[str]) -> bool:
        """Whether this split may hold these events. Strings are drawn to fit it anyway."""
        spelled = any(kind in SPELLED for kind in kinds)
        if self.split in ("dev", "test_a") and len(names) < 2:
            return spelled
        if self.split == "train" or self.split == "test_b":
            spelled = False
        return splits.combination_allowed(names, self.split, spelled)

    def names(self, kinds: list[str]) -> list[str] | None:
        """A label for every sound (no label twice), so that the combination is allowed.

        None if no draw of labels was.
        """
        labels = self.corpus.labels[self.pool, "sound"]
        for _ in range(MAX_LABEL_DRAWS if "sound" in kinds else 1):
            names = list(kinds)
            for i, kind in enumerate(kinds):
                if kind == "sound":
                    names[i] = self.dice.pick([x for x in labels if x not in names])
            if self.qualifies(kinds, names):
                return names
            if len(kinds) < 2:
                break
        return None

    def layout(
        self, kinds: list[str], names: list[str], lead: int, limit: int
    ) -> tuple[list[Event], list[int]]:
        """Events with their times, and the sizes of the groups; what does not fit is left out."""
        dice = self.dice
        events: list[Event] = []
        groups: list[int] = []
        overlaps = 0
        clock, i, used = lead, 0, ""
        while i < len(kinds):
            group = [self.content(kinds[i], names[i], used)]
            used = group[0].voice_kind or used
            i += 1
            with_sound = i < len(kinds) and "sound" in (kinds[i - 1], kinds[i])
            if with_sound and not overlaps and dice.uniform() < self.world.overlap:
                group.append(self.content(kinds[i], names[i], used))
                used = group[1].voice_kind or used
                i += 1
                overlaps += 1
                group.sort(key=lambda event: event.offset, reverse=True)
            length = group[0].offset
            if clock + length > limit:
                break
            shifts = [clock]
            if len(group) == 2:
                spare = length - group[1].offset
                shifts.append(clock + int(spare * dice.uniform(0.1, 0.9)))
            speech = any(event.voice for event in group)
            for event, shift in zip(group, shifts):
                duck = DUCK_DB if speech and len(group) == 2 and not event.voice else 0.0
                events.append(_placed(event, shift, duck))
            groups.append(len(group))
            clock += length + dice.samples(0.1, 0.6)
        return events, groups

    def content(self, kind: str, name: str, used: str) -> Event:
        """An event that starts at 0. `used`: the kind of voice that has spoken already."""
        dice, corpus, pool = self.dice, self.corpus, self.pool
        gain, fade = dice.uniform(-6, 6), dice.samples(0.005, 0.02)
        if kind == "sound":
            clip = dice.pick(corpus.takes[pool, "sound", name])
            total = corpus.clips[clip].num_samples
            length, start = total, 0
            if total > MAX_SOUND:
                length = dice.samples(1.5, MAX_SOUND / SAMPLE_RATE)
                start = dice.below(total - length)
            parts = (Part(clip, start, length, 0),)
            return Event(kind, name, "", "", "", parts, 0, length, gain, fade)
        if kind == "phrase":
            voice = self.voice(corpus.phrase_voices[pool], used)
            clip = dice.pick(corpus.phrases[pool, voice])
            length, text = corpus.clips[clip].num_samples, corpus.clips[clip].text
            parts = (Part(clip, 0, length, 0),)
        else:
            voice = self.voice(self.spellers[kind], used)
            tokens, takes = self.string(kind, voice)
            text, parts, clock = " ".join(tokens), [], 0
            for clips in takes:
                clip = dice.pick(clips)
                parts.append(Part(clip, 0, corpus.clips[clip].num_samples, clock))
                clock += parts[-1].length + dice.samples(0.02, 0.12)
            length, parts = parts[-1].onset + parts[-1].length, tuple(parts)
        return Event(kind, "", text, voice, corpus.voice_kinds[voice], parts, 0, length, gain, fade)

    def voice(self, voices: tuple[str, ...], used: str) -> str:
        """A voice of another kind than `used`, if there is one."""
        kinds = self.corpus.voice_kinds
        voices = tuple(v for v in voices if kinds[v] != used) or voices
        rest = 1 - sum(VOICE_SHARES.get(v, 0) for v in voices)
        unnamed = sum(v not in VOICE_SHARES for v in voices)
        weights = [VOICE_SHARES.get(v) or rest / unnamed for v in voices]
        return self.dice.weighted(voices, weights)

    def string(self, kind: str, voice: str) -> tuple[list[str], list[tuple[str, ...]]]:
        """Tokens of a string that this split may spell, and the takes of each."""
        dice = self.dice
        tables = {
            name: self.corpus.units.get((self.pool, voice, name), {})
            for name in ("digit", "letter")
        }
        length = dice.pick(self.world.lengths[kind])
        if kind == "mixed":
            pattern = [dice.pick(("digit", "letter")) for _ in range(length)]
            if len(set(pattern)) == 1:
                pattern[dice.below(length)] = "letter" if pattern[0] == "digit" else "digit"
        else:
            pattern = [kind[:-1]] * length
        while True:  # ends: among the strings of any longer length, all splits have some
            alphabets = [tuple(tables[name]) for name in pattern]
            total = 1
            for alphabet in alphabets:
                total *= len(alphabet)
            number = dice.below(total)
            for _ in range(min(total, 4096)):
                rest, tokens = number, []
                for alphabet in alphabets:
                    rest, digit = divmod(rest, len(alphabet))
                    tokens.append(alphabet[digit])
                if splits.string_allowed(" ".join(tokens), self.split):
                    return tokens, [tables[n][t] for n, t in zip(pattern, tokens)]
                number = (number + STRING_STRIDE) % total
            pattern.append(pattern[-1])

    def bed(self, num_samples: int) -> Bed | None:
        """Music under the scene, or None."""
        dice, corpus = self.dice, self.corpus
        labels = corpus.labels[self.pool, "music"]
        if not labels or dice.uniform() >= self.world.bed:
            return None
        label = dice.pick(labels)
        clip = dice.pick(corpus.takes[self.pool, "music", label])
        start = dice.below(max(1, corpus.clips[clip].num_samples - num_samples))
        return Bed(label, clip, start, dice.uniform(-20, -12))

    def tell(self, events, groups, bed, noise, room, seconds) -> tuple[str, str]:
        """A wording this split may use, and the caption in it, of 12 to 45 words.

        If MAX_WORDINGS allowed wordings in a row miss those bounds, the nearest miss is taken.
        Terse profiles have one wording, of no length in particular.
        """
        if self.world.terse:
            return captions.TERSE, captions.terse(events, bed.label if bed else None)
        shape, i = [], 0
        for size in groups:
            shape.append("".join("v" if e.voice else "s" for e in events[i : i + size]))
            i += size
        number = self.dice.below(captions.NUM_WORDINGS)
        misses = []
        for _ in range(captions.NUM_WORDINGS):
            template = captions.template(tuple(shape), bed is not None, captions.wording(number))
            if splits.wording_allowed(template, self.split):
                label = bed.label if bed else None
                caption = captions.fill(template, events, label, noise, room, seconds)
                words = len(caption.split())
                if MIN_WORDS <= words <= MAX_WORDS:
                    return template, caption
                misses.append((max(MIN_WORDS - words, words - MAX_WORDS), template, caption))
                if len(misses) == MAX_WORDINGS:
                    break
            number = (number + WORDING_STRIDE) % captions.NUM_WORDINGS
        return min(misses)[1:]


def _placed(event: Event, shift: int, gain_db: float) -> Event:
    parts = tuple(Part(p.clip, p.start, p.length, p.onset + shift) for p in event.parts)
    return Event(
        event.kind,
        event.label,
        event.text,
        event.voice,
        event.voice_kind,
        parts,
        event.onset + shift,
        event.offset + shift,
        event.gain_db + gain_db,
        event.fade,
    )
