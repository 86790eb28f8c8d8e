"""The mean of the weights that one training has led to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from bagpiper_jax.errors import UserError
from bagpiper_jax.fingerprints import CODECS, TOKENIZERS, find_file, fingerprints
from bagpiper_jax.release import load_weights, read_config, weight_shapes


def average_weights(directories: Sequence[str], step: int | None = None) -> Any:
    """The mean of the weights of releases or runs that one training has led to.

    Weights that a training goes through with a rate that falls and rises again lie around a
    minimum that their mean is nearer to (arXiv 1803.05407, 2203.05482).

    Args:
      directories: one or more; one that is named twice counts twice.
      step: of the first one's checkpoint; None: its latest.

    Returns:
      a nested dict of float32 arrays.

    Raises:
      UserError: see `load_weights`; or shapes, tokenizers or codecs differ.
    """
    first, shapes = directories[0], weight_shapes(read_config(directories[0]))
    for directory in directories[1:]:
        _check_alike(first, directory)
    total = load_weights(first, shapes, step)
    for directory in directories[1:]:
        total = jax.tree.map(jnp.add, total, load_weights(directory, shapes))
    return jax.tree.map(lambda x: x / len(directories), total)


def _check_alike(first: str, other: str) -> None:
    configs = [read_config(directory) for directory in (first, other)]
    wanted, found = (
        fingerprints(config, find_file(d, TOKENIZERS), find_file(d, CODECS))
        for config, d in zip(configs, (first, other), strict=True)
    )
    differs = [name.replace("_", " ") for name in wanted if found[name] != wanted[name]]
    if configs[0] != configs[1]:
        differs.append("shapes")
    if differs:
        raise UserError(
            f"{other} has another {' and '.join(differs)} than {first}: only weights of one "
            "training can be averaged"
        )
