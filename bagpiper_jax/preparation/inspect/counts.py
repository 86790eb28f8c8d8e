"""Sections of what `dataset.json` and the quarantine of prepared sets state."""

from __future__ import annotations

import collections
import html
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from bagpiper_jax.errors import UserError
from bagpiper_jax.html_report import page
from bagpiper_jax.input_pipeline.prepared import QUARANTINE_FILE, PreparedSet

_MOST_BARS, _MOST_SHARDS, _MOST_JSON = 16, 64, 100_000
_TASK_NAMES = {
    "text_to_audio": "caption → audio",
    "audio_to_text": "audio → caption",
    "text_only": "caption alone",
    "dialogue": "dialogue",
}


def task_name(task: str) -> str:
    """A task in words, its name after it."""
    return f"{_TASK_NAMES[task]} <small>{task}</small>"


def counts_section(sets: Sequence[PreparedSet]) -> str:
    """Items and records, each in one place, and how the sets were made; a column for each set."""
    infos = [s.info for s in sets]
    rows = [["<b>items in</b>", *(_number(i["counts"]["items"]["in"]) for i in infos)]]
    for key in ("kept", "duplicates", "quarantined"):
        rows.append([f"= {key}", *(_number(i["counts"]["items"][key]) for i in infos)])
    rows.append(["in = kept + duplicates + quarantined", *(_adds_up(i) for i in infos)])
    for key, words in (
        ("made", "<b>records made</b>"),
        ("duplicates", "− duplicates"),
        ("out", "= records in the shards"),
    ):
        rows.append([words, *(_number(i["counts"]["records"][key]) for i in infos)])
    for key, words in (
        ("items", "recordings cut"),
        ("cuts_in_pauses", "cuts in pauses"),
        ("cuts_in_sound", "cuts in the midst of sound"),
        ("trimmed", "recordings trimmed at 30 s"),
    ):
        rows.append([words, *(_number(i["counts"]["cutting"][key]) for i in infos)])
    dropped = [i["counts"]["cutting"]["pieces_dropped"] for i in infos]
    rows.append(["pieces left out", *(_tally(kinds) for kinds in dropped)])
    rows.append(["hours found", *(f"{i['hours']['found']:g}" for i in infos)])
    rows.append(["<b>hours kept</b>", *(f"{i['hours']['total']:g}" for i in infos)])
    rows.append(["loudness, LUFS", *(_loudness(i) for i in infos)])
    rows.append(["shards", *(_shards(i) for i in infos)])
    rows.append(["options", *(_settings(i["options"]) for i in infos)])
    rows.append(["fingerprint", *(f"<code>{escaped(s.fingerprint)}</code>" for s in sets)])
    names = ["", *(s.name for s in sets)]
    tasks = [[task_name(task), *(_task(i["tasks"][task]) for i in infos)] for task in _TASK_NAMES]
    return page.section("What came in and what came out", page.table(names, rows)) + page.section(
        "What it serves",
        page.paragraph(
            "Records that can serve each task, and the positions (tokens of stream 0) that they "
            "take in packed rows."
        ),
        page.table(names, tasks),
    )


def hours_section(sets: Sequence[PreparedSet]) -> str:
    """Hours of audio by domain, language and licence."""
    panels = []
    for key in ("domain", "language", "licence"):
        hours: collections.Counter = collections.Counter()
        for prepared in sets:
            hours.update(prepared.info["hours"][f"by_{key}"])
        shown = hours.most_common(_MOST_BARS)
        rest = sum(hours.values()) - sum(value for _, value in shown)
        if len(hours) > len(shown):
            shown.append((f"{len(hours) - len(shown)} others", rest))
        panels.append(f'<div class="panel"><h3>by {key}</h3>{_bars(shown)}</div>')
    return page.section("Hours of audio", f'<div class="three">{"".join(panels)}</div>')


def quarantine_section(sets: Sequence[PreparedSet], examples: int = 4) -> str:
    """Reasons for quarantine, how often, and a few items of each.

    Raises:
      UserError: a set's list of quarantined items is missing or damaged.
    """
    parts = []
    for prepared in sets:
        kinds = prepared.info["quarantine"]
        told: dict[str, list[dict[str, Any]]] = {kind: [] for kind in kinds}
        if kinds:
            for line in _quarantined(prepared):
                of_kind = told.setdefault(str(line.get("kind")), [])
                if len(of_kind) < examples:
                    of_kind.append(line)
        rows = [
            [escaped(kind), _number(kinds.get(kind, 0)), _quarantine_lines(lines)]
            for kind, lines in sorted(told.items(), key=lambda k: -kinds.get(k[0], 0))
        ]
        if len(sets) > 1:
            parts.append(f"<h3>{escaped(prepared.name)}</h3>")
        if rows:
            parts.append(page.table(["reason", "items", "such as"], rows))
        else:
            parts.append(page.paragraph("Nothing was quarantined."))
    return page.section("Quarantine", *parts)


def json_section(sets: Sequence[PreparedSet]) -> str:
    """The contents of `dataset.json`, folded; long lists of shards are cut."""
    parts = []
    for prepared in sets:
        info = dict(prepared.info)
        more = len(info["shards"]) - _MOST_SHARDS
        if more > 0:
            info["shards"] = [*info["shards"][:_MOST_SHARDS], f"… and {more} more"]
        text = shortened(json.dumps(info, indent=1, ensure_ascii=False), _MOST_JSON)
        parts.append(
            f"<details><summary>dataset.json of {escaped(prepared.name)}</summary>"
            f"<pre>{escaped(text)}</pre></details>"
        )
    return page.section("As written", *parts)


def escaped(text: Any) -> str:
    """Text of the data as HTML."""
    return html.escape(printable(str(text)))


def printable(text: str) -> str:
    """Without what no file holds or no page shows: half a surrogate pair, control characters."""
    text = text.encode("utf-8", "replace").decode()
    return "".join(c if c >= " " or c in "\n\t" else "\ufffd" for c in text)


def shortened(text: str, length: int) -> str:
    """At most `length` characters of a text, and how many are not shown."""
    if len(text) <= length:
        return text
    return f"{text[:length]} … ({len(text) - length:,} more characters)"


def part_bar(part: float, mark: float | None = None) -> str:
    """A bar as long as a part of its cell, with a mark at another part."""
    at = f'<b style="left:{100 * min(mark, 1):.2f}%"></b>' if mark is not None else ""
    return f'<span class="bar"><i style="width:{100 * min(max(part, 0), 1):.2f}%"></i>{at}</span>'


def _bars(values: Sequence[tuple[str, float]]) -> str:
    total = sum(value for _, value in values)
    if not total:
        return page.paragraph("There is no audio.")
    largest = max(value for _, value in values)
    lines = [
        f"<dt>{escaped(name)}</dt><dd>{part_bar(value / largest)}"
        f"{value:g} h <small>{100 * value / total:.1f}\u00a0%</small></dd>"
        for name, value in ((name, round(value, 4)) for name, value in values)
    ]
    return f'<dl class="bars">{"".join(lines)}</dl>'


def _quarantined(prepared: PreparedSet) -> Iterator[dict[str, Any]]:
    path = os.path.join(prepared.directory, QUARANTINE_FILE)
    try:
        with open(path, encoding="utf-8") as file:
            for line in file:
                yield dict(json.loads(line))
    except OSError as e:
        raise UserError(f"cannot read {path}: {e.strerror}: prepare the data again") from e
    except (ValueError, TypeError) as e:
        raise UserError(f"{path} is damaged: prepare the data again ({e})") from e


def _quarantine_lines(lines: Iterable[dict[str, Any]]) -> str:
    return "".join(
        f'<div class="told"><code>{escaped(shortened(str(line.get("id")), 120))}</code> '
        f"{escaped(shortened(str(line.get('reason')), 300))} "
        f"<small>{escaped(shortened(str(line.get('source')), 60))}</small></div>"
        for line in lines
    )


def _number(value: int) -> str:
    return f"{value:,}"


def _adds_up(info: dict[str, Any]) -> str:
    items = info["counts"]["items"]
    if items["in"] == items["kept"] + items["duplicates"] + items["quarantined"]:
        return '<span class="good-text">✓ adds up</span>'
    return '<span class="bad-text">✗ does not add up</span>'


def _tally(kinds: dict[str, int]) -> str:
    return escaped(", ".join(f"{kind} {count:,}" for kind, count in kinds.items()) or "none")


def _loudness(info: dict[str, Any]) -> str:
    values = info["loudness_lufs"]
    if not values:
        return "–"
    return f"{values['p50']:g} <small>(p5 {values['p5']:g}, p95 {values['p95']:g})</small>"


def _shards(info: dict[str, Any]) -> str:
    size = sum(shard["bytes"] for shard in info["shards"])
    return f"{len(info['shards']):,} <small>({size / 1e6:,.1f} MB)</small>"


def _settings(options: dict[str, Any]) -> str:
    return "<br>".join(f"{escaped(key)}: {escaped(value)}" for key, value in options.items())


def _task(values: dict[str, int]) -> str:
    return f"{values['records']:,} <small>{values['rows']:,} positions</small>"
