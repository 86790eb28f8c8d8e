"""Filters that hear: duration, agreement of caption and speech, DNSMOS."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence

from bagpiper_jax.audio import open_sound
from bagpiper_jax.errors import UserError
from bagpiper_jax.evaluation import listening
from bagpiper_jax.evaluation.asr import Whisper
from bagpiper_jax.evaluation.text_metrics import count_errors, normalize
from bagpiper_jax.preparation.filters.rows import (
    Row,
    Verdict,
    audio_path,
    caption_of,
    need,
    read_clip,
)
from bagpiper_jax.simulation.quotes import lines_of

BATCH = 32  # clips that are held at once
SPEECH = ("speech",)
MOST_TOKENS = 224  # Whisper's own limit: 30 s of fast speech fit


def duration(
    rows: Iterable[Row], directory: str, *, min_seconds: float = 0.5, max_seconds: float = 30.5
) -> Iterator[Verdict]:
    """Keeps recordings of a fitting length, by the file's own header."""
    for row in rows:
        try:
            with open_sound(audio_path(row, directory)) as file:
                seconds = round(file.frames / file.samplerate, 3)
        # a header may state a rate of 0
        except (UserError, RuntimeError, OSError, ValueError, ZeroDivisionError) as e:
            reason = str(e) if isinstance(e, UserError) else "cannot be read as audio"
            yield Verdict(False, None, reason)
            continue
        if not min_seconds <= seconds <= max_seconds:
            limits = f"{min_seconds:g} to {max_seconds:g} s"
            yield Verdict(False, seconds, f"lasts {seconds:g} s, not {limits}")
        else:
            yield Verdict(True, seconds)


def transcript_agreement(
    rows: Iterable[Row],
    directory: str,
    *,
    max_wer: float = 0.5,
    min_words: int = 3,
    domains: Sequence[str] = SPEECH,
) -> Iterator[Verdict]:
    """Removes captions whose quoted speech is not what Whisper tiny.en hears.

    It applies to English (or unknown) speech of the given domains; singing and shouting in noise
    are beyond so small a recogniser. What is quoted of the speech counts, not what was left out:
    see `agreement`.

    Args:
      rows, directory: see `rows.Filter`.
      max_wer: word error rate above which a caption goes.
      min_words: captions that quote fewer are kept unheard.
      domains: that it applies to; rows that tell none are heard, too.
    """
    whisper = None
    for batch in _batches(rows):
        found: list[Verdict | None] = []
        truths, clips = [], []
        for row in batch:
            caption = caption_of(row)
            truth = normalize(" ".join(lines_of(row, caption)))
            if (verdict := _beside(row, truth, min_words, domains)) is None:
                try:
                    clips.append(read_clip(row, directory))
                    truths.append(truth)
                except UserError as e:
                    verdict = Verdict(False, None, str(e))
            found.append(verdict)
        if clips and whisper is None:
            whisper = Whisper(max_new_tokens=MOST_TOKENS)
        heard = zip(truths, whisper.transcribe_all(clips) if clips else ())
        for verdict in found:
            yield verdict or _agreement(*next(heard), max_wer)


def _beside(row: Row, truth: Sequence[str], min_words: int, domains) -> Verdict | None:
    """The verdict on a row that is not heard, else None."""
    if row.get("domain", domains[0]) not in domains:
        return Verdict(True, None, "another domain")
    if str(row.get("language", "und")).split("-")[0] not in ("en", "und"):
        return Verdict(True, None, "another language")
    if len(truth) < min_words:
        return Verdict(True, None, "little or no speech is quoted")
    return None


def _agreement(truth: Sequence[str], text: str, max_wer: float) -> Verdict:
    rate = agreement(truth, normalize(text))
    if rate > max_wer:
        return Verdict(False, round(rate, 4), f"word error rate {rate:.0%} against what is heard")
    return Verdict(True, round(rate, 4))


def agreement(quoted: Sequence[str], heard: Sequence[str]) -> float:
    """Word error rate of what is quoted against the stretch of what is heard that fits it best.

    A caption may quote part of the speech: words heard before and after it are no errors.
    """
    stretch = heard
    if len(heard) > len(quoted):
        import jiwer

        out = jiwer.process_words(" ".join(quoted), " ".join(heard))
        same = [c for c in out.alignments[0] if c.type == "equal"]
        if same:
            stretch = heard[same[0].hyp_start_idx : same[-1].hyp_end_idx]
    return min(count_errors(quoted, words).rate for words in (heard, stretch))


def dnsmos(
    rows: Iterable[Row],
    directory: str,
    *,
    min_overall: float = 2.0,
    domains: Sequence[str] = SPEECH,
) -> Iterator[Verdict]:
    """Removes speech that sounds bad: DNSMOS P.835, overall quality, 1 to 5 (arXiv 2110.01763).

    Args:
      rows, directory: see `rows.Filter`.
      min_overall: the least that is kept.
      domains: that it applies to, for it was trained on speech; rows that tell none are heard, too.
    """
    need("speechmos.dnsmos")
    for row in rows:
        if row.get("domain", domains[0]) not in domains:
            yield Verdict(True, None, "another domain")
            continue
        try:
            wav = read_clip(row, directory)
        except UserError as e:
            yield Verdict(False, None, str(e))
            continue
        score = round(listening.dnsmos(wav), 3)
        if score < min_overall:
            yield Verdict(False, score, f"DNSMOS {score:.2f} is below {min_overall:g}")
        else:
            yield Verdict(True, score)


def _batches(rows: Iterable[Row]) -> Iterator[list[Row]]:
    rows = iter(rows)
    while batch := list(itertools.islice(rows, BATCH)):
        yield batch
