"""Word error rate, F1 of events, alignment of quoted strings, bootstrap intervals, also of pairs.

Error rates are those of a corpus: all errors over all words of the truth, counted by jiwer.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np

from bagpiper_jax.errors import UserError

DIGITS = "zero one two three four five six seven eight nine".split()
TEENS = ("ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen").split()
TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
ORDINALS = {
    "one": "first",
    "two": "second",
    "three": "third",
    "five": "fifth",
    "eight": "eighth",
    "nine": "ninth",
    "twelve": "twelfth",
}
# Ways to write what sounds the same as a digit or as the name of a letter: the sound is all that
# a recogniser of single digits and letters has.
SOUNDS_LIKE_DIGIT = {"won": "one", "to": "two", "too": "two", "for": "four", "ate": "eight"}
SOUNDS_LIKE_LETTER = {
    **dict.fromkeys(("bee", "be"), "b"),
    **dict.fromkeys(("see", "sea"), "c"),
    **dict.fromkeys(("eye", "aye"), "i"),
    **dict.fromkeys(("oh", "owe"), "o"),
    **dict.fromkeys(("pea", "pee"), "p"),
    **dict.fromkeys(("queue", "cue"), "q"),
    **dict.fromkeys(("tea", "tee"), "t"),
    **dict.fromkeys(("zee", "zed"), "z"),
    **{"dee": "d", "gee": "g", "aitch": "h", "jay": "j", "kay": "k", "el": "l", "em": "m"},
    **{"en": "n", "are": "r", "ess": "s", "you": "u", "vee": "v", "ex": "x", "why": "y"},
}
BOOTSTRAP_SAMPLES = 2_000
_TAILS = (0.025, 0.975)


class Errors(NamedTuple):
    """Counts of word errors; adds up over a corpus.

    errors: substitutions, deletions and insertions. words: of the truth.
    """

    errors: int = 0
    words: int = 0

    def __add__(self, other: Errors) -> Errors:
        return Errors(self.errors + other.errors, self.words + other.words)

    @property
    def rate(self) -> float:
        """Word error rate; not a number where the truth has no words."""
        return self.errors / self.words if self.words else float("nan")


class Interval(NamedTuple):
    """A figure, its 95 % bootstrap interval, and the number of scenes or clips behind it."""

    value: float
    low: float
    high: float
    count: int


class Sums(NamedTuple):
    """What a ratio was taken of: names of its groups, and numerator and denominator of each.

    highest: end of the ratio's scale.
    """

    groups: list[str]
    tops: list[float]
    bottoms: list[float]
    highest: float = 1.0


class Ratio(Interval):
    """The interval of a ratio that still knows the sums behind it, for `paired_difference`."""

    sums: Sums


def cardinal(number: int) -> str:
    """A number below a million in words: 142 → "one hundred forty two"."""
    if number < 20:
        return [*DIGITS, *TEENS][number]
    if number < 100:
        tens, ones = divmod(number, 10)
        return TENS[tens - 2] + (f" {DIGITS[ones]}" if ones else "")
    size, name = (1000, "thousand") if number >= 1000 else (100, "hundred")
    head, rest = divmod(number, size)
    return f"{cardinal(head)} {name}" + (f" {cardinal(rest)}" if rest else "")


def ordinal(number: int) -> str:
    """A number below a million as an ordinal: 21 → "twenty first"."""
    *head, last = cardinal(number).split()
    if last not in ORDINALS:
        last = last[:-1] + "ieth" if last.endswith("y") else last + "th"
    return " ".join([*head, ORDINALS.get(last, last)])


def plain(text: str) -> list[str]:
    """Lower case, no punctuation, else as written: the raw form that figures are given in too."""
    return re.sub(r"[^\w' ]", " ", text.lower().replace("’", "'")).split()


def normalize(text: str) -> list[str]:
    """Words of running speech: lower case, numbers spelled out, no punctuation.

    Long runs of digits are read digit by digit.
    """
    text = text.lower().replace("’", "'").replace("&", " and ").replace("%", " percent ")
    text = re.sub(r"(?<=\d),(?=\d{3}\b)", "", text)
    text = re.sub(r"\b(\d{1,6})(?:st|nd|rd|th)\b", lambda m: f" {ordinal(int(m[1]))} ", text)
    text = re.sub(r"\d+", lambda m: f" {_number(m[0])} ", text)
    return re.sub(r"[^a-z ]", " ", text.replace("'", "")).split()


def _number(digits: str) -> str:
    if len(digits) > 6 or (len(digits) > 1 and digits[0] == "0"):
        return " ".join(DIGITS[int(d)] for d in digits)
    return cardinal(int(digits))


def normalize_spelled(text: str, letters: bool = True) -> list[str]:
    """Units of a spelled string: digits as words, letters as single characters.

    "7, 3", "73" and "seven three" are the same two units; so are "B-K", "bk", "B. K." and
    "bee kay". With `letters`, any other word counts letter by letter; without, as one wrong word.
    """
    text = re.sub(r"(\d)(?:st|nd|rd|th)\b", r"\1", text.lower().replace("’", "'"))
    text = re.sub(r"\bdouble[ -]?(?:u|you)\b", " w ", text)
    units: list[str] = []
    for run in re.findall(r"\d|[a-z]+", text.replace("'", "")):
        if run.isdigit():
            units.append(DIGITS[int(run)])
        elif run in DIGITS:
            units.append(run)
        elif run in SOUNDS_LIKE_DIGIT:
            units.append(SOUNDS_LIKE_DIGIT[run])
        elif letters:
            units.extend(SOUNDS_LIKE_LETTER.get(run, run))
        else:
            units.append(run)
    return units


def count_errors(truth: Sequence[str], heard: Sequence[str]) -> Errors:
    """Word errors of one string, both sides as words that are normalised already."""
    import jiwer

    if not truth or not heard:
        return Errors(len(truth) + len(heard), len(truth))
    out = jiwer.process_words(" ".join(truth), " ".join(heard))
    return Errors(out.substitutions + out.deletions + out.insertions, len(truth))


def align_quotes(
    truth: Sequence[Sequence[str]], written: Sequence[Sequence[str]]
) -> list[tuple[int | None, int | None]]:
    """Pairs quoted strings in order, so that the errors are fewest.

    A quote that was not written counts as deleted whole, one that should not be there as inserted
    whole.

    Returns:
      pairs of (index into truth, index into written), None where there is no partner.
    """
    rows, columns = len(truth), len(written)
    cost = np.zeros((rows + 1, columns + 1), int)
    cost[1:, 0] = np.cumsum([len(quote) for quote in truth])
    cost[0, 1:] = np.cumsum([len(quote) for quote in written])
    both = [[count_errors(a, b).errors for b in written] for a in truth]
    for i in range(1, rows + 1):
        for j in range(1, columns + 1):
            cost[i, j] = min(
                cost[i - 1, j - 1] + both[i - 1][j - 1],
                cost[i - 1, j] + len(truth[i - 1]),
                cost[i, j - 1] + len(written[j - 1]),
            )
    pairs: list[tuple[int | None, int | None]] = []
    i, j = rows, columns
    while i or j:
        if i and j and cost[i, j] == cost[i - 1, j - 1] + both[i - 1][j - 1]:
            i, j = i - 1, j - 1
            pairs.append((i, j))
        elif i and cost[i, j] == cost[i - 1, j] + len(truth[i - 1]):
            i -= 1
            pairs.append((i, None))
        else:
            j -= 1
            pairs.append((None, j))
    return pairs[::-1]


def bootstrap_ratio(
    numerators: Sequence[float],
    denominators: Sequence[float],
    *,
    groups: Sequence[Hashable] | None = None,
    highest: float = 1.0,
    seed: int = 0,
) -> Ratio:
    """Σ numerators / Σ denominators with a percentile interval, groups drawn with replacement.

    With errors over words it is the word error rate of a corpus; with 2·tp over 2·tp + fp + fn,
    the micro F1. Where all are 0, or all are the highest, so would every draw be: there the rule of
    three gives the other end, 3 / number of groups of the scale away. A scene with 0 over 0 holds
    nothing of the kind: it is no part of the draws, and not counted.

    Args:
      groups: what belongs together, of each scene: scenes that say the same string are one draw.
        Each scene is its own group if None.
      highest: end of the scale, at which a scene's numerator is `highest` times its denominator.

    Raises:
      UserError: there is nothing to divide by.
    """
    keys = range(len(numerators)) if groups is None else groups
    tops, bottoms = np.asarray(numerators, float), np.asarray(denominators, float)
    there = (tops != 0) | (bottoms != 0)
    names, group = np.unique(
        [key if isinstance(key, int) else repr(key) for key, kept in zip(keys, there) if kept],
        return_inverse=True,
    )
    top, bottom = np.bincount(group, tops[there]), np.bincount(group, bottoms[there])
    if bottom.sum() <= 0:
        raise UserError("nothing to measure: no scene holds a word or event of this kind")
    value, (low, high) = top.sum() / bottom.sum(), (0.0, 0.0)
    unseen = highest * min(1.0, 3 / len(top))
    if not top.any():
        high = unseen
    elif (top == highest * bottom).all():
        low, high = highest - unseen, highest
    else:
        picks = _draws(len(top), seed)
        tops, bottoms = top[picks].sum(1), bottom[picks].sum(1)
        low, high = np.quantile(tops[bottoms > 0] / bottoms[bottoms > 0], _TAILS)
    ratio = Ratio(float(value), float(low), float(high), int(there.sum()))
    ratio.sums = Sums([str(name) for name in names], top.tolist(), bottom.tolist(), highest)
    return ratio


def paired_difference(first: Sums, other: Sums, *, seed: int = 0) -> Interval:
    """The ratio of `other` less that of `first`, over the same groups, which are drawn together.

    What both runs find hard is then hard in both ratios of a draw, so the interval is narrower than
    two intervals side by side suggest. A group that only one run has counts as empty in the other.
    Where the two do not differ at all, the rule of three gives the ends, as in `bootstrap_ratio`.

    Returns:
      the difference, its 95 % percentile interval, the number of groups.

    Raises:
      UserError: one of them has nothing to divide by.
    """
    names = sorted({*first.groups, *other.groups})
    places = {name: i for i, name in enumerate(names)}
    sides = np.zeros((2, 2, len(names)))  # run, numerator or denominator, group
    for side, sums in zip(sides, (first, other)):
        side[:, [places[name] for name in sums.groups]] = sums.tops, sums.bottoms
    totals = sides.sum(-1)
    if (totals[:, 1] <= 0).any():
        raise UserError("nothing to compare: a run holds no word or event of this kind")
    value = float(np.subtract(*(totals[:, 0] / totals[:, 1])[::-1]))
    if (sides[0] == sides[1]).all():
        unseen = first.highest * min(1.0, 3 / len(names))
        return Interval(0.0, -unseen, unseen, len(names))
    drawn = sides[:, :, _draws(len(names), seed)].sum(-1)
    drawn = drawn[:, :, (drawn[:, 1] > 0).all(0)]
    low, high = np.quantile(np.subtract(*(drawn[:, 0] / drawn[:, 1])[::-1]), _TAILS)
    return Interval(value, float(low), float(high), len(names))


def _draws(groups: int, seed: int) -> np.ndarray:
    """Indices of the groups that each bootstrap sample holds."""
    return np.random.default_rng(seed).integers(groups, size=(BOOTSTRAP_SAMPLES, groups))


def word_error_rate(
    counts: Sequence[Errors], *, groups: Sequence[Hashable] | None = None, seed: int = 0
) -> Ratio:
    """Word error rate of a corpus from the counts of its scenes.

    Raises:
      UserError: no scene has words.
    """
    return bootstrap_ratio(
        [c.errors for c in counts], [c.words for c in counts], groups=groups, seed=seed
    )


def events_f1(pairs: Sequence[tuple[set[str], set[str]]], *, seed: int = 0) -> Ratio:
    """Micro F1 over (true events, named events) of each scene.

    Raises:
      UserError: no scene has events.
    """
    hits = [2 * len(truth & named) for truth, named in pairs]
    return bootstrap_ratio(hits, [len(truth) + len(named) for truth, named in pairs], seed=seed)
