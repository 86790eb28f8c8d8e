"""The prompts, all our own. Raise a prompt's version when its wording changes: rows record both."""

from __future__ import annotations

import dataclasses
import hashlib
import string


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A prompt with `$holes`.

    Attributes:
      name, version: as recorded.
      system: who the model is.
      text: what it is asked.
    """

    name: str
    version: int
    system: str
    text: str

    def fill(self, **values: str) -> str:
        """The text with its holes filled; a hole without a value is a KeyError."""
        return string.Template(self.text).substitute(values)

    @property
    def sha256(self) -> str:
        """Of the wording, so that a change without a new version shows."""
        return hashlib.sha256(f"{self.system}\n{self.text}".encode()).hexdigest()[:16]

    @property
    def label(self) -> dict:
        """For provenance."""
        return {"prompt": self.name, "version": self.version, "sha256": self.sha256}


CAPTION = Prompt(
    name="captioner",
    version=1,
    system=(
        "You describe recordings for people who will never hear them. You write only what can be "
        "heard, you mark guesses as guesses, and you give times in seconds from the start."
    ),
    text="""\
Listen to the whole clip. It lasts $seconds seconds. Describe it as one JSON object:

scene: one to three paragraphs of plain prose: what happens in its order, who speaks to whom and \
how, the sounds and the music, the place as far as it can be heard, the impression as a whole. \
Quote speech word for word in double quotes where it matters.
language: BCP 47 tag of the speech or the singing; "und" if there is none or you cannot tell.
speakers: every voice, named S1, S2, … in the order of their first words. gender, age (a range), \
voice (pitch, timbre, manner), accent, pace (words per minute, about), spans: when it is heard, \
singing included.
events: sounds that are neither speech nor music: name, start, end, description (what makes the \
sound, how it sounds, how loud and how near).
emotions: moods that can be heard, with their times.
speech_activity: spans in which anyone speaks or sings words.
transcript: every utterance in order: speaker, start, end, text: word for word in the language \
spoken, fillers and false starts included, cut words as far as they are heard. Nothing is added \
that cannot be heard. Empty if and only if there are no words.
music: genre, instruments, tempo, key or chords, mood, structure with times; empty if there is none.
room: the place and its reverberation. noise: what lies in the background, how loud.
recording_quality: bandwidth, clipping, artefacts, microphone distance, stereo image.
uncertain: what cannot be told for sure, with the likeliest readings.
absent: sounds, instruments or moods that a listener might expect in such a scene and that are not \
there; at most five.

All times lie between 0 and $seconds. Use an empty list or an empty string where there is nothing. \
Do not identify people by their voice.""",
)

PERSONA = Prompt(
    name="persona",
    version=1,
    system="You invent people who might use a program that hears and makes sound.",
    text="""\
Below is the description of a recording. Invent one person who would plausibly $task

The level of the situation is "$level": $level_meaning

Vary age, place, profession and skill; avoid audio professionals unless the recording calls for \
one. The person does not know the description.

Description of the recording:
<caption>
$caption
</caption>

Answer as one JSON object: who (one sentence: age, occupation, circumstances), goal (one sentence: \
what the sound or the answer is for), tone (how the person writes: a few words).""",
)

REQUEST = Prompt(
    name="request",
    version=1,
    system=(
        "You write messages that people send to a program that makes sound from text. You write "
        "as the person, never as a narrator."
    ),
    text="""\
Write the message in which this person asks for a recording. What is asked for is exactly the \
recording described below, though the person has not heard it and does not know the description.

Person: $persona

The level is "$level": $level_meaning

Rules:
- $min_words to $max_words words, quoted speech not counted.
- Ask for what matters in the recording: voices, sounds, music, order, mood, closeness, quality. \
Leave the rest open. Ask for nothing that contradicts the description.
- Plain words of this person, no list, no times in seconds, no speaker names such as S1.
- Do not mention a description, a caption or a clip that exists already.
- Speech: $speech

Description of the recording:
<caption>
$caption
</caption>

Answer as one JSON object: request (the message).""",
)

QUESTION = Prompt(
    name="question",
    version=1,
    system=(
        "You write messages that people send, together with a recording, to a program that hears. "
        "You write as the person, never as a narrator."
    ),
    text="""\
Write the message that this person sends along with the recording described below. The person has \
heard the recording, but knows no description of it.

Person: $persona

The level is "$level": $level_meaning

Rules:
- $min_words to $max_words words, quoted speech not counted.
- Ask one thing that can be answered from what is heard alone and that needs listening and \
thinking: a cause, a relation, a place, an intention, an order, a comparison; more than what it is.
- The answer must follow from the description below. Do not give it away.
- Plain words of this person, no list. Do not mention a description or a caption.
- If you quote speech, quote it word for word.

Description of the recording:
<caption>
$caption
</caption>

Answer as one JSON object: request (the message).""",
)

PLAN = Prompt(
    name="generation trace",
    version=1,
    system=(
        "You write the reasoning of a program that makes sound, from a user's request to the full "
        "picture of the recording it is about to make."
    ),
    text="""\
A user asks for a recording. The program will make the recording described in the caption below. \
Write the reasoning that leads from the request to it, in four parts:

user_intent: what the user wants and what for; speech that is asked for, quoted word for word.
inferred_details: what the request leaves open and how it is settled so that the caption results \
(voices, place, instruments, order, what must be absent), each with its reason.
audio_quality: fidelity, microphone distance, room, noise, dynamics, stereo image, and how the \
recording begins and ends.
generation_plan: what is heard, step by step from beginning to end.

Rules:
- The program has not seen the caption: argue from the request, never refer to a caption or a \
description.
- Nothing contradicts the caption. Two to six sentences a part.
- Speech is quoted in double quotes and word for word.

Request:
<request>
$request
</request>

Caption of the recording:
<caption>
$caption
</caption>

Answer as one JSON object with these four keys.""",
)

ANSWER = Prompt(
    name="understanding trace",
    version=1,
    system=(
        "You write the reasoning and the answer of a program that has heard a recording and has "
        "described it to itself."
    ),
    text="""\
A user asks about a recording. The caption below is all that the program has heard. Write its \
reasoning in four parts, and its answer:

user_intent: what the user wants to know.
inferred_details: passages of the caption that bear on it, quoted briefly with their times, and \
what follows from them; assumptions are marked as such.
audio_quality: how far the recording can be trusted on this: noise, clarity, what cannot be told.
answer_plan: what the answer will say and what it rests on.
answer: to the user, in plain words, two to five sentences, without "caption" or "description".

Every claim rests on the caption. If it does not settle the question, the answer says so.

Question:
<request>
$request
</request>

Caption of the recording:
<caption>
$caption
</caption>

Answer as one JSON object with these five keys.""",
)

JUDGE = Prompt(
    name="judge",
    version=1,
    system=(
        "You judge training examples for a program that hears and makes sound. You are strict, you "
        "judge each dimension alone, and you use the whole scale."
    ),
    text="""\
Judge the dialogue below in each of these dimensions, from 1 to 5: 1 useless, 2 poor, \
3 acceptable, 4 good, 5 excellent. Give 1 or 2 for any clear fault of the dimension, whatever \
else is good.

$dimensions

The dialogue $direction. $hearing

<dialogue>
$dialogue
</dialogue>

Answer as one JSON object: for each dimension by its name an object with reason (one sentence, \
first) and score (a whole number, 1 to 5).""",
)
