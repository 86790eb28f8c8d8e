"""The mean of the weights that one training has led to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from bagpiper_jax.errors import UserError
from bagpiper_jax.fingerprints import CODECS, TOKENIZERS, find_file, fingerprints
from bagpiper_jax.release import load_weights, read_config, weight_shapes


def average_weights(directories: Sequence[str]) -> Any:
    """The mean of the weights of releases or runs that one training has led to.

    Weights that a training goes through with a rate that falls and rises again lie around a
    minimum that their mean is nearer to (arXiv 1803.05407, 2203.05482).

    Args:
      directories: one or more; one that is named twice counts twice.

    Returns:
      a nested dict of float32 arrays.

    Raises:
      UserError: see `load_weights`; or shapes, tokenizers or codecs differ.
    """
    wanted = read_config(directories[0])
    kinds = [
        fingerprints(read_config(d), find_file(d, TOKENIZERS), find_file(d, CODECS))
        for d in directories
    ]
    for directory, kind in zip(directories, kinds, strict=True):
        differs = [name.replace("_", " ") for name in kind if kind[name] != kinds[0][name]]
        if read_config(directory) != wanted:
            differs.append("shapes")
        if differs:
            raise UserError(
                f"{directory} has another {' and '.join(differs)} than {directories[0]}: only "
                "weights of one training can be averaged"
            )
    total = load_weights(directories[0], weight_shapes(wanted))
    for directory in directories[1:]:
        more = load_weights(directory, weight_shapes(wanted))
        total = jax.tree.map(jnp.add, total, more)
    return jax.tree.map(lambda x: x / len(directories), total)
