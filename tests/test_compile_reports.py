"""The committed compile reports are those of today's code, as far as that shows without libtpu."""

import dataclasses
import json
import re
from pathlib import Path

import jax
import pytest
from fake_slices import fake_slices

from bagpiper_jax.release import weight_shapes
from bagpiper_jax.training import aot
from bagpiper_jax.training.chips import chip_of_topology
from bagpiper_jax.training.collectives import Collective
from bagpiper_jax.training.config import load_config
from bagpiper_jax.training.optimizer import make_optimizer
from bagpiper_jax.training.speed import run_flops
from bagpiper_jax.training.step import (
    abstract_state,
    batch_sharding,
    make_model,
    run_mesh,
    state_shardings,
)

ROOT = Path(__file__).parents[1]
REPORTS = {
    path.stem: json.loads(path.read_text(encoding="utf-8"))
    for path in sorted((ROOT / "docs" / "compile").glob("*.json"))
}
PAGE = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")


@pytest.fixture(params=REPORTS)
def report(request):
    return REPORTS[request.param]


@pytest.fixture
def planned(report):
    """The run that docs/training.md names, and its mesh."""
    run = load_config(
        [
            *("--config", str(ROOT / "experiments" / "pretrain_8b.py")),
            f"--config.mesh.tensor={report['mesh']['tensor']}",
            f"--config.compute.accumulation={report['micro_batches']}",
        ]
    )
    shape = tuple(map(int, report["topology"].partition(":")[2].split("x")))
    return run, run_mesh(run, fake_slices(shape, report["slices"]))


def test_every_report_has_its_name():
    names = {
        name: report["topology"].replace(":", "_")
        + (f"_x{report['slices']}" if report["slices"] > 1 else "")
        for name, report in REPORTS.items()
    }
    assert len(names) >= 5 and all(name == wanted for name, wanted in names.items())


def test_the_settings_are_those_of_the_config(report, planned):
    run, mesh = planned
    chip = chip_of_topology(report["topology"])
    groups = mesh.shape["replica"] * mesh.shape["fsdp"]
    wanted = {
        "chip": chip.name,
        "chips": mesh.size // chip.devices_per_chip,
        "devices": mesh.size,
        "mesh": dict(mesh.shape),
        "model": run.model,
        "tokens_per_step": run.data.batch_tokens,
        "row": run.data.length,
        "rows_per_group": run.data.rows // run.compute.accumulation // groups,
        "compute": dataclasses.asdict(run.compute),
        "moments": run.optimizer.moments_dtype,
        "frozen": list(run.frozen),
        "available_per_device": chip.program_bytes / chip.devices_per_chip,
    }
    assert {name: report[name] for name in wanted} == wanted


def test_bytes_of_a_device_are_those_of_the_state_and_the_batch(report, planned):
    run, mesh = planned
    optimizer = make_optimizer(run.optimizer, run.steps)
    shardings = state_shardings(mesh, weight_shapes(run.shapes), optimizer, run.frozen)
    model = make_model(run, run.shapes)
    state = abstract_state(model, optimizer, shardings, run.frozen)

    def size(tree):
        own = lambda x: jax.ShapeDtypeStruct(x.sharding.shard_shape(x.shape), x.dtype)  # noqa: E731
        return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(jax.tree.map(own, tree)))

    kinds = report["bytes_per_device"]
    assert kinds["parameters"] == size(state.params)
    assert kinds["optimizer"] == size(state.opt_state)
    assert kinds["batch"] == size(aot.abstract_batch(run, batch_sharding(mesh)))
    # remat full: the bfloat16 input of every layer, of the rows that are computed at a time
    rows, shapes = report["rows_per_group"], run.shapes.decoder
    inputs = rows * run.data.length * shapes.hidden_size * 2
    assert kinds["activations"] == inputs * shapes.num_hidden_layers
    assert kinds["activations"] == aot._saved_activations(run, mesh)
    assert kinds["temporaries"] > 0 and kinds["headroom"] > 0
    assert sum(kinds.values()) == pytest.approx(report["available_per_device"])


def test_flops_and_floors_follow_from_what_the_report_holds(report, planned):
    run, mesh = planned
    flops = run_flops(run, run.shapes, run.frozen)
    assert report["model_flops_per_step"] == flops.total
    assert report["model_flops_per_token"] == flops.per_token
    ops = []
    for listed in report["collectives"]:
        fields = listed | {"axes": tuple(listed["axes"])}
        sent = fields.pop("sent")
        ops.append(Collective(**fields))
        assert ops[-1].sent == sent
    chip, kinds = chip_of_topology(report["topology"]), report["bytes_per_device"]
    floors = aot._floors(run, chip, mesh, flops, kinds, ops)
    for name, value in floors.items():
        assert report[name] == pytest.approx(value), name


def line_of(report):
    """The line of the page that a report makes."""
    kinds, floors = report["bytes_per_device"], report["floor_seconds"]
    giga = lambda size: f"{size / 2**30:.2f}"  # noqa: E731
    several = f"{report['slices']} × " if report["slices"] > 1 else ""
    mesh = (f"{axis} {size}" for axis, size in report["mesh"].items() if size > 1)
    parts = f" × {report['micro_batches']}" if report["micro_batches"] > 1 else ""
    return [
        several + report["topology"],
        " × ".join(mesh),
        f"{report['rows_per_group']}{parts}",
        *(giga(kinds[k]) for k in ("parameters", "optimizer", "activations", "temporaries")),
        f"{giga(kinds['headroom'])} of {giga(report['available_per_device'])}",
        *(f"{floors[limit]:.2f}" for limit in ("arithmetic", "memory", "network")),
        f"{report['mfu_bound']:.0%}",
        f"{report['days_for_600B_tokens']:.1f}",
        f"{report['compile_seconds']:.0f}",
    ]


def test_the_page_says_what_the_reports_hold():
    section = PAGE.partition("## What a slice will hold")[2].partition("\n## ")[0]
    lines = re.findall(r"^\| ((?:\d × )?v\w+:.*) \|$", section, re.M)
    tables = [line.split(" | ") for line in lines]
    told = sorted(cells for cells in tables if len(cells) > 3)
    assert told == sorted(map(line_of, REPORTS.values()))
    largest = {cells[0].split(",")[0]: cells[1].split()[0] for cells in tables if len(cells) == 3}
    assert largest == {line_of(r)[0]: str(r["largest_rows_per_group"]) for r in REPORTS.values()}
