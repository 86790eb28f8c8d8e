"""Plans of packed rows over prepared sets, and what is to be said of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from bagpiper_jax.errors import UserError
from bagpiper_jax.html_report import page
from bagpiper_jax.input_pipeline.mixture import DEFAULT_MIXTURE, Source, spread, survey
from bagpiper_jax.input_pipeline.packed_records import PackedRecords
from bagpiper_jax.input_pipeline.packing import RowShape
from bagpiper_jax.input_pipeline.plan_statistics import PlanStatistics, plan_statistics
from bagpiper_jax.input_pipeline.prepared import PreparedSet
from bagpiper_jax.input_pipeline.records import TASKS
from bagpiper_jax.input_pipeline.row_plan import WINDOW_ROWS
from bagpiper_jax.preparation.inspect.counts import escaped, part_bar
from bagpiper_jax.preparation.options import Tools

_MOST_ROWS = 256 * WINDOW_ROWS  # of a plan that are counted


@dataclasses.dataclass(frozen=True)
class Plan:
    """Packed rows of a mixture.

    Attributes:
      title: what it stands for.
      rows: the packed rows.
      statistics: of the first of them.
      unfit: sources of which no example fits a row.
    """

    title: str
    rows: PackedRecords
    statistics: PlanStatistics
    unfit: tuple[str, ...]


def make_plans(
    sets: Sequence[PreparedSet],
    tools: Tools,
    shape: RowShape,
    *,
    mixture: Mapping[str, float] | None = None,
    seed: int = 0,
) -> list[Plan]:
    """Plans of the sets' records, each set with the weight of its tokens.

    Args:
      sets: to pack.
      tools: tokenizer and layout of the model.
      shape: of a row.
      mixture: share of the tokens by task; None: a plan of the base tasks in the published
        proportions, as far as the sets serve them, and one of the dialogues.
      seed: of the order.

    Raises:
      UserError: a mixture of unknown tasks, or of one that no set serves.
    """
    if shape.length < 1 or shape.windows < 0:
        raise UserError(
            f"--length and --windows tell what a row holds, not {shape.length} and {shape.windows}"
        )
    block = tools.config.encoder.block_windows
    if shape.windows % block:
        raise UserError(f"--windows must be a multiple of {block}, the encoder block")
    if mixture is not None:
        if unknown := sorted(set(mixture) - set(TASKS)):
            raise UserError(f"--mixture: {unknown[0]!r} is none of {', '.join(TASKS)}")
        wanted = {"The mixture as told": dict(mixture)}
    else:
        wanted = {"Base tasks": dict(DEFAULT_MIXTURE), "Dialogues": {"dialogue": 1.0}}
    plans = []
    for title, shares in wanted.items():
        served, unfit = _served(sets, shares, shape)
        able = {task for _, task, _ in served}
        if mixture is not None and (lacking := sorted(set(shares) - able)):
            raise UserError(f"--mixture: no record of the sets serves {lacking[0]} in such rows")
        if served:
            sources = spread(served, {task: w for task, w in shares.items() if task in able})
            plans.append(_plan(title, sources, unfit, tools, shape, seed))
        elif unfit:
            raise UserError(
                f"no example of {unfit[0]} fits rows of {shape.windows} mel windows: "
                "raise --windows"
            )
    return plans


def _served(sets, shares: Mapping[str, float], shape: RowShape):
    """(set, task, tokens) of sources that rows can hold, and names of those they cannot."""
    served, unfit = [], []
    for prepared in sets:
        for task, share in shares.items():
            found = survey(Source(prepared, task, 1.0), shape)
            if share > 0 and found.served:
                served.append((prepared, task, float(found.tokens)))
            elif share > 0 and found.left_out:
                unfit.append(f"{prepared.name}/{task}")
    return served, tuple(unfit)


def _plan(title, sources, unfit, tools: Tools, shape: RowShape, seed: int) -> Plan:
    tokens = sum(survey(source, shape).tokens for source in sources)
    count = min(-(-tokens // (shape.length * WINDOW_ROWS)) * WINDOW_ROWS, _MOST_ROWS)
    rows = PackedRecords(
        sources, tools.config, tools.tokenizer, shape=shape, num_rows=count, seed=seed
    )
    return Plan(title, rows, plan_statistics(rows), unfit)


def plan_section(plans: Sequence[Plan]) -> str:
    """Fill and mixture shares of plans, what is cut and what is left out."""
    parts = [
        page.paragraph(
            "As training would read the sets: tasks mixed by tokens, examples packed first-fit "
            "into rows. The mark on a bar is the share that was asked for. “Cut” examples lose "
            "their end at the end of a row; “left out” ones have more mel windows than a row."
        )
    ]
    for plan in plans:
        found, shape = plan.statistics, plan.rows.shape
        lead = (
            f"<p><b>{100 * found.fill:.2f}\u00a0%</b> of the positions are filled and "
            f"<b>{100 * found.window_fill:.1f}\u00a0%</b> of the mel windows, over {found.rows:,} "
            f"rows of {shape.length:,} positions and {shape.windows:,} windows; "
            f"{found.passed_on:,} examples are passed on to the next rows.</p>"
        )
        rows = []
        for name, source in found.sources.items():
            seen = source.survey
            rows.append(
                [
                    escaped(name),
                    f"{part_bar(source.share, source.wanted)}{100 * source.share:.2f}\u00a0% "
                    f"<small>asked {100 * source.wanted:.2f}, at worst "
                    f"{100 * source.worst_share:.2f}</small>",
                    f"{source.tokens:,}",
                    f"{source.examples:,}",
                    f"{source.epochs:.2f}",
                    f"{seen.served:,} <small>{seen.tokens:,} positions</small>",
                    f"{seen.cut:,}",
                    f"{seen.left_out:,}",
                ]
            )
        for name in plan.unfit:
            rows.append([escaped(name), "no example fits", "0", "0", "–", "0", "–", "all"])
        columns = "source, share of tokens, positions, examples, epochs, in an epoch, cut, left out"
        parts.append(f"<h3>{escaped(plan.title)}</h3>{lead}")
        parts.append(page.table(columns.split(", "), rows))
    if not plans:
        parts = [page.paragraph("No record serves any task: there is nothing to pack.")]
    return page.section("Packing and mixture", *parts)
