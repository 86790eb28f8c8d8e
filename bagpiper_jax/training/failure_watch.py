"""How the processes of a run end together: one that leaves says why, the others hear it."""

from __future__ import annotations

import atexit
import contextlib
import os
import socket
import sys
import threading
import time
import traceback
from typing import NoReturn

from bagpiper_jax.errors import UserError

_KEY = "bagpiper/left"
_POLL = 1.0  # seconds between looks at the key


class FailureWatch:
    """Ends every process of a run soon after one of them has ended, with its reason.

    The others would wait in a collective for the one that left, until JAX's coordination service
    misses its heartbeats (100 s) and aborts them. They meet in that service's key-value store.
    """

    def __init__(self, client, process: int):
        """Starts listening.

        Args:
          client: of the coordination service; has `key_value_set` and `key_value_try_get`.
          process: number of this process.
        """
        self._client, self._holds_service = client, process == 0
        self._name = f"{socket.gethostname()}/{process}"
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()
        atexit.register(self.close)  # before JAX takes the client away

    def close(self) -> None:
        """Stops listening."""
        self._ended.set()
        self._thread.join()

    def fail(self, error: BaseException) -> NoReturn:
        """Ends this process for an error, told in one line, and the others with it.

        What is no `UserError`, nor a connection that another process has dropped, has its traceback
        printed too.
        """
        self._ended.set()
        reason, code = _told(error)
        if code == 1:
            traceback.print_exception(error)
        print(f"bagpiper: {reason}", file=sys.stderr, flush=True)
        with contextlib.suppress(Exception):  # another was first, or the service is gone
            self._client.key_value_set(_KEY, f"{self._name} has ended: {reason}")
        _exit(code, 2 * _POLL)  # until all have looked

    def _listen(self) -> None:
        while not self._ended.wait(_POLL):
            try:
                told = self._client.key_value_try_get(_KEY)
            except Exception:  # nobody has left
                continue
            print(f"bagpiper: {told}", file=sys.stderr, flush=True)
            # without the service, JAX would abort those that have not looked
            _exit(2, 3 * _POLL if self._holds_service else 0)


def _told(error: BaseException) -> tuple[str, int]:
    """What is said of an error, and the exit code."""
    if isinstance(error, UserError):
        return str(error), 2
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", 130
    line = " ".join(str(error).split())[:200]
    if "by peer" in line:  # gloo; TPUs wait
        return (
            f"another process is gone ({line}): look at the logs of all, then start them again",
            2,
        )
    return f"{type(error).__name__}: {line}", 1


def _exit(code: int, seconds: float) -> NoReturn:
    time.sleep(seconds)
    os._exit(code)  # a clean end would wait for the others
