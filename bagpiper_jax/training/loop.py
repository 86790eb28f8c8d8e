"""The training loop, on one device or as one of many processes of a mesh."""

from __future__ import annotations

import dataclasses
import math
import os
import sys
import time
from collections.abc import Callable
from typing import Any, NoReturn

import jax
import numpy as np
from flax import nnx

from bagpiper_jax.errors import UserError
from bagpiper_jax.files import make_directory, write_whole
from bagpiper_jax.input_pipeline.batch import Batch, stack_rows
from bagpiper_jax.input_pipeline.mixture import Source, spread
from bagpiper_jax.input_pipeline.packed_records import PackedRecords
from bagpiper_jax.input_pipeline.packed_scenes import PackedScenes, load_corpus
from bagpiper_jax.input_pipeline.packing import RowShape
from bagpiper_jax.input_pipeline.prepared import open_prepared
from bagpiper_jax.input_pipeline.step_rows import host_batches
from bagpiper_jax.loading import load
from bagpiper_jax.modeling.bagpiper import Bagpiper
from bagpiper_jax.modeling.config import same_weights
from bagpiper_jax.porting.runs import is_run
from bagpiper_jax.release import Assets, load_assets, read_config, weight_shapes
from bagpiper_jax.sharding import parameter_shardings
from bagpiper_jax.store import Checkpoints, has_checkpoint
from bagpiper_jax.training import feed, hosts
from bagpiper_jax.training.assets import asset_fingerprints, prepare_assets, run_shapes
from bagpiper_jax.training.config import RunConfig, claim_workdir, flat_settings
from bagpiper_jax.training.metrics import MetricsLog
from bagpiper_jax.training.optimizer import learning_rate, make_optimizer
from bagpiper_jax.training.speed import Speed
from bagpiper_jax.training.step import (
    TrainState,
    abstract_state,
    batch_sharding,
    init_state,
    make_model,
    make_train_step,
    run_mesh,
    state_shardings,
)
from bagpiper_jax.training.trace import Trace
from bagpiper_jax.trees import dotted, nested, split_below

# called with (model, params, assets, log, step)
SampleFn = Callable[[Bagpiper, dict, Assets, MetricsLog, int], None]

# a run that skips so many of its last steps has diverged
_MAX_SKIPPED, _SKIPPED_WITHIN = 20, 1000
_ASSETS_WITHIN = 1200.0  # seconds; to fit them takes two minutes of two cores
_WRITTEN_WITHIN = 1200.0  # seconds; a batch of the 8B model is compressed in a minute or more
_LAGS = "give all processes one workdir, and start them again when all see the same files in it"
# paths, which hosts may have each their own
_PATHS = ("init_from", "data.corpus", "data.tokenizer", "data.codec")


def make_source(run: RunConfig, assets: Assets) -> PackedRecords | PackedScenes:
    """The rows of a run, by number.

    Raises:
      UserError: a prepared set that does not open, or of which nothing fits.
    """
    data = run.data
    settings = {
        "shape": RowShape(data.length, data.windows),
        "num_rows": run.steps * data.rows,
        "seed": run.seed,
        "cfg_dropout": data.cfg_dropout,
    }
    if data.sets:
        return PackedRecords(_prepared(run), assets.config, assets.tokenizer, **settings)
    return PackedScenes(
        data.corpus,
        assets.config,
        assets.tokenizer,
        assets.codec,
        profile=data.profile,
        mixture=data.mixture,
        **settings,
    )


def _prepared(run: RunConfig, assets: dict | None = None) -> list[Source]:
    opened = {directory: open_prepared(directory, assets) for directory, _, _ in run.data.sets}
    sets = [(opened[directory], task, weight) for directory, task, weight in run.data.sets]
    return spread(sets, run.data.mixture)


def initial_params(run: RunConfig, model: Bagpiper, mesh) -> dict:
    """Weights at step 0, of `init_from` or random; each device makes or reads its own.

    Raises:
      UserError: the checkpoint does not load or is of another model.
    """
    start = None
    if run.init_from:
        loaded = load(run.init_from, mesh, config=None if is_run(run.init_from) else run.shapes)
        start = nnx.to_pure_dict(nnx.state(loaded, nnx.Param))
        if not run.init_parts:
            return start
    shapes = {path: tuple(leaf.shape) for path, leaf in dotted(nnx.state(model, nnx.Param)).items()}
    placed = nested(parameter_shardings(mesh, shapes))

    def init():
        made = Bagpiper(model.config, rngs=nnx.Rngs(run.seed))
        return nnx.to_pure_dict(nnx.state(made, nnx.Param))

    fresh = jax.jit(init, out_shardings=placed)()
    if start is None:
        return fresh
    _, taken = split_below(start, run.init_parts, "init_parts")
    return nested(dotted(fresh) | dotted(taken))


def train(
    run: RunConfig,
    workdir: str,
    make_samples: Callable[[RunConfig], SampleFn] | None = None,
    *,
    must_resume: bool = False,
    profile: bool = False,
    wandb: str = "",
) -> TrainState:
    """Runs, or resumes, a training in `workdir` to its last step.

    SIGTERM saves a checkpoint and returns early, where there is one process even while no batch
    comes. As one of several processes (`hosts.connect`) all call this, with one workdir that all of
    them reach.

    Args:
      run: the settings; a workdir belongs to one run.
      workdir: where everything of the run goes.
      make_samples: makes what is called every `sample_every` steps and at the end, unless there are
        several processes.
      must_resume: do not start at step 0.
      profile: write a trace of a few steps to `workdir/profile`, for XProf or Perfetto.
      wandb: project of Weights & Biases that gets the metrics too.

    Raises:
      UserError: bad settings, others on another host, a workdir of another run, a checkpoint that
        cannot be written, or a training that diverged.
    """
    mesh = run_mesh(run, _devices(run))
    sharding = batch_sharding(mesh)
    rows, micro_batches = run.data.rows, run.compute.accumulation
    mine = feed.own_rows(sharding, rows, micro_batches)
    _check(run, workdir, mesh)
    names = hosts.host_names()
    hosts.check_same(_common_settings(run), names)
    if hosts.is_first():
        claim_workdir(workdir, run, must_resume=must_resume)
        prepare_assets(run, workdir)
    hosts.barrier("assets", names, timeout=_ASSETS_WITHIN)
    assets = load_assets(workdir)
    if mesh.size < jax.device_count():
        print(f"config.mesh: using {mesh.size} of {jax.device_count()} devices", file=sys.stderr)
    model = make_model(run, assets.config)
    optimizer = make_optimizer(run.optimizer, run.steps)
    source = make_source(run, assets)
    with (
        hosts.Terminated() as terminated,  # until the last checkpoint is whole
        Checkpoints(workdir, keep=run.keep, keep_every=run.keep_every, hosts=names) as checkpoints,
    ):
        # each lists the directory itself, and a shared one may lag
        hosts.check_same({"last checkpoint": checkpoints.latest_step}, names, _LAGS)
        state, shardings, position = _start(run, model, optimizer, mesh, checkpoints, must_resume)
        start = position["batches"]
        if "data" in position:
            source.resume(position["data"])
        step_fn = make_train_step(
            model,
            optimizer,
            learning_rate(run.optimizer, run.steps),
            frozen=run.frozen,
            shardings=shardings,
        )
        # generation runs in one process, whose devices must hold all weights
        sampled = make_samples and run.data.corpus and jax.process_count() == 1
        sample = make_samples(run) if sampled else None
        skipped: list[int] = []
        own = workdir if hosts.is_first() else None  # where this process writes
        speed = Speed.of(run, assets.config, jax.local_devices()[0], mesh.size)
        with (
            MetricsLog(own, start=start, steps=run.steps, speed=speed, wandb=wandb) as log,
            feed.Ahead(
                lambda: (
                    host_batches(source, rows, mine, start, run.data.workers)
                    if start < run.steps
                    else iter(())
                )
            ) as batches,
            Trace(os.path.join(workdir, "profile") if profile else None) as trace,
            jax.transfer_guard("disallow"),  # what has to be copied asks for it
        ):
            for number in range(start, run.steps):
                log.keep_up()  # else the wait is one for batches that nobody needs yet
                asked = time.monotonic()
                local = batches.next(unless=lambda: terminated.requested)
                waited = time.monotonic() - asked
                if local is None:  # told to end while nothing came
                    log.write(number)
                    if number > start and number % run.save_every:
                        _save(checkpoints, state, source, number, rows)
                    break
                if number == start or (number + 1) % run.log_every == 0:
                    _check_rows(source, local, number, mine, rows, names)
                batch = feed.place(local, sharding, rows, micro_batches, mine)
                trace.before(number - start, state)
                with jax.set_mesh(mesh):
                    state, metrics = step_fn(state, batch)
                log.add(metrics, waited)
                checkpoints.check()
                done = number + 1
                stopping = hosts.should_stop(done, terminated.requested)
                last = done == run.steps or stopping
                if done % run.log_every == 0 or last:
                    skipped = [s for s in skipped if s > done - _SKIPPED_WITHIN]
                    skipped += log.write(done)
                    if len(skipped) >= _MAX_SKIPPED:
                        _give_up(source, rows, skipped, workdir, names)
                if done % run.save_every == 0 or last:
                    _save(checkpoints, state, source, done, rows)
                if sample is not None and not stopping:
                    if done % run.sample_every == 0 or last:
                        with jax.transfer_guard("allow"):
                            sample(model, state.params, assets, log, done)
                if stopping:
                    break
    return state


def _devices(run: RunConfig) -> list[jax.Device]:
    """All of them; of one process fewer, where the config names a smaller mesh."""
    devices = jax.devices()
    sizes = dataclasses.astuple(run.mesh)
    asked = math.prod(sizes) if min(sizes) > 0 else len(devices)
    return devices[:asked] if jax.process_count() == 1 and asked < len(devices) else devices


def _check(run: RunConfig, workdir: str, mesh) -> None:
    """Tells what is wrong before the workdir is claimed."""
    if not run.data.corpus and not run.data.sets:
        raise UserError("config key data.sets: name the prepared sets, or data.corpus, to train on")
    resumes = has_checkpoint(workdir)  # then init_from is no longer needed
    if run.init_from and not resumes and not os.path.exists(run.init_from):
        raise UserError(f"config key init_from: there is no {run.init_from}")
    wanted = run.shapes
    if run.data.sets:
        _prepared(run, asset_fingerprints(run, workdir))
    else:
        load_corpus(run.data.corpus)
    optimizer = make_optimizer(run.optimizer, run.steps)
    state_shardings(mesh, weight_shapes(wanted), optimizer, run.frozen)
    if resumes:
        return
    if run.frozen and not run.init_from:
        raise UserError("config key init_from: name the weights of what is frozen")
    if run.init_from and is_run(run.init_from):
        if not same_weights(read_config(run.init_from), run_shapes(run)):
            raise UserError(f"config key init_from: {run.init_from} is no {run.model}")


def _common_settings(run: RunConfig) -> dict[str, Any]:
    """What all hosts must have alike: all but workers, and of paths whether there are any."""
    settings = flat_settings(run)
    del settings["data.workers"]
    return settings | {key: bool(settings[key]) for key in _PATHS}


def _check_rows(source, local: Batch, number: int, mine, rows: int, names: list[str]) -> None:
    """Compares what hosts hold alike; if nothing, they all make the first row of the step."""
    if jax.process_count() == 1:
        return
    sums = feed.checksums(local, mine, rows)
    first = stack_rows([source[number * rows]])
    sums[0] = feed.checksums(first, np.zeros(1, np.int32), 1)[0]
    feed.check_agreement(hosts.gathered(sums), names, number)


def _start(run: RunConfig, model, optimizer, mesh, checkpoints: Checkpoints, must_resume: bool):
    """State to go on from, where its arrays lie, and the position in the data."""
    shapes = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    shardings = state_shardings(mesh, shapes, optimizer, run.frozen)
    if checkpoints.latest_step is not None:
        abstract = abstract_state(model, optimizer, shardings, run.frozen)
        params, saved, position = checkpoints.restore(
            abstract.params, {"step": abstract.step, "state": abstract.opt_state}
        )
        return TrainState(saved["step"], params, saved["state"]), shardings, position
    if must_resume:
        raise UserError("there is no checkpoint to resume from: leave out --resume to start anew")
    params = initial_params(run, model, mesh)
    make = jax.jit(lambda p: init_state(p, optimizer, run.frozen), out_shardings=shardings)
    return make(params), shardings, {"batches": 0}


def _save(checkpoints: Checkpoints, state: TrainState, source, done: int, rows: int) -> None:
    """Starts saving after `done` steps; of the data scenes need nothing beside their number."""
    position: dict[str, Any] = {"batches": done}
    if isinstance(source, PackedRecords):
        position["data"] = source.position(done * rows)
    optimizer = {"step": state.step, "state": state.opt_state}
    with jax.transfer_guard("allow"):
        checkpoints.save(done, state.params, optimizer, position)


def _give_up(source, rows: int, skipped: list[int], workdir: str, names: list[str]) -> NoReturn:
    """Writes the batch of the last skipped step for inspection, and ends the run."""
    step = skipped[-1]
    path = os.path.join(workdir, "skipped", f"step_{step}.npz")
    if hosts.is_first():
        make_directory(os.path.dirname(path))
        batch = stack_rows([source[(step - 1) * rows + row] for row in range(rows)])
        write_whole(path, lambda p: _save_batch(p, batch))
    # who raises first ends the others, the one that writes too
    hosts.barrier("skipped", names, timeout=_WRITTEN_WITHIN)
    raise UserError(
        f"{len(skipped)} steps had a loss or gradient that is not finite: lower "
        f"optimizer.peak_lr; the last such batch is in {path}"
    )


def _save_batch(path: str, batch: Batch) -> None:
    with open(path, "wb") as file:
        np.savez_compressed(file, **batch._asdict())
