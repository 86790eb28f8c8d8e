"""Section of some packed rows: pictures, what is in them, and their tokens from near."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bagpiper_jax.html_report import page
from bagpiper_jax.input_pipeline.batch import Batch
from bagpiper_jax.input_pipeline.packed_records import PackedRecords
from bagpiper_jax.preparation.inspect import pictures
from bagpiper_jax.preparation.inspect.counts import escaped, printable, shortened, task_name
from bagpiper_jax.preparation.inspect.plans import Plan
from bagpiper_jax.preparation.options import Tools

_BEFORE, _SHOWN = 8, 40  # positions of a close look
_MOST_SEGMENTS = 48


def rows_section(plans: Sequence[Plan], tools: Tools, count: int) -> str:
    """The first `count` rows of each plan.

    Raises:
      UserError: a record is not as its index says.
    """
    legend = "".join(
        f'<span class="key"><i style="background:{pictures.KIND_COLORS[kind]}"></i>{name}</span>'
        for kind, name in pictures.KIND_NAMES.items()
    )
    lead = (
        '<p class="legend">' + legend + "</p>"
        '<p class="soft">Pale: no loss counts there. Segments are the examples of a row, numbered; '
        "windows show which segment listens to them, in whole encoder blocks. Text, markers and "
        "heard audio are in stream 0; codec codes fill all streams, each a position later than "
        "the one above it.</p>"
    )
    cards = []
    for plan in plans:
        for number in range(min(count, len(plan.rows))):
            title = f"{plan.title}, row {number}"
            try:
                row = plan.rows[number]
            except (RuntimeError, ValueError) as e:  # audio that cannot be decoded, odd codes
                cards.append(page.paragraph(f"{title} cannot be made: {printable(str(e))}"))
                continue
            picture = page.image(
                pictures.row_picture(row, tools.config.vocab), f"{title} as packed"
            )
            cards.append(
                f'<article class="card wide"><h3>{title}</h3>{picture}'
                f"<details><summary>segments: {int(row.segment_ids.max())}</summary>"
                f"{_segments(plan.rows, number, row)}</details>{_close_look(row, tools)}</article>"
            )
    return page.section("Rows as packed", lead, *cards) if cards else ""


def _segments(source: PackedRecords, number: int, row: Batch) -> str:
    lines = []
    planned = source.plan[number]
    for segment, example in enumerate(planned[:_MOST_SEGMENTS], start=1):
        of = source.sources[example.source]
        mine = np.flatnonzero(row.segment_ids == segment)
        full = int(of.examples.rows(of.task)[example.index])
        notes = [f"cut from {full:,}"] if full > len(mine) else []
        if not row.tokens[mine[0]].any():  # else a conversation starts with <|bos|>
            notes.append("condition dropped, for guidance")
        color = pictures.segment_color(segment)
        record = shortened(of.examples[example.index].id, 80)
        lines.append(
            [
                f'<span class="key"><i style="background:{color}"></i>{segment}</span>',
                task_name(of.task),
                f"<code>{escaped(record)}</code>",
                f"{len(mine):,}",
                f"{example.windows}",
                f"{int(row.loss_mask[mine].sum()):,}",
                ", ".join(notes),
            ]
        )
    columns = ["segment", "task", "record", "positions", "windows", "targets", ""]
    more = len(planned) - len(lines)
    return page.table(columns, lines) + (page.paragraph(f"… and {more} more") if more else "")


def _close_look(row: Batch, tools: Tools) -> str:
    """Tokens of some positions, where spoken or heard audio begins."""
    vocab = tools.config.vocab
    kinds = pictures.kinds_of(row, vocab)
    begins = [np.flatnonzero((kinds == kind).any(1)) for kind in (pictures.CODE, pictures.HEARD)]
    first = next((int(found[0]) for found in begins if len(found)), 0)
    start = max(first - _BEFORE, 0)
    stop = min(start + _SHOWN, len(kinds))
    head = "".join(f"<th>{row.positions[t]}</th>" for t in range(start, stop))
    lines = [
        f"<tr><th>stream {k}</th>"
        + "".join(_cell(row, kinds, t, k, tools) for t in range(start, stop))
        + "</tr>"
        for k in range(kinds.shape[1])
    ]
    return (
        f"<h4>From near: positions {start:,} to {stop - 1:,} of the row</h4>"
        f'<div class="scroll"><table class="tokens"><tr><th>in example</th>{head}</tr>'
        f"{''.join(lines)}</table></div>"
    )


def _cell(row: Batch, kinds: np.ndarray, t: int, k: int, tools: Tools) -> str:
    kind, token = int(kinds[t, k]), int(row.tokens[t, k])
    vocab = tools.config.vocab
    if kind == pictures.EMPTY:
        return "<td></td>"
    if kind == pictures.HEARD:
        words = f"♪{int(row.audio_index[t])}"
    elif kind == pictures.TEXT:
        words = tools.tokenizer.decode([token - vocab.text_start]) or "␣"
    elif kind == pictures.CODE:
        words = str(token - vocab.stream_range(k)[0] - 1)
    else:
        words = "pad" if kind == pictures.CODE_PAD else vocab.name(token).strip("<|>")
    color = pictures.KIND_COLORS[kind]
    shade = "" if row.loss_mask[t, k] else ' class="noloss"'
    name = escaped(vocab.name(token))
    return f'<td{shade} style="--kind:{color}" title="{name}">{escaped(shortened(words, 12))}</td>'
