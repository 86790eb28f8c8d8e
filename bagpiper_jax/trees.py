"""Names of the leaves of parameter trees."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
from flax import nnx

from bagpiper_jax.errors import UserError


def path_name(keys) -> str:
    """Dotted name of a key path as `jax.tree_util` gives it for nested dicts."""
    return ".".join(str(key.key) for key in keys)


def dotted(tree: Any) -> dict[str, Any]:
    """Dotted path → leaf of an NNX state (its variables) or of nested dicts."""
    if isinstance(tree, nnx.State):
        return {".".join(map(str, path)): leaf for path, leaf in nnx.to_flat_state(tree)}
    flat = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: isinstance(x, nnx.Variable))
    return {path_name(keys): leaf for keys, leaf in flat}


def set_leaves(module: nnx.Module, arrays: Mapping[str, Any], prefix: str = "") -> None:
    """Gives every leaf of a module, abstract or not, its array: `prefix` + dotted path → array."""
    state = nnx.state(module)
    for path, leaf in dotted(state).items():
        leaf.set_value(arrays[prefix + path])
    nnx.update(module, state)


def mismatches(wanted: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """What keeps arrays from filling leaves of the same names, one line each, sorted.

    Args:
      wanted, found: dotted path → what has a shape.
    """
    lines = [f"{path} is missing" for path in wanted if path not in found]
    lines += [f"{path} is unexpected" for path in found if path not in wanted]
    lines += [
        f"{path} has shape {list(found[path].shape)}, not {list(leaf.shape)}"
        for path, leaf in wanted.items()
        if path in found and tuple(found[path].shape) != tuple(leaf.shape)
    ]
    return sorted(lines)


def nested(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `dotted`: nested dicts."""
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *parents, name = path.split(".")
        place = tree
        for parent in parents:
            place = place.setdefault(parent, {})
        place[name] = leaf
    return tree


def is_below(path: str, tops: Sequence[str]) -> bool:
    """Whether a dotted path is one of some others, or lies below one."""
    return any(path == top or path.startswith(f"{top}.") for top in tops)


def split_below(tree: dict, tops: Sequence[str], key: str) -> tuple[dict, dict]:
    """Nested dicts without, and of, what lies at or below some dotted paths.

    Args:
      key: the config key that names the paths, for the message.

    Raises:
      UserError: a path names nothing.
    """
    flat = dotted(tree)
    for top in tops:
        if not any(is_below(path, (top,)) for path in flat):
            parts = sorted({path.split(".")[0] for path in flat})
            raise UserError(f"config key {key}: there is no {top!r}; the parts are {parts}")
    held = {path: x for path, x in flat.items() if is_below(path, tops)}
    return nested({path: x for path, x in flat.items() if path not in held}), nested(held)
