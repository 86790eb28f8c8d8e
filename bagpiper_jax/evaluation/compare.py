"""Several evaluations as one table: `bagpiper evaluate --compare DIR DIR … --workdir OUT`."""

from __future__ import annotations

import html
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

from bagpiper_jax.errors import UserError
from bagpiper_jax.evaluation import tables, text_metrics, workdir
from bagpiper_jax.evaluation.figures import RESULTS_FILE
from bagpiper_jax.files import make_directory, write_text
from bagpiper_jax.html_report import page

MARKDOWN_FILE, PAGE_FILE = "comparison.md", "comparison.html"
_NOTES = (
    "In brackets: 95 % bootstrap intervals. Rates and shares are parts of 1.",
    "Δ: the difference to the first run over the same scenes or clips, which are drawn together "
    "(paired bootstrap); an asterisk where its interval leaves out 0. None is given where the runs "
    "had other items, settings, seed or corpus, or where the figure is no ratio of sums.",
)


class Run(NamedTuple):
    """An evaluation to compare: its heading, directory and results."""

    name: str
    directory: str
    results: dict[str, Any]


class Line(NamedTuple):
    """A figure of all runs: evaluator, words, values, differences to the first run, its control."""

    name: str
    label: str
    values: list[Any]
    differences: list[text_metrics.Interval | None]
    control: Any


def compare(directories: Sequence[str], out: str) -> str:
    """Writes `comparison.md` and `comparison.html`.

    Args:
      directories: with the `results.json` of an evaluation each; the first is what others are
        compared with.
      out: directory to write to.

    Returns:
      the table as Markdown.

    Raises:
      UserError: there are fewer than two, one is no evaluation, or `out` cannot be written.
    """
    if len(directories) < 2:
        raise UserError("a comparison takes two workdirs of evaluations at least")
    runs = [
        Run(name, directory, _results(directory))
        for name, directory in zip(_names(directories), directories)
    ]
    lines = compared(runs)
    make_directory(out)
    columns = ["evaluator", "figure", *(run.name for run in runs), f"control of {runs[0].name}"]
    cells = [[line.name, line.label, *_cells(line)] for line in lines]
    text = "\n\n".join(
        ("# Evaluations side by side", _about(runs), tables.markdown(columns, cells), *_NOTES)
    )
    write_text(os.path.join(out, MARKDOWN_FILE), text + "\n")
    rows = [[html.escape(f"{n}: {label}"), *map(html.escape, rest)] for n, label, *rest in cells]
    body = [page.paragraph(_about(runs)), page.table(["", *columns[2:]], rows)]
    body += map(page.paragraph, _NOTES)
    write_text(os.path.join(out, PAGE_FILE), page.page("Evaluations side by side", "\n".join(body)))
    return text


def compared(runs: Sequence[Run]) -> list[Line]:
    """Every figure that a run has, in the order of the first run that has it."""
    of_runs = [{(row.name, row.path): row for row in tables.rows(run.results)} for run in runs]
    labels: dict[tuple[str, tuple[str, ...]], str] = {}
    for of_run in of_runs:
        for key, row in of_run.items():
            labels.setdefault(key, row.label)
    lines = []
    for name in dict.fromkeys(name for name, _ in labels):
        sums = [workdir.read_sums(run.directory, name) for run in runs]
        paired = [same_items(runs[0], run, name) for run in runs]
        for key in (key for key in labels if key[0] == name):
            mine = [of_run.get(key) for of_run in of_runs]
            first, *others = (of_run.get("/".join(key[1])) for of_run in sums)
            differences = [
                text_metrics.paired_difference(first, other) if first and other and same else None
                for other, same in zip(others, paired[1:])
            ]
            values = [row.value if row else None for row in mine]
            control = mine[0].control if mine[0] else None
            lines.append(Line(name, labels[key], values, [None, *differences], control))
    return lines


def same_items(first: Run, other: Run, name: str) -> bool:
    """Whether an evaluator had the same items in both runs: a function of its settings, the seed
    and the files that they come from.

    Raises:
      UserError: a file of a run is damaged.
    """
    paths = (("seed",), ("evaluators", name), ("files", "clips.tsv"))
    data = [
        (workdir.read_json(os.path.join(run.directory, f"{name}.json")) or {}).get("data")
        for run in (first, other)
    ]
    recordings = {tables.at(run.results, ("files", "recordings")) for run in (first, other)}
    return (
        all(tables.at(first.results, path) == tables.at(other.results, path) for path in paths)
        and data[0] == data[1]
        and len(recordings - {None}) <= 1  # earlier results do not tell
    )


def _cells(line: Line) -> list[str]:
    cells = []
    for value, difference in zip(line.values, line.differences):
        cell = tables.interval_text(value) or "–"
        if difference:
            clear = difference.low > 0 or difference.high < 0
            cell += f"; Δ {tables.interval_text(difference._asdict(), signed=True)}"
            cell += " *" if clear else ""
        cells.append(cell)
    return [*cells, tables.interval_text(line.control)]


def _about(runs: Sequence[Run]) -> str:
    parts = (
        f"{run.name}: {run.results.get('checkpoint')}, weights "
        f"{(run.results.get('weights_sha256') or 'of a run')[:12]}, {run.results.get('date')}, "
        f"seed {run.results.get('seed')}, {run.results.get('dtype', 'float32')}"
        for run in runs
    )
    return "; ".join(parts) + "."


def _results(directory: str) -> dict[str, Any]:
    results = workdir.read_json(os.path.join(directory, RESULTS_FILE))
    if results is None:
        raise UserError(f"{directory} has no {RESULTS_FILE}: let its evaluation end first")
    return results


def _names(directories: Sequence[str]) -> list[str]:
    """Headings: the last part of each path, or as much of it as tells it from the others."""
    paths = [os.path.abspath(d).split(os.sep) for d in directories]
    if len(set(map(tuple, paths))) < len(paths):
        raise UserError("the same workdir is named twice: a comparison takes different ones")
    return [_shortest(path, [p for p in paths if p is not path]) for path in paths]


def _shortest(path: list[str], others: list[list[str]]) -> str:
    length = 1
    while any(other[-length:] == path[-length:] for other in others):
        length += 1
    return "/".join(path[-length:])
