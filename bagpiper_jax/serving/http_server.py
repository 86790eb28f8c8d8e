"""Uvicorn, with an end that lets requests finish."""

from __future__ import annotations

import time

import uvicorn
from fastapi import FastAPI

_SAY_SO = 5  # seconds for refusals to go out


class Server(uvicorn.Server):
    """The first signal refuses new requests and waits for the others, a second one does not."""

    def __init__(self, app: FastAPI, *, grace: float):
        """`grace`: seconds that requests have to end."""
        super().__init__(
            uvicorn.Config(app, timeout_graceful_shutdown=_SAY_SO, server_header=False)
        )
        self._service, self._grace = app.state.service, grace
        self._end: float | None = None

    def handle_exit(self, sig, frame) -> None:
        """On a signal."""
        if self._end is None:
            self._service.close()
            self._end = time.monotonic() + self._grace
            self._captured_signals.append(sig)
        else:
            super().handle_exit(sig, frame)

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second: whether to end."""
        if self._end is not None and (self._service.idle or time.monotonic() > self._end):
            self._service.stop(0)  # what is not complete is told so
            self.should_exit = True
        return await super().on_tick(counter)
