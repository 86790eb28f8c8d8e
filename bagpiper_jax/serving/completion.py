"""One chat completion over ASGI, from the bytes of its body to the last one of its answer."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from starlette.datastructures import Headers
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from bagpiper_jax.errors import UserError
from bagpiper_jax.inference.pipeline import Pipeline
from bagpiper_jax.serving.answers import Hypothesis, Piece, Reply, event_of
from bagpiper_jax.serving.conversations import Asked, read_request
from bagpiper_jax.serving.metrics import Metrics
from bagpiper_jax.serving.refusals import Refusal, failed, late
from bagpiper_jax.serving.service import Place, Service

log = logging.getLogger(__name__)
T = TypeVar("T")

_EVENTS = "text/event-stream"
_BODY_SECONDS = 60.0  # a body comes within it
_LINGER = 2.0  # seconds for which a body that is too large is read and dropped
_THREADS = 4


class Completions:
    """What all completions of a server share."""

    def __init__(
        self,
        pipeline: Pipeline,
        service: Service,
        metrics: Metrics,
        *,
        model: str,
        timeout: float,
        max_body: int,
    ):
        """`model`: its name; `timeout`: seconds for a request; `max_body`: bytes of one."""
        self.pipeline, self.service, self.metrics = pipeline, service, metrics
        self.model, self.timeout, self.max_body = model, timeout, max_body
        # apart: a flood of recordings to read must not hold answers up
        self.readers = ThreadPoolExecutor(_THREADS, "reader")
        self.writers = ThreadPoolExecutor(_THREADS, "writer")

    def close(self) -> None:
        """Ends the threads when their work is done."""
        self.readers.shutdown(wait=False, cancel_futures=True)
        self.writers.shutdown(wait=False, cancel_futures=True)


class _ClientGone(Exception):
    """There is nobody to answer."""


class Completion(Response):
    """The response to one request; it reads the body itself, and ends with its client."""

    def __init__(self, shared: Completions):
        """For one request only."""
        super().__init__()
        self._shared = shared
        self._began = time.monotonic()
        self._kind = ""  # of the body whose status is out
        self._complete = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        outcome, refusal = "cancelled", None
        self._deadline = asyncio.get_running_loop().time() + self._shared.timeout
        try:
            with self._shared.service.place() as place:
                await self._answer(scope, receive, send, place)
            outcome = "ok"
        except _ClientGone:
            outcome = "disconnected"
        except Refusal as e:
            refusal = e
        except Exception as e:
            log.error("a request failed: %s: %s", type(e).__name__, e, exc_info=e)
            refusal = failed()
        finally:
            outcome = refusal.outcome if refusal else outcome
            self._shared.metrics.ended(outcome, time.monotonic() - self._began)
        if refusal:
            await self._refuse(refusal, scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send, place: Place) -> None:
        shared = self._shared
        data = await self._body(Headers(scope=scope), receive)
        asked = await self._in(shared.readers, read_request, data, shared.pipeline, shared.model)
        del data
        shared.metrics.prompt_rows.inc(len(asked.request.prompt))
        work = self._stream if asked.stream else self._whole
        await self._unless_gone(receive, work(asked, place, send))

    async def _body(self, headers: Headers, receive: Receive) -> bytearray:
        """The body, and no byte more than it may have."""
        limit = self._shared.max_body
        refusal = Refusal(
            413, f"the body is larger than {limit} bytes", outcome="too_large",
            code="request_too_large", headers={"Connection": "close"},
        )  # fmt: skip
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length) > limit:
            raise refusal
        data, more = bytearray(), True
        try:
            async with asyncio.timeout(min(_BODY_SECONDS, self._shared.timeout)):
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise _ClientGone
                    data += message.get("body", b"")
                    more = message.get("more_body", False)
                    if len(data) > limit:
                        raise refusal
        except TimeoutError as e:
            seconds = min(_BODY_SECONDS, self._shared.timeout)
            text = f"the body was not complete after {seconds:g} s"
            raise Refusal(408, text, outcome="timeout", headers={"Connection": "close"}) from e
        return data

    async def _whole(self, asked: Asked, place: Place, send: Send) -> None:
        reply = self._reply(asked)
        async with contextlib.aclosing(self._pieces(asked, place, reply)) as pieces:
            async for piece in pieces:
                reply.add(piece)
        body = await self._in(self._shared.writers, reply.whole)
        await self._start(send, "application/json", len(body))
        await self._say(send, body, last=True)

    async def _stream(self, asked: Asked, place: Place, send: Send) -> None:
        reply = self._reply(asked)
        async with contextlib.aclosing(self._pieces(asked, place, reply)) as pieces:
            async for piece in pieces:
                if not self._kind:  # what fails before has a status of its own
                    await self._start(send, _EVENTS)
                for chunk in reply.chunks(piece):
                    await self._say(send, chunk)
        await self._say(send, b"".join(reply.tail()), last=True)

    def _reply(self, asked: Asked) -> Reply:
        return Reply(asked, self._shared.model, self._shared.pipeline.codec.sample_rate)

    async def _pieces(self, asked: Asked, place: Place, reply: Reply) -> AsyncIterator[Piece]:
        """An answer as it grows, decoded in threads, in order."""
        shared, request = self._shared, asked.request
        made = [Hypothesis(shared.pipeline, request.messages) for _ in range(request.hypotheses)]
        answer = shared.service.answer(request, place, live=asked.stream)
        first = True
        try:
            async with contextlib.aclosing(answer) as events:
                while (event := await self._within(anext(events, None))) is not None:
                    if first:
                        taken = time.monotonic() - self._began
                        shared.metrics.first_token.labels(event.modality).observe(taken)
                        first = False
                    shared.metrics.grew(event.modality, *event.rows.shape)
                    reply.count(event)
                    yield await self._in(shared.writers, made[event.hypothesis].push, event)
        except UserError as e:
            raise Refusal(400, str(e), code="invalid_value") from e

    async def _unless_gone(self, receive: Receive, work: Coroutine) -> None:
        """Does the work, and drops it where the client goes."""

        async def gone():
            while (await receive())["type"] != "http.disconnect":
                pass

        tasks = [asyncio.create_task(work), asyncio.create_task(gone())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if not tasks[0].done() and not self._complete:
                raise _ClientGone
            await tasks[0]
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _within(self, work: Awaitable[T]) -> T:
        """Its result, before the request's time is over."""
        try:
            async with asyncio.timeout_at(self._deadline):
                return await work
        except TimeoutError as e:
            raise late(self._shared.timeout) from e

    async def _in(self, pool: ThreadPoolExecutor, function, *args):
        loop = asyncio.get_running_loop()
        return await self._within(loop.run_in_executor(pool, function, *args))

    async def _start(self, send: Send, kind: str, length: int | None = None) -> None:
        headers = [(b"content-type", kind.encode())]
        if length is None:
            headers += [(b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")]
        else:
            headers.append((b"content-length", str(length).encode()))
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        self._kind = kind

    async def _say(self, send: Send, body: bytes, *, last: bool = False) -> None:
        self._complete = last
        message = {"type": "http.response.body", "body": body, "more_body": not last}
        await self._within(send(message))

    async def _refuse(self, why: Refusal, scope: Scope, receive: Receive, send: Send) -> None:
        if self._kind and self._kind != _EVENTS:
            return  # amid a whole answer nothing can be told: the connection ends before its length
        if self._kind:  # the status is out: an event tells it
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1):
                    body = {"type": "http.response.body", "body": event_of(why.body)}
                    await send(body | {"more_body": False})
            return
        response = JSONResponse(why.body, why.status, why.headers)
        if why.status != 413:
            await response(scope, receive, send)
            return
        # a close at once would reset the connection before the client reads why
        start = {"type": "http.response.start", "status": 413, "headers": response.raw_headers}
        await send(start)
        part = {"type": "http.response.body", "body": response.body, "more_body": True}
        await send(part)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LINGER):
                while (await receive()).get("more_body"):
                    pass
        await send(part | {"body": b"", "more_body": False})
