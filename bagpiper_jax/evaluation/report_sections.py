"""Sections of the page, one for each evaluator: its figures, and items to see and hear."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from bagpiper_jax.evaluation import report_media, tables
from bagpiper_jax.evaluation.context import Scenes
from bagpiper_jax.evaluation.figures import Evaluation
from bagpiper_jax.evaluation.mini_probes import GROUPS
from bagpiper_jax.evaluation.rendering_probe import SIDES
from bagpiper_jax.evaluation.report_cards import (
    KIND_NAMES,
    cycle_card,
    plain_card,
    render_card,
    scene_card,
)
from bagpiper_jax.html_report import page

SIDE_NAMES = {
    "original": "the scene itself",
    "codec": "the scene through the codec",
    "rendered": "rendered from the caption",
}
_CONTROL = "other audio (control)"


class Shown(NamedTuple):
    """What a section is made of.

    Attributes:
      name: of the evaluator in the config.
      use: of the evaluator in the registry.
      evaluations: one column each; the items are those of the last.
      items: of the evaluator.
      clips: directory of its clips.
      scenes: corpus and codec, to make scenes again.
      cards: items to show.
    """

    name: str
    use: str
    evaluations: Sequence[Evaluation]
    items: Sequence[dict[str, Any]]
    clips: str
    scenes: Scenes
    cards: int

    @property
    def columns(self) -> list[str]:
        """Headings of the evaluations."""
        return [e.name for e in self.evaluations]

    def cells(self, *path: str, percent: bool = True) -> list[str]:
        """A figure of every evaluation."""
        return [page.figure(e.get(self.name, *path), percent) for e in self.evaluations]

    def title(self, words: str) -> str:
        """A heading, which names the evaluator where that is not clear from its words."""
        return words if self.name == self.use else f"{words} ({self.name})"


def section(shown: Shown) -> str:
    """The section of an evaluator; one that has none of its own gets the plain one."""
    return SECTIONS.get(shown.use, plain)(shown)


def understanding(shown: Shown) -> str:
    """Captions against scenes; the control stands beside each figure."""
    rows = []
    for name, percent, *path in (
        *((f"word error rate: {KIND_NAMES[g]}", True, "wer", g) for g in GROUPS),
        ("spelled strings exactly right", True, "exact", "spelled"),
        ("hiss told right", True, "noise"),
        ("room told right", True, "room"),
        ("F1 of all events", False, "events_f1"),
        ("F1 of sounds and music", False, "sounds_f1"),
    ):
        control = shown.evaluations[-1].get(shown.name, "control", *path)
        cells = shown.cells(*path, percent=percent)
        if set(cells) != {"–"}:
            rows.append([name, *cells, page.figure(control, percent)])
    unseen = shown.evaluations[-1].get(shown.name, "split") == "test_b"
    cards = shown.cards // 4 if unseen else shown.cards
    shown_items = (
        scene_card(item, shown.scenes.corpus, shown.scenes.codec, unseen)
        for item in shown.items[:cards]
    )
    return page.section(
        shown.title("It listens: audio to caption"),
        page.paragraph(
            "Captions are written greedily. Marks: wavy underline, written but wrong; struck "
            "through, said but not written."
        ),
        f'<div class="cards">{"".join(shown_items)}</div>',
        page.table(["", *shown.columns, _CONTROL], rows),
    )


def rendering(shown: Shown) -> str:
    """What Whisper hears in rendered captions, beside the scenes' own audio."""
    parts = []
    for kind, share in (("digits", 2), ("letters", 4), ("phrase", 4)):
        of_kind = [item for item in shown.items if item["kind"] == kind and "clip" in item]
        for item in of_kind[: shown.cards // share]:
            parts.append(render_card(item, shown.clips, shown.scenes.corpus))
    rows = []
    for kind in ("digits", "letters", "phrase"):
        for side in SIDES:
            rows.append([f"{KIND_NAMES[kind]}: {SIDE_NAMES[side]}"])
            rows[-1] += shown.cells("wer", side, kind)
        rows.append([f"{KIND_NAMES[kind]}: rendered from another caption (control)"])
        rows[-1] += shown.cells("control", "wer", "rendered", kind)
    last = shown.evaluations[-1]
    audio = last.get("sampling", "audio")
    return page.section(
        shown.title("It speaks: caption to audio"),
        page.paragraph(
            "Whisper transcribes what the model renders. Settings "
            f"({last.get('sampling_source')}): temperature {audio['temperature']:g}, "
            f"top-k {audio['top_k']}, guidance {audio['cfg']:g}, at least {audio['min_rows']} rows."
        ),
        f'<div class="cards">{"".join(parts)}</div>',
        page.table(
            ["word error rate by Whisper", *shown.columns],
            [row for row in rows if set(row[1:]) != {"–"}],
        ),
    )


def guidance(shown: Shown) -> str:
    """Word error rate over the strength of guidance."""
    sweeps = {e.name: e.get(shown.name) or [] for e in shown.evaluations}
    found = {name: {p["cfg"]: p["wer"] for p in points} for name, points in sweeps.items()}
    strengths = sorted({cfg for points in found.values() for cfg in points})
    rows = [[f"{cfg:g}", *(page.figure(p.get(cfg)) for p in found.values())] for cfg in strengths]
    picture = page.image(
        report_media.sweep_plot({name: points for name, points in sweeps.items() if points}),
        "Word error rate over strength of guidance",
    )
    return page.section(
        shown.title("Guidance"),
        page.paragraph(
            "Classifier-free guidance at other strengths, all other settings the same, rendered "
            "digit strings. It is shown here, nothing is chosen by it."
        ),
        f'<div class="two"><div class="panel">{picture}</div>'
        + page.table(["guidance", *sweeps], rows)
        + "</div>",
    )


def codec(shown: Shown) -> str:
    """Prompts before and after the codec."""
    rows = [
        [name, *shown.cells(*path, percent=percent)]
        for name, percent, *path in (
            ("word error rate, recordings", True, "wer", "original"),
            ("word error rate, reconstructions", True, "wer", "reconstruction"),
            ("the same, text not normalised, recordings", True, "wer_raw", "original"),
            ("the same, text not normalised, reconstructions", True, "wer_raw", "reconstruction"),
            ("ViSQOL of the reconstructions", False, "visqol"),
        )
    ]
    return page.section(
        shown.title("Codec"),
        page.paragraph(
            f"{len(shown.items)} recorded prompts of four words or more, before and after the "
            "codec, which was fitted on training scenes, which hold this voice."
        ),
        page.table(["", *shown.columns], rows),
    )


def cycle(shown: Shown) -> str:
    """Figures round by round, and scenes with the captions and the clips of every round."""
    last = shown.evaluations[-1]
    rounds = last.get(shown.name, "rounds")
    picture = page.image(
        report_media.rounds_plot(rounds, last.get(shown.name, "control", "rounds") or []),
        "Similarity, word error rate and F1 of events over the rounds",
    )
    items = _with_clips_first(shown)
    cards = (cycle_card(item, shown.clips) for item in items)
    return page.section(
        shown.title(f"Cycle, from {last.get(shown.name, 'start')}"),
        page.paragraph(
            "Captions and audio made of each other. Each round's caption against the scene and "
            "against the caption of the first round; dotted: the same of another scene's caption. "
            "Marks: wavy underline, not in the scene; struck through, said in it and not written. "
            f"Similarity of sentences: {last.get(shown.name, 'embedding')}."
        ),
        f'<div class="panel">{picture}</div>',
        _all_figures(shown),
        f'<div class="cards">{"".join(cards)}</div>',
    )


def plain(shown: Shown) -> str:
    """All figures of an evaluator, what they were measured with, and its first items."""
    figures = shown.evaluations[-1].get(shown.name)
    named = figures if isinstance(figures, dict) else {}
    words = "; ".join(f"{name}: {value}" for name, value in named.items() if isinstance(value, str))
    if llm := named.get("llm"):
        pinned = "" if llm.get("pinned", True) else " (an alias, which may be another model later)"
        words = "; ".join(filter(None, (words, f"llm: {llm['name']}{pinned}")))
    cards = (plain_card(item, shown.clips) for item in _with_clips_first(shown))
    return page.section(
        shown.title(shown.use.replace("_", " ").capitalize()),
        page.paragraph(f"{words}.") if words else "",
        _all_figures(shown),
        f'<div class="cards">{"".join(cards)}</div>',
    )


def _with_clips_first(shown: Shown) -> Sequence[dict[str, Any]]:
    with_clips = [item for item in shown.items if "clip" in item]
    return (with_clips or shown.items)[: shown.cards]


def _all_figures(shown: Shown) -> str:
    last = list(tables.rows_of(shown.name, shown.evaluations[-1].get(shown.name)))
    rows = []
    for row in last:
        cells = [_number(tables.at(e.get(shown.name), row.path)) for e in shown.evaluations]
        rows.append([html.escape(row.label), *cells, _number(row.control)])
    return page.table(["", *shown.columns, "control"], rows)


def _number(value: Any) -> str:
    if isinstance(value, (int, float)):
        return tables.interval_text(value)
    return page.figure(value, percent=False)


SECTIONS: dict[str, Callable[[Shown], str]] = {
    "understanding": understanding,
    "rendering": rendering,
    "guidance": guidance,
    "codec": codec,
    "cycle": cycle,
}
