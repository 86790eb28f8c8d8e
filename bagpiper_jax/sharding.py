"""Where parameters lie on a mesh: one table of logical axes, one of mesh axes.

Mesh axes: `replica` (copies of the model, across slices), `fsdp` (parameters split, gathered for
use), `tensor` (matmuls split). A mesh may lack some of them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from jax.sharding import Mesh, NamedSharding, PartitionSpec

from bagpiper_jax.errors import UserError

MESH_AXES = ("replica", "fsdp", "tensor")
# logical axis → mesh axis; what is not here is not split
RULES = {"vocab": "tensor", "embed": "fsdp", "heads": "tensor", "mlp": "tensor"}

# dotted paths of parameters → logical axes, the leading one of stacked layers included; the first
# line that matches counts
_PARAMETERS = tuple(
    (re.compile(pattern), axes)
    for pattern, axes in (
        (r"model\.embed_tokens|lm_head", ("vocab", "embed")),
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


def parameter_shardings(mesh: Mesh, shapes: Mapping[str, tuple[int, ...]]) -> dict:
    """Shardings of parameters.

    Args:
      mesh: with axes among MESH_AXES. Its axes become automatic ones: the compiler places what
        lies between parameters.
      shapes: dotted path → shape.

    Returns:
      dotted path → NamedSharding.

    Raises:
      UserError: the mesh has another axis, or one that does not divide a parameter.
    """
    strange = sorted(set(mesh.axis_names) - set(MESH_AXES))
    if strange:
        raise UserError(f"mesh axes {', '.join(strange)} are none of {', '.join(MESH_AXES)}")
    mesh = Mesh(mesh.devices, mesh.axis_names)
    found, wrong = {}, []
    for path, shape in shapes.items():
        spec = []
        for size, axis in zip(shape, logical_axes(path), strict=False):
            name = RULES.get(axis)
            name = name if name in mesh.axis_names else None
            if name and size % mesh.shape[name]:
                wrong.append(f"{path} {list(shape)} by {name}={mesh.shape[name]}")
            spec.append(name)
        found[path] = NamedSharding(mesh, PartitionSpec(*spec))
    if wrong:
        raise UserError(
            f"the mesh does not divide {len(wrong)} parameters ({'; '.join(wrong[:3])}): "
            "choose smaller axes"
        )
    return found
