"""Where arrays lie on a mesh: logical axes of parameters and activations, one table to mesh axes.

Mesh axes: `replica` (copies of the model, across slices), `fsdp` (parameters split, gathered for
use), `tensor` (matmuls split). A mesh may lack some of them. The batch is split over `replica` and
`fsdp` alike.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from bagpiper_jax.errors import UserError

MESH_AXES = ("replica", "fsdp", "tensor")
# logical axis → mesh axis or axes; what is not here is not split
RULES = {
    "batch": ("replica", "fsdp"),  # rows of a batch, clips, hidden states
    "vocab": ("fsdp", "tensor"),  # gathered whole: rows lie together, columns would not
    "embed": "fsdp",
    "heads": "tensor",
    "mlp": "tensor",
    "positions": "tensor",  # of the rows that enter the head
}

# dotted paths of parameters → logical axes, the leading one of stacked layers included; the first
# line that matches counts
_PARAMETERS = tuple(
    (re.compile(pattern), axes)
    for pattern, axes in (
        (r"model\.embed_tokens|lm_head", ("vocab",)),
        (r"model\.layers\..*\.[qkv]_proj\.kernel", ("layers", "embed", "heads")),
        (r"model\.layers\..*\.o_proj\.kernel", ("layers", "heads", "embed")),
        (r"model\.layers\..*\.(gate|up)_proj\.kernel", ("layers", "embed", "mlp")),
        (r"model\.layers\..*\.down_proj\.kernel", ("layers", "mlp", "embed")),
        (r"audio_tower\.layers\.[qkv]_proj\.kernel", ("layers", "embed", "heads")),
        (r"audio_tower\.layers\.[qkv]_proj\.bias", ("layers", "heads")),
        (r"audio_tower\.layers\.out_proj\.kernel", ("layers", "heads", "embed")),
        (r"audio_tower\.layers\.fc1\.kernel", ("layers", "embed", "mlp")),
        (r"audio_tower\.layers\.fc1\.bias", ("layers", "mlp")),
        (r"audio_tower\.layers\.fc2\.kernel", ("layers", "mlp", "embed")),
        (r"audio_tower\.conv_out\.kernel|audio_tower\.proj\d\.kernel", ("embed", None)),
        (r"adaptor\.kernel", (None, "embed")),
        (r"stream_emb", (None, "embed")),
        # norms, biases, convolutions: small
        (r".*(norm|ln_post)\.\w+|.*\.bias|audio_tower\.conv2d\d\.kernel", ()),
        (r"codec\..*", ()),
    )
)


def logical_axes(path: str) -> tuple[str | None, ...]:
    """Logical axes of a parameter; axes that are left out are not split.

    Raises:
      KeyError: no line of the table names it.
    """
    for pattern, axes in _PARAMETERS:
        if pattern.fullmatch(path):
            return axes
    raise KeyError(f"the table of logical axes has no line for {path}")


def partition(mesh, axes: Sequence[str | None]) -> PartitionSpec:
    """Logical axes of an array → its partition on a mesh, real or abstract."""
    spec = []
    for axis in axes:
        names = RULES.get(axis, ())
        names = (names,) if isinstance(names, str) else names
        there = tuple(name for name in names if name in mesh.axis_names)
        spec.append(there[0] if len(there) == 1 else there or None)
    return PartitionSpec(*spec)


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Asks the compiler to split an activation so, on the mesh that `jax.set_mesh` has set.

    Without a mesh it does nothing.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    return jax.lax.with_sharding_constraint(x, partition(mesh, axes))


def on_mesh(function: Callable, inputs, outputs) -> Callable:
    """The function on every device's part, on the mesh that `jax.set_mesh` has set.

    Args:
      function: of (axes, *arrays); axes are the names of the mesh's axes, empty without a mesh.
      inputs, outputs: logical axes of each array; a tuple per array.

    Returns:
      what takes the arrays.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return partial(function, ())
    is_axes = lambda x: isinstance(x, tuple) and all(a is None or isinstance(a, str) for a in x)  # noqa: E731
    specs = lambda tree: jax.tree.map(lambda axes: partition(mesh, axes), tree, is_leaf=is_axes)  # noqa: E731
    # kernels and custom gradients do not say over which axes results vary, hence no check of that
    return jax.shard_map(
        partial(function, tuple(a for a in MESH_AXES if a in mesh.axis_names)),
        in_specs=specs(inputs),
        out_specs=specs(outputs),
        check_vma=False,
    )


def automatic(mesh: Mesh) -> Mesh:
    """The mesh with automatic axes: the compiler places what lies between what we place.

    Raises:
      UserError: it has another axis than MESH_AXES.
    """
    strange = sorted(set(mesh.axis_names) - set(MESH_AXES))
    if strange:
        raise UserError(f"mesh axes {', '.join(strange)} are none of {', '.join(MESH_AXES)}")
    return Mesh(mesh.devices, mesh.axis_names)


def count_slices(devices: Sequence[jax.Device]) -> int:
    """TPU slices that the devices are of; 1 of others, which know no slices."""
    return len({getattr(d, "slice_index", 0) for d in devices if d.platform == "tpu"}) or 1


def make_mesh(sizes: Mapping[str, int], devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh with all of MESH_AXES.

    Neighbours on the `tensor` and `fsdp` axes are neighbours in a slice; where the devices are of
    several slices, `replica` runs across them.

    Args:
      sizes: axis → size; one of them may be −1, for what is left. Axes not named have size 1.
      devices: all devices if None.

    Raises:
      UserError: an unknown axis, or sizes that do not make up the devices.
    """
    strange = sorted(set(sizes) - set(MESH_AXES))
    if strange:
        raise UserError(f"mesh axes {', '.join(strange)} are none of {', '.join(MESH_AXES)}")
    devices = list(jax.devices() if devices is None else devices)
    shape = [int(sizes.get(axis, 1)) for axis in MESH_AXES]
    fixed = math.prod(n for n in shape if n != -1)
    asked = ", ".join(f"{axis} {n}" for axis, n in zip(MESH_AXES, shape, strict=True))
    if shape.count(-1) > 1 or fixed < 1 or any(n < 1 and n != -1 for n in shape):
        raise UserError(f"mesh of {asked}: sizes are positive, one may be -1")
    if -1 in shape and len(devices) % fixed == 0:
        shape[shape.index(-1)] = len(devices) // fixed
    if math.prod(shape) != len(devices):
        raise UserError(f"a mesh of {asked} does not fit the {len(devices)} devices")
    slices = count_slices(devices)
    if slices > 1:
        if shape[0] % slices:
            raise UserError(f"mesh axis replica must be a multiple of the {slices} slices")
        inside = [shape[0] // slices, *shape[1:]]
        grid = mesh_utils.create_hybrid_device_mesh(
            inside, [slices, 1, 1], devices, allow_split_physical_axes=True
        )
    elif devices[0].platform == "tpu":
        grid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    else:
        grid = np.array(devices).reshape(shape)
    return Mesh(grid, MESH_AXES)


def parameter_shardings(mesh: Mesh, shapes: Mapping[str, tuple[int, ...]]) -> dict:
    """Shardings of parameters.

    Args:
      mesh: with axes among MESH_AXES.
      shapes: dotted path → shape.

    Returns:
      dotted path → NamedSharding.

    Raises:
      UserError: the mesh has another axis, or one that does not divide a parameter.
    """
    mesh = automatic(mesh)
    found, wrong = {}, []
    for path, shape in shapes.items():
        spec = partition(mesh, logical_axes(path))
        for size, names in zip(shape, spec, strict=False):
            names = (names,) if isinstance(names, str) else names or ()
            if size % math.prod(mesh.shape[name] for name in names):
                by = " and ".join(f"{name}={mesh.shape[name]}" for name in names)
                wrong.append(f"{path} {list(shape)} by {by}")
        found[path] = NamedSharding(mesh, spec)
    if wrong:
        raise UserError(
            f"the mesh does not divide {len(wrong)} parameters ({'; '.join(wrong[:3])}): "
            "choose smaller axes"
        )
    return found
