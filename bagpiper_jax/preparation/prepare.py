"""Sources → a prepared data set, in one process, on all cores or by Apache Beam: the same bytes."""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import multiprocessing
import os
import shutil
from collections.abc import Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from bagpiper_jax.errors import UserError
from bagpiper_jax.files import check_vacant, make_directory, write_json
from bagpiper_jax.input_pipeline.prepared import DATASET_FILE, PreparedSet, open_prepared
from bagpiper_jax.preparation.isolated import Isolated
from bagpiper_jax.preparation.item import Source
from bagpiper_jax.preparation.options import Options
from bagpiper_jax.preparation.report import write_report
from bagpiper_jax.preparation.shards import (
    WORK,
    Plan,
    find_duplicates,
    finish_shard,
    make_shard,
    plan_shards,
    read_notes,
    set_repeated_apart,
)
from bagpiper_jax.processes import die_with_parent

PLAN_FILE, LOCK_FILE = "plan.json", ".lock"
_TRIES = 3  # of a pool whose processes die, without a shard in between


def prepare(
    sources: Iterable[Source],
    out: str | os.PathLike,
    options: Options | None = None,
    *,
    name: str = "",
    workers: int | None = None,
    beam_options: list[str] | None = None,
    quiet: bool = False,
) -> PreparedSet:
    """Prepares a data set, or goes on with one that was interrupted.

    Whatever `workers` and `beam_options` are, the set's files are the same byte for byte.

    Args:
      sources: to read; they pickle.
      out: directory of the set. With Beam, all its workers must reach it under this path.
      options: what is done; `Options()` if None.
      name: of the set; that of its directory if empty.
      workers: processes, each with one of its own that decodes; None: one per core.
      beam_options: run as a Beam pipeline with these options, like `["--runner=DirectRunner"]`.
      quiet: show no progress.

    Raises:
      UserError: a source, model or directory that does not do; an earlier run in `out` was told
        something else; another one is at work there.
    """
    options = options or Options()
    out = os.path.abspath(out)
    plan = plan_shards(sources, out, options, name or os.path.basename(out))
    with _claim(plan) as done:
        if not done:
            if beam_options is not None:
                from bagpiper_jax.preparation.beam import make_by_beam as make

                make(plan, beam_options)
            else:
                _make(plan, _cores() if workers is None else workers, quiet)
            _finish(plan)
        shutil.rmtree(os.path.join(out, WORK), ignore_errors=True)
    return open_prepared(out)


def _finish(plan: Plan) -> None:
    notes = [read_notes(plan, shard) for shard in range(len(plan.shards))]
    apart = set_repeated_apart(plan, notes)
    if plan.options.deduplicate:
        duplicates = find_duplicates([made["digests"] for made in notes], apart)
    else:
        duplicates = [frozenset()] * len(notes)
    for shard, (repeated, later) in enumerate(zip(apart, duplicates, strict=True)):
        finish_shard(plan, shard, repeated | later)
    write_report(plan, notes, apart, duplicates)


@contextlib.contextmanager
def _claim(plan: Plan) -> Iterator[bool]:
    """The output directory for this run alone; gives whether the set is finished already."""
    earlier = _earlier(plan.out)
    if earlier is not None:
        _check_same(plan, earlier)
    elif not os.path.isdir(os.path.join(plan.out, WORK)):
        check_vacant(plan.out)
    make_directory(os.path.join(plan.out, WORK))
    with open(os.path.join(plan.out, WORK, LOCK_FILE), "w") as lock:
        _lock(lock, plan.out)
        if earlier is None:
            write_json(os.path.join(plan.out, WORK, PLAN_FILE), plan.summary())
        _sweep(plan.out)
        yield os.path.exists(os.path.join(plan.out, DATASET_FILE))


def _lock(lock, out: str) -> None:
    with contextlib.suppress(ImportError):  # not on Windows
        import fcntl

        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another preparation is at work in {out}") from None
        except OSError:
            pass  # a file system without locks


def _earlier(out: str) -> dict[str, Any] | None:
    """What an earlier run was told; None where there was none."""
    for path, key in ((DATASET_FILE, "plan"), (os.path.join(WORK, PLAN_FILE), None)):
        path = os.path.join(out, path)
        try:
            with open(path, encoding="utf-8") as f:
                values = json.load(f)
            return values[key] if key else values
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (OSError, ValueError, KeyError, TypeError) as e:
            raise UserError(f"{path} is damaged ({e}): prepare into another directory") from e
    return None


def _check_same(plan: Plan, earlier: dict[str, Any]) -> None:
    ours = json.loads(json.dumps(plan.summary()))
    wrong = [
        f"{group}.{key}" if key else group
        for group in sorted(set(ours) | set(earlier))
        for key in _differing(ours.get(group), earlier.get(group))
    ]
    if wrong:
        raise UserError(
            f"{plan.out} holds a preparation that was told otherwise, or whose sources have "
            f"changed since ({', '.join(wrong)}): tell the same again, or choose another directory"
        )


def _differing(ours, theirs) -> list[str]:
    if isinstance(ours, dict) and isinstance(theirs, dict):
        wrong = [k for k in sorted(set(ours) | set(theirs)) if ours.get(k) != theirs.get(k)]
        return wrong or [""] * (list(ours) != list(theirs))  # parts name a source by its number
    return [""] if ours != theirs else []


def _sweep(out: str) -> None:
    """Removes what a killed run had not finished writing."""
    for directory in (out, os.path.join(out, WORK)):
        for entry in os.scandir(directory):
            if entry.name.endswith(".tmp") or f".{os.uname().nodename}-" in entry.name:
                with contextlib.suppress(OSError):
                    os.remove(entry.path)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _make(plan: Plan, workers: int, quiet: bool) -> None:
    """Makes the shards that are missing, here or in a pool."""
    notes = [read_notes(plan, shard) for shard in range(len(plan.shards))]
    missing = [shard for shard, made in enumerate(notes) if made is None]
    seconds = sum(made["found_seconds"] for made in notes if made)
    parts = sum(len(plan.shards[s]) for s, made in enumerate(notes) if made)
    with _Bar(plan.num_parts, seconds, parts, quiet) as bar:
        if workers > 1 and len(missing) > 1:
            _make_in_pool(plan, missing, min(workers, len(missing)), bar)
            return
        done = [0.0, 0.0]

        def count(seconds: float, parts: int) -> None:
            done[0] += seconds
            done[1] += parts
            bar.show(*done)

        with Isolated(plan.options) as isolated:
            for shard in missing:
                make_shard(plan, shard, isolated, count)


def _make_in_pool(plan: Plan, missing: list[int], workers: int, bar: _Bar) -> None:
    context = multiprocessing.get_context("spawn")
    # seconds and parts of each shard; each has one writer, so no lock that a dead one could hold
    done = context.RawArray("d", 2 * len(plan.shards))
    deaths = 0
    while missing:
        others = set(multiprocessing.active_children())
        pool = concurrent.futures.ProcessPoolExecutor(workers, context, _start_worker, (plan, done))
        try:
            waiting = {pool.submit(_make_one, shard): shard for shard in missing}
            while waiting:
                ready, _ = concurrent.futures.wait(waiting, 0.5, "FIRST_COMPLETED")
                bar.show(sum(done[::2]), sum(done[1::2]))
                for future in ready:
                    future.result()
                    missing.remove(waiting.pop(future))
                    deaths = 0
        except BrokenProcessPool as e:
            deaths += 1
            if deaths == _TRIES:
                raise UserError(
                    f"preparation processes died {_TRIES} times in a row: is there too little "
                    "memory? Try fewer workers"
                ) from e
        except BaseException:  # what they are at is of no use any more
            for process in set(multiprocessing.active_children()) - others:
                process.kill()
            raise
        finally:
            pool.shutdown(cancel_futures=True)


_worker: dict[str, Any] = {}


def _start_worker(plan: Plan, done) -> None:
    die_with_parent()
    _worker.update(plan=plan, done=done, isolated=Isolated(plan.options))


def _make_one(shard: int) -> None:
    done = _worker["done"]
    done[2 * shard] = done[2 * shard + 1] = 0.0

    def count(seconds: float, parts: int) -> None:
        done[2 * shard] += seconds
        done[2 * shard + 1] += parts

    make_shard(_worker["plan"], shard, _worker["isolated"], count)


class _Bar:
    """Progress in hours of audio; the total is what the parts that are done let expect."""

    def __init__(self, num_parts: int, seconds: float, parts: int, quiet: bool):
        """Of `num_parts`, so many with so many seconds of audio were done earlier."""
        import tqdm

        self._num_parts, self._seconds, self._parts = num_parts, seconds, parts
        form = (
            "{l_bar}{bar}| {n:.2f}/{total:.2f} h [{elapsed}<{remaining}, {rate_inv_fmt}{postfix}]"
        )
        self._bar = tqdm.tqdm(
            total=1e-9, initial=seconds / 3600, unit="h", bar_format=form, disable=quiet
        )
        self.show(0.0, 0.0)

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_):
        self._bar.close()

    def show(self, seconds: float, parts: float) -> None:
        """What was done since the start."""
        hours, parts = (self._seconds + seconds) / 3600, self._parts + parts
        self._bar.total = max(hours * self._num_parts / max(parts, 1), hours, 1e-9)
        self._bar.set_postfix_str(f"{parts:.0f}/{self._num_parts} parts", refresh=False)
        self._bar.update(hours - self._bar.n)


def describe(prepared: PreparedSet) -> str:
    """One line on what a set holds."""
    counts, hours = prepared.info["counts"], prepared.info["hours"]["total"]
    items = counts["items"]
    return (
        f"{items['in']} items = {items['kept']} kept + {items['duplicates']} duplicates + "
        f"{items['quarantined']} quarantined; {len(prepared)} records, {hours:.2f} h of audio"
    )
