"""The one package that calls Orbax: checkpoints of runs, whole and by parts."""

from bagpiper_jax.store.parts import SlicedArray, open_sliced, write_sliced
from bagpiper_jax.store.runs import (
    Checkpoints,
    has_checkpoint,
    late_hosts,
    restore_weights,
    wait_for_all,
)

__all__ = [
    "Checkpoints",
    "SlicedArray",
    "has_checkpoint",
    "late_hosts",
    "open_sliced",
    "restore_weights",
    "wait_for_all",
    "write_sliced",
]
