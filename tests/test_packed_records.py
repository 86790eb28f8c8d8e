"""Packed rows of prepared records: full, mixed as asked, every example once, from any row on."""

import dataclasses
import gc
import json
import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
import time
from collections import Counter

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from prepared_twin import Sizes, make_set

from bagpiper_jax.conversation import encode_conversation
from bagpiper_jax.errors import UserError
from bagpiper_jax.input_pipeline.mixture import DEFAULT_MIXTURE, Source, spread
from bagpiper_jax.input_pipeline.packed_records import PackedRecords, cut
from bagpiper_jax.input_pipeline.packing import RowShape
from bagpiper_jax.input_pipeline.plan_statistics import plan_statistics
from bagpiper_jax.input_pipeline.records import conversation
from bagpiper_jax.input_pipeline.row_plan import WINDOW_ROWS
from bagpiper_jax.input_pipeline.step_rows import StepRows, host_batches
from bagpiper_jax.modeling.config import get_config

TASKS = tuple(DEFAULT_MIXTURE)
SHAPE = RowShape(512, 16)


def packed(sources, shape=SHAPE, num_rows=10_000, seed=0, tokenizer=None, **rest):
    settings = {"shape": shape, "num_rows": num_rows, "seed": seed, **rest}
    return PackedRecords(sources, get_config("tiny"), tokenizer, **settings)


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


def test_epochs_differ_in_order(tmp_path):
    source = packed([Source(Sizes("a", np.full(40, 50)), "text_only", 1.0)])
    order = [p for row in range(64) for p in source.plan[row]]
    epochs = [[p.index for p in order if p.epoch == e] for e in range(3)]
    assert all(sorted(e) == list(range(40)) for e in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


# rows as batches


@pytest.fixture(scope="module")
def clips(small_tokenizer):
    return make_set("clips", 60, small_tokenizer)


@pytest.fixture(scope="module")
def make(clips, small_tokenizer):
    def make(examples=clips, shape=SHAPE, **rest):
        sources = spread([(examples, task, 1.0) for task in TASKS])
        return packed(sources, shape, tokenizer=small_tokenizer, **rest)

    return make


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def test_a_row_holds_what_was_planned(make, clips, small_tokenizer):
    source = make(cfg_dropout=0.0)
    vocab = get_config("tiny").vocab
    for number in (0, 1, 64):
        row, plan = source[number], source.plan[number]
        assert row.tokens.shape == (512, 4) and row.mel.shape == (16, 100, 128)
        assert row.segment_ids.max() == len(plan) > 0
        for segment, planned in enumerate(plan, start=1):
            task = source.sources[planned.source].task
            messages = conversation(clips[planned.index], task)
            example = encode_conversation(messages, vocab, small_tokenizer)
            mine = row.segment_ids == segment
            np.testing.assert_array_equal(row.tokens[mine], example.tokens)
            np.testing.assert_array_equal(row.loss_mask[mine], example.loss_mask)
            for start, clip in example.audio:
                flat = row.mel.reshape(16, 100, 128)
                index = row.audio_index[mine][start : start + clip.num_tokens]
                first = int(index[0]) // 13
                np.testing.assert_array_equal(flat[first : first + len(clip.frames)], clip.mel)


def test_cfg_dropout_depends_on_example_and_epoch(make):
    source = make(cfg_dropout=0.5)
    audio = [i for i, s in enumerate(source.sources) if s.task == "text_to_audio"]
    plans = [p for row in range(128) for p in source.plan[row] if p.source in audio][:150]

    def dropped(source):
        return [bool(source.example(p).tokens[0, 0] == 0) for p in plans]

    first = dropped(source)
    assert first == dropped(make(cfg_dropout=0.5)) != dropped(make(cfg_dropout=0.5, seed=1))
    assert 0.35 < np.mean(first) < 0.65
    by_index = {}
    for plan, drop in zip(plans, first):
        by_index.setdefault(plan.index, set()).add(drop)
    assert any(len(found) == 2 for found in by_index.values())  # another epoch, another chance
    assert not any(dropped(make(cfg_dropout=0.0))) and all(dropped(make(cfg_dropout=1.0)))


def test_long_examples_are_cut_and_counted(make, clips, small_tokenizer):
    source = make(shape=RowShape(64, 4), cfg_dropout=0.0)
    for task in TASKS:
        found = source.surveys[f"clips/{task}"]
        rows, windows = clips.rows(task), clips.windows(task)
        assert found.cut == ((rows > 64) & (windows <= 4)).sum()
        assert found.left_out == (windows > 4).sum() and found.unable == 0
        assert found.served == len(clips) - found.left_out
    assert source.surveys["clips/text_to_audio"].cut > 0
    for number in range(20):
        row = source[number]
        planned = [p.rows for p in source.plan[number]]
        assert [int((row.segment_ids == s + 1).sum()) for s in range(len(planned))] == planned


def test_a_cut_clip_keeps_as_many_encoder_tokens_as_rows(clips, small_tokenizer):
    messages = conversation(clips[0], "audio_to_text")
    example = encode_conversation(messages, get_config("tiny").vocab, small_tokenizer)
    (start, clip), *_ = example.audio
    for length in (start - 1, start + 1, start + 9, start + 13, start + clip.num_tokens, 10_000):
        short = cut(example, length)
        assert len(short) == min(length, len(example))
        np.testing.assert_array_equal(short.tokens, example.tokens[:length])
        tokens = sum(part.num_tokens for _, part in short.audio)
        assert tokens == min(max(length - start, 0), clip.num_tokens)
        for _, part in short.audio:
            assert not part.mel[-1, part.frames[-1] :].any()
    spoken = encode_conversation(
        conversation(clips[0], "text_to_audio"), get_config("tiny").vocab, small_tokenizer
    )
    first, last = spoken.cfg_span
    assert cut(spoken, first).cfg_span is None
    assert cut(spoken, first + 3).cfg_span == (first, first + 3)
    assert cut(spoken, last).cfg_span == (first, last)


def test_restored_onto_other_hosts_and_workers(make):
    """Six steps without a break; then three, and the rest on another division of the work."""
    per_step, steps = 6, 6
    rows = np.arange(per_step)
    whole = list(host_batches(make(num_rows=per_step * steps), per_step, rows, 0, workers=0))
    assert len(whole) == steps
    stopped = make(num_rows=per_step * steps)
    saved = json.loads(json.dumps(stopped.position(3 * per_step)))
    for hosts, workers in ((1, 2), (2, 0), (3, 1)):
        source = make(num_rows=per_step * steps)
        source.resume(saved)
        for mine in np.split(rows, hosts):
            batches = host_batches(source, per_step, mine, 3, workers)
            got = list(batches)
            batches.close()
            assert len(got) == 3
            for batch, wanted in zip(got, whole[3:]):
                assert same(batch, type(wanted)(*(field[mine] for field in wanted)))


def test_a_changed_set_is_told_from_the_saved_one(make, clips, small_tokenizer):
    saved = make().position(0)
    other = make_set("clips", 61, small_tokenizer)
    other.fingerprint = "another"
    with pytest.raises(UserError, match=r"trained on other data \(clips/audio_to_text, "):
        make(other).resume(saved)


class OneMore:
    """Another tokenizer: it takes one id more for any text."""

    def __init__(self, tokenizer):
        self._tokenizer = tokenizer

    def encode(self, text):
        return [*self._tokenizer.encode(text), 0]


def test_another_tokenizer_is_told(clips, small_tokenizer):
    sources = spread([(clips, "text_only", 1.0)], {"text_only": 1.0})
    source = packed(sources, tokenizer=OneMore(small_tokenizer))
    with pytest.raises(UserError, match="record clip-.* positions .* its index says"):
        source[0]


def test_bad_sources(clips):
    with pytest.raises(UserError, match="name a prepared data set"):
        packed([])
    with pytest.raises(UserError, match="clips/text_only is there twice"):
        packed([Source(clips, "text_only", 1.0)] * 2)
    others = Sizes("clips", [5, 6])
    others.fingerprint = "of others"
    with pytest.raises(UserError, match="two sets are called clips"):
        packed([Source(clips, "text_only", 1.0), Source(others, "text_only", 1.0)])
    with pytest.raises(UserError, match=r"no set for the tasks of the mixture \['text_only'\]"):
        spread([(clips, task, 1.0) for task in TASKS[:2]])
    with pytest.raises(UserError, match=r"give the tasks \['dialogue'\]"):
        spread([(clips, task, 1.0) for task in (*TASKS, "dialogue")])


def test_a_tasks_share_is_divided_by_the_weights_of_its_sets(clips):
    other = dataclasses.replace(Source(clips, "", 0), examples=Sizes("other", [5])).examples
    sources = spread(
        [(clips, "text_only", 3.0), (other, "text_only", 1.0), (clips, "audio_to_text", 7.0)],
        {"text_only": 2.0, "audio_to_text": 2.0, "text_to_audio": 0.0},
    )
    assert {s.name: s.weight for s in sources} == {
        "clips/text_only": 1.5,
        "other/text_only": 0.5,
        "clips/audio_to_text": 2.0,
    }


# processes


class Spy:
    """Rows that tell of the process that makes them."""

    def __init__(self, source):
        self._source = source

    def __len__(self):
        return len(self._source)

    def __getitem__(self, number):
        batch = self._source[number]
        backends = getattr(sys.modules.get("jax._src.xla_bridge"), "_backends", {})
        heavy = [m for m in ("torch", "tensorflow", "bagpiper_jax.training") if m in sys.modules]
        batch.positions[:3] = len(backends), len(heavy), os.getpid()
        return batch


def test_workers_start_no_backend_and_import_nothing_of_training(make):
    batches = host_batches(Spy(make()), 2, np.arange(2), 0, workers=1)
    batch = next(batches)
    batches.close()
    assert (batch.positions[:, :2] == 0).all()
    assert (batch.positions[:, 2] != os.getpid()).all()


def test_rows_are_made_where_there_is_no_jax(make, tmp_path):
    """With every import of jax an error, Grain's included."""
    path = tmp_path / "source"
    path.write_bytes(pickle.dumps(make()))
    code = (
        "import sys; sys.modules['jax'] = sys.modules['torch'] = sys.modules['tensorflow'] = None\n"
        "import pickle, numpy as np\n"
        "from bagpiper_jax.input_pipeline.step_rows import host_batches\n"
        "source = pickle.load(open(sys.argv[1], 'rb'))\n"
        "print(next(host_batches(source, 2, np.arange(2), 1, workers=0)).tokens.sum())"
    )
    here = os.path.dirname(__file__)
    env = os.environ | {"PYTHONPATH": os.pathsep.join([os.path.dirname(here), here])}
    run = [sys.executable, "-c", code, str(path)]
    out = subprocess.run(run, capture_output=True, text=True, env=env, check=True).stdout
    source = make()
    assert int(out) == source[2].tokens.sum() + source[3].tokens.sum()


def resident():
    with open("/proc/self/status", encoding="utf-8") as f:
        return next(int(line.split()[1]) for line in f if line.startswith("VmRSS")) / 1024


def shared_memory():
    return set(os.listdir("/dev/shm"))


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="counts in Linux's /proc")
@pytest.mark.parametrize(
    ("workers", "times"), [(0, 50), (1, 4), pytest.param(1, 50, marks=pytest.mark.slow)]
)
def test_iterators_leak_nothing(make, workers, times):
    source = make()

    def use():
        batches = host_batches(source, 2, np.arange(2), 0, workers)
        next(batches)
        batches.close()

    def left():
        gc.collect()
        deadline = time.monotonic() + 10  # threads that were told to end may take a moment
        while time.monotonic() < deadline and (
            threading.active_count() > threads or multiprocessing.active_children()
        ):
            time.sleep(0.05)
        return threading.active_count(), multiprocessing.active_children()

    threads = threading.active_count()
    use(), use()
    threads, _ = left()
    blocks = shared_memory()
    for i in range(times):
        if i == times // 2:  # what is taken once, and by the tests before, is taken by now
            left()
            memory = resident()
        use()
    assert left() == (threads, [])
    assert resident() - memory < 16  # MB; a batch has 0.4 MB
    blocks = shared_memory() - blocks  # those of other processes come and go
    deadline = time.monotonic() + 30
    while blocks and time.monotonic() < deadline:
        time.sleep(0.5)
        blocks &= shared_memory()
    assert not blocks
