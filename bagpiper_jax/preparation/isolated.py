"""A process of its own for what may crash, hang or grow over one file: that file alone is lost."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import sys
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection, wait

from bagpiper_jax.errors import UserError
from bagpiper_jax.preparation.decode import Rejected
from bagpiper_jax.preparation.example import Prepared, prepare_item
from bagpiper_jax.preparation.item import Item
from bagpiper_jax.preparation.options import Options, load_tools

_START_SECONDS = 300.0  # imports and a codec, on a slow disk
_TRIES = 2  # the first time it may have been another process that took memory or time


class Isolated:
    """Prepares items in a child process, which is started anew when it dies or hangs.

    A context manager; one item at a time.
    """

    def __init__(self, options: Options):
        self._options = options
        self._process = None
        self._pipe: Connection | None = None

    def __enter__(self) -> Isolated:
        return self

    def __exit__(self, *_):
        self.close()

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
                answer = self._ask((item, prefix), told)
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
        """Ends the process."""
        if self._process is not None:
            self._pipe.close()
            self._process.kill()
            self._process.join()
            self._process = self._pipe = None

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, self._options), daemon=True)
        self._process.start()
        theirs.close()
        try:
            ready = self._receive(_START_SECONDS)
        except Rejected as e:
            raise UserError(f"the process that decodes cannot start: {e.reason}") from e
        if isinstance(ready, UserError):
            self.close()
            raise ready

    def _ask(self, question: tuple[Item, str], told: list[float]):
        if self._process is None:
            self._start()
        try:
            self._pipe.send(question)
        except (BrokenPipeError, ConnectionResetError):
            raise self._dead() from None
        except (pickle.PicklingError, TypeError, AttributeError) as e:
            raise Rejected("entry", f"it is not of plain values: {e}") from e
        while isinstance(answer := self._receive(self._options.timeout), float):
            told.append(answer)
        return answer

    def _receive(self, timeout: float):
        try:
            if self._pipe.poll(timeout):
                return self._pipe.recv()
        except (EOFError, ConnectionResetError):
            raise self._dead() from None
        self.close()
        raise Rejected("hung", f"no progress within {timeout:g} s")

    def _dead(self) -> Rejected:
        self._process.join(5)
        code = self._process.exitcode
        self.close()
        how = f"signal {-code}" if code and code < 0 else f"exit code {code}"
        return Rejected("died", f"the process that decoded it died ({how})")


def _serve(pipe: Connection, options: Options) -> None:
    """The child: answers until its parent closes the pipe or dies."""
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


def die_with_parent() -> None:
    """Ends this process when the one that started it is gone, even by SIGKILL."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


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
