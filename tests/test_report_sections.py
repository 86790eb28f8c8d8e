"""The page of an evaluation: what was written, heard and judged, and cycles round by round."""

import numpy as np

from bagpiper_jax.evaluation import report_sections, workdir
from bagpiper_jax.evaluation.context import Outcome
from bagpiper_jax.evaluation.figures import Evaluation


def section(tmp_path, use, figures, items, clips=()):
    """The section of an evaluator whose outcome was written to a workdir and read again."""
    folder = str(tmp_path)
    sounds = {name: np.zeros(1600, np.float32) for name in clips}
    workdir.write_outcome(folder, use, use, {}, Outcome(figures, items, sounds))
    evaluation = Evaluation("this run", {use: figures})
    items, kept = workdir.read_items(folder, use), workdir.clips_dir(folder, use)
    shown = report_sections.Shown(use, use, [evaluation], items, kept, None, 4)
    return report_sections.section(shown)


def interval(value):
    return {"value": value, "low": value - 0.1, "high": value + 0.1, "count": 9}


def test_lists_and_groups_of_words_are_shown_whole_and_bare_numbers_are_not(tmp_path):
    item = {
        "captions": {"original": "A <bell>.", "rendered": "A gong."},
        "heard": {"whisper": {"original": "four five", "rendered": "for"}},
        "judge_prompts": ["Rate both.", "Rate again."],
        "judge": [{"rating": 4, "text": "Good."}, {"rating": None, "text": "no rating"}],
        "errors": {"original": [0, 2], "rendered": [2, 2]},
        "mos": {"original": 3.5},
    }
    text = section(tmp_path, "quality", {"scenes": 1}, [item])
    assert "<dt>original</dt><dd>A &lt;bell&gt;.</dd><dt>rendered</dt><dd>A gong.</dd>" in text
    assert "<dt>whisper</dt><dd><dl><dt>original</dt><dd>four five</dd>" in text
    assert "<ol><li>Rate both.</li><li>Rate again.</li></ol>" in text
    assert "<dt>rating</dt><dd>4</dd><dt>text</dt><dd>Good.</dd>" in text
    assert "<dt>rating</dt><dd>–</dd><dt>text</dt><dd>no rating</dd>" in text
    assert "errors" not in text and "mos" not in text


def test_what_figures_were_measured_with_is_told(tmp_path):
    judge = {"name": "gemini-2.5-flash", "pinned": False, "temperature": 0.0}
    figures = {"mode": "open", "asr": "Whisper tiny.en", "share": 0.5, "llm": judge}
    text = section(tmp_path, "mmau", figures, [{"question": "Who?"}])
    assert "mode: open; asr: Whisper tiny.en; llm: gemini-2.5-flash (an alias, which may" in text
    text = section(tmp_path, "mmau", {**figures, "llm": {**judge, "pinned": True}}, [])
    assert "llm: gemini-2.5-flash." in text and "alias" not in text


def scores(similarity, written, named):
    quotes = [{"kind": "digits", "truth": "four five", "written": written, "errors": [0, 2]}]
    events = {"truth": ["a gong"], "named": named}
    return {"similarity": similarity, "quotes": quotes, "events": events}


def test_a_cycle_shows_captions_and_clips_of_every_round_and_its_drift(tmp_path):
    own = {"similarity": interval(0.8), "wer": interval(0.2)}
    rounds = [{"round": 1, "scene": own}, {"round": 2, "scene": own, "drift": own}]
    figures = {"start": "audio", "embedding": "sentences", "rounds": rounds}
    figures["control"] = {"rounds": [{k: r[k] for k in r if k != "round"} for r in rounds]}
    item = {
        "start": "audio",
        "index": 7,
        "caption": 'A gong, then a woman says "four five".',
        "outputs": ['A gong, then "four five".', 'A bus, then "four".'],
        "rounds": [
            {"scene": scores(0.9, "four five", ["a gong"])},
            {"scene": scores(0.5, "four", ["a bus"]), "drift": scores(0.6, "four", ["a bus"])},
        ],
    }
    names = ["0-round-1", "0-round-2"]
    text = section(tmp_path, "cycle", figures, [{**item, "clip": names[1]}, item], names)
    assert "Cycle, from audio" in text and text.count("<img") == 1 and "sentences." in text
    assert text.count("<audio") == 2 and "round 1, of the scene" in text
    assert "round 2, of round 1&#x27;s caption" in text
    assert "0.90</dt><dd>A gong, then “four five”.</dd>" in text
    assert "0.50, to round 1's 0.60</dt><dd><ins>A bus</ins>, then “four <del>five</del>”." in text
    assert "rounds / round 2 / drift / wer" in text
    ended = section(tmp_path, "cycle", figures, [item])  # no clip was kept
    assert "A bus" in ended and "<audio" not in ended
