"""The plan of packed rows from lengths: full, mixed as asked, every example once, from any row."""

import dataclasses
import json
import pickle
import threading
from collections import Counter

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from prepared_twin import Sizes, packed

from bagpiper_jax.errors import UserError
from bagpiper_jax.input_pipeline.mixture import DEFAULT_MIXTURE, Source, spread
from bagpiper_jax.input_pipeline.packing import RowShape
from bagpiper_jax.input_pipeline.plan_statistics import plan_statistics
from bagpiper_jax.input_pipeline.row_plan import WINDOW_ROWS, Position
from bagpiper_jax.input_pipeline.step_rows import StepRows

TASKS = tuple(DEFAULT_MIXTURE)


def speech_like(count, rng):
    """Sizes as of captioned clips of 1 to 30 s: (rows, windows) of a set for each task."""
    seconds = np.clip(rng.lognormal(np.log(8), 0.6, count), 1, 30)
    caption = np.clip(rng.lognormal(np.log(250), 0.4, count), 30, 900)
    return {
        "text_to_audio": Sizes("speech", caption + 14 + 50 * seconds),
        "audio_to_text": Sizes("speech", caption + 7 + 13 * seconds, 8 * np.ceil(seconds / 8)),
        "text_only": Sizes("speech", caption + 4),
    }


def rows_like_others(count, seed, mixture=None):
    sets = speech_like(count, np.random.default_rng(seed))
    return spread([(sets[task], task, 1.0) for task in mixture or TASKS], mixture)


@given(st.integers(0, 2**31), st.integers(50, 20_000), st.sampled_from([4096, 8192, 15_000]))
@settings(max_examples=12)
def test_rows_are_full_and_tasks_share_the_tokens(seed, count, length):
    """Fill ≥ 97 %; over every 10 M tokens each share is within 1 % of what was asked."""
    shape = RowShape(length, length // 64)
    source = packed(rows_like_others(count, seed), shape, num_rows=24_000_000 // length, seed=seed)
    found = plan_statistics(source)
    assert found.fill >= 0.97
    for name, part in found.sources.items():
        assert part.share == pytest.approx(part.wanted, rel=0.003), name
        assert part.worst_share == pytest.approx(part.wanted, rel=0.01), name


@given(st.integers(0, 2**31), st.lists(st.floats(0.05, 1), min_size=3, max_size=3))
@example(0, [1.0, 1.0, 0.0625])  # the ends of two windows add up, where each counts for itself
@example(1557349601, [1.0, 0.0737, 0.0833])
@settings(max_examples=8)
def test_any_mixture_holds(seed, weights):
    """To 1 %, or a row: over 10 M tokens a row is more than that of a share under 8 %."""
    mixture = dict(zip(TASKS, weights))
    shape = RowShape(8192, 512)  # room for captioning alone
    source = packed(rows_like_others(3000, seed, mixture), shape, num_rows=3000, seed=seed)
    found = plan_statistics(source)
    for task, weight in mixture.items():
        part = found.sources[f"speech/{task}"]
        assert part.wanted == pytest.approx(weight / sum(weights))
        assert part.worst_share == pytest.approx(part.wanted, rel=0.01, abs=shape.length / 10e6)


def test_where_mel_windows_are_scarce_the_shares_hold_still():
    source = packed(rows_like_others(3000, 0), RowShape(8192, 48), num_rows=4000)
    found = plan_statistics(source)
    assert found.window_fill > 0.97 and found.fill < 0.9
    for part in found.sources.values():
        # at first clips pile up, less than a window of them; from then on the shares are exact
        assert part.share == pytest.approx(part.wanted, rel=0.03)


sizes = st.lists(st.tuples(st.integers(-1, 700), st.integers(0, 5)), min_size=1, max_size=120)


@given(
    st.lists(st.tuples(sizes, st.floats(0.1, 3)), min_size=1, max_size=3),
    st.sampled_from([1, 2, 3, 8]),
    st.integers(0, 2**31),
)
@settings(max_examples=60)
def test_every_example_once_in_each_epoch_over_all_hosts(sets, hosts, seed):
    """Whatever the sizes: hosts meet nothing twice, and together everything that fits a row."""
    sources = [
        Source(Sizes(f"s{i}", *np.array(rows_windows).T), "text_only", weight)
        for i, (rows_windows, weight) in enumerate(sets)
    ]
    shape = RowShape(500, 4)
    fits = [
        np.flatnonzero((s.examples.rows("") > 0) & (s.examples.windows("") <= 4)) for s in sources
    ]
    if not all(map(len, fits)):
        with pytest.raises(UserError, match="no example fits rows of 4 mel windows"):
            packed(sources, shape, seed=seed)
        return
    steps, per_step = 16, 24  # rows of a step's batch; six windows in all
    seen = Counter()
    for host in range(hosts):
        mine = np.arange(host * per_step // hosts, (host + 1) * per_step // hosts)
        source = pickle.loads(pickle.dumps(packed(sources, shape, seed=seed)))
        order = StepRows(source.plan, per_step, mine)
        order_length = steps * len(mine)
        for i in range(order_length):
            row = order[i]
            assert row and sum(p.rows for p in row) <= 500 and sum(p.windows for p in row) <= 4
            seen.update((p.source, p.epoch, p.index) for p in row)
    assert max(seen.values()) == 1
    after = source.plan.position(steps * per_step)
    for i, s in enumerate(sources):
        epochs, rest = divmod(after.read[i], len(s.examples))
        waiting = [number for which, number in after.passed_on if which == i]
        came = [key for key in seen if key[0] == i]
        # all epochs that are over, but for what waits, and the part that is read of the last one
        assert len([key for key in came if key[1] < epochs]) == epochs * len(fits[i]) - sum(
            number // len(s.examples) < epochs for number in waiting
        )
        assert len([key for key in came if key[1] == epochs]) <= rest
        assert {index for _, _, index in came} <= set(fits[i].tolist())


@given(st.integers(0, 2**31), st.integers(0, 2000), st.integers(1, 300))
@settings(max_examples=15)
def test_a_row_is_a_function_of_seed_and_number(seed, row, ahead):
    """Any row first, after a later one, in another process's copy, or from a saved position."""
    rng = np.random.default_rng(seed)
    names = [("a", 500), ("b", 7)]
    sources = [
        Source(Sizes(n, rng.integers(5, 400, count)), "text_only", 1.0) for n, count in names
    ]
    first = packed(sources, seed=seed)
    later = first.plan[row + ahead]
    saved = json.loads(json.dumps(first.position(row)))
    resumed = packed(sources, seed=seed)
    resumed.resume(saved)
    resumed = pickle.loads(pickle.dumps(resumed))
    for source in (first, packed(sources, seed=seed), resumed):
        assert source.plan[row + ahead] == later
        assert source.plan[row] == first.plan[row]
    assert resumed.plan[0] == first.plan[0]  # a row before is found too
    assert packed(sources, seed=seed + 1).plan[row] != first.plan[row]


def test_resuming_plans_no_window_before():
    sources = rows_like_others(20_000, 0)
    first = packed(sources, RowShape(8192, 128), num_rows=10**6)
    row = 40_000
    saved, wanted = first.position(row), first.plan[row]
    resumed = packed(sources, RowShape(8192, 128), num_rows=10**6)
    resumed.resume(saved)
    planned = []
    resumed.plan._planned = lambda at, plan=resumed.plan._planned: planned.append(at) or plan(at)
    assert resumed.plan[row] == wanted
    assert [at.window for at in planned] == [row // WINDOW_ROWS]


def test_a_thread_that_plans_ahead_does_not_disturb_another():
    """While one looks where the plan stands, the other plans ten windows further."""
    sources = [Source(Sizes("a", np.arange(5, 400)), "text_only", 1.0)]
    plan = packed(sources).plan
    other = threading.Thread(target=plan.position, args=(13 * WINDOW_ROWS,))

    class Watched(Position):
        def __getattribute__(self, name):
            if name == "window" and other.ident is None:
                other.start()
                other.join(timeout=0.5)  # it may have to wait for the one that looks
            return super().__getattribute__(name)

    third = plan.position(3 * WINDOW_ROWS)
    plan._latest = Watched(**dataclasses.asdict(third))
    assert plan.position(5 * WINDOW_ROWS) == packed(sources).plan.position(5 * WINDOW_ROWS)
    other.join()


def test_epochs_differ_in_order(tmp_path):
    source = packed([Source(Sizes("a", np.full(40, 50)), "text_only", 1.0)])
    order = [p for row in range(64) for p in source.plan[row]]
    epochs = [[p.index for p in order if p.epoch == e] for e in range(3)]
    assert all(sorted(e) == list(range(40)) for e in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
