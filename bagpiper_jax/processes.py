"""Processes that this one starts, and what becomes of them when it is killed."""

from __future__ import annotations

import multiprocessing
import os
import threading


def die_with_parent() -> None:
    """Ends this process when the one that started it is gone, even by SIGKILL."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
