"""The training loop."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator

import grain
import jax
from absl import flags
from flax import nnx

from bagpiper_jax.errors import UserError
from bagpiper_jax.input_pipeline.batch import Batch, stack_rows
from bagpiper_jax.input_pipeline.packed_scenes import (
    PackedScenes,
    RowShape,
    load_corpus,
    one_blas_thread,
)
from bagpiper_jax.modeling.bagpiper import Bagpiper
from bagpiper_jax.release import Assets, load_weights
from bagpiper_jax.store import Checkpoints
from bagpiper_jax.training.assets import prepare_assets
from bagpiper_jax.training.config import RunConfig, claim_workdir
from bagpiper_jax.training.metrics import MetricsLog
from bagpiper_jax.training.optimizer import learning_rate, make_optimizer
from bagpiper_jax.training.step import TrainState, init_state, make_train_step

# called with (model, params, assets, log, step)
SampleFn = Callable[[Bagpiper, dict, Assets, MetricsLog, int], None]

# a run that skips so many steps has diverged
_MAX_SKIPPED = 20


def make_source(run: RunConfig, assets: Assets) -> PackedScenes:
    """The rows of a run, by number."""
    data = run.data
    return PackedScenes(
        data.corpus,
        assets.config,
        assets.tokenizer,
        assets.codec,
        shape=RowShape(data.length, data.windows),
        num_rows=run.steps * data.batch_size,
        seed=run.seed,
        profile=data.profile,
        mixture=data.mixture,
        cfg_dropout=data.cfg_dropout,
    )


def batches(run: RunConfig, assets: Assets, start: int) -> Iterator[Batch]:
    """Batches from number `start` on: rows are random access, so the position is one number."""
    dataset = grain.MapDataset.source(make_source(run, assets))
    dataset = dataset.batch(run.data.batch_size, drop_remainder=True, batch_fn=stack_rows)[start:]
    dataset = dataset.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=4))
    if run.data.workers:
        if not flags.FLAGS.is_parsed():  # Grain reads absl flags when it starts workers
            flags.FLAGS.mark_as_parsed()
        options = grain.MultiprocessingOptions(
            num_workers=run.data.workers, per_worker_buffer_size=4
        )
        dataset = dataset.mp_prefetch(options, worker_init_fn=one_blas_thread)
    return iter(dataset)


def train(
    run: RunConfig, workdir: str, make_samples: Callable[[RunConfig], SampleFn] | None = None
) -> TrainState:
    """Runs, or resumes, a training in `workdir` to its last step.

    SIGTERM saves a checkpoint and returns early.

    Args:
      run: the settings; a workdir belongs to one run.
      workdir: where everything of the run goes.
      make_samples: makes what is called every `sample_every` steps and at the end.

    Raises:
      UserError: bad settings, a workdir of another run, a checkpoint that cannot be written, or a
        training that diverged.
    """
    load_corpus(run.data.corpus)  # what is wrong with it is told before the workdir is claimed
    claim_workdir(workdir, run)
    assets = prepare_assets(run, workdir)
    sample = make_samples(run) if make_samples else None
    model = Bagpiper(assets.config, rngs=nnx.Rngs(run.seed))
    optimizer = make_optimizer(run.optimizer, run.steps)
    step_fn = make_train_step(model, optimizer, learning_rate(run.optimizer, run.steps))
    with Checkpoints(workdir, keep=run.keep) as checkpoints, _Terminated() as terminated:
        state = init_state(model, optimizer)
        if checkpoints.latest_step is not None:
            params, optimizer_state, position = checkpoints.restore(
                state.params, {"step": state.step, "state": state.opt_state}
            )
            state = TrainState(optimizer_state["step"], params, optimizer_state["state"])
            start = position["batches"]
        else:
            start = 0
            if run.init_from:
                state = state._replace(params=load_weights(run.init_from, state.params))
        skipped = 0
        with MetricsLog(workdir, start=start, steps=run.steps) as log:
            source = batches(run, assets, start) if start < run.steps else iter(())
            for number in range(start, run.steps):
                asked = time.monotonic()
                batch = jax.device_put(next(source))
                waited = time.monotonic() - asked
                state, metrics = step_fn(state, batch)
                log.add(metrics, waited)
                done = number + 1
                stopping = terminated.requested  # read once: a later signal waits for a save
                last = done == run.steps or stopping
                if done % run.log_every == 0 or last:
                    skipped += log.write(done)["skipped"]
                    if skipped > _MAX_SKIPPED:
                        raise UserError(
                            f"{int(skipped)} steps had a loss or gradient that is not finite: "
                            "lower optimizer.peak_lr"
                        )
                if done % run.save_every == 0 or last:
                    checkpoints.save(
                        done,
                        state.params,
                        {"step": state.step, "state": state.opt_state},
                        {"batches": done},
                    )
                if sample is not None and not stopping:
                    if done % run.sample_every == 0 or last:
                        sample(model, state.params, assets, log, done)
                if stopping:
                    break
    return state


class _Terminated:
    """Notes SIGTERM while it is entered, so that the loop can end at a step."""

    def __init__(self):
        self.requested = False

    def __enter__(self):
        self._previous = signal.signal(signal.SIGTERM, self._note)
        return self

    def _note(self, *_):
        self.requested = True

    def __exit__(self, *_):
        signal.signal(signal.SIGTERM, self._previous)
