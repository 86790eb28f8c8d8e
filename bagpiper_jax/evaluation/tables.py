"""Figures as rows of a table, whatever evaluator they come from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from bagpiper_jax.evaluation.workdir import HEAD

INTERVAL = ("value", "low", "high", "count")
CONTROL = "control"  # the branch of an evaluator's figures that chance gives


class Row(NamedTuple):
    """A figure of an evaluator.

    Attributes:
      name: of the evaluator.
      path: of the figure among the evaluator's; an entry of a list by its number.
      label: the same in words.
      value: an interval as JSON has it, or a number.
      control: the same figure of the control, None where there is none.
    """

    name: str
    path: tuple[str, ...]
    label: str
    value: Any
    control: Any


def rows(results: Mapping[str, Any]) -> Iterator[Row]:
    """The figures of `results.json`, in their order."""
    for name, figures in results.items():
        if name not in HEAD:
            yield from rows_of(name, figures)


def rows_of(name: str, figures: Any) -> Iterator[Row]:
    """The figures of one evaluator: intervals, numbers, and what others have published."""
    for path, words, value, control in _leaves(figures, None):
        yield Row(name, path, " / ".join(words), value, control)


def _leaves(value: Any, control: Any, path=(), words=()) -> Iterator[tuple]:
    if _is_number(value) or (isinstance(value, Mapping) and set(INTERVAL) <= set(value)):
        yield path, words, value, control
    elif isinstance(value, Mapping) and {"source", "value"} <= set(value):  # `published`
        about = ", ".join(str(part) for key, part in value.items() if key != "value")
        yield (*path, "value"), (*words[:-1], about), value["value"], None
    elif isinstance(value, Mapping):
        control = value.get(CONTROL, control)
        for key, part in value.items():
            if key != CONTROL:
                yield from _leaves(part, at(control, (key,)), (*path, key), (*words, key))
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for i, part in enumerate(value):
            # what an entry is about stands in it as a number: {"cfg": 1.5, "wer": …}
            about = part if isinstance(part, Mapping) and "source" not in part else {}
            marks = {key: mark for key, mark in about.items() if _is_number(mark)}
            rest = {k: v for k, v in part.items() if k not in marks} if about else part
            label = " ".join(f"{key} {mark:g}" for key, mark in marks.items()) or str(i)
            key = str(i)
            yield from _leaves(rest, at(control, (key,)), (*path, key), (*words, label))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def at(value: Any, path: Sequence[str]) -> Any:
    """A part of nested figures, an entry of a list by its number; None where there is none."""
    for key in path:
        if isinstance(value, Mapping):
            value = value.get(key)
        elif isinstance(value, list) and key.isdigit() and int(key) < len(value):
            value = value[int(key)]
        else:
            return None
    return value


def interval_text(value: Any, signed: bool = False) -> str:
    """A figure and its interval as plain text: "0.021 [0.014, 0.030]"; "" for none."""
    if value is None or isinstance(value, int):
        return "" if value is None else str(value)
    form = "{:+.3f}" if signed else "{:.3f}"
    if not isinstance(value, Mapping):
        return form.format(value)
    value, low, high = (form.format(value[key]) for key in INTERVAL[:3])
    return f"{value} [{low}, {high}]"


def markdown(columns: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    out = [columns, ["---"] * len(columns), *lines]
    return "\n".join(f"| {' | '.join(c.replace('|', '/') for c in cells)} |" for cells in out)


def results_markdown(results: Mapping[str, Any]) -> str:
    """`results.md`: what was evaluated, and every figure with its interval and control."""
    chosen = [
        [row.name, row.label, interval_text(row.value), _count(row.value)]
        + [interval_text(row.control)]
        for row in rows(results)
    ]
    title = f"# Evaluation of {results.get('checkpoint')}, {results.get('date')}"
    head = f"Seed {results.get('seed')}; weights {results.get('weights_sha256') or 'of a run'}; "
    head += f"computed in {results.get('dtype', 'float32')}."
    notes = (
        "In brackets: 95 % bootstrap intervals. n: scenes or clips. Rates and shares are parts of "
        "1. Control: what chance or another scene's audio gives. docs/evaluation.md says what each "
        "figure means."
    )
    columns = ("evaluator", "figure", "value", "n", "control")
    return "\n\n".join((title, head, markdown(columns, chosen), notes)) + "\n"


def _count(value: Any) -> str:
    return str(value["count"]) if isinstance(value, Mapping) else ""
