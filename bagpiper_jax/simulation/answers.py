"""`Answers`: one SQLite file that keeps every answer and what every request cost.

SQLite commits each answer before it is used, so a killed process loses none that it had.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import sqlite3
import time

from bagpiper_jax.errors import UserError
from bagpiper_jax.files import make_directory
from bagpiper_jax.simulation.config import ModelConfig, Price
from bagpiper_jax.simulation.endpoints import Query, Usage

_TABLES = """
create table if not exists answers (
  key text primary key, text text not null, complete integer, usd real, usage text, seconds real,
  time real
);
create table if not exists costs (
  model text primary key, requests integer, text integer, audio integer, output integer, usd real
);
"""
CHARACTERS_PER_TOKEN = 3  # few, so that estimates err upwards
AUDIO_TOKENS_PER_SECOND = 32  # Gemini's; others take fewer


@dataclasses.dataclass(frozen=True)
class Answer:
    """An answer as it is kept.

    Attributes:
      text: of the model.
      complete: it was not cut off.
      usd: what it cost when it was asked for; None where no price is known.
      usage: tokens; estimated where the endpoint did not tell.
      seconds: it took.
      time: when it came, seconds since 1970.
    """

    text: str
    complete: bool
    usd: float | None
    usage: Usage
    seconds: float
    time: float


@dataclasses.dataclass
class Costs:
    """Sums over requests that were answered; `usd` counts those with a known price."""

    requests: int = 0
    text: int = 0
    audio: int = 0
    output: int = 0
    usd: float = 0.0

    def add(self, usage: Usage, usd: float | None) -> None:
        self.requests += 1
        self.text += usage.text
        self.audio += usage.audio
        self.output += usage.output
        self.usd += usd or 0.0


def answer_key(model: ModelConfig, query: Query) -> str:
    """What an answer is kept under: model, endpoint, prompt, schema, audio and sampling, hashed."""
    audio = hashlib.sha256(query.audio).hexdigest() if query.audio is not None else ""
    told = [model.api, model.base_url, model.name, model.sampling()]
    told += [query.system, query.prompt, query.schema, query.sample, query.attempt, audio]
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def cost(price: Price | None, usage: Usage) -> float | None:
    """US dollars of an answer. Discounts for prompts that the endpoint has cached are left out."""
    if price is None:
        return None
    parts = (price.text * usage.text, price.audio * usage.audio, price.output * usage.output)
    return sum(parts) / 1e6


def estimate(model: ModelConfig, query: Query) -> Usage:
    """The most tokens that a request may take."""
    told = len(query.system) + len(query.prompt) + len(json.dumps(query.schema))
    audio = round(query.audio_seconds * AUDIO_TOKENS_PER_SECOND)
    return Usage(told // CHARACTERS_PER_TOKEN, audio, model.max_tokens)


class Answers:
    """The file. A context manager.

    Args:
      path: of the file; made where it is missing.

    Raises:
      UserError: it cannot be opened or written.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = os.fspath(path)
        make_directory(os.path.dirname(os.path.abspath(path)))
        self._use(self._open)

    def _open(self):
        self._file = sqlite3.connect(self.path, timeout=60)
        self._file.executescript(_TABLES)

    def get(self, key: str) -> Answer | None:
        """The answer that is kept under a key."""
        columns = "text, complete, usd, usage, seconds, time"
        ask = f"select {columns} from answers where key = ?"
        row = self._use(lambda: self._file.execute(ask, (key,)).fetchone())
        if row is None:
            return None
        text, complete, usd, usage, seconds, when = row
        return Answer(text, bool(complete), usd, Usage(*json.loads(usage)), seconds, when)

    def put(self, key: str, model: str, answer: Answer) -> None:
        """Keeps an answer and adds to the costs of the model, both or neither."""
        self._use(lambda: self._put(key, model, answer))

    def _put(self, key: str, model: str, answer: Answer) -> None:
        u = answer.usage
        usage = json.dumps(dataclasses.astuple(u))
        with self._file:
            self._file.execute(
                "insert or replace into answers values (?, ?, ?, ?, ?, ?, ?)",
                (key, answer.text, answer.complete, answer.usd, usage, answer.seconds, answer.time),
            )
            self._file.execute(
                "insert into costs values (?, 1, ?, ?, ?, ?) on conflict (model) do update set "
                "requests = requests + 1, text = text + excluded.text, "
                "audio = audio + excluded.audio, output = output + excluded.output, "
                "usd = usd + excluded.usd",
                (model, u.text, u.audio, u.output, answer.usd or 0.0),
            )

    def costs(self) -> dict[str, Costs]:
        """What was spent so far, by model, over all runs that used the file."""
        rows = self._use(lambda: self._file.execute("select * from costs").fetchall())
        return {row[0]: Costs(*row[1:]) for row in rows}

    def spent(self) -> float:
        """US dollars spent so far, over all runs that used the file."""
        return sum(c.usd for c in self.costs().values())

    def _use(self, action):
        try:
            return action()
        except sqlite3.Error as e:
            raise UserError(
                f"the cache {self.path} cannot be used: {e}; move it away, or name another in the "
                "config key cache"
            ) from e

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Answers:
        return self

    def __exit__(self, *_) -> None:
        self.close()


def now() -> float:
    """Seconds since 1970, as kept with answers."""
    return round(time.time(), 3)
