"""The thread that drives the engine, and its requests as asyncio sees them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import threading
from collections.abc import AsyncIterator, Callable, Iterator

from bagpiper_jax.errors import UserError
from bagpiper_jax.inference.engine import Engine
from bagpiper_jax.inference.requests import Event, Request
from bagpiper_jax.inference.steps import CHUNK
from bagpiper_jax.inference.streaming import STREAM_ROWS
from bagpiper_jax.serving.refusals import Refusal, failed, full, unavailable

log = logging.getLogger(__name__)

_CLOSING = "the server is shutting down"
_DEAD = "the generation thread has ended: restart the server"


class _Job:
    """A request on its way: what the thread puts into `events`, a coroutine takes out."""

    def __init__(self, request: Request, live: bool):
        self.request, self.live = request, live
        self.number: int | None = None
        self.left = request.hypotheses
        self.events: asyncio.Queue[Event | Exception] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()

    def give(self, item: Event | Exception) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended: nobody waits
            self._loop.call_soon_threadsafe(self.events.put_nowait, item)


class Place:
    """A request's place in the service: it waits until its first rows are there."""

    def __init__(self):
        self.waits = True


class Service:
    """Requests from one event loop, answered by one thread that owns the engine."""

    def __init__(self, engine: Engine, *, limit: int = 64):
        """Starts the thread.

        Args:
          engine: nothing else may use it.
          limit: requests that may wait.
        """
        self._engine, self._limit = engine, limit
        self._inbox: queue.SimpleQueue = queue.SimpleQueue()
        self._jobs: dict[int, _Job] = {}  # the thread's own
        self._places: set[Place] = set()  # the loop's own
        self._closing = False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the thread lives."""
        return self._thread.is_alive() and not self._ended.is_set()

    @property
    def waiting(self) -> int:
        """Requests that are accepted and have no rows yet."""
        return sum(place.waits for place in self._places)

    @property
    def running(self) -> int:
        """Requests that have rows and are not complete."""
        return len(self._places) - self.waiting

    @contextlib.contextmanager
    def place(self) -> Iterator[Place]:
        """A request's place for as long as it is answered.

        Raises:
          Refusal: too many wait; the server shuts down; or the thread has ended.
        """
        if not self.alive:
            raise unavailable(_DEAD)
        if self._closing:
            raise unavailable(_CLOSING)
        if self.waiting >= self._limit:
            raise full()
        place = Place()
        self._places.add(place)
        try:
            yield place
        finally:
            self._places.discard(place)

    async def answer(self, request: Request, place: Place, *, live: bool) -> AsyncIterator[Event]:
        """The events of a request. Closing the iterator ends its generation.

        Args:
          request: what is asked.
          place: of the request.
          live: whether its events should come soon, at some cost to all.

        Raises:
          UserError: the engine does not take the request.
          Refusal: the engine failed, or the server shuts down.
        """
        job = _Job(request, live)
        self._inbox.put((self._submit, job))
        try:
            if self._ended.is_set():  # else the thread sees the job
                raise unavailable(_DEAD)
            left = request.hypotheses
            while left:
                item = await job.events.get()
                if isinstance(item, Exception):
                    raise item
                place.waits = False
                left -= item.last
                yield item
        finally:
            self._inbox.put((self._cancel, job))

    def close(self) -> None:
        """Takes no new requests."""
        self._closing = True

    @property
    def idle(self) -> bool:
        """Whether no request is being answered."""
        return not self._places

    def stop(self, timeout: float = 30.0) -> None:
        """Ends the thread; what is not complete is refused.

        Args:
          timeout: seconds to wait for the thread, which is in the middle of its rows.
        """
        self.close()
        self._inbox.put((self._stop, None))
        self._thread.join(timeout)

    # what follows runs in the thread

    def _run(self) -> None:
        try:
            while self._listen():
                self._step()
        except BaseException:
            log.exception("the generation thread ends")
        finally:
            self._ended.set()
            why = _CLOSING if self._closing else _DEAD
            with contextlib.suppress(queue.Empty):
                while True:
                    _, job = self._inbox.get_nowait()
                    if job is not None:
                        job.give(unavailable(why))
            self._refuse(lambda: unavailable(why))

    def _listen(self) -> bool:
        """Takes in what was sent; waits for it where nothing is generated. False: stop."""
        with contextlib.suppress(queue.Empty):
            while True:
                action, job = self._inbox.get(block=not self._engine.busy)
                if action == self._stop:
                    return False
                action(job)
        return True

    def _stop(self, _) -> None:
        """Its place in the inbox is all that counts."""

    def _submit(self, job: _Job) -> None:
        try:
            job.number = self._engine.submit(job.request)
            self._jobs[job.number] = job
        except UserError as e:
            job.give(e)
        except Exception as e:
            self._tell("the engine failed at taking a request", e)
            job.give(failed())

    def _cancel(self, job: _Job) -> None:
        if self._jobs.pop(job.number, None):
            self._engine.cancel(job.number)

    def _step(self) -> None:
        live = any(job.live for job in self._jobs.values())
        try:
            events = self._engine.step(STREAM_ROWS if live else CHUNK)
        except Exception as e:
            self._tell(f"the engine failed, and {len(self._jobs)} requests with it", e)
            self._refuse(failed)
            return
        for event in events:
            job = self._jobs[event.request]
            job.left -= event.last
            if not job.left:
                del self._jobs[event.request]
            job.give(event)

    def _refuse(self, why: Callable[[], Refusal]) -> None:
        jobs, self._jobs = self._jobs, {}
        for job in jobs.values():
            job.give(why())
        for number in jobs:
            self._engine.cancel(number)

    def _tell(self, what: str, error: Exception) -> None:
        log.error("%s: %s: %s", what, type(error).__name__, " ".join(str(error).split())[:500])
        log.debug("where", exc_info=error)
