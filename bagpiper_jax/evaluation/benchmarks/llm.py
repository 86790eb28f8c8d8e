"""Language models that judge or answer: many questions at once through `simulation.client`.

Answers are kept on disk, so that a run that broke off asks for none of them twice.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Generic, TypeVar

from ml_collections import ConfigDict
from tqdm import tqdm

from bagpiper_jax.errors import UserError
from bagpiper_jax.simulation.answers import Answers
from bagpiper_jax.simulation.client import BudgetSpent, Client, Unanswered, Unusable
from bagpiper_jax.simulation.config import (
    ModelConfig,
    RetryConfig,
    build_section,
    check_model,
    default_config,
)
from bagpiper_jax.simulation.endpoints import Query

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class LLM:
    """A language model and how it is asked.

    Attributes:
      model: named by its version where figures are to last: an alias moves on to the next one.
      retry: what is tried again; `answers` 1 takes the first answer as the official scripts do.
      cache: file that keeps every answer and what it cost (SQLite).
      budget_usd: limit of what is spent with this cache, over all runs; 0: none.
    """

    model: ModelConfig
    retry: RetryConfig
    cache: str
    budget_usd: float

    def label(self) -> dict[str, Any]:
        """For the figures: model, whether its name tells a version, and sampling."""
        model = self.model
        return {"name": model.name, "pinned": model.pinned, **model.sampling()}


def default_llm_config() -> ConfigDict:
    """Settings to start from: the judge of the simulation."""
    base = default_config()
    c = ConfigDict()
    c.model, c.retry, c.budget_usd = base.judge_model, base.retry, base.budget_usd
    c.model.structured = "none"  # the benchmarks' prompts ask for plain text
    c.cache = "runs/evaluation/answers.sqlite"
    return c


def llm_from(config: ConfigDict | dict[str, Any]) -> LLM:
    """Typed settings from a config section.

    Raises:
      UserError: an unknown or missing key, a value of another type or out of range.
    """
    values = config.to_dict() if isinstance(config, ConfigDict) else dict(config)
    for name, kind in (("model", ModelConfig), ("retry", RetryConfig)):
        values[name] = build_section(kind, values.get(name), name)
    llm = build_section(LLM, values, "")
    check_model(llm.model, "model", llm.budget_usd)
    if llm.model.structured != "none":
        raise UserError("config key model.structured must be 'none': prompts ask for plain text")
    if not llm.cache:
        raise UserError("config key cache must be the path of a file")
    return llm


@dataclasses.dataclass(frozen=True)
class Said(Generic[T]):
    """An answer of the language model.

    Attributes:
      value: what the check made of it; None where no answer passed.
      text: the answer; why there is none, where value is None.
    """

    value: T | None
    text: str


def ask_all(
    llm: LLM, prompts: Sequence[tuple[str, int]], check: Callable[[str], T], name: str
) -> list[Said[T]]:
    """Asks every question; an answer that breaks the form is asked for again.

    Args:
      llm: the model.
      prompts: (text, number of the sample) of each question.
      check: text → value; raises `BadAnswer`.
      name: of the progress bar.

    Returns:
      an answer for each, in their order.

    Raises:
      UserError: the endpoint cannot be asked, does not answer, or the budget is spent; what was
        answered is kept.
    """
    asking = _ask_all(llm, prompts, check, name)
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(asking)
    with ThreadPoolExecutor(1) as pool:  # a notebook's loop runs in this thread already
        return pool.submit(asyncio.run, asking).result()


async def _ask_all(llm: LLM, prompts, check, name) -> list[Said]:
    with (
        Answers(llm.cache) as answers,
        tqdm(total=len(prompts), desc=name, unit="answer") as bar,
    ):
        async with Client(llm.model, llm.retry, answers, budget_usd=llm.budget_usd) as client:

            async def one(prompt: str, sample: int) -> Said:
                try:
                    accepted = await client.ask(Query("", prompt, {}, sample=sample), check)
                    return Said(accepted.value, accepted.answers[-1].text)
                except Unusable as e:
                    return Said(None, str(e))
                finally:
                    bar.update()

            tasks = [asyncio.create_task(one(*prompt)) for prompt in prompts]
            try:
                return await asyncio.gather(*tasks)
            except (Unanswered, BudgetSpent) as e:
                mend = "raise budget_usd" if isinstance(e, BudgetSpent) else "run it again"
                raise UserError(
                    f"{llm.model.name}: {e}; {mend}: the answers so far are in {llm.cache}"
                ) from None
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
