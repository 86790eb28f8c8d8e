"""Settings of the simulation as typed, frozen dataclasses, read from an `ml_collections` file."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from urllib.parse import urlsplit

from ml_collections import ConfigDict

from bagpiper_jax.config_file import read_config_file
from bagpiper_jax.errors import UserError

APIS = ("openai", "gemini")
STRUCTURED = ("schema", "json", "none")
DIRECTIONS = ("audio_to_text", "text_to_audio")
LEVELS = ("realistic", "imaginary")


@dataclasses.dataclass(frozen=True)
class Price:
    """US dollars per million tokens: of text read, of audio read, and written (thoughts too)."""

    text: float
    audio: float
    output: float


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A model behind an endpoint.

    Attributes:
      api: "openai" (any server that speaks its chat completions) or "gemini".
      name: of the model, as the endpoint knows it.
      base_url: of the endpoint; empty: the API's own.
      key_env: name of the environment variable that holds the key; empty: the endpoint needs none.
      structured: how the endpoint is held to a schema: "schema" (it enforces it), "json" (it
        enforces JSON, the prompt tells the schema), "none" (the prompt alone). Answers are
        checked in any case.
      temperature, top_p, max_tokens: of the sampling.
      seed: of the sampling, where the endpoint knows one; -1: none is sent.
      timeout_s: seconds that a request may take in all.
      concurrency: requests at once.
      requests_per_minute: limit of the endpoint; 0: none.
      price: what it costs; None: unknown, tokens alone are counted.
    """

    api: str
    name: str
    base_url: str
    key_env: str
    structured: str
    temperature: float
    top_p: float
    max_tokens: int
    seed: int
    timeout_s: float
    concurrency: int
    requests_per_minute: int
    price: Price | None

    @property
    def pinned(self) -> bool:
        """Whether the name ends in a date or a numbered version, or has one before a word: what
        lacks both, as "gemini-2.5-flash", may be another model tomorrow."""
        return bool(re.search(r"[-_@](\d{3,4}|\d{6}|\d{8}|\d\d-\d\d)(?![0-9A-Za-z])", self.name))

    def sampling(self) -> dict:
        """What the answer depends on beside the prompt: part of cache keys and provenance."""
        keys = ("temperature", "top_p", "max_tokens", "seed", "structured")
        return {key: getattr(self, key) for key in keys}


@dataclasses.dataclass(frozen=True)
class RetryConfig:
    """What is tried again.

    Attributes:
      attempts: requests for one answer, where the endpoint is busy, slow or broken.
      first_s, max_s: seconds of the first wait, which doubles, and of the longest.
      max_retry_after_s: the longest wait that an endpoint may ask for with Retry-After.
      answers: answers asked for where one breaks the schema or a rule.
      give_up_after: rows in a row without an answer that stop the stage: the endpoint is down.
    """

    attempts: int
    first_s: float
    max_s: float
    max_retry_after_s: float
    answers: int
    give_up_after: int


@dataclasses.dataclass(frozen=True)
class AudioConfig:
    """How recordings are sent: WAV of 16 bits.

    Attributes:
      max_seconds: longer recordings are quarantined.
      sample_rate: in Hz; 0: as recorded.
      mono: the first channel alone.
    """

    max_seconds: float
    sample_rate: int
    mono: bool


@dataclasses.dataclass(frozen=True)
class RequestConfig:
    """What users ask for.

    Attributes:
      directions: of DIRECTIONS; each captioned clip gets a request of each level in each.
      levels: of LEVELS.
      min_words, max_words: of a request, quoted speech not counted (paper: 15 to 80).
      min_question_words: the lower limit of questions about a recording.
    """

    directions: tuple[str, ...]
    levels: tuple[str, ...]
    min_words: int
    max_words: int
    min_question_words: int


@dataclasses.dataclass(frozen=True)
class JudgeConfig:
    """When a dialogue is good enough (paper: all ≥ 3 and mean ≥ 3.5).

    Attributes:
      min_score, min_mean: of the 17 dimensions, 1 to 5.
      votes: verdicts per dialogue; the median of each dimension counts.
      audio: whether the judge hears the recording too.
    """

    min_score: int
    min_mean: float
    votes: int
    audio: bool


@dataclasses.dataclass(frozen=True)
class Settings:
    """All settings.

    Attributes:
      captioner, writer, judge_model: the models of the stages.
      cache: file that keeps every answer and what it cost (SQLite).
      budget_usd: limit of what is spent with this cache, over all runs; 0: none.
    """

    captioner: ModelConfig
    writer: ModelConfig
    judge_model: ModelConfig
    cache: str
    budget_usd: float
    retry: RetryConfig
    audio: AudioConfig
    requests: RequestConfig
    judge: JudgeConfig


_PARTS = {
    "captioner": ModelConfig,
    "writer": ModelConfig,
    "judge_model": ModelConfig,
    "retry": RetryConfig,
    "audio": AudioConfig,
    "requests": RequestConfig,
    "judge": JudgeConfig,
}


def default_config() -> ConfigDict:
    """Settings to start from: Gemini hears, a cheaper model of the same API writes and judges."""
    model = ConfigDict()
    model.api = "gemini"
    model.name = "gemini-2.5-pro"
    model.base_url = ""
    model.key_env = "GEMINI_API_KEY"
    model.structured = "schema"
    model.temperature = 0.7
    model.top_p = 0.95
    model.max_tokens = 16_384  # thoughts count too
    model.seed = -1
    model.timeout_s = 180.0
    model.concurrency = 16
    model.requests_per_minute = 0
    model.price = {"text": 1.25, "audio": 1.25, "output": 10.0}  # check your provider's table
    c = ConfigDict()
    c.captioner = model
    c.writer = model.copy_and_resolve_references()
    c.writer.name = "gemini-2.5-flash"
    c.writer.temperature = 1.0  # variety of personas and requests
    c.writer.max_tokens = 8_192
    c.writer.price = {"text": 0.30, "audio": 1.0, "output": 2.5}
    c.judge_model = c.writer.copy_and_resolve_references()
    c.judge_model.temperature = 0.0
    c.cache = "runs/simulation/answers.sqlite"
    c.budget_usd = 0.0
    c.retry = {"attempts": 6, "first_s": 1.0, "max_s": 60.0, "max_retry_after_s": 600.0}
    c.retry.answers = 3
    c.retry.give_up_after = 20
    c.audio = {"max_seconds": 31.0, "sample_rate": 0, "mono": False}
    c.requests = {"directions": DIRECTIONS, "levels": LEVELS}
    c.requests.min_words = 15  # (paper)
    c.requests.max_words = 80  # (paper)
    c.requests.min_question_words = 8
    c.judge = {"min_score": 3, "min_mean": 3.5, "votes": 1, "audio": False}
    return c


def load_settings(path: str, overrides: Sequence[str] = ()) -> Settings:
    """Reads a config file and its `--config.KEY=VALUE` overrides.

    Raises:
      UserError: no file, a file that fails, an unknown or missing key, a value that cannot be.
    """
    return settings_from(read_config_file(["--config", path, *overrides], "bagpiper simulate"))


def settings_from(config: ConfigDict) -> Settings:
    """Typed settings from an `ml_collections` config.

    Raises:
      UserError: an unknown or missing key, a value of another type or out of range.
    """
    values = config.to_dict()
    for name, part in _PARTS.items():
        values[name] = build_section(part, values.get(name), name)
    settings = build_section(Settings, values, "")
    for name in ("captioner", "writer", "judge_model"):
        check_model(getattr(settings, name), name, settings.budget_usd)
    retry, requests = settings.retry, settings.requests
    for name in ("attempts", "answers", "give_up_after"):
        _need(getattr(retry, name) >= 1, f"retry.{name}", "at least 1")
    _need(0 < retry.first_s <= retry.max_s, "retry.first_s", "positive, at most retry.max_s")
    _need(bool(requests.directions), "requests.directions", f"of {DIRECTIONS}")
    _need(set(requests.directions) <= set(DIRECTIONS), "requests.directions", f"of {DIRECTIONS}")
    _need(bool(requests.levels), "requests.levels", f"of {LEVELS}")
    _need(set(requests.levels) <= set(LEVELS), "requests.levels", f"of {LEVELS}")
    _need(settings.judge.votes >= 1, "judge.votes", "at least 1")
    _need(settings.audio.max_seconds > 0, "audio.max_seconds", "positive")
    _need(bool(settings.cache), "cache", "the path of a file")
    return settings


def check_model(model: ModelConfig, where: str, budget_usd: float) -> None:
    """Checks the settings of one model.

    Args:
      model: the settings.
      where: their key, for messages.
      budget_usd: a budget needs a price.

    Raises:
      UserError: a value that cannot be.
    """
    _need(model.api in APIS, f"{where}.api", f"one of {APIS}")
    _need(model.structured in STRUCTURED, f"{where}.structured", f"one of {STRUCTURED}")
    _need(bool(model.name), f"{where}.name", "the model's name")
    _need(model.concurrency >= 1, f"{where}.concurrency", "at least 1")
    _need(model.timeout_s > 0, f"{where}.timeout_s", "positive")
    _need(model.max_tokens >= 1, f"{where}.max_tokens", "at least 1")
    # a key put here by mistake is not repeated in the message
    names = r"[A-Z][A-Z0-9_]*"
    if model.key_env and not re.fullmatch(names, model.key_env):
        raise UserError(
            f"config key {where}.key_env must be the name of an environment variable "
            "(capitals), never the key itself"
        )
    url = urlsplit(model.base_url)
    if url.username or url.password or url.query:
        raise UserError(
            f"config key {where}.base_url must hold no user, password or query: "
            f"keys come from the environment variable that {where}.key_env names"
        )
    whole = not model.base_url or (url.scheme in ("http", "https") and bool(url.netloc))
    _need(whole, f"{where}.base_url", "an address that begins with http:// or https://")
    if budget_usd and model.price is None:
        raise UserError(f"a budget needs {where}.price: dollars per million tokens")


def _need(true: bool, key: str, what: str) -> None:
    if not true:
        raise UserError(f"config key {key} must be {what}")


def build_section(cls, values, where: str):
    """A frozen dataclass from a dict that has exactly its fields.

    Args:
      cls: the dataclass.
      values: the dict.
      where: its key, for messages; "" at the top.

    Raises:
      UserError: an unknown or missing key, or a value of another type.
    """
    prefix = f"{where}." if where else ""
    if not isinstance(values, dict):
        raise UserError(f"the config lacks the section {where!r}")
    fields = {f.name: f.type for f in dataclasses.fields(cls)}
    unknown = sorted(prefix + k for k in values if k not in fields)
    missing = sorted(prefix + k for k in fields if k not in values)
    if unknown:
        raise UserError(f"unknown config keys: {', '.join(unknown)}; there are {sorted(fields)}")
    if missing:
        raise UserError(f"the config lacks the keys: {', '.join(missing)}")
    basic = {"int": int, "float": (int, float), "str": str, "bool": bool}
    values = dict(values)
    for name, kind in fields.items():
        value = values[name]
        wrong = kind in basic and not isinstance(value, basic[kind])
        if wrong or (kind in ("int", "float") and isinstance(value, bool)):
            raise UserError(f"config key {prefix}{name} must be of type {kind}")
        if kind.startswith("tuple"):
            if isinstance(value, str):
                raise UserError(f"config key {prefix}{name} must be a tuple")
            values[name] = tuple(value)
    if "price" in fields and values["price"] is not None:
        values["price"] = build_section(Price, values["price"], f"{prefix}price")
    return cls(**values)
