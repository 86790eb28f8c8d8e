"""Processes of their own for what may crash, hang or grow over a file: that file alone is lost."""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import pickle
import sys
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any

from bagpiper_jax.errors import UserError
from bagpiper_jax.preparation.decode import Rejected
from bagpiper_jax.preparation.example import Prepared, prepare_item
from bagpiper_jax.preparation.item import Damaged, Item, Source
from bagpiper_jax.preparation.options import Options, load_tools
from bagpiper_jax.processes import die_with_parent

_START_SECONDS = 300.0  # imports and a codec, on a slow disk
_TRIES = 2  # the first time it may have been another process that took memory or time


class Isolated:
    """Reads sources in one child process and prepares items in another.

    Each is started when it is needed, and anew when it dies or hangs. A context manager; one part
    and one item at a time.
    """

    def __init__(self, options: Options):
        self._decoding = _Child(_serve_items, options, "decoded")
        self._reading = _Child(_serve_parts, options, "read")
        self._amid_part = False

    def __enter__(self) -> Isolated:
        return self

    def __exit__(self, *_):
        self.close()

    def read(self, source: Source, part: str) -> Iterator[Item | Damaged]:
        """See `Source.read`. Where it fails, dies or tells nothing for `options.timeout` seconds,
        the rest of the part is lost, which the last entry tells.

        Raises:
          UserError: the source cannot be read at all.
        """
        if self._amid_part:  # an earlier one was left
            self._reading.close()
        self._amid_part, came, reason = True, 0, ""
        for _ in range(_TRIES):
            try:
                self._reading.send((source, part, came))
                while isinstance(entry := self._reading.receive(), Item | Damaged):
                    came += 1
                    yield entry
            except Rejected as e:
                reason = e.reason
                continue
            self._amid_part = False
            if isinstance(entry, UserError):
                raise entry
            return
        self._amid_part = False
        yield Damaged(part, f"its reading ended early: {reason}")

    def prepare(
        self, item: Item, prefix: str, progress: Callable[[float], None] = lambda seconds: None
    ) -> Prepared:
        """See `prepare_item`.

        Raises:
          Rejected: also where the process died, or told nothing for `options.timeout` seconds.
          UserError: the process cannot be started.
        """
        failed = Rejected("died", "")
        for _ in range(_TRIES):
            told: list[float] = []
            try:
                self._decoding.send((item, prefix))
                while isinstance(answer := self._decoding.receive(), float):
                    told.append(answer)
            except Rejected as e:
                failed = e
                continue
            for seconds in told:
                progress(seconds)
            if isinstance(answer, Rejected):
                raise answer
            return answer
        raise failed

    def close(self) -> None:
        """Ends the processes."""
        self._decoding.close()
        self._reading.close()


class _Child:
    """A process that answers over a pipe."""

    def __init__(self, serve: Callable[[Connection, Options], None], options: Options, does: str):
        """Starts nothing yet; `does` stands in messages: what it did to a file."""
        self._serve, self._options, self._does = serve, options, does
        self._pipe: Connection | None = None
        self.process = None

    def send(self, question: Any) -> None:
        """Asks; starts the process where there is none.

        Raises:
          Rejected: it died, or the question does not pickle.
          UserError: it cannot be started.
        """
        if self.process is None:
            self._start()
        try:
            self._pipe.send(question)
        except (BrokenPipeError, ConnectionResetError):
            raise self._dead() from None
        except (pickle.PicklingError, TypeError, AttributeError) as e:
            raise Rejected("entry", f"it is not of plain values: {e}") from e

    def receive(self, timeout: float | None = None) -> Any:
        """The next answer.

        Raises:
          Rejected: it died, or there is none within `timeout` seconds (None: `options.timeout`).
        """
        timeout = self._options.timeout if timeout is None else timeout
        try:
            if self._pipe.poll(timeout):
                return self._pipe.recv()
        except (EOFError, ConnectionResetError):
            raise self._dead() from None
        self.close()
        raise Rejected("hung", f"no progress within {timeout:g} s")

    def close(self) -> None:
        """Ends the process."""
        if self.process is not None:
            self._pipe.close()
            self.process.kill()
            self.process.join()
            self.process = self._pipe = None

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self.process = context.Process(
            target=self._serve, args=(theirs, self._options), daemon=True
        )
        self.process.start()
        theirs.close()
        try:
            ready = self.receive(_START_SECONDS)
        except Rejected as e:
            raise UserError(f"a process of the preparation cannot start: {e.reason}") from e
        if isinstance(ready, UserError):
            self.close()
            raise ready

    def _dead(self) -> Rejected:
        self.process.join(5)
        code = self.process.exitcode
        self.close()
        how = f"signal {-code}" if code and code < 0 else f"exit code {code}"
        return Rejected("died", f"the process that {self._does} it died ({how})")


def _serve_parts(pipe: Connection, options: Options) -> None:
    """The child that reads: entries of parts until its parent closes the pipe or dies."""
    die_with_parent()
    pipe.send("ready")
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            source, part, skip = pipe.recv()
            try:
                for entry in itertools.islice(source.read(part), skip, None):
                    pipe.send(entry)
                pipe.send(None)
            except UserError as e:
                pipe.send(e)
            except (BrokenPipeError, ConnectionResetError):
                raise
            except Exception as e:  # the rest of the part is lost, and that is told
                reason = f"its reading ended early: {type(e).__name__}: {e}"
                pipe.send(Damaged(part, reason))
                pipe.send(None)


def _serve_items(pipe: Connection, options: Options) -> None:
    """The child that decodes: answers until its parent closes the pipe or dies."""
    die_with_parent()
    try:
        # what items need is loaded now: their time does not count it, nor does their memory
        import pyloudnorm  # noqa: F401
        import soundfile  # noqa: F401
        import soxr  # noqa: F401
        import threadpoolctl

        threadpoolctl.threadpool_limits(1)  # the same sums on every machine
        _silence_c_libraries()
        tools = load_tools(options)
        if "jax" not in sys.modules:  # it reserves address space that it never uses
            _limit_memory(options.memory_gb)
    except UserError as e:
        pipe.send(e)
        return
    except ImportError as e:
        pipe.send(UserError(f"preparation needs: pip install 'bagpiper_jax[data]' ({e})"))
        return
    pipe.send("ready")
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            item, prefix = pipe.recv()
            pipe.send(_answer(item, prefix, options, tools, pipe.send))


def _answer(item: Item, prefix: str, options: Options, tools, progress) -> Prepared | Rejected:
    try:
        return prepare_item(item, prefix, options, tools, progress)
    except Rejected as e:
        return e
    except MemoryError:
        return Rejected("memory", f"it needs more than {options.memory_gb:g} GB of memory")
    except Exception as e:  # whatever it is, it costs this item only, and is told
        return Rejected("failed", f"{type(e).__name__}: {e}")


def _silence_c_libraries() -> None:
    """mpg123 and others write warnings to the terminal; what matters comes as an error."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    os.close(nowhere)


def _limit_memory(gigabytes: float) -> None:
    with contextlib.suppress(ImportError):  # not on Windows
        import resource

        limit = int(gigabytes * (1 << 30))
        hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
        if hard != resource.RLIM_INFINITY:
            limit = min(limit, hard)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))
