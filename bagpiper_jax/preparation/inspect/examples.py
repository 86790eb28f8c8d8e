"""Cards of some records: to hear, to see with the times that are stated, and to read."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence

import numpy as np

from bagpiper_jax.audio import SAMPLE_RATE
from bagpiper_jax.html_report import media, page
from bagpiper_jax.html_report.media import Span
from bagpiper_jax.input_pipeline.prepared import PreparedSet
from bagpiper_jax.input_pipeline.records import TASKS, Clip, Record
from bagpiper_jax.modeling.codec import Codec
from bagpiper_jax.preparation.inspect.counts import escaped, shortened
from bagpiper_jax.preparation.inspect.times import provenance_times, stated_times

_MOST_CLIPS, _MOST_MESSAGES, _MOST_LETTERS = 4, 24, 6000
_SLACK = 0.5  # seconds that a stated time may lie after the clip's end
_SHORTEST = 0.05  # seconds, of a clip that a spectrogram can show


@dataclasses.dataclass
class Room:
    """Bytes of audio that the page still has room for."""

    left: int

    def take(self, uri: str) -> bool:
        """Whether there is room for it; then it is taken."""
        fits = len(uri) <= self.left
        self.left -= len(uri) if fits else 0
        return fits


def choose(sets: Sequence[PreparedSet], count: int, seed: int) -> list[tuple[PreparedSet, int]]:
    """Records by chance, as evenly as can be over sets, domains, captioned clips and dialogues."""
    rng = np.random.default_rng(seed)
    groups = []
    for prepared in sets:
        kinds = 2 * prepared.domains.astype(np.uint16) + (prepared.rows("dialogue") >= 0)
        for kind in np.unique(kinds):
            members = np.flatnonzero(kinds == kind)
            picks = rng.choice(len(members), min(count, len(members)), replace=False)
            groups.append([(prepared, int(members[pick])) for pick in picks])
    rounds = (group[turn] for turn in range(count) for group in groups if turn < len(group))
    return [pick for pick, _ in zip(rounds, range(count))]


def examples_section(
    picks: Sequence[tuple[PreparedSet, int]], codec: Codec | None, room: Room, note: str = ""
) -> str:
    """Cards of the picked records.

    Args:
      picks: (set, number).
      codec: of the sets' codes; None where it is not at hand.
      room: for audio on the page.
      note: on what is missing.

    Raises:
      UserError: a shard is missing or damaged.
    """
    cards = [_card(prepared, number, codec, room) for prepared, number in picks]
    lead = (
        f"{len(cards)} records by chance, evenly over sets, domains, captioned clips and "
        "dialogues. Bars under a spectrogram show when the text, or the provenance, says that "
        f"something happens. {note}"
    )
    return page.section(
        "Examples", page.paragraph(lead.strip()), f'<div class="cards">{"".join(cards)}</div>'
    )


def _card(prepared: PreparedSet, number: int, codec: Codec | None, room: Room) -> str:
    record = prepared[number]
    sizes = [
        f"{task} {rows[number]:,}" for task in TASKS if (rows := prepared.rows(task))[number] >= 0
    ]
    chips = [prepared.name, record.domain, record.language, record.licence or "licence unknown"]
    chips += [f"{prepared.seconds[number]:.2f} s"]
    parts = [
        f"<h3>{escaped(shortened(record.id, 120))}</h3><div class=chips>"
        + "".join(f'<span class="chip">{escaped(shortened(c, 60))}</span>' for c in chips)
        + "</div>"
    ]
    texts = texts_of_clips(record)
    for position, clip in enumerate(record.clips[:_MOST_CLIPS]):
        name = f"recording {position}" if len(record.clips) > 1 else "recording"
        stated = stated_times(texts[position]) + provenance_times(record.provenance, position)
        parts.append(_clip(clip, name, stated, codec, room))
    if len(record.clips) > _MOST_CLIPS:
        parts.append(page.paragraph(f"… and {len(record.clips) - _MOST_CLIPS} more recordings"))
    parts.append(_words(record))
    positions = ", ".join(sizes) or "it serves no task"
    parts.append(f'<p class="soft">positions: {escaped(positions)}</p>')
    if record.provenance:
        told = json.dumps(record.provenance, indent=1, ensure_ascii=False, default=str)
        parts.append(
            f"<details><summary>provenance</summary><pre>{escaped(shortened(told, 2000))}"
            "</pre></details>"
        )
    return f'<article class="card">{"".join(parts)}</article>'


def texts_of_clips(record: Record) -> list[list[str]]:
    """For each clip the texts that may tell of it.

    Of a caption the first clip; of a dialogue's messages the clip before them, or else the first.
    """
    texts: list[list[str]] = [[] for _ in record.clips]
    if not texts:
        return texts
    if record.caption:
        texts[0].append(record.caption)
    heard = [c for _, modality, c in record.messages if modality == "audio"]
    current = heard[0] if heard else 0
    for _, modality, content in record.messages:
        if modality == "audio":
            current = content
        elif 0 <= current < len(texts):
            texts[current].append(content)
    return texts


def _clip(clip: Clip, name: str, stated: list[Span], codec: Codec | None, room: Room) -> str:
    seconds = clip.num_samples / SAMPLE_RATE
    late = [span for span in stated if max(span.start, span.end) > seconds + _SLACK]
    spans = [span._replace(end=min(span.end, seconds)) for span in stated if span.start < seconds]
    wav, notes = _samples(clip)
    players, sounds = {}, {}
    if wav is not None and clip.audio is not None:
        sounds["as kept"] = media.data_uri("audio/flac", clip.audio)
    spoken, rate = None, SAMPLE_RATE
    if clip.codes is not None and codec is not None and len(clip.codes):
        spoken, rate = codec.decode(clip.codes.astype(np.int32)), codec.sample_rate
        spoken = spoken[: round(seconds * rate)]
        sounds["from its codes"] = media.audio_uri(spoken, rate)
    for key, uri in sounds.items():
        if room.take(uri):
            players[f"{name}, {key}" if name != "recording" else key] = uri
        else:
            notes.append(f"{key}: no room left on this page (--max-mb)")
    picture = _picture(clip, wav, spoken, rate, spans, seconds)
    if not picture:
        notes.append("neither audio, nor mel windows, nor codes to hear")
    if late:
        told = ", ".join(f"{span.words} {span.end:g} s" for span in late[:4])
        notes.append(f"stated after the end of the clip: {told}")
    shown = page.image(picture, f"Spectrogram of {name}") if picture else ""
    told = "".join(f'<p class="soft">{escaped(note)}</p>' for note in notes)
    return shown + (page.players(players) if players else "") + told


def _samples(clip: Clip) -> tuple[np.ndarray | None, list[str]]:
    """Samples of the kept audio, float32 [S], and what is wrong with it."""
    if clip.audio is None:
        return None, []
    import io

    import soundfile

    try:
        wav, _ = soundfile.read(io.BytesIO(clip.audio), dtype="float32")
    except (soundfile.LibsndfileError, RuntimeError) as e:
        return None, [f"the kept audio is damaged: {e}"]
    notes = [] if len(wav) == clip.num_samples else [f"the kept audio has {len(wav)} samples"]
    return wav, notes


def _picture(clip: Clip, wav, spoken, rate: int, spans, seconds: float) -> str:
    """A spectrogram of the recording; else of its mel windows; else of what the codes give."""
    if wav is not None and len(wav) >= _SHORTEST * SAMPLE_RATE:
        return media.spectrogram(wav, spans)
    if clip.mel is not None:
        frames = np.concatenate([m[:n] for m, n in zip(clip.mel.mel, clip.mel.frames)])
        return media.mel_picture(frames, seconds, spans)
    if spoken is not None and rate == SAMPLE_RATE and len(spoken) >= _SHORTEST * SAMPLE_RATE:
        return media.spectrogram(spoken, spans)
    return ""


def _words(record: Record) -> str:
    if not record.messages:
        text = record.caption
        return f'<div class="text">{_text(text)}</div>' if text else page.paragraph("no caption")
    turns = [
        f'<div class="turn {escaped(role)}"><small>{escaped(role)}</small>'
        + (_text(content) if modality == "text" else f"♪ recording {escaped(content)}")
        + "</div>"
        for role, modality, content in record.messages[:_MOST_MESSAGES]
    ]
    more = len(record.messages) - len(turns)
    if more:
        turns.append(page.paragraph(f"… and {more} more messages"))
    return f'<div class="text">{"".join(turns)}</div>'


def _text(text: str) -> str:
    return f'<p class="said">{escaped(shortened(text, _MOST_LETTERS))}</p>'
