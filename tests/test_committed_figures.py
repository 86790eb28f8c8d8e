"""Figures in docs/ablations.md, docs/mini-model.md and the README are those of the JSON files."""

import json
import re
import sys
from pathlib import Path

import pytest

from bagpiper_jax.evaluation.tables import at, interval_text
from bagpiper_jax.evaluation.tables import rows as rows_of_results
from bagpiper_jax.evaluation.text_metrics import Interval

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "experiments" / "ablations"))

import run as ablations  # noqa: E402
import table  # noqa: E402

HEADINGS = {
    "delay": "## Delayed streams or parallel ones?",
    "stream_loss": "## A loss that weighs early streams more?",
    "guidance": "## Conditions dropped in training, or never?",
    "encoder": "## An encoder that is trained or frozen?",
    "caption_first": "## A caption before the answer, or the answer at once?",
    "caption_then_render": "## A caption before the audio, or the audio at once?",
    "mixture": "## How many tokens for each task?",
    "warmup": "## Tables first, or all at once?",
}
WITH_COSTS = ("delay", "stream_loss", "warmup")
SPOKEN = tuple(f"spoken strings, WER, guidance {cfg}" for cfg in ("1", "1.5", "2", "3"))
# row of the README → what it quotes: (ablation, variant, figure), or "-" and the variant's
# difference to the first
QUOTED = {
    "delayed streams": [("delay", "base", SPOKEN[2]), ("delay", "parallel", SPOKEN[2])],
    "all streams alike": [("stream_loss", "flat", SPOKEN[2]), ("stream_loss", "base", SPOKEN[2])],
    "conditions dropped": [
        ("guidance", variant, spoken) for variant in ("base", "no_dropout") for spoken in SPOKEN
    ],
    "a frozen encoder": [
        *(("encoder", f"encoder_{how}", SPOKEN[2]) for how in ("frozen", "trained")),
        *(("encoder", f"encoder_{how}", "heard strings, WER") for how in ("frozen", "trained")),
        *(("encoder", f"encoder_{how}", "hours") for how in ("frozen", "trained")),
    ],
    "a caption before the answer": [
        *(("caption_first", v, "right answers") for v in ("question", "question_direct")),
        ("caption_first", "question", "a program's, from its captions"),
    ],
    "a caption before the audio": [
        *(("caption_then_render", v, "spoken strings, WER") for v in ("request", "request_direct")),
        ("caption_then_render", "-request_direct", "spoken strings, WER"),
    ],
    "tables first": [("warmup", variant, SPOKEN[2]) for variant in ("warmed", "not_warmed")]
    + [("warmup", "-warmed", SPOKEN[2])],
    "the published mixture": [
        ("mixture", variant, figure)
        for variant in ("with_text", "base")
        for figure in (SPOKEN[2], "heard strings, WER")
    ],
}
JUDGES = (
    "Whisper tiny.en (faster-whisper, int8, beam 1, temperature 0)",
    "Moonshine tiny-en (moonshine-voice, whole clip)",
)
# row of "Where it stands" → figures of the mini checkpoint's results.json
STANDS = {
    "quoted digit and letter strings": [
        "understanding/wer/spelled",
        "understanding/wer/digits",
        "understanding/wer/letters",
        "understanding/control/wer/spelled",
    ],
    "such strings without an error": [
        "understanding/exact/spelled",
        "understanding/control/exact/spelled",
    ],
    "events named": [
        "understanding/events_f1",
        "understanding/sounds_f1",
        "understanding/control/events_f1",
    ],
    "noise and room": [
        f"understanding/{where}{name}" for where in ("", "control/") for name in ("noise", "room")
    ],
    "questions answered from the caption alone": [
        "caption_questions/accuracy/all",
        "caption_questions/control/accuracy/all",
        "caption_questions/majority/all",
    ],
    "unseen voice and takes": [
        f"unseen/{where}{name}"
        for where in ("", "control/")
        for name in ("wer/spelled", "events_f1")
    ],
    **{
        f"rendered {kind}": [
            *(f"rendering/wer/{of}/{key}" for of in ("rendered", "original", "codec")),
            f"rendering/control/wer/rendered/{key}",
        ]
        for kind, key in (("digits", "digits"), ("letters", "letters"), ("phrases", "phrase"))
    },
    **{
        f"cycle from {words}, round {i + 1}": [
            f"cycle_from_{start}/{where}rounds/{i}/scene/{name}"
            for where in ("", "control/")
            for name in ("wer", "events_f1")
        ]
        for words, start in (("audio", "audio"), ("captions", "caption"))
        for i in range(3)
    },
    "similarity of sentences": [
        *(f"cycle_from_{start}/rounds/2/scene/similarity" for start in ("audio", "caption")),
        "cycle_from_audio/chance/similarity",
    ],
    "digits rendered among other sounds": [
        f"quality/wer/{judge}/{of}/digits" for of in ("rendered", "original") for judge in JUDGES
    ],
    "DNSMOS": [f"quality/mos/{of}" for of in ("rendered", "noise", "original", "codec")],
    "similarity of the rendered voice": [
        f"quality/voice/{of}" for of in ("rendered", "another_voice", "codec", "same_voice")
    ],
    "Fréchet distance": [
        f"quality/frechet/{of}" for of in ("rendered", "noise", "original", "codec")
    ],
}
PLAIN = {"events_f1", "sounds_f1", "similarity", "mos", "voice", "frechet"}  # are no shares


@pytest.fixture(scope="module")
def measured():
    return json.loads((ROOT / "docs" / "ablations.json").read_text())


def section(file, heading):
    return (ROOT / file).read_text().split(f"\n{heading}\n")[1].split("\n## ")[0]


def row(text, start):
    (found,) = (line for line in text.splitlines() if line.startswith(f"| {start}"))
    return found


def difference(found):
    return found and Interval(*(found[part] for part in Interval._fields))


def rows(name, ablation):
    """Lines of an ablation's tables in docs/ablations.md, from its figures."""
    seeds, figures = ablation["seeds"], ablation["figures"]
    first = next(iter(figures))
    each = [None, *range(len(seeds))] if len(seeds) > 1 else [None]  # of all runs, of one
    for i in each:
        for variant, by_heading in figures.items():
            one = slice(i, None if i is None else i + 1)
            label = f"`{variant}`" + ("" if i is None else f", seed {seeds[i]}")
            taken = ablation["hours"][variant][one]
            cells = [table.cell(of_runs[one]) for of_runs in by_heading.values()]
            yield [label, str(len(taken)), table.hours_cell(taken), *cells]
    for variant, by_heading in ablation["differences"].items():
        for i, seed in enumerate(seeds):
            label = f"`{variant}` − `{first}`" + (f", seed {seed}" if len(seeds) > 1 else "")
            cells = [table.difference_cell(difference(found[i])) for found in by_heading.values()]
            yield [label, "", "", *cells]
    if name in WITH_COSTS:
        for variant, costs in ablation["stream_costs"].items():
            yield [f"`{variant}`", *table.costs_cells(costs)]


@pytest.mark.parametrize("name", ablations.ABLATIONS)
def test_tables_of_the_ablations_hold_their_figures_and_commands(name, measured, monkeypatch):
    monkeypatch.chdir(ROOT)
    ablation, text = ablations.ABLATIONS[name], section("docs/ablations.md", HEADINGS[name])
    assert tuple(measured[name]["figures"]) == ablation.variants
    for cells in rows(name, measured[name]):
        assert f"\n| {' | '.join(cells)} |\n" in text
    assert f"\n```\n{ablations.recipe('runs/ablations', ablation)}\n```\n" in text


def quoted(measured, name, variant, figure):
    """A figure as the README has it: without its interval, a difference as its interval alone."""
    if variant.startswith("-"):
        (found,) = measured[name]["differences"][variant[1:]][figure]
        return re.search(r"\((.*)\)", table.difference_cell(difference(found)))[1]
    if figure == "hours":
        return table.hours_cell(measured[name]["hours"][variant])
    return table.cell(measured[name]["figures"][variant][figure]).split(" (")[0].removesuffix(" %")


@pytest.mark.parametrize("start", QUOTED)
def test_the_readme_quotes_figures_of_the_ablations(start, measured):
    text = row(section("README.md", "## Ablations"), start)
    for figure in QUOTED[start]:
        told = re.escape(quoted(measured, *figure))
        assert re.search(rf"(?<![\d.]){told}(?![\d]|\.\d)", text), (figure, told)


def forms(figure, path):
    """What the README may write of a figure: fewer decimals or more, 100 for 100.0."""
    percent = not PLAIN & set(path.split("/"))
    value, low, high = (figure[part] * (100 if percent else 1) for part in ("value", "low", "high"))
    for decimals in (0, 1) if percent else (1, 2, 3):
        unit = " %" if percent else ""
        text = f"{value:.{decimals}f}{unit} ({low:.{decimals}f}–{high:.{decimals}f})"
        yield from (text, text.replace("100.0", "100"))


@pytest.mark.parametrize("start", STANDS)
def test_where_it_stands_quotes_the_figures_beside_the_weights(start):
    results = json.loads((ROOT / "bagpiper_jax/checkpoints/mini/results.json").read_text())
    text = row(section("README.md", "## Where it stands"), start)
    for path in STANDS[start]:
        told = list(forms(at(results, path.split("/")), path))
        assert any(re.search(rf"(?<![\d.]){re.escape(form)}", text) for form in told), (path, told)


def test_before_and_after_has_the_figures_beside_the_weights():
    results = json.loads((ROOT / "bagpiper_jax/checkpoints/mini/results.json").read_text())
    text = (ROOT / "docs" / "mini-model.md").read_text()
    assert results["weights_sha256"][:12] in text
    judges = {name: name.split()[0] for name in results["quality"]["wer"]}
    found = {}
    for figure in rows_of_results(results):
        label = figure.label
        for judge, short in judges.items():
            label = label.replace(judge, short)
        found[figure.name, label] = interval_text(figure.value)
    told = [line.strip("| ").split(" | ") for line in text.splitlines() if "Δ" in line]
    told = [cells for cells in told if len(cells) > 3]
    assert len(told) > 90
    for name, label, _, now, *_ in told:
        assert now.split("; Δ")[0] == found[name, label], (name, label)
