"""Figures of the ablations' runs → tables in Markdown and JSON."""

from __future__ import annotations

import itertools
import os
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from bagpiper_jax.evaluation.compare import Run, same_items
from bagpiper_jax.evaluation.figures import RESULTS_FILE
from bagpiper_jax.evaluation.report import read_curve
from bagpiper_jax.evaluation.tables import at, markdown
from bagpiper_jax.evaluation.text_metrics import Interval, paired_difference
from bagpiper_jax.evaluation.workdir import read_json, read_sums, to_json
from bagpiper_jax.files import write_json, write_text
from bagpiper_jax.modeling.flops import step_flops
from bagpiper_jax.release import read_config

_DIFFERENCES = (
    "Differences in percentage points, over the same items in pairs, with 95 % bootstrap "
    "intervals; bold where these leave out 0:"
)
_COSTS = "Nats that a token of audio costs in each stream, over the last steps that were logged:"


class Column(NamedTuple):
    """A figure: its heading, the evaluator that gave it, and where it lies in its figures."""

    heading: str
    evaluator: str
    path: tuple[str, ...]


def write_tables(
    out: str,
    ablations: Mapping[str, Any],
    recipes: Mapping[str, str],
    starts: Mapping[str, str],
) -> str:
    """Writes `ablations.md` and `ablations.json` to a directory of runs.

    Args:
      out: the directory.
      ablations: each an `Ablation` of `run.py`, by name.
      recipes: of each the commands that make its rows.
      starts: the variant that another one goes on from, by the other's name.

    Returns:
      the Markdown: of each ablation a table with a line per variant, one with its differences to
      the first variant, one with what a token of each stream costs, and the commands. Of several
      seeds a figure is their mean ± standard deviation, of one seed it stands with its 95 %
      bootstrap interval.

    Raises:
      UserError: a file of a run is damaged, or the tables cannot be written.
    """
    parts, data = [], {}
    for name, ablation in ablations.items():
        seeds, runs = common_runs(out, ablation)
        columns, (first, *others) = ablation.columns, ablation.variants
        figures = {
            variant: {
                c.heading: [at(run.results, (c.evaluator, *c.path)) for run in mine]
                for c in columns
            }
            for variant, mine in runs.items()
        }
        differences = {
            variant: {
                c.heading: [difference(*pair, c) for pair in zip(runs[first], runs[variant])]
                for c in columns
            }
            for variant in others
        }
        taken = {
            variant: [hours(out, variant, seed, starts) for seed in seeds if mine]
            for variant, mine in runs.items()
        }
        costs = {
            variant: [stream_costs(os.path.dirname(run.directory)) for run in mine]
            for variant, mine in runs.items()
        }
        data[name] = {"seeds": seeds, "hours": taken, "figures": figures}
        data[name] |= {"differences": differences, "stream_costs": costs}
        headings = [c.heading for c in columns]
        lines = [
            [
                variant,
                str(len(mine)),
                hours_cell(taken[variant]),
                *map(cell, figures[variant].values()),
            ]
            for variant, mine in runs.items()
        ]
        parts += [f"### {ablation.question}", markdown(["", "runs", "hours", *headings], lines)]
        lines = [
            [f"{variant} − {first}", str(seed), *map(difference_cell, of_seed)]
            for variant in others
            for seed, of_seed in zip(seeds, zip(*differences[variant].values()))
        ]
        if lines:
            parts += [_DIFFERENCES, markdown(["", "seed", *headings], lines)]
        lines = [[variant, *costs_cells(mine)] for variant, mine in costs.items() if any(mine)]
        if lines:
            streams = map(str, range(len(lines[0]) - 1))
            parts += [_COSTS, markdown(["", *streams], lines)]
        parts.append(f"```\n{recipes[name]}\n```")
    text = "\n\n".join(parts) + "\n"
    write_text(os.path.join(out, "ablations.md"), text)
    write_json(os.path.join(out, "ablations.json"), to_json(data))
    return text


def common_runs(out: str, ablation: Any) -> tuple[list[int], dict[str, list[Run]]]:
    """Seeds that all variants are measured with, and each variant's runs with them.

    A variant that is not measured at all has no runs, and takes none from the others.

    Raises:
      UserError: a `results.json` is damaged.
    """
    found: dict[str, dict[int, Run]] = {}
    for variant in ablation.variants:
        found[variant] = {}
        for seed in range(ablation.seeds):
            run = f"{variant}-{seed}"
            directory = os.path.join(out, run, "evaluation")
            results = read_json(os.path.join(directory, RESULTS_FILE))
            if results is not None:
                found[variant][seed] = Run(run, directory, results)
    begun = [set(mine) for mine in found.values() if mine]
    seeds = sorted(set.intersection(*begun)) if begun else []
    return seeds, {v: [mine[seed] for seed in seeds if mine] for v, mine in found.items()}


def difference(first: Run, other: Run, column: Column) -> Interval | None:
    """A figure of `other` less that of `first` over the same items; None where they had others.

    Raises:
      UserError: sums of a run are damaged.
    """
    if not same_items(first, other, column.evaluator):
        return None
    a, b = (
        read_sums(run.directory, column.evaluator).get("/".join(column.path))
        for run in (first, other)
    )
    return paired_difference(a, b) if a and b else None


def cell(figures: Sequence[Mapping[str, float] | None]) -> str:
    """A table's cell of a figure from each run: {"value", "low", "high"}."""
    there = [figure for figure in figures if figure]
    if not there:
        return "–"
    if len(there) == 1:
        value, low, high = (100 * there[0][name] for name in ("value", "low", "high"))
        return f"{value:.1f} % ({low:.1f}–{high:.1f})"
    values = [100 * figure["value"] for figure in there]
    return f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f} %"


def difference_cell(found: Interval | None) -> str:
    """A table's cell of a difference, bold where its interval leaves out 0."""
    if found is None:
        return "–"
    value, low, high = (f"{100 * part:+.1f}".replace("-", "−") for part in found[:3])
    text = f"{value} ({low} to {high})"
    return f"**{text}**" if found.low > 0 or found.high < 0 else text


def minutes(run: str) -> dict[int, float]:
    """Minutes that a training had taken at each step of its log; none where that does not tell.

    Raises:
      UserError: a file of the run is damaged.
    """
    config, lines = read_json(os.path.join(run, "config.json")), read_curve(run)
    if config is None or not all(line.get("model_flops_per_second") for line in lines):
        return {}
    data = config["data"]
    sizes = {"rows": data["batch_tokens"] // data["length"], "length": data["length"]}
    sizes |= {"windows": data["windows"], "frozen": config["frozen"]}
    # not by tokens per second: these leave out pads, of which a batch has more or less
    flops = step_flops(read_config(run), **sizes).total
    found, before, passed = {}, 0, 0.0
    for line in lines:
        passed += (line["step"] - before) * flops / line["model_flops_per_second"] / 60
        found[line["step"]] = passed
        before = line["step"]
    return found


def hours(out: str, variant: str, seed: int, starts: Mapping[str, str]) -> float | None:
    """Hours of a run's training and of those that it starts from; None where a log does not tell.

    The steps at the median time of a step: what a pause adds to a few of them does not count.

    Raises:
      UserError: a file of a run is damaged.
    """
    trained, total = [variant], 0.0
    while trained[-1] in starts:
        trained.append(starts[trained[-1]])
    for name in trained:
        taken = {0: 0.0} | minutes(os.path.join(out, f"{name}-{seed}"))
        each = [(b[1] - a[1]) / (b[0] - a[0]) for a, b in itertools.pairwise(taken.items())]
        if not each:
            return None
        total += max(taken) * statistics.median(each) / 60
    return round(total, 3)


def stream_costs(run: str) -> list[float] | None:
    """Cross-entropy of a token of audio in each stream, in nats, at the end of a run's log.

    None where the run learns no audio.

    Raises:
      UserError: the log is damaged.
    """
    last = (read_curve(run) or [{}])[-1]
    if not last.get("targets/audio"):
        return None
    later = (f"ce/stream{k}" for k in itertools.count(1))  # stream 0 has words too
    return [round(last[key], 3) for key in ("ce/audio", *itertools.takewhile(last.get, later))]


def hours_cell(taken: Sequence[float | None]) -> str:
    """A table's cell of the hours that runs took, their mean."""
    return f"{statistics.mean(taken):.2f}" if taken and all(taken) else "–"


def costs_cells(costs: Sequence[Sequence[float] | None]) -> list[str]:
    """A table's cells of what streams cost, each the mean of runs."""
    return [f"{statistics.mean(of_stream):.2f}" for of_stream in zip(*filter(None, costs))]
