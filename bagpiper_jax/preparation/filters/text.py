"""Filters that read captions: language, repetition, near duplicates."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from bagpiper_jax.evaluation.text_metrics import plain
from bagpiper_jax.preparation.filters.rows import Row, Verdict, caption_of, need

SHINGLE = 5  # words
REPEATED = 10  # words: longer than set phrases are
LONGEST_LOOP = 12  # words of a loop's body


def language(
    rows: Iterable[Row],
    directory: str,
    *,
    allowed: Sequence[str] = ("en",),
    min_probability: float = 0.5,
) -> Iterator[Verdict]:
    """Keeps captions that are written in a language of `allowed` (ISO 639-1), by py3langid."""
    langid = need("py3langid.langid")
    identifier = langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE, norm_probs=True)
    for row in rows:
        caption = caption_of(row)
        if not caption.strip():
            yield Verdict(False, None, "no caption")
            continue
        name, probability = identifier.classify(caption)
        if name not in allowed:
            yield Verdict(False, str(name), f"the caption is written in {name}")
        elif probability < min_probability:
            yield Verdict(False, str(name), f"{name} with probability {probability:.2f} alone")
        else:
            yield Verdict(True, str(name))


def repetition(
    rows: Iterable[Row], directory: str, *, max_share: float = 0.3, max_loop: int = 4
) -> Iterator[Verdict]:
    """Removes captions in which a model went round in circles.

    Args:
      rows, directory: see `rows.Filter`.
      max_share: of the words, how many may lie in runs of ten that occurred before (Gopher, arXiv
        2112.11446, measures such shares).
      max_loop: how often the same words may stand one after another.
    """
    for row in rows:
        words = plain(caption_of(row))
        share, loop = repeated_share(words), longest_loop(words)
        if loop > max_loop:
            yield Verdict(False, round(share, 4), f"the same words {loop} times in a row")
        elif share > max_share:
            yield Verdict(False, round(share, 4), f"{share:.0%} of the words are repeated")
        else:
            yield Verdict(True, round(share, 4))


def repeated_share(words: Sequence[str], n: int = REPEATED) -> float:
    """Share of the words that lie in an n-gram which occurred before."""
    seen: Counter[tuple] = Counter()
    again = [False] * len(words)
    for i in range(len(words) - n + 1):
        gram = tuple(words[i : i + n])
        if seen[gram]:
            again[i : i + n] = [True] * n
        seen[gram] += 1
    return sum(again) / len(words) if words else 0.0


def longest_loop(words: Sequence[str]) -> int:
    """How often the most repeated run of up to 12 words follows itself; 1 where none does."""
    best = min(1, len(words))
    for n in range(1, LONGEST_LOOP + 1):
        run = 0
        for i in range(n, len(words)):
            run = run + 1 if words[i] == words[i - n] else 0
            best = max(best, run // n + 1)
    return best


def near_duplicates(
    rows: Iterable[Row],
    directory: str,
    *,
    threshold: float = 0.8,
    permutations: int = 128,
    seed: int = 1,
) -> Iterator[Verdict]:
    """Keeps the first of captions that are nearly the same: MinHash with an LSH index.

    Args:
      rows, directory: see `rows.Filter`.
      threshold: Jaccard similarity, estimated, of their sets of five words in a row.
      permutations: of a MinHash; the estimate's standard error is at most 0.5 / √permutations.
      seed: of the permutations.
    """
    datasketch = need("datasketch")
    # the index proposes, the estimate decides: near 1 it would have a single band
    index = datasketch.MinHashLSH(threshold=min(threshold, 0.9), num_perm=permutations)
    hashes = {}
    for row in rows:
        words = plain(caption_of(row))
        if not words:
            yield Verdict(True, None, "no caption")
            continue
        count = max(1, len(words) - SHINGLE + 1)
        shingles = {" ".join(words[i : i + SHINGLE]) for i in range(count)}
        sketch = datasketch.MinHash(num_perm=permutations, seed=seed)
        sketch.update_batch([shingle.encode() for shingle in sorted(shingles)])
        near = {other: sketch.jaccard(hashes[other]) for other in index.query(sketch)}
        nearest = max(near, key=near.get, default=None)
        if nearest is not None and near[nearest] >= threshold:
            value = round(float(near[nearest]), 4)
            yield Verdict(False, value, f"nearly the caption of {nearest}")
        else:
            index.insert(row["id"], sketch)
            hashes[row["id"]] = sketch
            yield Verdict(True, round(float(max(near.values(), default=0.0)), 4))
