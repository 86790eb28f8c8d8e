"""`bagpiper evaluate` as a whole: resuming, refusing."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
from generation import same
from probe_oracle import SEED, tone_corpus
from scripted_model import ScriptedEars, ScriptedPipeline

from bagpiper_jax import files
from bagpiper_jax.errors import UserError
from bagpiper_jax.evaluation import asr, config, context, evaluate, mini_probes, report, workdir
from bagpiper_jax.evaluation import text_metrics as metrics
from bagpiper_jax.evaluation.context import Outcome
from bagpiper_jax.evaluation.figures import Evaluation
from bagpiper_jax.evaluation.remembering import RememberingEngine
from bagpiper_jax.inference.sampling import TEXT
from bagpiper_jax.json_lines import Journal

EXPERIMENT = config.experiment("evaluate_mini")


class Killed(BaseException):
    """Nothing is cleaned up after it."""


@pytest.fixture(scope="module")
def corpus():
    return tone_corpus()


@pytest.fixture
def scripted(corpus, monkeypatch, tmp_path):
    """An evaluation whose model is a script: (evaluate into a directory → results, moments)."""
    pipeline = ScriptedPipeline()
    monkeypatch.setattr(context.Pipeline, "load", lambda path: ScriptedPipeline())
    monkeypatch.setattr(context, "load_corpus", lambda path: corpus)
    monkeypatch.setattr(context, "load_assets", lambda path: pipeline)
    monkeypatch.setattr(asr, "Whisper", ScriptedEars)
    monkeypatch.setattr(mini_probes, "CHUNK", 2)
    page = lambda path, evaluations, folder, scenes: files.write_text(path, folder[-1:])  # noqa: E731
    monkeypatch.setattr(evaluate, "write_report", page)
    monkeypatch.setattr(metrics, "BOOTSTRAP_SAMPLES", 50)
    checkpoint = tmp_path / "mini"
    checkpoint.mkdir()
    (checkpoint / "model.safetensors").write_bytes(b"weights")

    def run(directory, *overrides, choose=False):
        settings = config.load_config(
            EXPERIMENT,
            [
                f"--config.checkpoint={checkpoint}",
                "--config.corpus=",
                f"--config.seed={SEED}",
                "--config.evaluators.codec.use=",
                "--config.evaluators.unseen.use=",
                "--config.evaluators.caption_questions.use=",
                "--config.evaluators.understanding.scenes=5",
                "--config.evaluators.rendering.digits=3",
                "--config.evaluators.rendering.letters=0",
                "--config.evaluators.rendering.phrases=0",
                "--config.evaluators.rendering.keep=1",
                "--config.evaluators.cfg_sweep.digits=3",
                "--config.evaluators.cfg_sweep.cfgs=(1.0,3.0)",
                *overrides,
            ],
        )
        return evaluate.evaluate(settings, str(directory), choose=choose)

    return SimpleNamespace(run=run, checkpoint=checkpoint)


def contents(directory):
    found = {}
    for folder, _, names in os.walk(directory):
        for name in names:
            path = os.path.join(folder, name)
            with open(path, "rb") as file:
                found[os.path.relpath(path, directory)] = file.read()
    return found


def test_an_evaluation_killed_at_any_moment_gives_the_same_bytes(scripted, monkeypatch, tmp_path):
    """A moment: before, within and after each call of the model and each write."""
    moments = {"left": -1, "seen": 0}

    fewer = ("--config.evaluators.cfg_sweep.use=", "--config.evaluators.understanding.scenes=3")

    def tick():
        moments["seen"] += 1
        if moments["seen"] == moments["left"]:
            raise Killed

    replace, add = os.replace, Journal.add
    generate = ScriptedPipeline().engine.__class__.generate

    def killed_replace(source, target):
        tick()
        replace(source, target)
        tick()

    def killed_add(self, key, value):
        tick()
        add(self, key, value)
        try:
            tick()
        except Killed:
            self._file.truncate(self._file.seek(0, os.SEEK_END) - 40)  # cut within the line
            raise
        tick()

    def killed_generate(self, requests):
        tick()
        return generate(self, requests)

    monkeypatch.setattr(files.os, "replace", killed_replace)
    monkeypatch.setattr(files, "_remove", lambda path: None)  # a kill leaves it where it is
    monkeypatch.setattr(Journal, "add", killed_add)
    monkeypatch.setattr(ScriptedPipeline().engine.__class__, "generate", killed_generate)
    scripted.run(tmp_path / "whole", *fewer)
    wanted, count = contents(tmp_path / "whole"), moments["seen"]
    assert {"results.json", "results.md", "rendering.jsonl", "audio/rendering/digits-0.flac"} < {
        *wanted
    }
    assert count > 30
    for moment in range(1, count + 1):
        moments.update(left=moment, seen=0)
        with pytest.raises(Killed):
            scripted.run(tmp_path / "whale", *fewer)
        moments["left"] = -1
        scripted.run(tmp_path / "whale", *fewer)
        assert contents(tmp_path / "whale") == wanted, moment
        shutil.rmtree(tmp_path / "whale")


def test_what_was_generated_is_not_generated_again(scripted, monkeypatch, tmp_path):
    calls = []
    script = type(ScriptedPipeline().engine)
    generate = script.generate

    def counted(self, requests):
        calls.append(len(requests))
        if len(calls) == 5:
            raise Killed
        return generate(self, requests)

    monkeypatch.setattr(script, "generate", counted)
    with pytest.raises(Killed):
        scripted.run(tmp_path / "out")
    assert calls == [2, 2, 1, 2, 1]  # understanding, and rendering up to its last chunk
    scripted.run(tmp_path / "out")
    assert calls[5:] == [1, 2, 1]  # that chunk and the sweep at 1: at 3, it was rendered before
    scripted.run(tmp_path / "out")
    assert len(calls) == 8


def test_what_is_remembered_is_the_answer_to_the_same_request_alone(tmp_path):
    pipe = ScriptedPipeline()
    script, clip = pipe.engine, np.sin(np.arange(16_000) * 0.03)
    request = pipe.request([pipe.listen(clip)], ("text",))
    other_clip = pipe.request([pipe.listen(clip[::-1])], ("text",))
    cfg = {"text": dataclasses.replace(TEXT, cfg=2.0)}
    others = [
        [dataclasses.replace(request, seed=1)],
        [dataclasses.replace(request, sampling={**request.sampling, **cfg})],
        [dataclasses.replace(request, modalities=("audio",))],
        [other_clip],
        [request, request],
    ]
    with Journal(tmp_path / "outputs.jsonl") as journal:
        engine = RememberingEngine(script, journal, "weights")
        for asked in ([request], *others):
            calls = len(script.calls)
            first, again = engine.generate(asked), engine.generate(asked)
            assert len(script.calls) == calls + 1
            assert all(map(same, first, script.generate(asked)))
            assert all(map(same, again, first))
            assert again[0][0][0].rows.dtype == np.int32
        calls = len(script.calls)
        RememberingEngine(script, journal, "other weights").generate([request])
        assert len(script.calls) == calls + 1


def test_a_workdir_of_something_else_is_refused(scripted, tmp_path):
    out = tmp_path / "out"
    scripted.run(out)
    before = contents(out)
    with pytest.raises(UserError, match=r"understanding\.json was made with scenes=5 \(not 6\)"):
        scripted.run(out, "--config.evaluators.understanding.scenes=6")
    with pytest.raises(UserError, match=r"begun with other seed \(3, not 4\)"):
        scripted.run(out, "--config.seed=4")
    (scripted.checkpoint / "sampling.json").write_text("{}")
    with pytest.raises(UserError, match=r"begun with other sampling\.json: name another"):
        scripted.run(out)
    (scripted.checkpoint / "sampling.json").unlink()
    (scripted.checkpoint / "model.safetensors").write_bytes(b"other weights")
    with pytest.raises(UserError, match="begun with other weights: name another"):
        scripted.run(out)
    assert contents(out) == before
    (scripted.checkpoint / "model.safetensors").write_bytes(b"weights")
    more = scripted.run(out, "--config.evaluators.unseen.use=understanding")  # one more is welcome
    assert more["unseen"]["split"] == "test_b"


def test_figures_of_a_benchmark_go_with_its_files(tmp_path):
    data = tmp_path / "data"
    (data / "audio").mkdir(parents=True)
    (data / "audio" / "a.wav").write_bytes(b"four")
    done = str(tmp_path), "asked", "mmau_mini", {"data": str(data)}
    workdir.write_outcome(*done, Outcome({"accuracy": 0.5}))
    assert workdir.read_outcome(*done) == {"accuracy": 0.5}
    (data / "audio" / "a.wav").write_bytes(b"more than four")
    with pytest.raises(UserError, match=r"asked\.json was made with other files in .*data: name"):
        workdir.read_outcome(*done)
    shutil.rmtree(data)  # to make a table nobody needs the recordings
    assert workdir.read_outcome(*done) == {"accuracy": 0.5}


def test_results_name_the_judges_that_were_asked_and_other_versions(
    scripted, monkeypatch, tmp_path
):
    out, fewer = tmp_path / "out", ["--config.evaluators.cfg_sweep.use="]
    alone = scripted.run(tmp_path / "alone", *fewer, "--config.evaluators.rendering.use=")
    assert alone["judges"] == alone["versions_of"] == {}
    begun = scripted.run(out, *fewer)
    assert begun["judges"] == {"whisper": asr.WHISPER} and begun["versions_of"] == {}
    assert "judges" not in json.loads((out / "run.json").read_text())
    now = {**begun["versions"], "faster-whisper": "99"}
    monkeypatch.setattr(asr, "versions", lambda: now)
    resumed = scripted.run(out)
    assert resumed["versions"] == begun["versions"]
    assert resumed["versions_of"] == {"cfg_sweep": now}
    page = report._footnotes(Evaluation("this run", resumed))
    assert "Versions of cfg_sweep: " in page and "faster-whisper 99" in page
    assert f"Judges: {asr.WHISPER}." in page
    assert "Judges:" not in report._footnotes(Evaluation("this run", alone))
    done = json.loads((out / "rendering.json").read_text())
    del done["versions"]  # of an evaluation that was made before they were kept
    (out / "rendering.json").write_text(json.dumps(done))
    assert scripted.run(out)["versions_of"] == {"cfg_sweep": now}


@pytest.mark.parametrize("damage", ["{}", "[]", "", '{"use": 1, "settings": [], "figures": 1}'])
def test_damaged_files_of_an_evaluator_are_named(tmp_path, damage):
    (tmp_path / "words.json").write_text(damage)
    with pytest.raises(UserError, match=r"words\.json is damaged.*delete it and evaluate again"):
        workdir.read_outcome(str(tmp_path), "words", "understanding", {})


@pytest.mark.parametrize("damage", ['{"wer": {}}', '{"wer": 1}', "[]", ""])
def test_damaged_sums_are_named(tmp_path, damage):
    (tmp_path / "words.sums.json").write_text(damage)
    told = r"words\.sums\.json is damaged.*delete it and words\.json beside it, and evaluate again"
    with pytest.raises(UserError, match=told):
        workdir.read_sums(str(tmp_path), "words")


def test_two_evaluations_in_one_workdir_are_refused(scripted, tmp_path):
    with Journal(tmp_path / "out" / "outputs.jsonl"), pytest.raises(UserError, match="another pro"):
        scripted.run(tmp_path / "out")


def test_sampling_is_chosen_once_and_before_anything_is_measured(scripted, tmp_path, capsys):
    results = scripted.run(tmp_path / "out", choose=True)
    chosen = json.loads((scripted.checkpoint / "sampling.json").read_text())
    assert results["sampling"] == chosen
    assert results["sampling_source"] == "chosen on development scenes"
    trials = (scripted.checkpoint / "sampling_trials.json").stat().st_mtime_ns
    assert scripted.run(tmp_path / "out", choose=True) == results
    assert (scripted.checkpoint / "sampling_trials.json").stat().st_mtime_ns == trials
    assert "was chosen when" in capsys.readouterr().out


def test_sampling_cannot_be_chosen_for_an_evaluation_that_was_begun_without(scripted, tmp_path):
    out = tmp_path / "out"
    scripted.run(out)
    before = contents(out)
    with pytest.raises(UserError, match="begun without --choose-sampling: name another workdir"):
        scripted.run(out, choose=True)
    assert contents(out) == before and not (scripted.checkpoint / "sampling.json").exists()


def test_descriptions_of_many_scenes_are_not_held_in_memory(corpus, monkeypatch):
    """Audio of a chunk of scenes at a time, however many there are."""
    held, most = [0], [0]
    real = mini_probes.render_scene

    class Clip(np.ndarray):
        def __del__(self):
            held[0] -= 1

    def made(*args):
        held[0] += 1
        most[0] = max(most[0], held[0])
        return real(*args).view(Clip)

    monkeypatch.setattr(mini_probes, "render_scene", made)
    monkeypatch.setattr(mini_probes, "CHUNK", 4)
    quiet = SimpleNamespace(describe_batch=lambda wavs, **_: ["Rain falls."] * len(wavs))
    found, items = mini_probes.understanding_probe(
        quiet, corpus, None, split="test_a", count=40, seed=SEED
    )
    assert len(items) == 40 and most[0] <= 8


@pytest.mark.slow
def test_the_mini_model_killed_by_the_system_gives_the_same_bytes(tmp_path):
    """SIGKILL at some moment of the generation, then once more later on, then to the end."""
    settings = ["--config.evaluators.unseen.use=", "--config.evaluators.codec.use="]
    settings += ["--config.evaluators.cfg_sweep.use=", "--config.evaluators.rendering.keep=1"]
    settings += [f"--config.evaluators.rendering.{kind}=1" for kind in ("digits", "letters")]
    settings += ["--config.evaluators.rendering.phrases=0"]
    settings += ["--config.evaluators.understanding.scenes=24"]  # two chunks

    def start(name):
        argv = [sys.executable, "-m", "bagpiper_jax.cli", "evaluate", "--workdir"]
        return subprocess.Popen([*argv, str(tmp_path / name), *settings])

    assert start("whole").wait() == 0
    outputs = tmp_path / "killed" / "outputs.jsonl"
    for lines in (1, 2):
        process = start("killed")
        while not outputs.exists() or outputs.read_bytes().count(b"\n") < lines:
            assert process.poll() is None
            time.sleep(0.1)
        process.kill()
        process.wait()
        assert not (tmp_path / "killed" / "results.json").exists()
    assert start("killed").wait() == 0
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
