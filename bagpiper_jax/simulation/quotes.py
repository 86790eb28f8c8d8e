"""Speech quoted in a text, and whether a request keeps it word for word."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from bagpiper_jax.evaluation.text_metrics import plain

# what stands in parentheses, ("my house"), translates what was quoted before: matched, not taken
_DOUBLE = re.compile(r"\([\"“][^\"“”]+[\"”]\)|“([^“”]+)”|\"([^\"“”]+)\"")
# an apostrophe neither opens (a letter before it) nor closes (a letter after it)
_SINGLE = re.compile(r"(?<!\w)‘(\S.*?)’(?!\w)|(?<!\w)'(\S.*?)'(?!\w)", re.DOTALL)
# captions of the published form hold a phonetic transcription in quotes, too
_TRANSCRIPT = re.compile(r"transcription of the audio is:? *(?:\"([^\"]*)\"|“([^”]*)”)")
MANY_WORDS = 4


def words_of(text: str) -> list[str]:
    """What is compared: words in lower case; punctuation and the form of quotes do not count."""
    return [word for w in plain(text) if (word := w.strip("'"))]


def quotes(text: str) -> list[str]:
    """Quoted strings in their order: in double quotes; in single ones where there are no double."""
    for pattern in (_DOUBLE, _SINGLE):
        found = [next(filter(None, match), "") for match in pattern.findall(text)]
        if any(found):
            return [quote for quote in found if quote]
    return []


def without_quotes(text: str) -> str:
    """The text around its quoted strings."""
    pattern = _DOUBLE if _DOUBLE.search(text) else _SINGLE
    return pattern.sub(" ", text)


def spoken_lines(caption: str) -> list[str]:
    """Quoted strings of a caption that are speech, each once.

    A single word may be quoted as a term ("chugging"): a line starts with a capital, ends with
    punctuation, or has several words. What lies within another line is a mention of it.
    """
    lines: list[str] = []
    for quote in quotes(caption):
        quote = quote.strip()
        said = quote[:1].isupper() or quote[-1:] in ".?!,…" or len(quote.split()) >= MANY_WORDS
        if said and words_of(quote):
            lines.append(quote)
    kept: list[str] = []
    for i, line in enumerate(lines):
        words = words_of(line)
        others = [words_of(other) for other in lines[i + 1 :] if words_of(other) != words]
        others += [words_of(other) for other in kept]
        if not any(contains(other, words) for other in others):
            kept.append(line)
    return kept


def lines_of(row: Mapping[str, Any], caption: str) -> list[str]:
    """What is said in a clip: by the transcript of its rich caption (`rich`), by the transcription
    that its caption states, or else by the quotes in it."""
    rich = row.get("rich")
    if isinstance(rich, Mapping) and isinstance(rich.get("transcript"), Sequence):
        lines = [u.get("text", "") for u in rich["transcript"] if isinstance(u, Mapping)]
        return [line for line in lines if words_of(line)]
    if stated := _TRANSCRIPT.search(caption):
        line = stated[1] or stated[2] or ""
        return [line] if words_of(line) else []
    return spoken_lines(caption)


def contains(words: Sequence[str], part: Sequence[str]) -> bool:
    """Whether `part` stands in `words` without a gap."""
    n = len(part)
    return any(list(words[i : i + n]) == list(part) for i in range(len(words) - n + 1))


def broken_quotes(request: str, lines: Sequence[str]) -> list[str]:
    """What a request does not keep of the speech that it must quote.

    Args:
      request: of a user.
      lines: what is said, in order.

    Returns:
      one reason for each line that is missing and for each quote that nobody says.
    """
    quoted = quotes(request)
    said = [word for line in lines for word in words_of(line)]
    asked = [word for quote in quoted for word in words_of(quote)]
    reasons = [
        f'the speech "{line}" must be quoted word for word'
        for line in lines
        if not contains(asked, words_of(line))
    ]
    reasons += [
        f'"{quote}" is quoted, but it is not what is said'
        for quote in quoted
        if not contains(said, words_of(quote))
    ]
    return reasons
