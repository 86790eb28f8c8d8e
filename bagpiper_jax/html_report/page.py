"""A page: its template and style, and small pieces of HTML."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path
from string import Template

STYLE = Path(__file__).with_name("assets") / "report.css"

PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<link rel="icon" href="data:,">
<style>$style</style>
</head>
<body>
<main>
<h1>$title</h1>
$body
</main>
</body>
</html>
""")


def page(title: str, body: str, style: str = "") -> str:
    """The whole document, with a style beside the common one; asks for nothing outside of it."""
    common = STYLE.read_text(encoding="utf-8")
    return PAGE.substitute(title=html.escape(title), style=common + style, body=body)


def section(title: str, *parts: str) -> str:
    """A heading and what is under it."""
    return f"<section><h2>{html.escape(title)}</h2>\n" + "\n".join(parts) + "</section>"


def paragraph(text: str) -> str:
    """A paragraph of plain text."""
    return f"<p>{html.escape(text)}</p>"


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in a panel; cells are HTML. The first column names the rows."""
    head = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in columns)
    lines = []
    for name, *cells in rows:
        tds = (
            f'<td data-label="{html.escape(column)}">{cell}</td>' if cell else "<td></td>"
            for column, cell in zip(columns[1:], cells, strict=True)
        )
        lines.append(f'<tr><th scope="row">{name}</th>{"".join(tds)}</tr>')
    body = "\n".join(lines)
    head = f"<thead><tr>{head}</tr></thead>"
    return f'<div class="panel"><table>{head}<tbody>{body}</tbody></table></div>'


def image(uri: str, alt: str) -> str:
    """A picture."""
    return f'<img src="{uri}" alt="{html.escape(alt)}">'


def players(clips: dict[str, str]) -> str:
    """Audio players side by side: name → data URI."""
    parts = []
    for name, uri in clips.items():
        name = html.escape(name)
        player = f'<audio controls preload="metadata" src="{uri}" aria-label="{name}"></audio>'
        parts.append(f"<div><label>{name}</label>{player}</div>")
    return f'<div class="players">{"".join(parts)}</div>'


def figure(interval: dict[str, float] | None, percent: bool = True) -> str:
    """A figure with its interval: "2.1 % (1.4 to 3.0)"; a dash where it was not measured."""
    if not interval:
        return "–"
    value, low, high = (interval[name] for name in ("value", "low", "high"))
    if percent:
        return f"{100 * value:.1f}\u00a0% <small>({100 * low:.1f} to {100 * high:.1f})</small>"
    return f"{value:.3f} <small>({low:.3f} to {high:.3f})</small>"
