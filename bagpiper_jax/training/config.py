"""A run's settings as typed, frozen dataclasses, read from an `ml_collections` file."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import math
import os
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from bagpiper_jax.config_file import read_config_file
from bagpiper_jax.errors import UserError
from bagpiper_jax.files import make_directory, write_json
from bagpiper_jax.input_pipeline import records
from bagpiper_jax.input_pipeline.scenes import PROFILE_NAMES, TASKS
from bagpiper_jax.input_pipeline.scenes.scene import full_captions
from bagpiper_jax.input_pipeline.scenes.tasks import DIALOGUES
from bagpiper_jax.modeling.config import BagpiperConfig, changed, get_config
from bagpiper_jax.modeling.layers import REMAT
from bagpiper_jax.ops.flash_attention import BACKENDS
from bagpiper_jax.training.ranges import check_ranges
from bagpiper_jax.trees import is_below

FLOATS = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where examples come from and how they are packed.

    Attributes:
      sets: (directory, task, weight) of prepared data sets; a task's share of the tokens is divided
        among its sets by their weights. If empty, scenes of `corpus` are made instead.
      corpus: directory of the mini corpus.
      profile: of the scenes, one of `scenes.PROFILE_NAMES`.
      mixture: share of tokens by task.
      cfg_dropout: chance that an example with assistant audio loses its condition.
      batch_tokens: positions of a step's batch, on all devices together.
      length, windows: positions and mel windows of a packed row.
      workers: worker processes; 0 makes the batches in the training process.
      tokenizer, codec: files to use; if empty, those of `init_from`, or they are fitted on the
        corpus when the run starts.
    """

    sets: tuple[tuple[str, str, float], ...]
    corpus: str
    profile: str
    mixture: dict[str, float]
    cfg_dropout: float
    batch_tokens: int
    length: int
    windows: int
    workers: int
    tokenizer: str
    codec: str

    @property
    def rows(self) -> int:
        """Packed rows of a step's batch."""
        return self.batch_tokens // self.length


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Sizes of the mesh's axes (see `sharding`); one may be −1, for the devices that are left."""

    replica: int
    fsdp: int
    tensor: int


@dataclasses.dataclass(frozen=True)
class ComputeConfig:
    """How a step is computed; what it computes does not depend on it, but for rounding.

    Attributes:
      dtype: of the computation; weights stay in float32.
      remat: what the backward pass computes again, one of `layers.REMAT`.
      attention: one of `flash_attention.BACKENDS`.
      accumulation: micro-batches of a step.
    """

    dtype: str
    remat: str
    attention: str
    accumulation: int


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with global-norm clip and linear warm-up, then cosine to `final_ratio · peak_lr`.

    A `final_ratio` of 1 keeps the rate constant. The audio tower and the adaptor learn at
    `encoder_lr_ratio` of the rate. `moments_dtype` is what the two moments are kept in.
    """

    peak_lr: float
    encoder_lr_ratio: float
    final_ratio: float
    warmup_steps: int
    b1: float
    b2: float
    eps: float
    weight_decay: float
    clip: float
    moments_dtype: str


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """Everything a run depends on.

    Attributes:
      model: preset of `bagpiper_jax.get_config`.
      model_changes: settings in which the model differs from the preset, see `modeling.config`.
      seed: of weights, examples and their order.
      steps: optimizer steps.
      init_from: checkpoint whose weights to start from, with a new optimizer at step 0. It has no
        part in resuming: a workdir that holds checkpoints goes on from its last one.
      init_parts: dotted paths of the parameters that are taken of it, with all that lies below
        them; the others start at random. Empty: all are taken.
      frozen: dotted paths of parameters that are not trained, with all that lies below them.
      log_every, sample_every, save_every: steps between metrics, samples, checkpoints.
      keep, keep_every: the last `keep` checkpoints stay, and those of every `keep_every`-th step
        (a multiple of `save_every`; 0: none of them).
    """

    model: str
    model_changes: dict
    seed: int
    steps: int
    init_from: str
    init_parts: tuple[str, ...]
    frozen: tuple[str, ...]
    data: DataConfig
    optimizer: OptimizerConfig
    mesh: MeshConfig
    compute: ComputeConfig
    log_every: int
    sample_every: int
    save_every: int
    keep: int
    keep_every: int

    @property
    def shapes(self) -> BagpiperConfig:
        """The preset with its changes."""
        return changed(get_config(self.model), self.model_changes)


_PARTS = {
    "data": DataConfig,
    "optimizer": OptimizerConfig,
    "mesh": MeshConfig,
    "compute": ComputeConfig,
}


def load_config(argv: Sequence[str]) -> RunConfig:
    """Reads `--config FILE` and its `--config.KEY=VALUE` overrides.

    Raises:
      UserError: no file, a file that fails, an unknown or missing key, a value of another type.
    """
    return from_config_dict(read_config_file(argv, "bagpiper train"))


def sibling(file: str, name: str):
    """The config module `name` that lies beside `file`, for a config that starts from another."""
    path = os.path.join(os.path.dirname(os.path.abspath(file)), f"{name}.py")
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def from_config_dict(config: ConfigDict) -> RunConfig:
    """Typed settings from an `ml_collections` config.

    Raises:
      UserError: an unknown or missing key, a value of another type or out of range.
    """
    values = config.to_dict()
    for name, part in _PARTS.items():
        values[name] = _build(part, values.get(name), name)
    run = _build(RunConfig, values, "")
    _check(run)
    return run


def _build(cls, values, where: str):
    prefix = f"{where}." if where else ""
    if not isinstance(values, dict):
        raise UserError(f"the config lacks the section {where!r}")
    fields = {f.name: f.type for f in dataclasses.fields(cls)}
    unknown = [prefix + k for k in values if k not in fields]
    missing = [prefix + k for k in fields if k not in values]
    if unknown:
        raise UserError(f"unknown config keys: {', '.join(unknown)}; there are {sorted(fields)}")
    if missing:
        raise UserError(f"the config lacks the keys: {', '.join(missing)}")
    basic = {"int": int, "float": (int, float), "str": str}
    for name, kind in fields.items():
        if kind in basic and not isinstance(values[name], basic[kind]):
            raise UserError(f"config key {prefix}{name} must be of type {kind}: {values[name]!r}")
    for name in {"frozen", "init_parts"} & set(fields):
        paths = values[name]
        if isinstance(paths, str) or not all(isinstance(path, str) for path in paths):
            raise UserError(f"config key {name} must be a tuple of paths: {paths!r}")
        values = values | {name: tuple(paths)}
    if "sets" in fields:
        values = values | {"sets": _as_tuples(values["sets"])}
    return cls(**values)


def _as_tuples(sets) -> tuple:
    """Rows of a list or tuple, as tuples; anything else as it is, for `_check_sets` to tell."""
    if not isinstance(sets, list | tuple):
        return (sets,)
    return tuple(tuple(row) if isinstance(row, list | tuple) else row for row in sets)


def _check_sets(sets: tuple) -> None:
    for row in sets:
        match row:
            case (str(), str(task), int() | float() as weight) if weight >= 0:
                if task not in records.TASKS:
                    raise UserError(
                        f"config key data.sets: task {task!r} is none of {records.TASKS}"
                    )
            case _:
                raise UserError(
                    f"config key data.sets must hold (directory, task, weight), not {row!r}"
                )


def _check(run: RunConfig) -> None:
    _check_sets(run.data.sets)
    check_ranges(flat_settings(run))
    if run.keep_every % run.save_every:
        raise UserError(
            f"config key keep_every must be a multiple of save_every, not {run.keep_every} of "
            f"{run.save_every}: only what is saved can be kept"
        )
    scenes = run.data.corpus and not run.data.sets
    tasks, shares = TASKS if scenes else records.TASKS, run.data.mixture.values()
    some = 0 < sum(shares) < math.inf and min(shares) >= 0
    if set(run.data.mixture) - set(tasks) or not some:
        raise UserError(f"config key data.mixture must weigh some of {tasks}: {run.data.mixture}")
    if run.init_parts and not run.init_from:
        raise UserError("config key init_parts: name the weights to take them of in init_from")
    random = [path for path in run.frozen if not is_below(path, run.init_parts)]
    if run.init_parts and random:
        raise UserError(
            f"config key frozen: {random[0]} would stay random, it is not in init_parts"
        )
    if run.optimizer.warmup_steps >= run.steps:
        raise UserError("config key optimizer.warmup_steps must be smaller than steps")
    for key, value, choices in (
        ("compute.dtype", run.compute.dtype, FLOATS),
        ("compute.remat", run.compute.remat, REMAT),
        ("compute.attention", run.compute.attention, BACKENDS),
        ("optimizer.moments_dtype", run.optimizer.moments_dtype, FLOATS),
    ):
        if value not in choices:
            raise UserError(f"config key {key} must be one of {', '.join(choices)}, not {value!r}")
    if run.data.batch_tokens % run.data.length:
        raise UserError(
            f"config key data.batch_tokens must be a multiple of data.length: "
            f"{run.data.batch_tokens} is none of {run.data.length}"
        )
    block = run.shapes.encoder.block_windows
    if run.data.windows % block:
        raise UserError(f"config key data.windows must be a multiple of {block}, the encoder block")
    if run.data.profile not in PROFILE_NAMES:
        raise UserError(f"config key data.profile must be one of {', '.join(PROFILE_NAMES)}")
    asked = [task for task in DIALOGUES if run.data.mixture.get(task)]
    if scenes and asked and not full_captions(run.data.profile):
        raise UserError(
            f"config key data.mixture: {', '.join(asked)} need full captions, which the scenes of "
            f"data.profile {run.data.profile} have not"
        )
    for key, path in (
        *(("data.sets", directory) for directory, _, _ in run.data.sets),
        ("data.corpus", run.data.corpus),
        ("data.tokenizer", run.data.tokenizer),
        ("data.codec", run.data.codec),
    ):
        if path and not os.path.exists(path):
            raise UserError(f"config key {key}: there is no {path}")


# keys that runs of version 0.1.0 did not have, and what they did
_LATER = {"data.sets": [], "init_parts": []}  # model_changes are one key each, or none
# what may change between the parts of a run: the numbers do not depend on it, but for rounding
_FREE = {
    *("data.corpus", "data.workers", "log_every", "sample_every", "save_every"),
    *("keep", "keep_every", "mesh.replica", "mesh.fsdp", "mesh.tensor"),
    *("compute.remat", "compute.attention", "compute.accumulation"),
}


def flat_settings(run: RunConfig) -> dict[str, Any]:
    """Dotted key → value of all settings, as they are kept in a workdir."""
    return _flat(json.loads(json.dumps(dataclasses.asdict(run))))


def claim_workdir(workdir: str, run: RunConfig, *, must_resume: bool = False) -> None:
    """Makes the directory this run's own, or checks that it already is.

    Raises:
      UserError: the directory holds a run with other settings, or is no directory, or holds no run
        and must.
    """
    path = os.path.join(workdir, "config.json")
    if os.path.exists(path):
        try:
            with open(path, encoding="utf-8") as f:
                theirs = json.load(f)
        except ValueError as e:
            raise UserError(f"{path} is damaged: choose another --workdir") from e
        mine, theirs = flat_settings(run), _LATER | _flat(theirs)
        differing = sorted(
            key for key in {*mine, *theirs} - _FREE if mine.get(key) != theirs.get(key)
        )
        if differing:
            raise UserError(
                f"{workdir} holds a run with other settings ({', '.join(differing)}): "
                "choose another --workdir"
            )
        return
    if must_resume:
        raise UserError(f"{workdir} holds no run to resume: leave out --resume to start one")
    make_directory(workdir)
    write_json(path, dataclasses.asdict(run))


def _flat(values: dict, prefix: str = "") -> dict:
    out = {}
    for key, value in values.items():
        if isinstance(value, dict):
            out.update(_flat(value, f"{prefix}{key}."))
        elif prefix + key == "data.sets":  # a set may be moved: the checkpoint knows its contents
            out[prefix + key] = [[task, weight] for _, task, weight in value]
        else:
            out[prefix + key] = value
    return out
