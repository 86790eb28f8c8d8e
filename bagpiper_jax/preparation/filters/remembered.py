"""Slow filters with a memory: what an interrupted run has found is not looked for again."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections import deque
from collections.abc import Iterator
from typing import Any

from bagpiper_jax.errors import UserError
from bagpiper_jax.json_lines import Journal, dump
from bagpiper_jax.preparation.filters.rows import Filter, Row, Verdict, audio_path


def remembered(
    name: str,
    work: Filter,
    rows: Iterator[Row],
    directory: str,
    options: dict[str, Any],
    journal: Journal,
) -> Iterator[Verdict]:
    """Verdicts of a filter that judges each row by itself, in order; new ones go to the journal.

    A verdict holds for the row, the recording as it is (size and time) and the thresholds.
    """
    waiting: deque[str] = deque()  # keys of rows that were taken

    def unknown() -> Iterator[Row]:
        for row in rows:
            waiting.append(_key(name, options, row, directory))
            if waiting[-1] not in journal:
                yield row

    def known() -> Iterator[Verdict]:
        while waiting and waiting[0] in journal:
            yield Verdict(*journal.get(waiting.popleft()))

    for verdict in work(unknown(), directory, **options):
        yield from known()
        journal.add(waiting.popleft(), verdict)
        yield verdict
    yield from known()


def _key(name: str, options: dict[str, Any], row: Row, directory: str) -> str:
    found = None
    with contextlib.suppress(OSError, UserError, ValueError):
        status = os.stat(audio_path(row, directory))
        found = (status.st_size, status.st_mtime_ns)
    return hashlib.sha256(dump([name, options, row, found]).encode()).hexdigest()
