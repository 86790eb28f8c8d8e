"""Packed rows of prepared records: as planned, cut to fit, on any hosts, in processes."""

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

import numpy as np
import pytest
from prepared_twin import SHAPE, Sizes, make_set, packed

from bagpiper_jax.conversation import encode_conversation
from bagpiper_jax.errors import UserError
from bagpiper_jax.input_pipeline.mixture import DEFAULT_MIXTURE, Source, spread
from bagpiper_jax.input_pipeline.packed_records import cut
from bagpiper_jax.input_pipeline.packing import RowShape
from bagpiper_jax.input_pipeline.records import conversation
from bagpiper_jax.input_pipeline.step_rows import host_batches
from bagpiper_jax.modeling.config import get_config

TASKS = tuple(DEFAULT_MIXTURE)


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
    some, memory = max(times // 5, 1), []
    for i in range(times):
        use()
        if i % some == some - 1:
            left()
            memory.append(resident())
    assert left() == (threads, [])
    # MB; a batch has 0.4 MB. A leak grows all the time, the rest of a large process now and then
    assert np.diff(memory).min() < max(0.2 * some, 1)
    blocks = shared_memory() - blocks  # those of other processes come and go
    deadline = time.monotonic() + 30
    while blocks and time.monotonic() < deadline:
        time.sleep(0.5)
        blocks &= shared_memory()
    assert not blocks
