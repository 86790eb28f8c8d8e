"""One self-contained `report.html` of an evaluation: figures, curves, scenes to see and hear."""

from __future__ import annotations

import html
import json
import os
from collections.abc import Sequence
from typing import Any

from bagpiper_jax.errors import UserError
from bagpiper_jax.evaluation import report_media as media
from bagpiper_jax.evaluation.figures import TARGETS, Evaluation
from bagpiper_jax.evaluation.mini_probes import GROUPS
from bagpiper_jax.evaluation.rendering_probe import SIDES
from bagpiper_jax.evaluation.report_cards import KIND_NAMES, render_card, scene_card
from bagpiper_jax.files import write_text
from bagpiper_jax.html_report import page
from bagpiper_jax.input_pipeline.scenes import Corpus
from bagpiper_jax.modeling.codec import Codec

_VERDICTS = {
    "met": ("✓ met", "good-text"),
    "undecided": ("target within the interval", "soft"),
    "not met": ("✗ not met", "bad-text"),
}
SIDE_NAMES = {
    "original": "the scene itself",
    "codec": "the scene through the codec",
    "rendered": "rendered from the caption",
}


def write_report(
    path: str,
    evaluations: Sequence[Evaluation],
    items: Sequence[dict[str, Any]],
    *,
    folder: str,
    corpus: Corpus,
    codec: Codec,
    curves: dict[str, Sequence[dict[str, float]]],
    cards: int = 8,
) -> None:
    """Writes the report.

    Args:
      path: of the HTML file.
      evaluations: one column each in the tables; the items are those of the last.
      items: what `evaluate` wrote to `items.jsonl`.
      folder: where the rendered clips that the items name lie.
      corpus: to make the scenes' audio again.
      codec: of the checkpoint.
      curves: title → lines of a run's `metrics.jsonl`.
      cards: scenes to show of each probe; of the unseen ones a quarter as many.

    Raises:
      UserError: matplotlib is missing, or the file cannot be written.
    """
    body = [
        _lead(evaluations[-1]),
        _key_figures(evaluations),
        _training(curves),
        _understanding(evaluations, items, corpus, codec, cards),
        _rendering(evaluations, items, folder, corpus, cards),
        _sweep(evaluations),
        _codec(evaluations, items),
        _footnotes(evaluations[-1]),
    ]
    write_text(path, page.page("Bagpiper mini: what it hears and what it says", "\n".join(body)))


def read_curve(workdir: str) -> list[dict[str, float]]:
    """Lines of a run's `metrics.jsonl`, the last of each step; none where there is no such file.

    Raises:
      UserError: the file is damaged.
    """
    try:
        with open(os.path.join(workdir, "metrics.jsonl"), encoding="utf-8") as file:
            lines = [json.loads(line) for line in file]
    except FileNotFoundError:
        return []
    except ValueError as error:
        raise UserError(f"{workdir}/metrics.jsonl is damaged: delete it") from error
    return sorted({line["step"]: line for line in lines}.values(), key=lambda line: line["step"])


def _lead(evaluation: Evaluation) -> str:
    return page.paragraph(
        "A small audio language model, trained on scenes that are composed from a small corpus of "
        "recordings, writes captions for scenes that it has not heard and renders audio from "
        "captions that it has not read. The single recordings in these scenes are those of "
        "training; the spelled strings, or where nothing is spelled the combination of events, and "
        "the wordings were held out. Phrases are recordings that were in training. “Unseen” scenes "
        "hold a voice that was not, and other takes of known sounds (three of them, and the music, "
        "from other stretches of a training recording), in wordings of training. The scenes shown "
        "are the first of each kind, not picked."
    ) + page.paragraph(f"Evaluated on {evaluation.get('date')}, split {evaluation.get('split')}.")


def _key_figures(evaluations: Sequence[Evaluation]) -> str:
    rows = []
    for target in TARGETS:
        limit = f"{100 * target.limit:g}\u00a0%" if target.percent else f"{target.limit:g}"
        bound = "at most" if target.at_most else "at least"
        cells = [f'<span class="line">{bound} {limit}</span>']
        for evaluation in evaluations:
            interval = evaluation.get(*target.path)
            cell = page.figure(interval, target.percent)
            if interval:
                word, kind = _VERDICTS[target.verdict(interval)]
                cell += f'<br><small><span class="{kind}">{word}</span>, '
                cell += f"n = {interval['count']}</small>"
            cells.append(cell)
        rows.append([target.name, *cells])
    return page.section(
        "Key figures",
        page.table(["", "target", *(e.name for e in evaluations)], rows),
        '<p class="soft">In brackets: 95 % bootstrap intervals, scenes drawn with replacement, '
        "those that say the same string together; “met” and “not met” mean the whole interval. "
        "n: scenes or clips with something of the kind. Definitions are at the end.</p>",
    )


def _training(curves: dict[str, Sequence[dict[str, float]]]) -> str:
    panels = []
    for title, lines in curves.items():
        if len(lines) > 1:
            first, last = lines[0], lines[-1]
            words = f"loss from {first['loss']:.2f} at step {first['step']} to "
            words += f"{last['loss']:.2f} at step {last['step']}"
            picture = page.image(media.loss_curve(lines), f"{title}: {words}")
            panels.append(f'<div class="panel"><h3>{title}</h3>{picture}<p>{words}</p></div>')
    return page.section("Training", f'<div class="two">{"".join(panels)}</div>') if panels else ""


def _understanding(evaluations, items, corpus: Corpus, codec: Codec, cards: int) -> str:
    rows = []
    for group in GROUPS:
        cells = [page.figure(e.get("understanding", "wer", group)) for e in evaluations]
        rows.append([f"word error rate: {KIND_NAMES[group]}", *cells])
    for name, path in (
        ("spelled strings exactly right", ("exact", "spelled")),
        ("hiss told right", ("noise",)),
        ("hiss told right, other audio (control)", ("control", "noise")),
        ("room told right", ("room",)),
        ("room told right, other audio (control)", ("control", "room")),
    ):
        rows.append([name, *(page.figure(e.get("understanding", *path)) for e in evaluations)])
    for name, *path in (
        ("F1 of all events", "understanding", "events_f1"),
        ("F1 of sounds and music", "understanding", "sounds_f1"),
        ("F1 of all events, other audio (control)", "understanding", "control", "events_f1"),
    ):
        rows.append([name, *(page.figure(e.get(*path), percent=False) for e in evaluations)])
    for name, percent, *path in (
        ("word error rate: spelled strings", True, "wer", "spelled"),
        ("word error rate: phrases", True, "wer", "phrase"),
        ("F1 of all events", False, "events_f1"),
    ):
        cells = [page.figure(e.get("unseen", *path), percent) for e in evaluations]
        rows.append([f"unseen voice and takes, {name}", *cells])
    shown = []
    for split in dict.fromkeys(i["split"] for i in items if i["probe"] == "understanding"):
        mine = [i for i in items if i["probe"] == "understanding" and i["split"] == split]
        unseen = split == "test_b"
        shown += [
            scene_card(item, corpus, codec, unseen)
            for item in mine[: cards // 4 if unseen else cards]
        ]
    return page.section(
        "It listens: audio to caption",
        page.paragraph(
            "Captions are written greedily. Marks: wavy underline, written but wrong; struck "
            "through, said but not written."
        ),
        f'<div class="cards">{"".join(shown)}</div>',
        page.table(["", *(e.name for e in evaluations)], [r for r in rows if set(r[1:]) != {"–"}]),
    )


def _rendering(evaluations, items, folder: str, corpus: Corpus, cards: int) -> str:
    mine = [i for i in items if i["probe"] == "rendering" and "audio" in i]
    shown = []
    for kind, share in (("digits", 2), ("letters", 4), ("phrase", 4)):
        of_kind = [item for item in mine if item["kind"] == kind]
        shown += [render_card(item, folder, corpus) for item in of_kind[: cards // share]]
    rows = []
    for kind in ("digits", "letters", "phrase"):
        for side in SIDES:
            cells = [page.figure(e.get("rendering", "wer", side, kind)) for e in evaluations]
            rows.append([f"{KIND_NAMES[kind]}: {SIDE_NAMES[side]}", *cells])
    audio = evaluations[-1].get("sampling", "audio")
    return page.section(
        "It speaks: caption to audio",
        page.paragraph(
            "Whisper transcribes what the model renders. Settings "
            f"({evaluations[-1].get('sampling_source')}): temperature {audio['temperature']:g}, "
            f"top-k {audio['top_k']}, guidance {audio['cfg']:g}, at least {audio['min_rows']} rows."
        ),
        f'<div class="cards">{"".join(shown)}</div>',
        page.table(["word error rate by Whisper", *(e.name for e in evaluations)], rows),
    )


def _sweep(evaluations: Sequence[Evaluation]) -> str:
    sweeps = {e.name: e.results["cfg_sweep"] for e in evaluations if "cfg_sweep" in e.results}
    if not sweeps:
        return ""
    points = next(iter(sweeps.values()))
    rows = []
    for number, point in enumerate(points):
        rows.append(
            [f"{point['cfg']:g}", *(page.figure(s[number]["wer"]) for s in sweeps.values())]
        )
    picture = page.image(media.sweep_plot(sweeps), "Word error rate over strength of guidance")
    return page.section(
        "Guidance",
        page.paragraph(
            "Classifier-free guidance at other strengths, all other settings the same, rendered "
            "digit strings. It is shown here, nothing is chosen by it."
        ),
        f'<div class="two"><div class="panel">{picture}</div>'
        + page.table(["guidance", *sweeps], rows)
        + "</div>",
    )


def _codec(evaluations: Sequence[Evaluation], items: Sequence[dict[str, Any]]) -> str:
    rows = [
        [name, *(page.figure(e.get("codec", *path), percent) for e in evaluations)]
        for name, percent, *path in (
            ("word error rate, recordings", True, "wer", "original"),
            ("word error rate, reconstructions", True, "wer", "reconstruction"),
            ("the same, text not normalised, recordings", True, "wer_raw", "original"),
            ("the same, text not normalised, reconstructions", True, "wer_raw", "reconstruction"),
            ("ViSQOL of the reconstructions", False, "visqol"),
        )
    ]
    count = sum(item["probe"] == "codec" for item in items)
    return page.section(
        "Codec",
        page.paragraph(
            f"{count} recorded prompts of four words or more, before and after the codec, "
            "which was fitted on training scenes, which hold this voice."
        ),
        page.table(["", *(e.name for e in evaluations)], rows),
    )


def _footnotes(evaluation: Evaluation) -> str:
    judges = evaluation.get("judges")
    notes = (
        "Word error rate: all substituted, missing and extra words over all words of the truth. "
        "For captions, the words in quotes, paired in order so that errors are fewest; a missing "
        "quote counts as missing words, an extra one as extra words; case does not count.",
        "Whisper's text is normalised: lower case, no punctuation, numbers spelled out. In spelled "
        "strings every digit and letter is one unit, however they are joined, and words that sound "
        "the same as a digit or a letter's name count as it (“for”: four, “you”: U).",
        "F1 of events: sounds, music and kinds of voice that the caption names against those in "
        "the scene, all scenes together.",
        "Control: each scene against the caption that the model wrote for another scene, one with "
        "a spelled string where it has one itself. A model that guesses without listening would do "
        "as well there as with the scene's own audio.",
        f"Judges: {judges['whisper']}; {judges['visqol']}, 5 is a perfect copy.",
        f"Seed {evaluation.get('seed')}. Versions: "
        + ", ".join(f"{name} {version}" for name, version in evaluation.get("versions").items())
        + ".",
    )
    lines = "".join(f"<li>{html.escape(note)}</li>" for note in notes)
    return f"<footer><h2>Definitions and versions</h2><ul>{lines}</ul></footer>"
