"""Dtype and mesh of an evaluation: what is loaded, what is kept apart, what goes on."""

import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from scripted_model import ScriptedPipeline

from bagpiper_jax.errors import UserError
from bagpiper_jax.evaluation import config, context, workdir
from bagpiper_jax.json_lines import Journal
from bagpiper_jax.release import MINI

ALONE = {"replica": 1, "fsdp": 1, "tensor": 1}


@pytest.fixture
def loaded(monkeypatch, tmp_path):
    """(dtype, mesh) → what `Pipeline.load` was told, and keys of outputs; a scripted model."""
    told = {}
    load = lambda path, **placed: told.update(placed) or ScriptedPipeline()  # noqa: E731
    monkeypatch.setattr(context.Pipeline, "load", load)

    def ask(dtype="float32", mesh=None):
        told.clear()
        file = tmp_path / "outputs.jsonl"
        file.unlink(missing_ok=True)
        with Journal(file) as outputs:
            pipe = context.Context("", "", 1, outputs, "weights", None, dtype, mesh).pipeline
            pipe.describe(np.sin(np.arange(16_000) * 0.03))
        return dict(told), [json.loads(line)["key"] for line in file.read_text().splitlines()]

    return ask


def test_the_default_is_one_device_in_float32_and_outputs_of_another_dtype_are_others(loaded):
    told, keys = loaded()
    assert told == {} and loaded("float32", ALONE) == (told, keys)
    told, others = loaded("bfloat16", ALONE)
    assert told == {"dtype": "bfloat16"} and set(keys).isdisjoint(others)
    told, same = loaded("float32", {**ALONE, "fsdp": -1})
    assert same == keys and dict(told["mesh"].shape) == {**ALONE, "fsdp": jax.device_count()}
    with pytest.raises(UserError, match="config key mesh: .*tensor 3 does not fit the 8 devices: "):
        loaded("float32", {**ALONE, "tensor": 3})


def test_the_experiments_bring_both_and_other_configs_need_neither():
    values = {"checkpoint": "", "corpus": "", "seed": 1, "evaluators": {"codec": {"use": "codec"}}}
    found = config.from_config_dict(config.ConfigDict(values))
    assert (found.dtype, found.mesh) == ("float32", ALONE)
    given = ["--config.dtype=bfloat16", "--config.mesh.tensor=2"]
    for name, more in (
        ("evaluate_mini", []),
        ("evaluate_benchmarks", ["--config.evaluators.mmau.use=mmau"]),
    ):
        found = config.load_config(config.experiment(name), given + more)
        assert (found.dtype, found.mesh) == ("bfloat16", {**ALONE, "tensor": 2})


def test_a_workdir_keeps_its_dtype_and_may_go_on_with_another_mesh(tmp_path, capsys):
    def opened(dtype="float32", mesh=ALONE):
        begun = {"seed": 1, "audio": {}, "sampling": ScriptedPipeline().sampling}
        of_scenes = SimpleNamespace(checkpoint="", corpus_dir="", dtype=dtype, mesh=mesh, **begun)
        return workdir.open_head(str(tmp_path), of_scenes, "weights")

    head = opened()
    assert (head["dtype"], head["mesh"]) == ("float32", ALONE) and opened() == head
    with pytest.raises(UserError, match=r"begun with other dtype \(float32, not bfloat16\): name"):
        opened("bfloat16")
    capsys.readouterr()
    assert opened(mesh={**ALONE, "fsdp": 8}) == head
    assert "begun on another mesh" in capsys.readouterr().out
    for name in ("dtype", "mesh"):  # of an evaluation that was begun before they were told
        del head[name]
    (tmp_path / "run.json").write_text(json.dumps(head))
    assert opened(mesh={**ALONE, "fsdp": 8}) == head and not capsys.readouterr().out
    with pytest.raises(UserError, match="other dtype"):
        opened("bfloat16")


@pytest.mark.slow
def test_the_mini_model_writes_the_same_on_a_mesh(tmp_path):
    noise = np.random.default_rng(0).normal(0, 0.1, 16_000).astype(np.float32)
    found = []
    for mesh in (ALONE, {**ALONE, "fsdp": 4, "tensor": 2}):
        with Journal(tmp_path / f"{mesh['fsdp']}.jsonl") as outputs:
            of_mini = context.Context(MINI, "", 1, outputs, "weights", None, "float32", mesh)
            found.append(of_mini.pipeline.describe(noise, sampling=of_mini.sampling["text"]))
    assert found[0] and found[0] == found[1]
