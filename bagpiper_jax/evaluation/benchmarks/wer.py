"""Word error rates as the benchmarks take them: forms of the words, and how they are averaged."""

from __future__ import annotations

import functools
import importlib.metadata
import re
import string
import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np

from bagpiper_jax.errors import UserError
from bagpiper_jax.evaluation import text_metrics
from bagpiper_jax.evaluation.text_metrics import Errors

NORMALISER = "whisper-normalizer"  # the English normaliser of Whisper's paper, without torch


@functools.cache
def _english():
    try:
        from whisper_normalizer.english import EnglishTextNormalizer
    except ImportError as e:
        raise UserError(
            "word error rates need whisper-normalizer: pip install 'bagpiper_jax[eval]'"
        ) from e
    return EnglishTextNormalizer()


def normalised(text: str) -> list[str]:
    """Words by Whisper's English normaliser: numbers, spelling, contractions, no fillers.

    Raises:
      UserError: the extra `eval` is not installed.
    """
    return _english()(text).split()


def normaliser_name() -> str:
    """Package and version, for the figures."""
    _english()
    return f"{NORMALISER} {importlib.metadata.version(NORMALISER)}, EnglishTextNormalizer"


def seed_tts_words(text: str, language: str) -> list[str]:
    """Words by the rule of Seed-TTS-Eval: no punctuation but the apostrophe; English in lower
    case, Mandarin by characters.

    Source: `process_one` in run_wer.py of github.com/BytedanceSpeech/seed-tts-eval. Punctuation is
    here what Unicode calls so and what `string.punctuation` has.
    """
    kept = "".join(c for c in text if c == "'" or not _is_punctuation(c))
    if language == "zh":
        return [c for c in kept if not c.isspace()]
    return kept.lower().split()


def _is_punctuation(character: str) -> bool:
    return character in string.punctuation or unicodedata.category(character).startswith("P")


def count(truth: str, said: str) -> dict[str, Errors]:
    """Errors in both forms: raw (lower case, no punctuation) and normalised."""
    forms = {"raw": text_metrics.plain, "normalised": normalised}
    return {name: text_metrics.count_errors(f(truth), f(said)) for name, f in forms.items()}


def rates(items: Sequence[dict[str, Any]], field: str, seed: int) -> dict[str, Any]:
    """Word error rate of the corpus in each form that the items' `field` holds.

    Items of one key are drawn together: they are renderings of one text.
    """
    keys = [item["key"] for item in items]
    return {
        form: text_metrics.word_error_rate(
            [Errors(*item[field][form]) for item in items], groups=keys, seed=seed
        )
        for form in items[0][field]
    }


def mean_of_utterances(items: Sequence[dict[str, Any]], field: str, form: str, seed: int):
    """Mean of the utterances' own error rates, as Seed-TTS-Eval averages them: an `Interval`."""
    own = [Errors(*item[field][form]).rate for item in items]
    keys = [item["key"] for item in items]
    return text_metrics.bootstrap_ratio(own, np.ones(len(own)), groups=keys, seed=seed)


def quoted_words(text: str) -> str:
    """A text without the double quotes that would end a quotation it is put in."""
    return re.sub(r'["“”]', "", text)
