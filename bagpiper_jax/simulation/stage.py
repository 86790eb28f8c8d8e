"""`run_stage`: rows in, rows out, and nothing that was answered is ever lost.

Finished rows go to a journal (`OUT.partial`) as they come. A run that stops, by Ctrl-C, a kill, a
spent budget or a dead endpoint, goes on from there when the same command is given again; at the
end the journal becomes `OUT`, in the order of the input. In = out + rejected + quarantined.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import json
import os
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any

from bagpiper_jax.errors import UserError
from bagpiper_jax.files import write_json
from bagpiper_jax.json_lines import Journal, read_lines, rebase_audio, write_rows
from bagpiper_jax.simulation.answers import Answers
from bagpiper_jax.simulation.client import Accepted, BudgetSpent, Client, Unanswered, Unusable
from bagpiper_jax.simulation.config import ModelConfig, Settings
from bagpiper_jax.simulation.prompts import Prompt

Row = dict[str, Any]
OUT, REJECTED, QUARANTINED = "out", "rejected", "quarantined"
MOST_REASONS = 30  # of a summary
IDLE_WORKERS = 4  # of a stage that asks no model


@dataclasses.dataclass(frozen=True)
class Unit:
    """What is worked on at once: a row, or one of the choices made for it.

    Attributes:
      id: of the row that comes out.
      row: that went in.
      choice: such as direction and level.
    """

    id: str
    row: Row
    choice: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Context:
    """What a stage works with. client: None for a stage without a model."""

    settings: Settings
    directory: str
    client: Client | None

    def audio_path(self, row: Row) -> str:
        """Where the recording of a row lies.

        Raises:
          Unusable: the row names none.
        """
        if not isinstance(row.get("audio"), str) or not row["audio"]:
            raise Unusable("the row names no audio")
        return os.path.join(self.directory, row["audio"])


@dataclasses.dataclass(frozen=True)
class Stage:
    """A step of the simulation.

    Attributes:
      name: of the subcommand.
      model: which of the settings' models it asks; None: it asks none.
      basis: what its rows depend on beside their input and the model: prompts, rules.
      units: row → units; raises Unusable.
      work: makes the row of a unit; raises Unusable, Unanswered or BudgetSpent.
      judges: its rows hold a verdict, `judge`; those with a false `passed` there are rejected.
    """

    name: str
    model: Callable[[Settings], ModelConfig] | None
    basis: Callable[[Settings], Any]
    units: Callable[[Row, Settings], list[Unit]]
    work: Callable[[Context, Unit], Awaitable[Row]]
    judges: bool = False


def text_of(row: Row, key: str) -> str:
    """A text that a stage needs.

    Raises:
      Unusable: it is missing or empty.
    """
    value = row.get(key)
    if not isinstance(value, str) or not value.strip():
        raise Unusable(f"the row has no {key}")
    return value


def with_provenance(row: Row, stage: str, unit: Unit, asked: Mapping[str, Any]) -> Row:
    """The row with an entry on how it was made, added to those of earlier stages."""
    before = unit.row.get("provenance")
    before = dict(before) if isinstance(before, dict) else {}
    entry = {"stage": stage, "input": unit.row["id"], "input_sha256": row_hash(unit.row), **asked}
    return row | {"provenance": before | {"simulation": [*before.get("simulation", ()), entry]}}


def account(client: Client, prompt: Prompt, accepted: Accepted) -> dict[str, Any]:
    """For provenance: the model, how it was asked, and what that cost."""
    model = client.model
    return {
        "api": model.api,
        "model": model.name,
        "sampling": model.sampling(),
        **prompt.label,
        **accepted.account(),
    }


def row_hash(row: Row) -> str:
    """Of a row's content without its provenance."""
    bare = {k: v for k, v in row.items() if k != "provenance"}
    return hashlib.sha256(json.dumps(bare, sort_keys=True).encode()).hexdigest()[:16]


def companion(path: str, name: str) -> str:
    """A file that lies beside the output: clips.jsonl → clips.NAME.jsonl."""
    stem, ending = os.path.splitext(path)
    return f"{stem}.{name}{ending}"


def run_stage(
    stage: Stage,
    source: str,
    target: str,
    settings: Settings,
    *,
    ask_again: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Runs a stage over a file of JSON lines.

    Args:
      stage: which.
      source, target: files of JSON lines. Beside the target lie `.quarantined.jsonl` (rows and
        reasons), `.rejected.jsonl` (of the judge) and `.summary.json`.
      settings: of the simulation.
      ask_again: rows whose answers were bad in an earlier run are asked for anew.
      progress: show a bar with the time that is left.

    Returns:
      the summary: counts, reasons and costs.

    Raises:
      UserError: a file cannot be read or written, the endpoint cannot be asked, or the stage
        stopped early; the message says how to go on.
    """
    if os.path.realpath(source) == os.path.realpath(target):
        raise UserError(f"{target} is the input: name another file with --out")
    journal_path = f"{target}.partial"
    with contextlib.ExitStack() as stack:
        answers = stack.enter_context(Answers(settings.cache)) if stage.model else None
        journal = stack.enter_context(Journal(journal_path))
        run = _Run(stage, source, target, settings, journal, answers, ask_again, progress)
        stopped = asyncio.run(run.work())
        if stopped:
            raise UserError(
                f"{stage.name} stopped: {stopped}; {run.done} of {run.total} are done and "
                f"kept in {journal_path}: give the same command to go on"
            )
        return run.finish()


class _Run:
    """One run of a stage."""

    def __init__(self, stage, source, target, settings, journal, answers, ask_again, progress):
        self.stage, self.source, self.target, self.settings = stage, source, target, settings
        self.journal, self.answers = journal, answers
        self.ask_again, self.progress = ask_again, progress
        self.directory = os.path.dirname(os.path.abspath(source))
        self.new_directory = os.path.dirname(os.path.abspath(target))
        self.model = stage.model(settings) if stage.model else None
        basis = [stage.name, stage.basis(settings)]
        if self.model:
            basis += [self.model.api, self.model.name, self.model.base_url, self.model.sampling()]
        self.basis = hashlib.sha256(json.dumps(basis, sort_keys=True).encode()).hexdigest()
        self.total = self.done = 0
        for key, unit, _ in self.units():
            self.total += 1
            self.done += unit is None or self.is_done(key)
        self.failed: dict[str, str] = {}
        self.in_a_row = 0
        self.stopped = ""
        self.client: Client | None = None

    def units(self) -> Iterator[tuple[str, Unit | None, Row]]:
        """(key, unit, quarantine entry where there is no unit) of everything that comes in."""
        for line in read_lines(self.source):
            if line.row is None:
                entry = {"id": f"line {line.number}", "reason": line.problem}
                yield f"line {line.number}", None, entry
                continue
            key = row_hash(line.row)
            try:
                units = self.stage.units(line.row, self.settings)
            except Unusable as e:
                yield line.row["id"], None, self.quarantine(line.row, line.row["id"], str(e))
                continue
            for unit in units:
                whole = f"{self.basis}{key}{unit.id}".encode()
                yield hashlib.sha256(whole).hexdigest()[:32], unit, {}

    def is_done(self, key: str) -> bool:
        if key not in self.journal:
            return False
        return not (self.ask_again and self.journal.get(key)[0] == QUARANTINED)

    def quarantine(self, row: Row, name: str, reason: str) -> Row:
        return {"id": name, "reason": reason, "row": row}

    async def work(self) -> str:
        """Works off what is not in the journal; returns why it stopped early, or nothing."""
        from tqdm import tqdm

        todo = (
            (key, unit)
            for key, unit, _ in self.units()
            if unit is not None and not self.is_done(key)
        )
        async with contextlib.AsyncExitStack() as stack:
            if self.model:
                self.client = await stack.enter_async_context(
                    Client(
                        self.model,
                        self.settings.retry,
                        self.answers,
                        budget_usd=self.settings.budget_usd,
                        ask_again=self.ask_again,
                    )
                )
            bar = tqdm(
                total=self.total,
                initial=self.done,
                desc=self.stage.name,
                unit="row",
                file=sys.stderr,
                disable=not self.progress,
            )
            stack.callback(bar.close)
            context = Context(self.settings, self.directory, self.client)
            workers = self.model.concurrency if self.model else IDLE_WORKERS
            async with asyncio.TaskGroup() as group:
                for _ in range(workers):
                    group.create_task(self._worker(todo, context, bar))
        return self.stopped

    async def _worker(self, todo: Iterator, context: Context, bar) -> None:
        # a stop lets the others end what they do: their requests are paid for
        while not self.stopped and (job := next(todo, None)):
            key, unit = job
            try:
                try:
                    kind, row = OUT, await self.stage.work(context, unit)
                    self.in_a_row = 0
                except Unusable as e:
                    kind, row = QUARANTINED, self.quarantine(unit.row, unit.id, str(e))
                self.journal.add(key, [kind, row])
            except Unanswered as e:
                self.failed[key] = str(e)  # not kept: the next run asks again
                self.in_a_row += 1
                if self.in_a_row >= self.settings.retry.give_up_after:
                    self.stopped = f"{self.in_a_row} rows in a row had no answer, the last: {e}"
            except (BudgetSpent, UserError) as e:
                self.stopped = self.stopped or str(e)
                return
            self.done += key not in self.failed
            bar.update()
            if self.client:
                bar.set_postfix_str(f"${self.client.paid.usd:.4f}, {len(self.failed)} failed")

    def finish(self) -> dict[str, Any]:
        """Turns the journal into the files that stay."""
        counts: Counter[str] = Counter({OUT: 0, REJECTED: 0, QUARANTINED: 0})
        reasons: Counter[str] = Counter()
        files = {
            OUT: self.target,
            REJECTED: companion(self.target, REJECTED),
            QUARANTINED: companion(self.target, QUARANTINED),
        }
        for kind, path in files.items():
            if kind != REJECTED or self.stage.judges:
                write_rows(path, self._rows(kind, counts, reasons))
        summary = {
            "stage": self.stage.name,
            "in": self.total,
            **counts,
            "reasons": dict(reasons.most_common(MOST_REASONS)),
        }
        if self.client:
            summary["requests_sent_again"] = self.client.retries
            summary["paid_now"] = dataclasses.asdict(self.client.paid)
            summary["paid_in_all"] = {
                name: dataclasses.asdict(costs) for name, costs in self.answers.costs().items()
            }
        if counts.total() != self.total:
            raise AssertionError(f"counts do not add up: {summary}")
        write_json(f"{os.path.splitext(self.target)[0]}.summary.json", summary)
        self.journal.remove()
        return summary

    def _rows(self, wanted: str, counts: Counter, reasons: Counter) -> Iterator[Row]:
        for key, unit, entry in self.units():
            kind, row = QUARANTINED, entry
            if unit is not None and key in self.failed:
                row = self.quarantine(unit.row, unit.id, self.failed[key])
            elif unit is not None:
                kind, row = self.journal.get(key)
                if self.stage.judges and kind == OUT and not row["judge"]["passed"]:
                    kind = REJECTED
            if kind != wanted:
                continue
            counts[kind] += 1
            if kind == QUARANTINED:
                reasons[row["reason"][:120]] += 1
                if "row" in row:
                    row = row | {"row": self._moved(row["row"])}
                yield row
            else:
                yield self._moved(row)

    def _moved(self, row: Row) -> Row:
        return rebase_audio(row, self.directory, self.new_directory)
