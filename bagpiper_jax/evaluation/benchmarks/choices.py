"""Which choice an answer means: MMAU's official rule, and a stricter parser of ours beside it.

The official rule compares sets of words, so it passes a wrong choice that has the words of the
right one in another order, and fails a right answer that has one more word of a wrong choice.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_WORD = re.compile(r"\b\w+\b")
_LABEL = re.compile(r"\(?([A-Za-z])(?:[).:]+\s*|$)")
_LAST = re.compile(r"\b(?:answer|choice|option)(?:\s+is)?\s*[:\-]?\s+", re.IGNORECASE)
_NEGATION = re.compile(r"\b(?:not|no|never|neither|nor|cannot|\w+n['’]t)\b", re.IGNORECASE)


def official_match(truth: str, answer: str, choices: Sequence[str]) -> bool:
    """MMAU's rule: the answer has all words of the truth and no word that only others have.

    Source: `string_match` in `evaluation.py` of github.com/Sakshi113/MMAU (Apache-2.0).
    """
    said, right = _words(answer), _words(truth)
    others = set().union(*map(_words, choices)) - right
    return bool(said) and right <= said and not said & others


def strict_choice(answer: str, choices: Sequence[str]) -> str | None:
    """The one choice that an answer means, None where it means none or several.

    The whole answer is a choice, or the letter of one ("B", "(B) the text"; the two must agree);
    or exactly one choice stands in it word for word, where one that is part of a longer one that
    stands there too does not count, and nothing is denied.

    Args:
      answer: without plan.
      choices: in the order in which they were shown.
    """
    for text in _candidates(answer):
        whole = [c for c in choices if _plain(c) == _plain(text)]
        if whole:
            return whole[0]
        label = _LABEL.match(text.strip())
        if label and (place := ord(label[1].lower()) - ord("a")) < len(choices):
            rest = _plain(text.strip()[label.end() :])
            return choices[place] if rest in ("", _plain(choices[place])) else None
    said = _plain(answer)
    found = {_plain(c): c for c in choices if _plain(c) and _stands_in(_plain(c), said)}
    longest = [c for p, c in found.items() if not any(p != q and _stands_in(p, q) for q in found)]
    if len(longest) != 1 or (_NEGATION.search(answer) and not _NEGATION.search(longest[0])):
        return None
    return longest[0]


def _candidates(answer: str) -> list[str]:
    """The answer, and what follows the last "answer is" or "Answer:" in it."""
    marks = list(_LAST.finditer(answer))
    return [answer, answer[marks[-1].end() :]] if marks else [answer]


def _words(text: str) -> set[str]:
    return set(_WORD.findall(text.lower()))


def _plain(text: str) -> str:
    return " ".join(re.findall(r"[\w'’#+-]+", text.lower()))


def _stands_in(part: str, whole: str) -> bool:
    return f" {part} " in f" {whole} "
