"""What is evaluated, by which evaluators: typed settings from an `ml_collections` file."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict, config_dict

from bagpiper_jax.config_file import read_config_file
from bagpiper_jax.errors import UserError
from bagpiper_jax.evaluation import registry
from bagpiper_jax.evaluation.workdir import RESERVED
from bagpiper_jax.inference.sampling import Sampling
from bagpiper_jax.release import MINI
from bagpiper_jax.sharding import MESH_AXES
from bagpiper_jax.training.config import FLOATS


class Instance(NamedTuple):
    """An evaluator with its settings, under a name of its own.

    Attributes:
      name: of its figures, files and section of the page.
      use: name in the registry.
      settings: all of them, as JSON has them.
    """

    name: str
    use: str
    settings: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """Everything that figures depend on, beside the files named.

    Attributes:
      checkpoint: a release or a run's workdir.
      corpus: directory of the mini corpus.
      seed: of scenes, sampling and intervals.
      audio: settings of the audio's sampling in place of the checkpoint's.
      evaluators: in the order in which they run, that of the registry.
      dtype: of parameters and computation, one of `training.config.FLOATS`.
      mesh: size by axis of `sharding.MESH_AXES`, where the model lies; all 1: the first device.
    """

    checkpoint: str
    corpus: str
    seed: int
    audio: dict[str, Any]
    evaluators: tuple[Instance, ...]
    dtype: str = FLOATS[0]
    mesh: dict[str, int] = dataclasses.field(default_factory=dict)


def experiment(name: str) -> str:
    """The file `experiments/NAME.py` of the clone that the package is run from.

    Raises:
      UserError: it is run from no clone.
    """
    path = Path(__file__).parents[2] / "experiments" / f"{name}.py"
    if not path.is_file():
        raise UserError(f"there is no {path}: name a config with --config FILE")
    return str(path)


def audio_settings() -> ConfigDict:
    """The section `audio` of a config: every setting of the sampling, none of them given."""
    kinds = {"float": float, "int": int}
    section = ConfigDict()
    for field in dataclasses.fields(Sampling):
        section[field.name] = config_dict.placeholder(kinds[field.type])
    return section


def load_config(path: str, overrides: Sequence[str] = ()) -> EvaluationConfig:
    """Reads a config file and its `--config.KEY=VALUE` overrides.

    Raises:
      UserError: no file, a file that fails, a key, evaluator or setting that does not exist, a
        value of another type.
    """
    argv = [f"--config={path}", *overrides]
    return from_config_dict(read_config_file(argv, "bagpiper evaluate"))


def from_config_dict(config: ConfigDict) -> EvaluationConfig:
    """Typed settings from an `ml_collections` config; an empty `use` leaves an evaluator out.

    Raises:
      UserError: see `load_config`.
    """
    values = config.to_dict()
    audio = values.pop("audio", {})
    dtype, mesh = values.pop("dtype", FLOATS[0]), _mesh(values.pop("mesh", {}))
    if dtype not in FLOATS:
        raise UserError(f"config key dtype must be one of {', '.join(FLOATS)}, not {dtype!r}")
    optional = ("audio", "dtype", "mesh")
    names = [f.name for f in dataclasses.fields(EvaluationConfig) if f.name not in optional]
    wrong = sorted({*names} ^ {*values})
    if wrong:
        raise UserError(f"config keys {', '.join(wrong)}: there must be {', '.join(names)}")
    for name, kind in (("checkpoint", str), ("corpus", str), ("seed", int), ("evaluators", dict)):
        if not isinstance(values[name], kind):
            raise UserError(f"config key {name} must be of type {kind.__name__}")
    if values["seed"] < 0:
        raise UserError(f"config key seed must be 0 or more: {values['seed']}")
    instances = (_instance(name, value) for name, value in values["evaluators"].items())
    # an ml_collections config has no order of its own: that of the registry
    order = list(registry.EVALUATORS)
    kept = tuple(sorted((i for i in instances if i), key=lambda i: order.index(i.use)))
    if not kept:
        raise UserError("config key evaluators names none: there is nothing to evaluate")
    audio = {name: value for name, value in audio.items() if value is not None}
    known = [field.name for field in dataclasses.fields(Sampling)]
    if unknown := sorted({*audio} - {*known}):
        raise UserError(f"config key audio.{unknown[0]}: there are {', '.join(known)}")
    checkpoint = values["checkpoint"] or MINI
    seed = values["seed"]
    return EvaluationConfig(checkpoint, values["corpus"], seed, audio, kept, dtype, mesh)


def _mesh(sizes: Any) -> dict[str, int]:
    axes = ", ".join(MESH_AXES)
    if not isinstance(sizes, Mapping):
        raise UserError(f"config key mesh must have a size for each of {axes}: {sizes!r}")
    for axis, size in sizes.items():
        if axis not in MESH_AXES:
            raise UserError(f"config key mesh.{axis}: a mesh has the axes {axes}")
        if type(size) is not int or (size < 1 and size != -1):
            raise UserError(
                f"config key mesh.{axis} must be a number of devices, or -1 for those that are "
                f"left: {size!r}"
            )
    return {axis: sizes.get(axis, 1) for axis in MESH_AXES}


def _instance(name: str, values: Any) -> Instance | None:
    where = f"evaluators.{name}"
    if not re.fullmatch(r"[A-Za-z0-9][\w-]*", name) or name in RESERVED:
        raise UserError(f"config key {where}: choose another name, of letters, digits and _")
    if not isinstance(values, Mapping) or not isinstance(values.get("use"), str):
        known = ", ".join(registry.EVALUATORS)
        raise UserError(f"config key {where}.use must name an evaluator, one of {known}")
    given = dict(values)
    use = given.pop("use")
    if not use:
        return None
    try:
        known = registry.settings(use)
    except UserError as e:
        raise UserError(f"config key {where}: {e}") from e
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise UserError(
            f"config key {where}.{unknown[0]}: the evaluator {use} has no such setting; "
            f"it has {', '.join(known)}"
        )
    for key, value in given.items():
        if wanted := _wanted(value, known[key]):
            raise UserError(f"config key {where}.{key} must be {wanted}: {value!r}")
    return Instance(name, use, json.loads(json.dumps(known | given)))


def _wanted(value: Any, default: Any) -> str:
    """What must stand in place of a default, where the value is something else; "" where not."""
    if isinstance(default, (tuple, list)) and isinstance(value, (tuple, list)):
        kinds = default[:1]  # members are alike; where there is no default, the evaluator knows
        if kinds and not (value and all(_fits(member, *kinds) for member in value)):
            return f"a tuple of one {type(*kinds).__name__} or more"
        return ""
    if not _fits(value, default):
        return f"of type {type(default).__name__}"
    return "0 or more" if type(value) is int and value < 0 else ""


def _fits(value: Any, default: Any) -> bool:
    """Whether a value has the type of a default."""
    if default is None:
        return True
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(default, bool) and isinstance(value, bool)
    return isinstance(value, (int, float) if isinstance(default, float) else type(default))
