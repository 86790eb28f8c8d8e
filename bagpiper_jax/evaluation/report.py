"""One self-contained page of an evaluation: figures, curves, scenes to see and hear."""

from __future__ import annotations

import html
import json
import os
from collections.abc import Mapping, Sequence

from bagpiper_jax.errors import UserError
from bagpiper_jax.evaluation import report_media as media
from bagpiper_jax.evaluation import workdir
from bagpiper_jax.evaluation.context import Scenes
from bagpiper_jax.evaluation.figures import TARGETS, Evaluation
from bagpiper_jax.evaluation.report_sections import Shown, section
from bagpiper_jax.files import write_text
from bagpiper_jax.html_report import page

_VERDICTS = {
    "met": ("✓ met", "good-text"),
    "undecided": ("target within the interval", "soft"),
    "not met": ("✗ not met", "bad-text"),
}


def write_report(
    path: str,
    evaluations: Sequence[Evaluation],
    folder: str,
    scenes: Scenes,
    *,
    curves: Mapping[str, Sequence[dict[str, float]]] | None = None,
    cards: int = 8,
) -> None:
    """Writes the page.

    Args:
      path: of the HTML file.
      evaluations: one column each in the tables; sections and items are those of the last.
      folder: the workdir of the last evaluation.
      scenes: corpus and codec, to make the scenes' audio again.
      curves: title → lines of a run's `metrics.jsonl`.
      cards: items to show of each evaluator; of unseen voices a quarter as many.

    Raises:
      UserError: items or corpus do not load, or the file cannot be written.
    """
    last = evaluations[-1]
    chosen = {name: values["use"] for name, values in last.get("evaluators").items()}
    body = [_lead(last, chosen), _key_figures(evaluations), _training(curves or {})]
    for name, use in chosen.items():
        items, clips = workdir.read_items(folder, name), workdir.clips_dir(folder, name)
        body.append(section(Shown(name, use, evaluations, items, clips, scenes, cards)))
    body.append(_footnotes(last))
    title = f"Evaluation of {last.get('checkpoint')}: what it hears and what it says"
    write_text(path, page.page(title, "\n".join(body)))


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


def _lead(evaluation: Evaluation, chosen: Mapping[str, str]) -> str:
    words = f"Evaluated on {evaluation.get('date')}, seed {evaluation.get('seed')}: "
    words += ", ".join(chosen) + "."
    if not {"understanding", "rendering"} & set(chosen.values()):
        return page.paragraph(words)
    return page.paragraph(
        "A small audio language model, trained on scenes that are composed from a small corpus of "
        "recordings, writes captions for scenes that it has not heard and renders audio from "
        "captions that it has not read. The single recordings in these scenes are those of "
        "training; the spelled strings, or where nothing is spelled the combination of events, and "
        "the wordings were held out. Phrases are recordings that were in training. “Unseen” scenes "
        "hold a voice that was not, and other takes of known sounds (three of them, and the music, "
        "from other stretches of a training recording), in wordings of training. The scenes shown "
        "are the first of each kind, not picked."
    ) + page.paragraph(words)


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
        if any(evaluation.get(*target.path) for evaluation in evaluations):
            rows.append([target.name, *cells])
    if not rows:
        return ""
    return page.section(
        "Key figures",
        page.table(["", "target", *(e.name for e in evaluations)], rows),
        '<p class="soft">In brackets: 95 % bootstrap intervals, scenes drawn with replacement, '
        "those that say the same string together; “met” and “not met” mean the whole interval. "
        "n: scenes or clips with something of the kind. Definitions are at the end.</p>",
    )


def _training(curves: Mapping[str, Sequence[dict[str, float]]]) -> str:
    panels = []
    for title, lines in curves.items():
        if len(lines) > 1:
            first, last = lines[0], lines[-1]
            words = f"loss from {first['loss']:.2f} at step {first['step']} to "
            words += f"{last['loss']:.2f} at step {last['step']}"
            picture = page.image(media.loss_curve(lines), f"{title}: {words}")
            panels.append(f'<div class="panel"><h3>{title}</h3>{picture}<p>{words}</p></div>')
    return page.section("Training", f'<div class="two">{"".join(panels)}</div>') if panels else ""


def _footnotes(evaluation: Evaluation) -> str:
    notes = [
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
    ]
    if judges := evaluation.get("judges"):
        ends = {"visqol": ", 5 is a perfect copy"}
        told = "; ".join(judge + ends.get(name, "") for name, judge in judges.items())
        notes.append(f"Judges: {told}.")
    how = f"Seed {evaluation.get('seed')}; computed in {evaluation.get('dtype') or 'float32'}."
    notes.append(f"{how} Versions: {_listed(evaluation.get('versions'))}.")
    for name, versions in (evaluation.get("versions_of") or {}).items():
        notes.append(f"Versions of {name}: {_listed(versions)}.")
    lines = "".join(f"<li>{html.escape(note)}</li>" for note in notes)
    return f"<footer><h2>Definitions and versions</h2><ul>{lines}</ul></footer>"


def _listed(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())
