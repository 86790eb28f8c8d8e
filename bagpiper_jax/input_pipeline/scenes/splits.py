"""What is held out of training, decided by stable hashes, so that it needs no list and no state.

Three things are held out: spelled strings ("seven three nine"), combinations of events that sound
in one scene, and wordings of captions. Each held-out string and combination belongs to one of two
evaluation halves, `dev` (looked at while developing) and `test_a` (looked at once). Clips are held
out by the corpus table's own `split` column.

| split  | strings        | combinations            | wordings | clips |
|--------|----------------|-------------------------|----------|-------|
| train  | train          | train                   | train    | train |
| dev    | dev            | dev, or train if spelled| held out | train |
| test_a | test_a         | test_a, or train if ... | held out | train |
| test_b | dev or test_a  | any                     | train    | test  |

A scene of `dev` or `test_a` has a held-out string, or, where nothing is spelled, a held-out
combination.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from hashlib import blake2b

SPLITS = ("train", "dev", "test_a", "test_b")

# One part in HELD_OUT is held out; the residue differs so that the three choices are unrelated.
HELD_OUT = 12
STRING_RESIDUE, COMBINATION_RESIDUE, WORDING_RESIDUE = 0, 1, 2


def _residue(text: str, modulus: int, salt: bytes) -> int:
    digest = blake2b(text.encode(), digest_size=8, person=salt).digest()
    return int.from_bytes(digest, "little") % modulus


def _half(text: str) -> str:
    return ("dev", "test_a")[_residue(text, 2, b"half")]


def string_home(text: str) -> str:
    """The split that owns a spelled string: "train", "dev" or "test_a"."""
    held_out = _residue(text, HELD_OUT, b"string") == STRING_RESIDUE
    return _half(text) if held_out else "train"


def combination_home(names: Iterable[str]) -> str:
    """The split that owns an unordered set of event names (sound labels, kinds of speech).

    A set that comes from fewer than two events is never held out.
    """
    names = list(names)
    if len(names) < 2:
        return "train"
    text = "|".join(sorted(set(names)))
    held_out = _residue(text, HELD_OUT, b"combination") == COMBINATION_RESIDUE
    return _half(text) if held_out else "train"


@lru_cache(maxsize=1 << 16)
def wording_held_out(template: str) -> bool:
    """Whether a caption's wording, its text with the contents left blank, is held out."""
    return _residue(template, HELD_OUT, b"wording") == WORDING_RESIDUE


def clip_split(split: str) -> str:
    """The value of the corpus table's `split` column that a scene split draws its clips from."""
    return "test" if split == "test_b" else "train"


def string_allowed(text: str, split: str) -> bool:
    """Whether a scene of this split may spell this string."""
    home = string_home(text)
    return home != "train" if split == "test_b" else home == split


def combination_allowed(names: Iterable[str], split: str, spelled: bool) -> bool:
    """Whether a scene of this split may hold these events; `spelled`: it has a spelled string."""
    if split == "test_b":
        return True
    home = combination_home(names)
    return home == split or (spelled and home == "train")


def wording_allowed(template: str, split: str) -> bool:
    """Whether a scene of this split may be told in this wording."""
    return wording_held_out(template) == (split in ("dev", "test_a"))
