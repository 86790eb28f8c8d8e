"""The search for a slice that holds the step, and for the largest batch, by a scripted compiler."""

import json
import math
import os
import types

import pytest
from fake_slices import fake_slices

from bagpiper_jax.cli import main
from bagpiper_jax.errors import UserError
from bagpiper_jax.training import aot, aot_environment
from bagpiper_jax.training.config import load_config

ROOT = os.path.join(os.path.dirname(__file__), "..")
CONFIG = os.path.join(ROOT, "experiments", "pretrain_8b.py")
FAILURE = "v5p: the compiler failed: INTERNAL: something else"


@pytest.fixture
def compiler(monkeypatch):
    """Compiles nothing: slices of fewer than `chips` are too small, those of `uneven` do not divide
    the rows, more than `rows` rows a group are too many, `failing` rows are a bug of the compiler.
    `runs` keeps what it was asked for."""
    with open(os.path.join(ROOT, "docs", "compile", "v5p_4x4x8.json"), encoding="utf-8") as f:
        committed = json.load(f)
    committed.pop("largest_rows_per_group", None)
    script = types.SimpleNamespace(chips=0, uneven=(), rows=math.inf, failing=None)
    script.groups, script.runs = 128, []

    def report(run, topology, slices=1):
        rows = run.data.rows // script.groups
        script.runs.append((topology, slices, rows, run.compute.accumulation))
        if math.prod(map(int, topology.partition(":")[2].split("x"))) < script.chips:
            raise aot.TooSmall(f"{topology} is too small: it has 95.7", 2**37, 2**36)
        if topology in script.uneven:
            raise UserError("the rows do not divide")
        if rows == script.failing:
            raise UserError(FAILURE)
        if rows > script.rows:
            raise aot.TooSmall(f"{topology} is too small for {rows}", 2**37, 2**36)
        return committed | {"topology": topology, "slices": slices}

    monkeypatch.setattr(aot, "compile_report", report)
    monkeypatch.setattr(aot, "topology_devices", lambda _, n: fake_slices((4, 4, 8), n))
    monkeypatch.setattr(aot_environment, "prepare_environment", lambda: None)
    return script


def command(*rest, topology="v5p:4x4x8"):
    return main(["compile", "--config", CONFIG, "--topology", topology, *rest])


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "topology,chips,found",
    [
        ("v5p:2x2x2", 32, "v5p:2x4x4"),
        ("v5p:2x2x2", 33, "v5p:4x4x4"),
        ("v5e:8x8", 65, "v5e:8x16"),
        ("tpu7x:8x8x4", 512, "tpu7x:8x8x8"),
    ],
)
def test_the_smallest_larger_slice_that_fits_is_found(compiler, topology, chips, found):
    compiler.chips, said = chips, []
    run = load_config(["--config", CONFIG])
    assert aot.next_that_fits(run, topology, 2, said.append)["topology"] == found
    tried = [name for name, *_ in compiler.runs]
    assert topology not in tried and tried[-1] == found
    assert said == [f"{name} is too small: it has 95.7" for name in tried[:-1]]
    assert {slices for _, slices, *_ in compiler.runs} == {2}


def test_slices_that_the_rows_do_not_fit_are_passed_over(compiler):
    compiler.uneven, said = {"v5p:4x4x4"}, []
    run = load_config(["--config", CONFIG])
    assert aot.next_that_fits(run, "v5p:2x4x4", 1, said.append)["topology"] == "v5p:4x4x8"
    assert said == ["the rows do not divide"]


def test_a_slice_that_is_too_small_ends_with_the_report_of_one_that_fits(
    compiler, tmp_path, capsys
):
    compiler.chips, path = 32, tmp_path / "report.json"
    assert command("--json", str(path), topology="v5p:2x2x2") == 2
    assert read(path)["topology"] == "v5p:2x4x4"
    out, err = capsys.readouterr()
    assert out.startswith("bagpiper_8b on v5p:2x4x4: ")
    assert err.splitlines() == [
        "v5p:2x2x2 is too small: it has 95.7; trying larger ones",
        "v5p:2x2x4 is too small: it has 95.7",
        "v5p:2x4x4 holds it",
        "bagpiper: v5p:2x2x2 is too small: it has 95.7",
    ]


def test_no_slice_that_fits_is_told(compiler, tmp_path, capsys):
    compiler.chips, path = 1024, tmp_path / "report.json"
    assert command("--json", str(path), topology="v5p:4x4x8") == 2
    out, err = capsys.readouterr()
    assert err.splitlines()[-1].startswith(
        "bagpiper: no slice of v5p holds this step: raise mesh.tensor or compute.accumulation"
    )
    assert not out and not path.exists()
    assert [name for name, *_ in compiler.runs] == ["v5p:4x4x8", "v5p:4x8x8", "v5p:8x8x8"]


@pytest.mark.parametrize("most,tensor,slices", [(1, 1, 1), (4, 1, 1), (7, 2, 1), (4, 2, 2)])
def test_the_largest_batch_is_the_last_power_of_two_that_fits(compiler, most, tensor, slices):
    compiler.rows, compiler.groups = most, 128 * slices // tensor
    overrides = [f"--config.mesh.tensor={tensor}", "--config.compute.accumulation=2"]
    run = load_config(["--config", CONFIG, *overrides])
    found = aot.largest_batch(run, "v5p:4x4x8", slices, lambda _: None)
    assert found == 2 ** int(math.log2(most))
    rows = [2**n for n in range(int(math.log2(most)) + 2)]
    assert compiler.runs == [("v5p:4x4x8", slices, n, 1) for n in rows]


def test_a_slice_without_room_for_a_row_is_told(compiler):
    compiler.rows = 0
    with pytest.raises(aot.TooSmall, match="too small for 1"):
        aot.largest_batch(load_config(["--config", CONFIG]), "v5p:4x4x8", 1, lambda _: None)


def test_the_largest_batch_joins_the_report(compiler, tmp_path, capsys):
    compiler.rows, path = 4, tmp_path / "report.json"
    assert command("--largest", "--json", str(path)) == 0
    assert read(path)["largest_rows_per_group"] == 4
    out, err = capsys.readouterr()
    assert out.endswith("largest batch: 4 rows a group at a time\n")
    assert err.splitlines()[-1] == "8 rows a group: v5p:4x4x8 is too small for 8"


def test_a_search_that_fails_leaves_the_report(compiler, tmp_path, capsys):
    compiler.failing, path = 4, tmp_path / "report.json"
    written = []
    plain = aot.largest_batch

    def search(*args):  # it takes hours, and may be killed
        written.append(read(path))
        return plain(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(aot, "largest_batch", search)
        assert command("--largest", "--json", str(path)) == 2
    assert written == [read(path)] and "largest_rows_per_group" not in read(path)
    out, err = capsys.readouterr()
    assert out.count("bagpiper_8b on v5p:4x4x8: ") == 1 and "largest" not in out
    assert err.splitlines()[-1] == f"bagpiper: {FAILURE}"


@pytest.mark.parametrize("failing,code", [(None, 0), (4, 2)])
def test_standard_output_takes_one_document(compiler, capsys, failing, code):
    compiler.rows, compiler.failing = 4, failing
    assert command("--largest", "--json", "-") == code
    report = json.loads(capsys.readouterr().out)
    assert report["topology"] == "v5p:4x4x8"
    assert report.get("largest_rows_per_group") == (None if failing else 4)
