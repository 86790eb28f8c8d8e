"""`bp.load`: a model from any checkpoint, on any mesh."""

from __future__ import annotations

import os
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh, Sharding, SingleDeviceSharding

from bagpiper_jax.errors import UserError
from bagpiper_jax.modeling.bagpiper import Bagpiper
from bagpiper_jax.modeling.config import BagpiperConfig, get_config
from bagpiper_jax.porting.espnet import fit, states, update
from bagpiper_jax.porting.rows import CODEC
from bagpiper_jax.porting.runs import is_run, open_arrays
from bagpiper_jax.porting.served import served_shapes
from bagpiper_jax.porting.sources import open_checkpoint
from bagpiper_jax.porting.state import fill
from bagpiper_jax.release import read_config
from bagpiper_jax.sharding import parameter_shardings


def load(
    path: str | os.PathLike,
    mesh: Mesh | None = None,
    dtype: Any = None,
    *,
    config: BagpiperConfig | str | None = None,
) -> Bagpiper:
    """A model with its weights; every device gets its part straight from the file.

    Args:
      path: a release, a run's workdir, what `bagpiper convert` wrote, an ESPnet or DeepSpeed
        `.pt`, or a directory of safetensors under ESPnet's names.
      mesh: with axes among `sharding.MESH_AXES`; all on the first device if None.
      dtype: of parameters and computation; float32 if None.
      config: shapes, or a preset's name, of a checkpoint that does not bring its own;
        "bagpiper_8b" if None.

    Raises:
      UserError: nothing there, damaged, or another model, with all that does not fit by name; or a
        mesh that does not divide the parameters.
    """
    path = os.fspath(path)
    dtype = np.dtype(dtype or np.float32)
    own = is_run(path)
    if own and config is not None:
        raise UserError(f"{path} has shapes of its own: leave out config")
    if own:
        config = read_config(path)
    elif not isinstance(config, BagpiperConfig):
        config = get_config(config) if config else served_shapes(path) or get_config("bagpiper_8b")
    model = Bagpiper.abstract(config, dtype=dtype)
    shapes = {name: tuple(leaf.shape) for name, leaf in states(model, None).items()}
    if mesh is None:
        shardings = dict.fromkeys(shapes, SingleDeviceSharding(jax.devices()[0]))
    else:
        shardings = parameter_shardings(mesh, shapes)

    def place(name, shape, cut):
        return _placed(shape, shardings[name], cut, dtype)

    if own:
        opened = open_arrays(path, config)
        arrays = {name: place(name, array.shape, array.cut) for name, array in opened.items()}
    else:
        opened = open_checkpoint(path)
        model_only = {name: t for name, t in opened.items() if not name.startswith(CODEC)}
        table, tensors = fit(path, model_only, config)
        arrays = fill(table, lambda name: tensors[name].read(), nnx.state(model), place)
    update(model, None, arrays)
    return model


def _placed(shape: tuple[int, ...], sharding: Sharding, cut, dtype: np.dtype) -> jax.Array:
    """An array whose parts are cut, and put on their devices, one after the other."""
    devices: dict[tuple, list[jax.Device]] = {}
    for device, index in sharding.addressable_devices_indices_map(shape).items():
        span = tuple(s.indices(n)[:2] for s, n in zip(index, shape, strict=True))
        devices.setdefault(span, []).append(device)
    parts = []
    for span, owners in devices.items():
        part = np.array(cut(tuple(slice(*ends) for ends in span)), dtype)
        parts += [jax.device_put(part, device) for device in owners]
        jax.block_until_ready(parts[-len(owners) :])  # then the host's copy can go
    return jax.make_array_from_single_device_arrays(shape, sharding, parts)
