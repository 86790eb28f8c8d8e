"""Several processes as one run: start, names, barriers, who writes, when all stop."""

from __future__ import annotations

import json
import signal
import socket
from typing import Any

import jax
import numpy as np
from jax._src import distributed  # the service's client has no public name
from jax.experimental import multihost_utils

from bagpiper_jax.errors import UserError
from bagpiper_jax.store import late_hosts, wait_for_all
from bagpiper_jax.training.failure_watch import FailureWatch


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
    return _gathered_texts(f"{socket.gethostname()}/{jax.process_index()}")


def check_same(
    settings: dict[str, Any],
    hosts: list[str],
    mend: str = "start all processes with the same config",
) -> None:
    """Compares what all processes must have alike: their settings, where they go on.

    Hosts that do not do the same things at the same steps would wait for each other for ever.

    Args:
      settings: of this process, by key; plain values.
      hosts: names by process.
      mend: what to do where they differ.

    Raises:
      UserError: a host has others than the first one; it names the keys.
    """
    all_of_them = [json.loads(text) for text in _gathered_texts(json.dumps(settings))]
    first = all_of_them[0]
    for host, theirs in zip(hosts, all_of_them, strict=True):
        differing = sorted(k for k in {*first, *theirs} if first.get(k) != theirs.get(k))
        if differing:
            raise UserError(
                f"{host} has other settings than {hosts[0]} ({', '.join(differing)}): {mend}"
            )


def _gathered_texts(text: str) -> list[str]:
    """A text of every process, by process; of any lengths."""
    data = np.frombuffer(text.encode(), np.uint8)
    lengths = gathered(np.array(len(data), np.int32))
    padded = np.zeros(lengths.max(), np.uint8)
    padded[: len(data)] = data
    rows = zip(gathered(padded), lengths, strict=True)
    return [bytes(row[:length]).decode() for row, length in rows]


def gathered(values: np.ndarray) -> np.ndarray:
    """An array of every process, [processes, …]."""
    if jax.process_count() == 1:
        return values[None]
    with jax.transfer_guard("allow"):
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


class Terminated:
    """Notes SIGTERM while it is entered, so that the loop can end at a step.

    With several processes JAX notes it, and tells all of them.
    """

    def __init__(self):
        self.requested = False

    def __enter__(self):
        self._previous = None
        if jax.process_count() == 1:
            self._previous = signal.signal(signal.SIGTERM, self._note)
        return self

    def _note(self, *_):
        self.requested = True

    def __exit__(self, *_):
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)
