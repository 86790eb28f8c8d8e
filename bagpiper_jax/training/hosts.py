"""Several processes as one run: start, names, barriers, who writes."""

from __future__ import annotations

import socket

import jax
import numpy as np
from jax._src import distributed  # the service's client has no public name
from jax.experimental import multihost_utils

from bagpiper_jax.errors import UserError
from bagpiper_jax.store import late_hosts, wait_for_all
from bagpiper_jax.training.failure_watch import FailureWatch

_NAME_BYTES = 128


def connect(coordinator: str, num_processes: int | None, process_id: int | None) -> FailureWatch:
    """Joins the processes of a run; before any other use of JAX.

    Args:
      coordinator: host:port of process 0; "auto" where the cluster tells (TPU pods, Slurm).
      num_processes, process_id: needed unless "auto".

    Returns:
      What ends all of them when one ends.

    Raises:
      UserError: it cannot be joined.
    """
    if jax.config.jax_platforms == "cpu":
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        if coordinator == "auto":
            jax.distributed.initialize()
        else:
            jax.distributed.initialize(coordinator, num_processes, process_id)
    except (RuntimeError, ValueError) as e:
        reason = " ".join(str(e).split())[:200]
        raise UserError(f"cannot join the processes at {coordinator}: {reason}") from e
    return FailureWatch(distributed.global_state.client, jax.process_index())


def is_first() -> bool:
    """Whether this process writes what is written once."""
    return jax.process_index() == 0


def host_names() -> list[str]:
    """The hosts' names, by process."""
    name = f"{socket.gethostname()}/{jax.process_index()}".encode()[:_NAME_BYTES]
    padded = np.zeros(_NAME_BYTES, np.uint8)
    padded[: len(name)] = np.frombuffer(name, np.uint8)
    return [bytes(row).rstrip(b"\0").decode(errors="replace") for row in gathered(padded)]


def gathered(values: np.ndarray) -> np.ndarray:
    """An array of every process, [processes, …]."""
    if jax.process_count() == 1:
        return values[None]
    return np.asarray(multihost_utils.process_allgather(values))


def barrier(name: str, hosts: list[str], timeout: float = 600) -> None:
    """Returns when every process is here; `name` must be a new one each time.

    Raises:
      UserError: some are not here after `timeout` seconds; it names them.
    """
    if jax.process_count() == 1:
        return
    try:
        wait_for_all(name, timeout)
    except Exception as e:  # the service raises a RuntimeError that lists numbers
        raise UserError(f"at the barrier {name!r}: {late_hosts(str(e), hosts) or e}") from e


def should_stop(step: int, terminated: bool) -> bool:
    """Whether any process was told to end (SIGTERM); the same answer on all of them."""
    if jax.process_count() == 1:
        return terminated
    return bool(multihost_utils.reached_preemption_sync_point(step))
