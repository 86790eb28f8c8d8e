"""One self-contained HTML page about prepared sets."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from bagpiper_jax.errors import UserError
from bagpiper_jax.files import write_text
from bagpiper_jax.html_report import page
from bagpiper_jax.input_pipeline.packing import RowShape
from bagpiper_jax.input_pipeline.prepared import DATASET_FILE, PreparedSet, open_prepared
from bagpiper_jax.input_pipeline.records import TASKS
from bagpiper_jax.preparation.inspect import counts
from bagpiper_jax.preparation.inspect.counts import escaped
from bagpiper_jax.preparation.inspect.examples import Room, choose, examples_section
from bagpiper_jax.preparation.inspect.pictures import histogram
from bagpiper_jax.preparation.inspect.plans import make_plans, plan_section
from bagpiper_jax.preparation.inspect.rows import rows_section
from bagpiper_jax.preparation.options import Options, Tools, fingerprints, load_tools

STYLE = Path(__file__).with_name("assets") / "inspect.css"


def inspect_sets(
    directories: Sequence[str | os.PathLike],
    path: str | os.PathLike,
    *,
    options: Options | None = None,
    examples: int = 12,
    rows: int = 2,
    shape: RowShape = RowShape(8192, 128),  # noqa: B008
    mixture: Mapping[str, float] | None = None,
    seed: int = 0,
    max_mb: float = 32.0,
) -> list[str]:
    """Writes a page to look at prepared sets by; it asks for nothing outside of itself.

    Args:
      directories: of the sets.
      path: of the HTML file.
      options: whose model, and codec, the sets were prepared with; the small model if None.
      examples: records to show and to hear.
      rows: packed rows to show of each plan.
      shape: of packed rows.
      mixture: share of the tokens by task, see `make_plans`.
      seed: of the choice of records and of the plan.
      max_mb: of audio on the page, as embedded; what has no room is named.

    Returns:
      what could not be shown, a line each.

    Raises:
      UserError: a directory that is no prepared set, or a damaged one; an option that does not do;
        the page cannot be written.
    """
    if min(examples, rows) < 0 or max_mb < 0:
        raise UserError("--examples, --rows and --max-mb must be 0 or more")
    sets = _open(directories)
    tools, notes = _tools(sets, options or Options())
    body = [_lead(sets), *(f"<p class=warn>{escaped(note)}</p>" for note in notes)]
    body += [counts.counts_section(sets), counts.hours_section(sets), _lengths(sets)]
    if tools is not None:
        plans = make_plans(sets, tools, shape, mixture=mixture, seed=seed)
        body += [plan_section(plans), rows_section(plans, tools, rows)]
    picks = choose(sets, examples, seed)
    if picks:
        codec = tools.codec if tools is not None else None
        body.append(examples_section(picks, codec, Room(int(max_mb * 1e6))))
    body += [counts.quarantine_section(sets), counts.json_section(sets)]
    title = "Prepared data: " + ", ".join(s.name for s in sets)
    style = STYLE.read_text(encoding="utf-8")
    write_text(path, page.page(title, "\n".join(filter(None, body)), style))
    return notes


def _open(directories: Sequence[str | os.PathLike]) -> list[PreparedSet]:
    sets: list[PreparedSet] = []
    for directory in directories:
        prepared = open_prepared(directory)
        try:
            counts.counts_section([prepared])
            counts.hours_section([prepared])
            counts.json_section([prepared])
            dict(prepared.info["quarantine"])
            prepared.name = counts.printable(prepared.name)
        except (KeyError, TypeError, ValueError, AttributeError) as e:
            file = os.path.join(directory, DATASET_FILE)
            raise UserError(f"{file} is damaged: prepare the data again ({e!r})") from e
        if any(os.path.samefile(directory, other.directory) for other in sets):
            raise UserError(f"{directory} is named twice")
        if any(prepared.name == other.name for other in sets):
            prepared.name = os.fspath(directory)
        sets.append(prepared)
    return sets


def _tools(sets: Sequence[PreparedSet], options: Options) -> tuple[Tools | None, list[str]]:
    """Tokenizer and codec, as far as they are those of all the sets, and what is not."""
    with_codes = any(s.info["assets"].get("codec") for s in sets)
    options = dataclasses.replace(options, codes=with_codes)
    mine = fingerprints(options)
    tools, notes = load_tools(options), []
    for prepared in sets:
        theirs = prepared.info["assets"]
        if theirs.get("codec") not in (None, mine["codec"]):
            notes.append(
                f"{prepared.name} was prepared with another codec: name it with --model or "
                "--codec to hear what its codes give"
            )
            tools = tools._replace(codec=None) if tools else None
        if any(theirs.get(k) != mine[k] for k in ("tokenizer", "num_streams", "block_windows")):
            notes.append(
                f"{prepared.name} was prepared with another model: name it with --model to see "
                "packed rows"
            )
            tools = None
    return tools, notes


def _lead(sets: Sequence[PreparedSet]) -> str:
    hours = sum(s.info["hours"]["total"] for s in sets)
    records = sum(map(len, sets))
    names = ", ".join(f"<b>{escaped(s.name)}</b>" for s in sets)
    return f"<p>{names}: {records:,} record{'s' * (records != 1)}, {hours:,.2f} hours of audio.</p>"


def _lengths(sets: Sequence[PreparedSet]) -> str:
    """Histograms of positions by task and of seconds, and their percentiles."""
    tokens = {task: np.concatenate([s.rows(task) for s in sets]) for task in TASKS}
    seconds = np.concatenate([s.seconds for s in sets])
    panels, lines = [], []
    for title, unit, values in (
        ("Positions of an example", "positions", tokens),
        ("Audio of a record", "seconds", {"audio": seconds}),
    ):
        if not any((found > 0).any() for found in values.values()):
            continue
        picture = page.image(histogram(values, unit), f"Histogram: {title}")
        panels.append(f'<div class="panel"><h3>{title}</h3>{picture}</div>')
        for name, found in values.items():
            found = found[found > 0]
            if len(found):
                points = np.percentile(found, (0, 5, 50, 95, 100))
                cells = (f"{p:,.0f}" if unit == "positions" else f"{p:.2f}" for p in points)
                lines.append([f"{name} <small>{unit}</small>", f"{len(found):,}", *cells])
    if not panels:
        return ""
    columns = ["", "records", "least", "5 %", "median", "95 %", "most"]
    return page.section(
        "Lengths", f'<div class="two">{"".join(panels)}</div>', page.table(columns, lines)
    )
