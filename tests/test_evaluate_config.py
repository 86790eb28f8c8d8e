"""Settings of `bagpiper evaluate`: experiments, overrides, what is mistyped, what is missing."""

import importlib.util
import json
import sys

import pytest
from ml_collections import ConfigDict

from bagpiper_jax.cli import main
from bagpiper_jax.errors import UserError
from bagpiper_jax.evaluation import asr, config, registry

EXPERIMENT = config.experiment("evaluate_mini")
BENCHMARKS = ("mmau", "air_bench_chat", "audio_bench", "librispeech", "librispeech_tts")
BENCHMARKS += ("seed_tts_eval",)


def test_every_evaluator_of_the_registry_is_there_and_its_settings_have_defaults():
    for name in registry.EVALUATORS:
        settings = registry.settings(name)
        json.dumps(settings)
        assert registry.find(name).__doc__


@pytest.mark.parametrize(
    "file, size, uses",
    [
        ("evaluate_mini", ["full"], ("understanding", "understanding", "rendering")),
        ("evaluate_mini", ["quick"], ("understanding", "understanding", "rendering")),
        ("evaluate_benchmarks", [], BENCHMARKS),
    ],
)
def test_the_experiment_names_every_setting(file, size, uses):
    """A setting that the file leaves out could not be overridden."""
    path = config.experiment(file)
    spec = importlib.util.spec_from_file_location("experiment", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    chosen = [name for name in uses if file == "evaluate_benchmarks"]  # it leaves all of them out
    for name, values in module.get_config(*size).evaluators.items():
        if use := name if name in chosen else values.use:
            assert set(values) == {"use", *registry.settings(use)}, name
    overrides = [f"--config.evaluators.{name}.use={name}" for name in chosen]
    found = config.load_config(":".join([path, *size]), overrides)
    assert [i.use for i in found.evaluators][: len(uses)] == list(uses)


def test_the_benchmarks_start_from_the_defaults_of_their_evaluators():
    overrides = [f"--config.evaluators.{name}.use={name}" for name in BENCHMARKS]
    path = config.experiment("evaluate_benchmarks")
    for _, use, settings in config.load_config(path, overrides).evaluators:
        assert json.loads(json.dumps(registry.settings(use))) == settings | (
            {"llm": None} if "llm" in settings else {}
        )


def test_what_the_docs_promise_of_benchmarks_can_be_overridden():
    given = {
        "seed_tts_eval.language": "zh",
        "audio_bench.judge_prompt": "scale.txt",
        "librispeech_tts.template": "Say {text}",
        "librispeech.subset": "test-other",
        "librispeech.by_llm": True,
    }
    overrides = [f"--config.evaluators.{name}.use={name}" for name in BENCHMARKS]
    overrides += [f"--config.evaluators.{key}={value}" for key, value in given.items()]
    overrides += ["--config.evaluators.librispeech_tts.modalities=('text', 'audio')"]
    overrides += ["--config.evaluators.librispeech.llm.model.name=judge-2026-01-01"]
    found = config.load_config(config.experiment("evaluate_benchmarks"), overrides)
    by_name = {i.name: i.settings for i in found.evaluators}
    for key, value in given.items():
        name, setting = key.split(".")
        assert by_name[name][setting] == value
    assert by_name["librispeech_tts"]["modalities"] == ["text", "audio"]
    assert by_name["librispeech"]["llm"]["model"]["name"] == "judge-2026-01-01"


def test_overrides_reach_the_evaluators_and_an_empty_use_leaves_one_out():
    overrides = ["--config.evaluators.unseen.scenes=50", "--config.evaluators.cfg_sweep.use="]
    found = config.load_config(EXPERIMENT, ["--config.checkpoint=my_model", *overrides])
    by_name = {i.name: i for i in found.evaluators}
    assert found.checkpoint == "my_model" and by_name["unseen"].settings["scenes"] == 50
    assert by_name["unseen"].settings["split"] == "test_b" and "cfg_sweep" not in by_name


@pytest.mark.parametrize(
    "change, told",
    [
        ({"evaluators": {}}, "nothing to evaluate"),
        (
            {"evaluators": {"a": {"use": "understand"}}},
            "no evaluator 'understand'; there are under",
        ),
        ({"evaluators": {"a": {"use": "codec", "prompt": 3}}}, r"a\.prompt.*it has prompts"),
        (
            {"evaluators": {"a": {"use": "codec", "prompts": "3"}}},
            r"a\.prompts must be of type int",
        ),
        ({"evaluators": {"a": {"use": "codec", "prompts": True}}}, "must be of type int"),
        ({"evaluators": {"a": {"use": "guidance", "cfgs": 3.0}}}, "must be of type tuple"),
        ({"evaluators": {"a": {"prompts": 3}}}, r"evaluators\.a\.use must name an evaluator"),
        ({"evaluators": {"date": {"use": "codec"}}}, "choose another name"),
        ({"evaluators": {"versions_of": {"use": "codec"}}}, "choose another name"),
        ({"evaluators": {"a/b": {"use": "codec"}}}, "choose another name"),
        ({"sead": 1}, "sead: there must be checkpoint, corpus, seed, evaluators"),
        ({"dtype": "float16"}, "dtype must be one of float32, bfloat16, not 'float16'"),
        ({"dtype": ""}, "dtype must be one of float32"),
        ({"mesh": 2}, "mesh must have a size for each of replica, fsdp, tensor: 2"),
        ({"mesh": {"data": 2}}, r"mesh\.data: a mesh has the axes replica, fsdp, tensor"),
        ({"mesh": {"fsdp": 0}}, r"mesh\.fsdp must be a number of devices, or -1 .*: 0"),
        ({"mesh": {"tensor": True}}, r"mesh\.tensor must be a number of devices"),
        ({"seed": "1"}, "seed must be of type int"),
        ({"seed": -1}, "seed must be 0 or more: -1"),
        ({"evaluators": {"a": {"use": "codec", "prompts": -1}}}, r"a\.prompts must be 0 or more"),
        ({"evaluators": {"a": {"use": "rendering", "digits": -1}}}, r"a\.digits must be 0 or more"),
        ({"evaluators": {"a": {"use": "rendering", "keep": -1}}}, r"a\.keep must be 0 or more"),
        ({"evaluators": {"a": {"use": "guidance", "cfgs": ("a",)}}}, "tuple of one float or more"),
        ({"evaluators": {"a": {"use": "guidance", "cfgs": (1, True)}}}, "tuple of one float or"),
        ({"evaluators": {"a": {"use": "guidance", "cfgs": ()}}}, r"a\.cfgs must be a tuple of one"),
        (
            {"evaluators": {"a": {"use": "librispeech_tts", "modalities": (1,)}}},
            r"a\.modalities must be a tuple of one str or more",
        ),
    ],
)
def test_what_is_mistyped_is_named_with_what_there_is(change, told):
    values = {"checkpoint": "", "corpus": "", "seed": 1, "evaluators": {"codec": {"use": "codec"}}}
    with pytest.raises(UserError, match=told):
        config.from_config_dict(ConfigDict({**values, **change}))


def test_strengths_may_be_whole_numbers_and_data_sets_are_the_evaluators_affair():
    given = {"sweep": {"use": "guidance", "cfgs": (1, 2.5)}, "all": {"use": "audio_bench"}}
    values = {"checkpoint": "", "corpus": "", "seed": 0, "evaluators": given}
    sweep, of_benchmark = config.from_config_dict(ConfigDict(values)).evaluators
    assert sweep.settings["cfgs"] == [1, 2.5] and of_benchmark.settings["datasets"] == []


def test_the_command_line_tells_a_mistyped_setting(capsys, tmp_path):
    argv = ["evaluate", "--workdir", str(tmp_path / "out")]
    assert main([*argv, "--config.evaluators.understanding.scens=3"]) == 2
    told = capsys.readouterr().err
    assert "scens" in told and '"scenes"' in told and told.count("\n") == 1
    assert main([*argv, "--compare", "a"]) == 2 and main([*argv, "--compare", "a", "a"]) == 2
    assert not (tmp_path / "out").exists()


def test_a_missing_package_is_told_by_the_evaluator_that_needs_it_alone(monkeypatch):
    monkeypatch.setitem(sys.modules, "visqol", None)
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name: None if name in ("visqol", "openai") else found(name),
    )
    registry.require("understanding")
    with pytest.raises(UserError, match=r"codec needs the package visqol.*bagpiper_jax\[eval\]"):
        registry.require("codec")
    registry.require("air_bench_chat")  # the endpoint of its judge tells which package it needs
    entry = registry.Entry("no_such_package.module:function", extra="large")
    monkeypatch.setitem(registry.EVALUATORS, "far", entry)
    with pytest.raises(UserError, match=r"far needs the package no_such_package.*\[large\]"):
        registry.find("far")


def test_judges_are_those_of_the_evaluators_that_are_named():
    whisper, visqol = {"whisper": asr.WHISPER}, {"visqol": asr.VISQOL}
    for names, judges in (
        (["understanding", "questions", "mmau", "quality"], {}),
        (["rendering"], whisper),
        (["guidance", "requests"], whisper),
        (["understanding", "codec"], whisper | visqol),
    ):
        assert registry.judges(names) == judges
