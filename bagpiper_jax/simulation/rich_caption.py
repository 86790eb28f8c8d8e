"""`RichCaption`: the structure of a rich caption, what must hold beyond it, and its prose.

The order of the prose is that of the published system's captions: scene, speakers with times,
events, duration, emotions, speech activity, transcript, then speakers, sound and what is absent.
"""

from __future__ import annotations

from typing import TypeVar

import pydantic

from bagpiper_jax.simulation.client import BadAnswer

SLACK = 0.5  # seconds that a time may lie beyond the end; it is then drawn in
MIN_SCENE_WORDS = 20


class Strict(pydantic.BaseModel):
    """All keys, and no others: what providers ask of schemas that they enforce."""

    model_config = pydantic.ConfigDict(extra="forbid", allow_inf_nan=False)


T = TypeVar("T", bound=Strict)


class Span(Strict):
    """Seconds from the start of the clip."""

    start: float
    end: float


class Speaker(Strict):
    """A voice."""

    name: str
    gender: str
    age: str
    voice: str
    accent: str
    pace: str
    spans: list[Span]


class Utterance(Strict):
    """What a voice says, word for word."""

    speaker: str
    start: float
    end: float
    text: str


class Event(Strict):
    """A sound that is neither speech nor music."""

    name: str
    start: float
    end: float
    description: str


class Emotion(Strict):
    """A mood that is heard."""

    emotion: str
    start: float
    end: float


class RichCaption(Strict):
    """A caption as structure; see the prompt `captioner` for what each field holds."""

    scene: str
    language: str
    speakers: list[Speaker]
    events: list[Event]
    emotions: list[Emotion]
    speech_activity: list[Span]
    transcript: list[Utterance]
    music: str
    room: str
    noise: str
    recording_quality: str
    uncertain: list[str]
    absent: list[str]


def parse(kind: type[T], text: str) -> T:
    """An answer as the structure that was asked for.

    Raises:
      BadAnswer: it is no JSON, or of another structure.
    """
    text = text.strip()
    if text.startswith("```"):
        text = text.split("\n", 1)[-1].rsplit("```", 1)[0]
    try:
        return kind.model_validate_json(text)
    except pydantic.ValidationError as e:
        first = e.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        more = f", and {e.error_count() - 1} more" if e.error_count() > 1 else ""
        raise BadAnswer(f"{where + ': ' if where else ''}{first['msg']}{more}") from None


def parse_caption(text: str, seconds: float) -> RichCaption:
    """A caption whose times lie within the clip and whose parts agree.

    Raises:
      BadAnswer: it is no such caption.
    """
    caption = parse(RichCaption, text)
    if len(caption.scene.split()) < MIN_SCENE_WORDS:
        raise BadAnswer(f"scene must have at least {MIN_SCENE_WORDS} words")
    names = [speaker.name for speaker in caption.speakers]
    if len(set(names)) < len(names):
        raise BadAnswer("two speakers have the same name")
    spans = {f"speaker {s.name}": s.spans for s in caption.speakers}
    spans |= {f"event {e.name}": [e] for e in caption.events}
    spans |= {"speech_activity": caption.speech_activity, "emotions": caption.emotions}
    spans |= {"transcript": caption.transcript}
    for where, items in spans.items():
        for item in items:
            starts_within = 0 <= item.start < min(item.end, seconds)
            if not starts_within or item.end > seconds + SLACK:
                raise BadAnswer(
                    f"{where}: {item.start:g} to {item.end:g} s does not lie within the clip of "
                    f"{seconds:.2f} s"
                )
            item.end = min(item.end, seconds)
    for utterance in caption.transcript:
        if utterance.speaker not in names:
            raise BadAnswer(f"transcript: there is no speaker {utterance.speaker!r}")
        if not utterance.text.strip():
            raise BadAnswer("transcript: an utterance is empty")
    if bool(caption.transcript) != bool(caption.speech_activity):
        raise BadAnswer("transcript and speech_activity disagree on whether there is speech")
    if any(not speaker.spans for speaker in caption.speakers):
        raise BadAnswer("a speaker never speaks: give spans")
    return caption


def prose(caption: RichCaption, seconds: float) -> str:
    """The caption as text to train on."""
    lines = [caption.scene.strip()]
    lines += [f"{s.name} speaks from {_times(s.spans)}." for s in caption.speakers]
    lines += [f"{_capital(e.name)} from {_times([e])}." for e in caption.events]
    lines.append(f"The overall duration of the audio is {seconds:.2f}s.")
    if caption.emotions:
        moods = ", ".join(f"{e.emotion} from {_times([e])}" for e in caption.emotions)
        lines.append(f"The emotion of the audio is {moods}.")
    if caption.speech_activity:
        lines.append(f"There is speech from {_times(caption.speech_activity)}.")
        said = " ".join(_quotable(u.text) for u in caption.transcript)
        lines.append(f'The speech transcription of the audio is: "{said}"')
        lines += [f'{u.speaker} says "{_quotable(u.text)}"' for u in caption.transcript]
    else:
        lines.append("There is no speech in the audio.")
    for s in caption.speakers:
        traits = (s.gender, s.age, s.voice, s.accent, s.pace)
        lines.append(f"Speaker {s.name}: {'; '.join(t.strip() for t in traits if t.strip())}.")
    lines += [f"{_capital(e.name)}: {e.description.strip()}" for e in caption.events]
    parts = {
        "music": caption.music,
        "room": caption.room,
        "noise": caption.noise,
        "recording quality": caption.recording_quality,
        "uncertain": "; ".join(caption.uncertain),
        "absent": "; ".join(caption.absent),
    }
    lines += [f"{_capital(name)}: {text.strip()}" for name, text in parts.items() if text.strip()]
    return "\n".join(lines)


def _times(spans) -> str:
    return ", ".join(f"{span.start:.2f}s to {span.end:.2f}s" for span in spans)


def _quotable(text: str) -> str:
    """Text to stand in double quotes: those inside become single ones."""
    return " ".join(text.split()).translate(str.maketrans('"“”', "'''"))


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
