"""What texts and provenance say of when things happen in a clip."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from bagpiper_jax.html_report.media import BLUE, ORANGE, Span

POINT = "#a855a0"
MAX_SPANS = 24
_READ = 20_000  # letters of a text
_WORDS = 48  # letters of an event's name
_NUMBER = r"~?(\d{1,5}(?:\.\d+)?)"
_SECONDS = r"\s*(?:s|secs?|seconds)\b"
_CLOCK = r"(\d{1,2}:\d{2}(?:\.\d+)?)"
_FROM_TO = re.compile(
    rf"\b(?:from|between)\s+{_NUMBER}(?:{_SECONDS})?\s+(?:to|and|until)\s+{_NUMBER}{_SECONDS}",
    re.IGNORECASE,
)
_CLOCKS = re.compile(rf"{_CLOCK}\s*(?:–|—|-|to|until)\s*{_CLOCK}")
_AT = re.compile(
    rf"\b(?:at|around)\s+(?:about\s+|approximately\s+|around\s+)?(?:{_CLOCK}|{_NUMBER}{_SECONDS})",
    re.IGNORECASE,
)
# what comes before the name of an event in its clause
_LEAD = re.compile(
    r"^.*\b(?:shows?|has|have|are|is|explicitly|followed by|and then|timeline)\b\s*", re.IGNORECASE
)
_STRESSED = re.compile(r"word [\"'“]([^\"'“”]{1,30})[\"'”] (?:is|has) ([\w ]{1,30}?)\s*$")
_VOICES = re.compile(r"\b(?:speak|speech|say|sing|S\d+\b)", re.IGNORECASE)
_STARTS, _ENDS = ("start", "onset", "begin"), ("end", "offset", "stop")
_NAMES = ("label", "event", "text", "name", "speaker")


def stated_times(texts: Iterable[str]) -> list[Span]:
    """Spans and points in time that texts state, in seconds, by start; each but once.

    Forms like "S1 speaks from 2.12s to 6.33s", "a jingle (00:00–00:02)" and "a thud at 8.1s".
    """
    found: dict[tuple, Span] = {}
    for text in (text[:_READ] for text in texts):
        taken: list[tuple[int, int]] = []
        for pattern in (_FROM_TO, _CLOCKS, _AT):
            for match in pattern.finditer(text):
                if any(a < match.end() and match.start() < b for a, b in taken):
                    continue
                taken.append(match.span())
                given = [seconds_of(value) for value in match.groups() if value]
                start, end = given[0], given[-1]
                words = _words_before(text[max(0, match.start() - 160) : match.start()])
                if end >= start and (words or pattern is not _AT):
                    color = POINT if pattern is _AT else BLUE if _VOICES.search(words) else ORANGE
                    span = Span(start, end, words or "stated", color)
                    found.setdefault((start, end, span.words.lower()), span)
    return sorted(found.values(), key=lambda span: (span.start, -span.end))[:MAX_SPANS]


def provenance_times(provenance: Mapping[str, Any], clip: int = 0) -> list[Span]:
    """Events that a record's provenance lists under `events` or `segments`, seconds of the clip.

    An event is a map with a start, an end and a name; the list may be JSON. Times count from the
    start of the recording as found, of which the clip may be a piece.
    """
    prepared = provenance.get("prepared")
    starts = prepared.get("start", ()) if isinstance(prepared, Mapping) else ()
    shift = starts[clip] if clip < len(starts) else 0.0
    fields = provenance.get("fields")
    spans = []
    for place in (provenance, fields if isinstance(fields, Mapping) else {}):
        for key in ("events", "segments"):
            spans += [span for span in map(_event, _listed(place.get(key))) if span]
    moved = [span._replace(start=span.start - shift, end=span.end - shift) for span in spans]
    return sorted(span._replace(start=max(span.start, 0.0)) for span in moved if span.end >= 0)[
        :MAX_SPANS
    ]


def seconds_of(value: str) -> float:
    """ "2.5" or "1:02.5" → seconds."""
    minutes, _, seconds = value.rpartition(":")
    return 60 * int(minutes or 0) + float(seconds)


def _words_before(text: str) -> str:
    """The name of an event, which stands before its times."""
    stressed = _STRESSED.search(text)
    if stressed:
        return f"“{stressed[1]}”: {stressed[2]}"
    clause = re.split(r"[.!?](?=\s|[A-Z])|[\n,;:“”\"]", text.rstrip(" (,;:-–"))[-1]
    words = _LEAD.sub("", clause).strip(" ('`*-–")
    words = re.sub(r"^(?:(?:and|while|then|the|a|an|which)\s+)+", "", words, flags=re.IGNORECASE)
    return words if len(words) <= _WORDS else "…" + words[-_WORDS:]


def _listed(value: Any) -> list:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return []
    return list(value) if isinstance(value, list | tuple) else []


def _event(entry: Any) -> Span | None:
    if not isinstance(entry, Mapping):
        return None
    start, end = (
        next((entry[name] for name in names if name in entry), None) for names in (_STARTS, _ENDS)
    )
    words = next((entry[name] for name in _NAMES if isinstance(entry.get(name), str)), "event")
    number = (int, float)
    if not isinstance(start, number) or not isinstance(end, number) or not 0 <= start <= end < 1e6:
        return None
    return Span(float(start), float(end), words[:_WORDS])
