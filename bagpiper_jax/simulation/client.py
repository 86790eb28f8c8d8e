"""`Client`: answers that keep to a schema, with retries, a cache and a budget."""

from __future__ import annotations

import asyncio
import dataclasses
import random
import time
from collections.abc import Callable
from typing import Generic, TypeVar

from bagpiper_jax.simulation.answers import (
    Answer,
    Answers,
    Costs,
    answer_key,
    cost,
    estimate,
    now,
)
from bagpiper_jax.simulation.config import ModelConfig, RetryConfig
from bagpiper_jax.simulation.endpoints import Busy, Endpoint, Query, Refused, Reply, connect

T = TypeVar("T")


class BadAnswer(ValueError):
    """An answer that breaks the schema or a rule; the text says which."""


class Unusable(Exception):
    """No good answer came within the tries: the row is quarantined with this reason."""


class Unanswered(Exception):
    """The endpoint did not answer within the attempts, or did not take the request; another run
    may fare better."""


class BudgetSpent(Exception):
    """The next request might cost more than is left of the budget."""


@dataclasses.dataclass(frozen=True)
class Accepted(Generic[T]):
    """A good answer.

    Attributes:
      value: what the check made of it.
      answers: all that were asked for until it came, bad ones first.
      cached: none of them was asked for now.
    """

    value: T
    answers: tuple[Answer, ...]
    cached: bool

    def account(self) -> dict:
        """Cost, tokens and time, for the provenance of a row."""
        usd = [a.usd for a in self.answers]
        return {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.answers[-1].time)),
            "seconds": round(sum(a.seconds for a in self.answers), 3),
            "text_tokens": sum(a.usage.text for a in self.answers),
            "audio_tokens": sum(a.usage.audio for a in self.answers),
            "output_tokens": sum(a.usage.output for a in self.answers),
            "usd": None if None in usd else round(sum(usd), 8),
            "answers": len(self.answers),
            "cached": self.cached,
        }


class Client:
    """Asks one model. An async context manager; to be used within one event loop.

    Args:
      model: which.
      retry: what is tried again.
      answers: where answers and costs are kept.
      budget_usd: limit of what is spent with `answers`; 0: none.
      ask_again: answers that are kept but break a rule are asked for again, not believed.
      endpoint: another than the model's own.

    Raises:
      UserError: the key is not set, or the extra `simulate` is not installed.
    """

    def __init__(
        self,
        model: ModelConfig,
        retry: RetryConfig,
        answers: Answers,
        *,
        budget_usd: float = 0.0,
        ask_again: bool = False,
        endpoint: Endpoint | None = None,
    ):
        self.model, self.retry = model, retry
        self.paid = Costs()  # by this client, now
        self.retries = 0  # requests that were sent again
        self._answers = answers
        self._budget = budget_usd
        self._ask_again = ask_again
        self._endpoint = endpoint or connect(model)
        self._slots = asyncio.Semaphore(model.concurrency)
        self._reserved = 0.0  # dollars that requests under way may cost
        self._settled = asyncio.Condition()
        self._not_before = 0.0  # when the endpoint wants to be asked again
        self._next_start = 0.0  # by the limit of requests per minute

    async def ask(self, query: Query, check: Callable[[str], T]) -> Accepted[T]:
        """Asks until an answer passes `check`; a bad one is told what was wrong with it.

        Args:
          query: the question.
          check: text → value; raises BadAnswer.

        Raises:
          Unusable: no answer passed, or the model refused.
          Unanswered, BudgetSpent: see there.
          UserError: the endpoint cannot be asked at all.
        """
        taken: list[Answer] = []
        reasons: list[str] = []
        asked, cached = query, True
        for attempt in range(1, self.retry.answers + 1):
            answer = self._kept(asked, check)
            if answer is None:
                try:
                    answer, cached = await self._request(asked), False
                except Refused as e:
                    if not e.by_model:  # settings may be to blame, not the row
                        raise Unanswered(str(e)) from None
                    raise Unusable("; then: ".join([*reasons, str(e)])) from None
            taken.append(answer)
            try:
                return Accepted(_checked(answer, check), tuple(taken), cached)
            except BadAnswer as e:
                reasons.append(str(e))
                told = f"{query.prompt}\n\nAn earlier answer was refused: {e}. Mend that."
                asked = dataclasses.replace(query, prompt=told, attempt=attempt)
        raise Unusable("; then: ".join(reasons))

    def _kept(self, query: Query, check: Callable) -> Answer | None:
        answer = self._answers.get(answer_key(self.model, query))
        if answer is not None and self._ask_again:
            try:
                _checked(answer, check)
            except BadAnswer:
                return None
        return answer

    async def _request(self, query: Query) -> Answer:
        usage = estimate(self.model, query)
        most = cost(self.model.price, usage) or 0.0
        async with self._slots:
            await self._reserve(most)
            try:
                started = time.monotonic()
                reply = await self._attempt(query)
                used = reply.usage or dataclasses.replace(usage, output=len(reply.text) // 3 + 1)
                answer = Answer(
                    reply.text,
                    reply.complete,
                    cost(self.model.price, used),
                    used,
                    round(time.monotonic() - started, 3),
                    now(),
                )
                # from here on there is no waiting: a cancelled task has either all or nothing
                self._answers.put(answer_key(self.model, query), self.model.name, answer)
                self.paid.add(used, answer.usd)
                return answer
            finally:
                self._reserved -= most
                async with self._settled:
                    self._settled.notify_all()

    async def _reserve(self, most: float) -> None:
        """Waits until the budget holds the request beside those under way.

        Raises:
          BudgetSpent: it does not, and nothing is under way that could leave more.
        """
        async with self._settled:
            while self._budget:
                left = self._budget - self._answers.spent()
                if self._reserved + most <= left:
                    break
                if self._reserved <= 0 or most > left:
                    raise BudgetSpent(
                        f"${left:.4f} of the budget of ${self._budget:g} are left and the next "
                        f"request may cost ${most:.4f}"
                    )
                await self._settled.wait()
            self._reserved += most

    async def _attempt(self, query: Query) -> Reply:
        for attempt in range(1, self.retry.attempts + 1):
            await self._wait_for_turn()
            try:
                return await self._endpoint.ask(query)
            except Busy as e:
                if attempt == self.retry.attempts:
                    raise Unanswered(f"{attempt} requests were not answered, last: {e}") from None
                if e.retry_after is not None:
                    if e.retry_after > self.retry.max_retry_after_s:
                        raise Unanswered(
                            f"the endpoint asks to wait {e.retry_after:.0f} s: {e}"
                        ) from None
                    # it holds for every request, not for this one alone
                    wait = e.retry_after + random.uniform(0, 0.1)
                    self._not_before = max(self._not_before, time.monotonic() + wait)
                else:
                    wait = min(self.retry.max_s, self.retry.first_s * 2 ** (attempt - 1))
                    await asyncio.sleep(wait * random.uniform(0.5, 1))
                self.retries += 1
        raise AssertionError("attempts is at least 1")

    async def _wait_for_turn(self) -> None:
        while (wait := self._not_before - time.monotonic()) > 0:
            await asyncio.sleep(wait)
        if self.model.requests_per_minute:
            start = max(time.monotonic(), self._next_start)
            self._next_start = start + 60 / self.model.requests_per_minute
            await asyncio.sleep(max(0.0, start - time.monotonic()))

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *_) -> None:
        await self._endpoint.close()


def _checked(answer: Answer, check: Callable[[str], T]) -> T:
    if not answer.complete:
        raise BadAnswer("it was cut off at the limit of tokens: be brief")
    return check(answer.text)
