"""Cards of the report: a scene and what the model wrote, a caption and what the model rendered."""

from __future__ import annotations

import html
import os
import re
from collections.abc import Sequence
from typing import Any

import soundfile

from bagpiper_jax.evaluation.codec_eval import reconstruct
from bagpiper_jax.evaluation.rendering_probe import SIDES, normal_form
from bagpiper_jax.evaluation.report_media import scene_picture
from bagpiper_jax.html_report import media, page
from bagpiper_jax.input_pipeline.scenes import Corpus, Scene, plan_scene, render_scene
from bagpiper_jax.modeling.codec import Codec

KIND_NAMES = {
    "spelled": "all spelled strings",
    "spelled_long": "spelled strings of three and more",
    "digits": "digits",
    "letters": "letters",
    "mixed": "digits and letters mixed",
    "phrase": "phrases",
}


_LONGEST = 1_000  # characters of an item's field that a card shows


def scene_card(item: dict[str, Any], corpus: Corpus, codec: Codec, unseen: bool) -> str:
    """A scene to see and hear, its caption, and the model's with mistakes marked."""
    scene = _scene(item, corpus)
    wav = render_scene(corpus, scene)
    clips = {
        "original": media.audio_uri(wav),
        "codec reconstruction": media.audio_uri(reconstruct(codec, wav)),
    }
    title = f"Scene {item['index']}" + (": unseen voice and takes" if unseen else "")
    missing = missing_quotes(item)
    return (
        f'<article class="card"><h3>{title}</h3>'
        + page.image(scene_picture(wav, scene), f"Spectrogram of: {scene.caption}")
        + page.players(clips)
        + f"<dl><dt>true caption</dt><dd>{html.escape(scene.caption)}</dd>"
        + f"<dt>the model wrote</dt><dd>{caption_marked(item)}"
        + (f" <small>not written:</small> {missing}" if missing else "")
        + f"</dd><dt>events</dt><dd>{event_chips(item['events'])}</dd></dl></article>"
    )


def render_card(item: dict[str, Any], clips: str, corpus: Corpus) -> str:
    """Audio rendered from a caption (a clip of `clips`), and what Whisper hears in it."""
    wav, _ = soundfile.read(os.path.join(clips, f"{item['clip']}.flac"), dtype="float32")
    original = render_scene(corpus, _scene(item, corpus))
    truth = _units(item["kind"], item["truth"])
    heard = {side: _units(item["kind"], item["heard"][side]) for side in SIDES}
    right = heard["rendered"] == truth
    word, kind = ("✓ as asked", "good-text") if right else ("✗ differs", "bad-text")
    return (
        f'<article class="card"><h3>Caption {item["index"]}: {KIND_NAMES[item["kind"]]}</h3>'
        + page.image(
            media.spectrogram(wav), f"Spectrogram of audio rendered from: {item['caption']}"
        )
        + page.players(
            {
                "rendered": media.audio_uri(wav),
                "true scene, for comparison": media.audio_uri(original),
            }
        )
        + f"<dl><dt>caption given</dt><dd>{html.escape(item['caption'])}</dd>"
        + f"<dt>asked for</dt><dd>{html.escape(item['truth'])}</dd>"
        + f'<dt>Whisper hears <span class="{kind}">{word}</span></dt>'
        + f"<dd>{marked(truth, heard['rendered'])} "
        + f"<small>written “{html.escape(item['heard']['rendered'])}”</small></dd>"
        + f"<dt>in the true scene</dt><dd>{marked(truth, heard['original'])}</dd>"
        + "</dl></article>"
    )


def cycle_card(item: dict[str, Any], clips: str) -> str:
    """A scene's true caption, and each round's caption, marked, with its clip if that was kept."""
    kept = item.get("clip", "").rpartition("-")[0]  # it names the clip of the last round
    lines = [f"<dt>true caption</dt><dd>{html.escape(item['caption'])}</dd>"]
    players, made_of = {}, "the scene" if item["start"] == "audio" else "the true caption"
    for number, (text, scores) in enumerate(zip(item["outputs"], item["rounds"], strict=True), 1):
        scored = {"output": text, **scores["scene"]}
        missing = missing_quotes(scored)
        alike = f"similarity to the scene's caption {scored['similarity']:.2f}"
        if "drift" in scores:
            alike += f", to round 1's {scores['drift']['similarity']:.2f}"
        lines.append(
            f"<dt>round {number}: {alike}</dt><dd>{caption_marked(scored)}"
            + (f" <small>not written:</small> {missing}" if missing else "")
            + "</dd>"
        )
        file = os.path.join(clips, f"{kept}-{number}.flac")
        if kept and os.path.isfile(file):
            players[f"round {number}, of {made_of}"] = _clip(file)
        made_of = f"round {number}'s caption"
    heard = page.players(players) if players else ""
    head = f"<h3>Scene {item['index']}</h3>"
    return f'<article class="card">{head}{heard}<dl>{"".join(lines)}</dl></article>'


def plain_card(item: dict[str, Any], clips: str) -> str:
    """An item of any evaluator: numbers, words, lists and groups with words in them, its clip."""
    lines = [
        f"<dt>{html.escape(name)}</dt><dd>{_nested(value)}</dd>"
        for name, value in item.items()
        if name != "clip" and (isinstance(value, (int, float)) or _has_words(value))
    ]
    player = ""
    if "clip" in item:
        uri = _clip(os.path.join(clips, f"{item['clip']}.flac"))
        player = page.players({item["clip"]: uri})
    return f'<article class="card">{player}<dl>{"".join(lines)}</dl></article>'


def _clip(path: str) -> str:
    wav, rate = soundfile.read(path, dtype="float32")
    return media.audio_uri(wav, rate)


def _has_words(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_has_words, value.values()))
    return any(map(_has_words, value)) if isinstance(value, list) else isinstance(value, str)


def _nested(value: Any) -> str:
    if isinstance(value, dict):
        lines = (f"<dt>{html.escape(k)}</dt><dd>{_nested(v)}</dd>" for k, v in value.items())
        return f"<dl>{''.join(lines)}</dl>"
    if isinstance(value, list):
        return f"<ol>{''.join(f'<li>{_nested(part)}</li>' for part in value)}</ol>"
    return "–" if value is None else html.escape(str(value)[:_LONGEST])


def _units(kind: str, text: str) -> list[str]:
    """What is compared, single letters as capitals."""
    return [word.upper() if len(word) == 1 else word for word in normal_form(kind, text)]


def _scene(item: dict[str, Any], corpus: Corpus) -> Scene:
    return plan_scene(corpus, item["seed"], item["index"], item["split"], item["profile"])


def marked(truth: Sequence[str], written: Sequence[str]) -> str:
    """Words as they were written or heard: wrong ones as <ins>, those that were missed as <del>."""
    import jiwer

    if not truth or not written:
        return "".join((_tag("ins", written), _tag("del", truth)))
    out = []
    for chunk in jiwer.process_words(" ".join(truth), " ".join(written)).alignments[0]:
        wanted = truth[chunk.ref_start_idx : chunk.ref_end_idx]
        got = written[chunk.hyp_start_idx : chunk.hyp_end_idx]
        if chunk.type == "equal":
            out.append(html.escape(" ".join(got)))
        else:
            out.append(" ".join(filter(None, (_tag("ins", got), _tag("del", wanted)))))
    return " ".join(out)


def _tag(name: str, words: Sequence[str]) -> str:
    return f"<{name}>{html.escape(' '.join(words))}</{name}>" if words else ""


def caption_marked(item: dict[str, Any]) -> str:
    """The caption that a model wrote, with wrong words of quotes and wrong events marked."""
    quotes = iter([q for q in item["quotes"] if q["written"] is not None])
    names = set(item["events"]["named"]) - set(item["events"]["truth"])
    wrong = [name.removeprefix("speech:") for name in names]
    out = []
    for i, part in enumerate(re.split(r'("[^"]*")', item["output"])):
        if i % 2:
            quote = next(quotes)
            truth = (quote["truth"] or "").split()
            out.append(f"“{_same_case(truth, quote['written'].split())}”")
        else:
            out.append(_wrong_names(part, wrong))
    return "".join(out) or "<span class=soft>(nothing)</span>"


def _same_case(truth: list[str], written: list[str]) -> str:
    """Case is not an error, so that words that differ only in it are compared as the truth's."""
    known = {word.lower(): word for word in truth}
    return marked(truth, [known.get(word.lower(), word) for word in written])


def _wrong_names(text: str, names: Sequence[str]) -> str:
    if not names:
        return html.escape(text)
    longest_first = sorted(names, key=len, reverse=True)
    pattern = r"(?<![\w-])(" + "|".join(map(re.escape, longest_first)) + r")(?![\w-])"
    parts = re.split(pattern, text, flags=re.IGNORECASE)
    return "".join(
        _tag("ins", [part]) if i % 2 else html.escape(part) for i, part in enumerate(parts)
    )


def missing_quotes(item: dict[str, Any]) -> str:
    """What was said and not written at all."""
    lost = [q["truth"] for q in item["quotes"] if q["written"] is None]
    return " ".join(f"<del>“{html.escape(text)}”</del>" for text in lost)


def event_chips(events: dict[str, list[str]]) -> str:
    """Events as chips: named, missed, named though not there."""
    truth, named = set(events["truth"]), set(events["named"])
    chips = [("good", "✓", name) for name in sorted(truth & named)]
    chips += [("bad", "missed:", name) for name in sorted(truth - named)]
    chips += [("bad", "not there:", name) for name in sorted(named - truth)]
    parts = []
    for kind, mark, name in chips:
        name = html.escape(name.replace("speech:", "voice: "))
        parts.append(f'<span class="chip {kind}">{mark} {name}</span>')
    return f'<div class="chips">{"".join(parts)}</div>'
