"""What a TPU slice will hold: the real train step, compiled for it on a machine without TPUs.

Nothing runs, so there is memory, sharding and traffic, and no time: floors of the step's time come
from what the chip's maker promises. Needs the `libtpu` wheel (extra `tpu`).
"""

from __future__ import annotations

import dataclasses
import math
import re
import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from bagpiper_jax.errors import UserError
from bagpiper_jax.input_pipeline.batch import Batch
from bagpiper_jax.log_mel import NUM_MELS, WINDOW_FRAMES
from bagpiper_jax.modeling.bagpiper import Bagpiper
from bagpiper_jax.training.chips import Chip, chip_of_topology
from bagpiper_jax.training.collectives import (
    bytes_by_axis,
    collectives,
    compile_with_dump,
)
from bagpiper_jax.training.config import RunConfig
from bagpiper_jax.training.feed import own_rows
from bagpiper_jax.training.optimizer import learning_rate, make_optimizer
from bagpiper_jax.training.speed import run_flops
from bagpiper_jax.training.step import (
    TrainState,
    abstract_state,
    batch_sharding,
    make_model,
    make_train_step,
    run_mesh,
    state_shardings,
)
from bagpiper_jax.trees import dotted

PRETRAINING_TOKENS = 600e9  # arXiv 2602.05220
# larger and larger slices of each kind; all are offered
_SLICES = {
    "v4": ("2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8"),
    "v5p": ("2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8"),
    "tpu7x": ("2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8"),
    "v5e": ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16"),
    "v6e": ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16"),
}


class TooSmall(UserError):
    """The step does not fit the slice; `needed` and `available` are bytes per device."""

    def __init__(self, message: str, needed: float, available: float):
        super().__init__(message)
        self.needed, self.available = needed, available


def topology_devices(topology: str, slices: int = 1) -> list:
    """Devices of a slice like v5p:4x4x8, or of several.

    Raises:
      UserError: libtpu is missing, or there is no such slice.
    """
    from jax.experimental import topologies

    options: dict[str, Any] = {"num_slices": slices} if slices > 1 else {}
    if topology.startswith("v4"):
        options["chip_config_name"] = "megacore"  # its two cores work as one device, the usual way
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=topology, **options)
    except Exception as e:  # libtpu raises many kinds
        reason = " ".join(str(e).split())[:200]
        raise UserError(
            f"no topology {topology!r} ({reason}); it needs: pip install 'bagpiper_jax[tpu]'"
        ) from e
    return list(found.devices)


def abstract_batch(run: RunConfig, sharding) -> Batch:
    """Shapes of a step's batch, [A, B, …]."""
    vocab = run.shapes.vocab
    data, parts = run.data, run.compute.accumulation
    lead = (parts, data.rows // parts)

    def field(dtype, *shape):
        return jax.ShapeDtypeStruct((*lead, *shape), dtype, sharding=sharding)

    return Batch(
        tokens=field(jnp.int32, data.length, vocab.num_streams),
        loss_mask=field(jnp.bool_, data.length, vocab.num_streams),
        segment_ids=field(jnp.int32, data.length),
        positions=field(jnp.int32, data.length),
        mel=field(jnp.float32, data.windows, WINDOW_FRAMES, NUM_MELS),
        mel_frames=field(jnp.int32, data.windows),
        audio_index=field(jnp.int32, data.length),
    )


def lowered_step(run: RunConfig, mesh) -> tuple[jax.stages.Lowered, TrainState, Batch]:
    """The train step of a run, not compiled yet, and the shapes of what it takes.

    Args:
      run: the settings.
      mesh: of the run, which `jax.set_mesh` has set too.
    """
    model = make_model(run, run.shapes)
    optimizer = make_optimizer(run.optimizer, run.steps)
    shapes = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    shardings = state_shardings(mesh, shapes, optimizer, run.frozen)
    state = abstract_state(model, optimizer, shardings, run.frozen)
    batch = abstract_batch(run, batch_sharding(mesh))
    step = make_train_step(
        model,
        optimizer,
        learning_rate(run.optimizer, run.steps),
        frozen=run.frozen,
        shardings=shardings,
    )
    return step.lower(state, batch), state, batch


def compile_report(run: RunConfig, topology: str, slices: int = 1) -> dict[str, Any]:
    """Compiles the train step of a run for TPU slices and tells what it takes.

    Args:
      run: the settings; where there are several slices and `mesh.replica` is 1, it becomes their
        number.
      topology: of a slice, like v5p:4x4x8.
      slices: their number.

    Returns:
      JSON-ready values; `table` makes them readable.

    Raises:
      TooSmall: the step does not fit.
      UserError: no such topology, or a mesh that does not fit it.
    """
    chip = chip_of_topology(topology)
    devices = topology_devices(topology, slices)
    mesh = run_mesh(run, devices)
    # they can be dealt out evenly
    own_rows(batch_sharding(mesh), run.data.rows, run.compute.accumulation)
    began = time.monotonic()
    available = chip.program_bytes / chip.devices_per_chip
    try:
        with jax.set_mesh(mesh):
            lowered, state, batch = lowered_step(run, mesh)
            compiled, text = compile_with_dump(lowered)
    except jax.errors.JaxRuntimeError as e:
        raise _too_small(e, topology) from e
    seconds = time.monotonic() - began
    memory = compiled.memory_analysis()
    flops = run_flops(run, run.shapes, run.frozen)
    saved = _saved_activations(run, mesh)
    outputs = max(memory.output_size_in_bytes - memory.alias_size_in_bytes, 0)
    # `temp_size_in_bytes` counts buffers that take turns in the same memory: programs that the
    # compiler accepts for 15.75 GiB have 18 of them
    temporaries = memory.peak_memory_in_bytes - memory.argument_size_in_bytes - outputs
    kinds = {
        "parameters": _local_bytes(state.params),
        "optimizer": _local_bytes(state.opt_state),
        "batch": _local_bytes(batch),
        "activations": saved,
        "temporaries": temporaries - saved,
        "outputs": outputs,
        "padding of arguments": memory.argument_size_in_bytes
        - _local_bytes((state.params, state.opt_state, batch)),
        "program": memory.generated_code_size_in_bytes,
    }
    kinds["headroom"] = available - sum(kinds.values())
    ops = collectives(text, dict(mesh.shape), num_slices=slices)
    report = {
        "topology": topology,
        "slices": slices,
        "chip": chip.name,
        "chips": mesh.size // chip.devices_per_chip,
        "devices": mesh.size,
        "mesh": dict(mesh.shape),
        "model": run.model,
        "tokens_per_step": run.data.batch_tokens,
        "row": run.data.length,
        "micro_batches": run.compute.accumulation,
        "rows_per_group": run.data.rows
        // run.compute.accumulation
        // (mesh.shape["replica"] * mesh.shape["fsdp"]),
        "compute": dataclasses.asdict(run.compute),
        "moments": run.optimizer.moments_dtype,
        "frozen": list(run.frozen),
        "compile_seconds": seconds,
        "bytes_per_device": kinds,
        "available_per_device": available,
        "model_flops_per_step": flops.total,
        "model_flops_per_token": flops.per_token,
        "collectives": [dataclasses.asdict(op) | {"sent": op.sent} for op in ops],
    }
    return report | _floors(run, chip, mesh, flops, kinds, ops)


def _local_bytes(tree: Any) -> int:
    """Bytes on one device."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def _saved_activations(run: RunConfig, mesh) -> int:
    """Bytes on one device of what the layers keep for their backward pass, where it is their input.

    Of other remat policies the compiler alone knows; then it counts as temporary.
    """
    if run.compute.remat != "full":
        return 0
    rows = run.data.rows // run.compute.accumulation
    rows //= mesh.shape["replica"] * mesh.shape["fsdp"]
    decoder = run.shapes.decoder
    size = rows * run.data.length * decoder.hidden_size * jnp.dtype(run.compute.dtype).itemsize
    return size * decoder.num_hidden_layers


def _floors(run, chip: Chip, mesh, flops, kinds: Mapping[str, float], ops) -> dict[str, Any]:
    """Seconds that a step takes at least, by each of three limits, and what follows."""
    peak = mesh.size * chip.bf16_flops / chip.devices_per_chip
    again = 0.0
    if run.compute.remat in ("full", "offload"):  # the forward pass of what gradients go through
        parts = ("audio_tower", "adaptor", "model", "lm_head", "stream_emb")
        forward = run_flops(run, run.shapes, frozen=parts)
        again = forward.decoder + forward.attention
        if "audio_tower" not in run.frozen:
            again += forward.encoder
    arithmetic = (flops.total + again) / peak

    # about: weights in the type of the computation are read for each pass of each micro-batch;
    # state is read and written once
    params = sum(math.prod(leaf.shape) for leaf in dotted(_shapes(run)).values())
    passes = 3 if again else 2
    item = jnp.dtype(run.compute.dtype).itemsize
    weights = params * item / mesh.shape["tensor"] * passes * run.compute.accumulation
    traffic = weights + 2 * (kinds["parameters"] + kinds["optimizer"])
    memory = traffic / (chip.hbm_bandwidth / chip.devices_per_chip)

    inside = sum(op.sent for op in ops if not op.across_slices)
    across = sum(op.sent for op in ops if op.across_slices)
    network = max(
        inside / (chip.ici_bandwidth / chip.devices_per_chip),
        across / (chip.dcn_bandwidth / chip.devices_per_chip),
    )
    seconds = max(arithmetic, memory, network)
    per_day = run.data.batch_tokens / seconds * 86_400
    return {
        "bytes_sent_by_axes": {
            "+".join(axes) + where: sent
            for where, between in (("", False), (" between slices", True))
            for axes, sent in bytes_by_axis(op for op in ops if op.across_slices == between).items()
        },
        "floor_seconds": {"arithmetic": arithmetic, "memory": memory, "network": network},
        "recomputed_flops_per_step": again,
        "mfu_bound": flops.total / (peak * seconds),
        "tokens_per_day_bound": per_day,
        "days_for_600B_tokens": PRETRAINING_TOKENS / per_day,
    }


def _shapes(run: RunConfig) -> dict:
    return nnx.to_pure_dict(nnx.state(Bagpiper.abstract(run.shapes), nnx.Param))


_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30}


def _too_small(error: Exception, topology: str) -> UserError:
    """The compiler's refusal in one line."""
    size = r"([\d.]+)([KMG])"
    found = re.search(rf"Used {size} of {size} hbm", str(error)) or re.search(
        rf"\({size}\) exceeds available HBM \({size}\)", str(error)
    )
    if not found:
        return UserError(f"{topology}: the compiler failed: {' '.join(str(error).split())[:300]}")
    needed = float(found[1]) * _UNITS[found[2]]
    available = float(found[3]) * _UNITS[found[4]]
    return TooSmall(
        f"{topology} is too small: a device needs {needed / 2**30:.1f} GiB, it has "
        f"{available / 2**30:.1f}",
        needed,
        available,
    )


def next_that_fits(run: RunConfig, topology: str, slices: int, progress=print) -> dict[str, Any]:
    """The report of the smallest larger slice of the same kind that holds the step.

    Raises:
      UserError: none does.
    """
    kind, _, shape = topology.partition(":")
    shapes = _SLICES.get(kind, ())
    size = lambda shape: math.prod(map(int, shape.split("x")))  # noqa: E731
    for larger in shapes:
        if size(larger) <= size(shape):
            continue
        try:
            return compile_report(run, f"{kind}:{larger}", slices)
        except UserError as e:  # too small as well, or the rows do not divide
            progress(str(e))
    raise UserError(
        f"no slice of {kind} holds this step: raise mesh.tensor or compute.accumulation, choose "
        "compute.remat=offload or optimizer.moments_dtype=bfloat16"
    )


def largest_batch(run: RunConfig, topology: str, slices: int, progress=print) -> int:
    """Most rows, among powers of two, that a group of devices computes at a time on a slice.

    Raises:
      UserError: not even one fits.
    """
    data = run.data
    mesh = run_mesh(run, topology_devices(topology, slices))
    groups = mesh.size // mesh.shape["tensor"]
    fits, rows = 0, 1
    while True:
        wider = dataclasses.replace(
            run,
            data=dataclasses.replace(data, batch_tokens=rows * groups * data.length),
            compute=dataclasses.replace(run.compute, accumulation=1),
        )
        try:
            compile_report(wider, topology, slices)
        except TooSmall as e:
            progress(f"{rows} rows a group: {e}")
            if not fits:
                raise
            return fits
        progress(f"{rows} rows a group: fits")
        fits, rows = rows, 2 * rows


def table(report: Mapping[str, Any]) -> str:
    """A report to read."""
    giga = lambda x: f"{x / 2**30:8.2f} GiB"  # noqa: E731
    floors = report["floor_seconds"]
    mesh = " × ".join(f"{axis} {size}" for axis, size in report["mesh"].items())
    slices = f"{report['slices']} slices of " if report["slices"] > 1 else ""
    lines = [
        f"{report['model']} on {slices}{report['topology']}: {report['chips']} chips, mesh {mesh}",
        f"{report['tokens_per_step']:,} tokens a step in rows of {report['row']:,}, "
        f"{report['rows_per_group']} a group at a time, {report['micro_batches']} micro-batches; "
        f"compiled in {report['compile_seconds']:.0f} s",
        "",
        f"memory of a device, of {giga(report['available_per_device']).strip()}",
        *(f"  {kind:28}{giga(size)}" for kind, size in report["bytes_per_device"].items()),
        "",
        "bytes that a device sends in a step",
        *(f"  {axes:28}{giga(sent)}" for axes, sent in report["bytes_sent_by_axes"].items()),
        "",
        f"model FLOPs: {report['model_flops_per_token'] / 1e9:.1f} G a token, "
        f"{report['model_flops_per_step'] / 1e15:.1f} P a step; computed again: "
        f"{report['recomputed_flops_per_step'] / 1e15:.1f} P",
        "a step takes at least",
        *(f"  {limit:28}{seconds:8.3f} s" for limit, seconds in floors.items()),
        f"so MFU is at most {report['mfu_bound']:.0%}: "
        f"{report['tokens_per_day_bound'] / 1e9:.1f} G tokens a day, "
        f"{report['days_for_600B_tokens']:.1f} days for 600 G tokens",
    ]
    if "largest_rows_per_group" in report:
        lines.append(f"largest batch: {report['largest_rows_per_group']} rows a group at a time")
    return "\n".join(lines)
