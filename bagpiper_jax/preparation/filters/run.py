"""Runs the filters that a config lists over a manifest, one after another, and reports on each."""

from __future__ import annotations

import contextlib
import inspect
import os
import statistics
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict
from tqdm import tqdm

from bagpiper_jax.config_file import read_config_file
from bagpiper_jax.errors import UserError
from bagpiper_jax.files import make_directory, write_json, write_whole
from bagpiper_jax.json_lines import Journal, dump, read_lines, rebase_audio
from bagpiper_jax.preparation.filters import sound, text
from bagpiper_jax.preparation.filters.remembered import remembered
from bagpiper_jax.preparation.filters.rows import Filter, Row

FILTERS: dict[str, Filter] = {
    "duration": sound.duration,
    "language": text.language,
    "repetition": text.repetition,
    "near_duplicates": text.near_duplicates,
    "transcript_agreement": sound.transcript_agreement,
    "dnsmos": sound.dnsmos,
}
_SLOW = ("transcript_agreement", "dnsmos")  # what they find is kept until all rows are judged
EXAMPLES = 5  # removed rows that the report shows of each filter


def thresholds(name: str) -> dict[str, Any]:
    """The thresholds of a filter and their defaults."""
    parameters = inspect.signature(FILTERS[name]).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


def default_config() -> ConfigDict:
    """All filters, the cheap ones first, with their defaults: `filters` lists which run, in order;
    each has a section with its thresholds."""
    config = ConfigDict({"filters": tuple(FILTERS)})
    for name in FILTERS:
        config[name] = thresholds(name)
    return config


def load_filters(path: str, overrides: Sequence[str] = ()) -> list[tuple[str, dict[str, Any]]]:
    """The filters of a config file; see `default_config`.

    Raises:
      UserError: the file does not load, or names a filter or a threshold that does not exist.
    """
    return filters_from(read_config_file(["--config", path, *overrides], "bagpiper data filter"))


def filters_from(config: ConfigDict) -> list[tuple[str, dict[str, Any]]]:
    """(name, thresholds) of the filters that a config lists.

    Raises:
      UserError: it names a filter or a threshold that does not exist.
    """
    values = config.to_dict()
    names = values.pop("filters", None)
    if not isinstance(names, (tuple, list)):
        raise UserError("the config lacks the key filters: a tuple of names")
    unknown = sorted({*names, *values} - set(FILTERS))
    if unknown:
        raise UserError(f"there are no filters {', '.join(unknown)}; there are {sorted(FILTERS)}")
    for name, options in values.items():
        known = thresholds(name)
        if not isinstance(options, Mapping) or set(options) - set(known):
            raise UserError(f"config key {name} must have no keys but {sorted(known)}")
    return [(name, thresholds(name) | dict(values.get(name, {}))) for name in names]


class _Counted:
    """A filter at work: passes rows on, keeps count, hands over what it removes."""

    def __init__(self, name: str, options: dict[str, Any], removed, journal: Journal | None):
        self.name, self.options = name, options
        self._removed, self._journal = removed, journal
        self.kept = self.gone = 0
        self.beside: Counter[str] = Counter()
        self.values: list[float] = []
        self.labels: Counter[str] = Counter()
        self.examples: list[dict] = []

    def apply(self, rows: Iterator[Row], directory: str) -> Iterator[Row]:
        waiting: deque[Row] = deque()

        def feed():
            for row in rows:
                waiting.append(row)
                yield row

        work, options = FILTERS[self.name], self.options
        if self.name in _SLOW:
            verdicts = remembered(self.name, work, feed(), directory, options, self._journal)
        else:
            verdicts = work(feed(), directory, **options)
        for verdict in verdicts:
            row = waiting.popleft()
            if isinstance(verdict.value, str):
                self.labels[verdict.value] += 1
            elif verdict.value is not None:
                self.values.append(verdict.value)
            if verdict.keep:
                self.kept += 1
                if verdict.value is None:
                    self.beside[verdict.reason] += 1
                yield row | {"filters": row.get("filters", {}) | {self.name: verdict.value}}
                continue
            self.gone += 1
            why = {"id": row["id"], "filter": self.name, **verdict._asdict()}
            del why["keep"]
            if len(self.examples) < EXAMPLES:
                self.examples.append({k: why[k] for k in ("id", "value", "reason")})
            self._removed(why | {"row": row})

    def report(self) -> dict[str, Any]:
        """Counts, the spread of what was measured, and examples of what was removed."""
        found: dict[str, Any] = {
            "filter": self.name,
            "thresholds": self.options,
            "in": self.kept + self.gone,
            "out": self.kept,
            "removed": self.gone,
            "does_not_apply": dict(self.beside),
        }
        if self.values:
            low, middle, high = min(self.values), statistics.median(self.values), max(self.values)
            middle = round(middle, 4)
            found["measured"] = {"least": low, "median": middle, "most": high}
        if self.labels:
            found["measured"] = dict(self.labels.most_common())
        return found | {"examples": self.examples}


def run_filters(
    source: str,
    target: str,
    filters: Sequence[tuple[str, dict[str, Any]]],
    *,
    progress: bool = True,
) -> dict[str, Any]:
    """Filters a manifest.

    Args:
      source, target: files of JSON lines; paths of audio are relative to the file's directory.
        Rows that stay get what was measured under `filters`. Beside the target lie
        `.removed.jsonl` (rows, the filter and its reason) and `.report.json`. Until it is whole,
        `TARGET.partial` holds what slow filters have found, so that a run that was interrupted goes
        on.
      filters: (name, thresholds), in order; a row that one removes does not come to the next.
      progress: show a bar.

    Returns:
      the report: in = out + removed by each filter + unreadable.

    Raises:
      UserError: a file cannot be read or written, or a package is missing.
    """
    if os.path.realpath(source) == os.path.realpath(target):
        raise UserError(f"{target} is the input: name another file with --out")
    stem, ending = os.path.splitext(target)
    old, new = (os.path.dirname(os.path.abspath(path)) for path in (source, target))
    make_directory(new)
    report: dict[str, Any] = {}

    partial = f"{target}.partial"
    slow = any(name in _SLOW for name, _ in filters)

    def work(kept_path: str, removed_path: str) -> None:
        counts: Counter[str] = Counter()
        with (
            Journal(partial) if slow else contextlib.nullcontext() as journal,
            open(kept_path, "w", encoding="utf-8") as kept,
            open(removed_path, "w", encoding="utf-8") as gone,
        ):

            def remove(why: dict) -> None:
                moved = {"row": rebase_audio(why["row"], old, new)} if "row" in why else {}
                gone.write(dump(why | moved))

            def read() -> Iterator[Row]:
                for line in tqdm(
                    read_lines(source), desc="filter", unit="row", disable=not progress
                ):
                    counts["in"] += 1
                    if line.row is not None:
                        yield line.row
                        continue
                    counts["unreadable"] += 1
                    name = f"line {line.number}"
                    remove({"id": name, "filter": "unreadable", "reason": line.problem})

            steps = [_Counted(name, options, remove, journal) for name, options in filters]
            rows: Iterator[Row] = read()
            for step in steps:
                rows = step.apply(rows, old)
            for row in rows:
                counts["out"] += 1
                kept.write(dump(rebase_audio(row, old, new)))
        report.update({name: counts[name] for name in ("in", "out", "unreadable")})
        report["removed"] = sum(step.gone for step in steps)
        report["filters"] = [step.report() for step in steps]

    removed = f"{stem}.removed{ending}"
    write_whole(target, lambda a: write_whole(removed, lambda b: work(a, b)))
    if report["in"] != report["out"] + report["removed"] + report["unreadable"]:
        raise AssertionError(f"counts do not add up: {report}")
    write_json(f"{stem}.report.json", report)
    if slow:
        os.remove(partial)
    return report


def table(report: Mapping[str, Any]) -> str:
    """The report for people: a line for each filter, and examples of what it removed."""
    lines = [f"{'filter':<22}{'in':>8}{'out':>8}{'removed':>9}  measured"]
    for step in report["filters"]:
        measured = ", ".join(f"{k} {v}" for k, v in step.get("measured", {}).items())
        counts = f"{step['in']:>8}{step['out']:>8}{step['removed']:>9}"
        lines.append(f"{step['filter']:<22}{counts}  {measured}")
        lines += [f"    {e['id']}: {e['reason']}" for e in step["examples"]]
    lines.append(
        f"{report['in']} in = {report['out']} out + {report['removed']} removed + "
        f"{report['unreadable']} unreadable"
    )
    return "\n".join(lines)
