"""`bp.load`: a model from any checkpoint, on any mesh."""

from __future__ import annotations

import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, SingleDeviceSharding

from bagpiper_jax.modeling.bagpiper import Bagpiper
from bagpiper_jax.modeling.config import BagpiperConfig, get_config
from bagpiper_jax.porting.espnet import fit, states, update
from bagpiper_jax.porting.runs import open_run
from bagpiper_jax.porting.sources import open_checkpoint
from bagpiper_jax.porting.state import fill
from bagpiper_jax.release import MODEL_FILE, WEIGHTS_FILE, read_config
from bagpiper_jax.sharding import parameter_shardings
from bagpiper_jax.store import restore_weights
from bagpiper_jax.trees import dotted, nested


def load(
    path: str | os.PathLike,
    mesh: Mesh | None = None,
    dtype: Any = None,
    *,
    config: BagpiperConfig | str = "bagpiper_8b",
) -> Bagpiper:
    """A model with its weights; every device gets its part straight from the file.

    Args:
      path: a release, a run's workdir, what `bagpiper convert` wrote, an ESPnet or DeepSpeed
        `.pt`, or a directory of safetensors under ESPnet's names.
      mesh: with axes among `sharding.MESH_AXES`; all on the first device if None.
      dtype: of parameters and computation; float32 if None.
      config: shapes of a checkpoint that does not bring its own, or a preset's name.

    Raises:
      UserError: nothing there, damaged, or another model, with all that does not fit by name; or a
        mesh that does not divide the parameters.
    """
    path = os.fspath(path)
    dtype = jnp.dtype(dtype or jnp.float32)
    own = os.path.exists(os.path.join(path, MODEL_FILE))
    if own:
        config = read_config(path)
    elif isinstance(config, str):
        config = get_config(config)
    model = Bagpiper.abstract(config, dtype=dtype)
    shapes = {name: tuple(leaf.shape) for name, leaf in states(model, None).items()}
    if mesh is None:
        shardings = dict.fromkeys(shapes, SingleDeviceSharding(jax.devices()[0]))
    else:
        shardings = parameter_shardings(mesh, shapes)
    if own and not os.path.exists(os.path.join(path, WEIGHTS_FILE)):
        wanted = {
            name: jax.ShapeDtypeStruct(shape, dtype, sharding=shardings[name])
            for name, shape in shapes.items()
        }
        arrays = dotted(restore_weights(path, nested(wanted)))
    else:
        tensors = open_run(path, config) if own else open_checkpoint(path)
        table, tensors = fit(path, tensors, config)
        table = [entry for entry in table if entry.target in shapes]

        def place(name, shape, cut):
            return jax.make_array_from_callback(
                shape, shardings[name], lambda index: np.asarray(cut(index), dtype)
            )

        read = lambda name: tensors[name].read()  # noqa: E731
        arrays = fill(table, read, nnx.state(model), place)
    update(model, None, arrays)
    return model
