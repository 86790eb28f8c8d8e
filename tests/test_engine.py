"""The engine: an answer is the same in any company, whatever comes, goes or fails beside it."""

import dataclasses

import numpy as np
import pytest
from generation import GUIDED, PLACES, WARM, ask, ending_model, same, varied_requests

from bagpiper_jax import vocab as vocab_lib
from bagpiper_jax.errors import UserError
from bagpiper_jax.inference import engine as engine_module
from bagpiper_jax.inference import sequences, steps
from bagpiper_jax.inference.engine import Engine
from bagpiper_jax.inference.requests import Generated, Request


@pytest.fixture(scope="module")
def model(make_model):
    return ending_model(make_model)


@pytest.fixture(scope="module")
def engine(model):
    """Idle before and after each test."""
    return Engine(model, max_sequences=PLACES)


@pytest.fixture(scope="module")
def requests(model):
    return varied_requests(model.config.vocab)


@pytest.fixture(scope="module")
def alone(engine, requests):
    """What each request gets with nothing beside it."""
    return [engine.generate([request])[0] for request in requests]


class Listener:
    """Puts the events of an engine together."""

    def __init__(self):
        self.answers, self.left, self.closed = {}, {}, set()

    def submit(self, engine, request):
        number = engine.submit(request)
        self.answers[number] = [[] for _ in range(request.hypotheses)]
        self.left[number] = request.hypotheses
        return number

    def hear(self, events):
        for e in events:
            assert e.request not in self.closed
            messages = self.answers[e.request][e.hypothesis]
            if e.message == len(messages):
                messages.append(Generated(e.modality, e.rows, e.end))
            else:
                old = messages[-1]
                assert e.message == len(messages) - 1 and old.end is None
                rows = np.concatenate([old.rows, e.rows])
                messages[-1] = Generated(e.modality, rows, e.end)
            assert e.end is not None or not e.last
            self.left[e.request] -= e.last
            if not self.left[e.request]:
                self.closed.add(e.request)


@pytest.mark.parametrize("schedule", range(6))
def test_an_answer_does_not_depend_on_its_company(engine, requests, alone, schedule):
    """Requests come at any time and in any order, some are dropped, steps are of any length."""
    rng = np.random.default_rng(schedule)
    waiting = rng.permutation(np.repeat(np.arange(len(requests)), 2)).tolist()
    busy = rng.choice([1, 5])  # some schedules leave places free
    listener, asked, dropped = Listener(), {}, set()
    while waiting or engine.busy:
        for _ in range(rng.integers(0, busy, endpoint=True)):
            if waiting:
                index = waiting.pop()
                asked[listener.submit(engine, requests[index])] = index
        listener.hear(engine.step(int(rng.choice([1, 3, 8, 64]))))
        open_ = sorted(asked.keys() - listener.closed)
        if open_ and rng.random() < 0.15:
            number = int(rng.choice(open_))
            engine.cancel(number)
            listener.closed.add(number)  # nothing may come of it any more
            dropped.add(number)
    assert dropped and len(dropped) < len(asked) == 2 * len(requests)
    for number, index in asked.items():
        if number not in dropped:
            assert same(listener.answers[number], alone[index]), index
            continue
        for ours, theirs in zip(listener.answers[number], alone[index]):
            for mine, whole in zip(ours, theirs):
                np.testing.assert_array_equal(mine.rows, whole.rows[: len(mine.rows)])


def test_answers_of_these_requests_differ_in_kind(alone):
    """Else the tests here would show little."""
    messages = [m for answer in alone for hypothesis in answer for m in hypothesis]
    assert {m.end for m in messages} == {vocab_lib.EOS, vocab_lib.EOT, steps.CUT}
    assert {m.modality for m in messages} == {"text", "audio"}
    assert {len(h) for answer in alone for h in answer} >= {1, 2}
    first, second, *_ = alone[7]
    assert not same([first], [second])  # hypotheses have noise of their own


def test_places_that_come_and_go_change_nothing(engine, requests):
    """A batch that doubles twice and halves again around an answer."""
    request = ask(requests[0].prompt, dataclasses.replace(WARM, min_rows=19), "text")
    alone = engine.generate([request])[0]
    listener, sizes = Listener(), []
    number = listener.submit(engine, request)
    for others in (0, 1, 2, 0, 0):
        added = [engine.submit(requests[2]) for _ in range(others)]
        listener.hear(e for e in engine.step(3) if e.request == number)
        sizes.append(len(engine._batch))
        if others == 2:
            for request in (*added, *range(number + 1, added[0])):
                engine.cancel(request)
    assert sizes == [1, 2, 4, 1, 1]
    while engine.busy:
        listener.hear(engine.step())
    assert same(listener.answers[number], alone)


@pytest.mark.parametrize("limit", [1, 8, 64])
def test_the_length_of_steps_changes_nothing(engine, requests, alone, limit):
    listener = Listener()
    numbers = [listener.submit(engine, requests[i]) for i in (4, 5, 0)]
    while engine.busy:
        events = engine.step(limit)
        assert all(len(e.rows) <= limit for e in events)
        listener.hear(events)
    for number, i in zip(numbers, (4, 5, 0)):
        assert same(listener.answers[number], alone[i])


def test_slots_that_grow_in_mid_answer_change_nothing(engine, monkeypatch, requests):
    request = ask(requests[0].prompt, dataclasses.replace(WARM, min_rows=150, max_rows=160), "text")
    monkeypatch.setattr(engine_module, "_AHEAD", 1)
    listener, slots = Listener(), []
    number = listener.submit(engine, request)
    while engine.busy:
        listener.hear(engine.step())
        if engine.busy:
            slots.append(engine._batch._slots)
    assert slots[0] == 128 and slots[-1] == 256
    monkeypatch.setattr(sequences, "_SLOTS", 256)
    assert same(listener.answers[number], engine.generate([request])[0])


def test_slots_shrink_when_the_long_ones_are_gone(engine, monkeypatch, requests, alone):
    monkeypatch.setattr(sequences, "_SLOTS", 16)
    monkeypatch.setattr(engine_module, "_AHEAD", 8)
    listener = Listener()
    long = listener.submit(engine, requests[5])
    listener.hear(engine.step(60))
    short = listener.submit(engine, requests[8])
    listener.hear(engine.step(1))
    before = engine._batch._slots
    assert {long, short}.isdisjoint(listener.closed)
    engine.cancel(long)
    listener.hear(engine.step(1))
    assert engine._batch._slots < before
    while engine.busy:
        listener.hear(engine.step())
    assert same(listener.answers[short], alone[8])


def test_streams_share_the_engine(engine, requests, alone):
    """Two iterators in turn, and a call of `generate` while they are open."""
    listener, streams = Listener(), {}
    for i in (0, 3):
        streams[i] = engine.stream(requests[i], 3)
    numbers, between = {}, None
    while streams:
        for i, events in list(streams.items()):
            event = next(events, None)
            if event is None:
                del streams[i]
                continue
            if numbers.setdefault(i, event.request) not in listener.answers:
                listener.answers[event.request] = [[]]
                listener.left[event.request] = 1
            listener.hear([event])
        if between is None:
            between = engine.generate([requests[1]])[0]
    assert same(between, alone[1])
    assert all(same(listener.answers[numbers[i]], alone[i]) for i in (0, 3))
    assert not engine.busy and not engine._kept


def test_a_closed_stream_and_a_cancelled_request_leave_their_places(engine, requests, alone):
    events = engine.stream(requests[8], 1)
    next(events)
    waiting = [engine.submit(requests[6]) for _ in range(2)]  # four sequences each
    engine.step(1)
    assert engine.load == (1, 2)
    events.close()
    listener = Listener()
    number = listener.submit(engine, requests[3])
    engine.step(1)
    assert engine.load == (1, 2)
    for other in waiting:
        engine.cancel(other)
    assert engine.load == (0, 1)
    engine.cancel(12345)  # nobody's
    while engine.busy:
        listener.hear(engine.step())
    assert same(listener.answers[number], alone[3])


def test_a_failing_listener_leaves_the_engine_empty(engine, requests):
    def fail(event):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        engine.generate(requests[:3], fail)
    assert not engine.busy and engine.load == (0, 0)


def test_an_answer_ends_where_the_context_is_full(engine, monkeypatch, requests):
    endless = dataclasses.replace(WARM, min_rows=50, max_rows=60)
    bell, codes = requests[0].prompt, requests[3].prompt
    context = len(codes) + 12
    monkeypatch.setattr(Engine, "_context", context)
    guided = dataclasses.replace(endless, cfg=2.0, top_p=0.9)
    asked = [
        ask(bell, endless, "text", "audio"),
        ask(codes, endless, "audio", "text"),
        ask(codes, guided, "text", "audio"),
    ]
    for request, answer in zip(asked, engine.generate(asked)):
        (messages,) = answer
        assert messages and messages[-1].end == steps.CUT
        rows = len(request.prompt) + 1 + sum(len(m.rows) + 3 for m in messages) - 3
        assert context - 3 - 4 - 1 <= rows <= context
        for message in messages:
            if message.modality == "audio":  # whole frames to the end
                vocab = engine.config.vocab
                frames = len(message.rows) - vocab.num_streams + 1
                assert (message.rows[frames:, 0] == vocab.stream_pads[0]).all()
    with pytest.raises(UserError, match=f"prompt takes {len(codes)} rows.*holds {len(codes) + 5}"):
        monkeypatch.setattr(Engine, "_context", len(codes) + 5)
        engine.generate([asked[0], asked[1]])
    assert not engine.busy


def test_wrong_requests_are_told(engine, requests):
    prompt = requests[0].prompt
    many = ask(prompt, GUIDED, "text", hypotheses=3)
    with pytest.raises(UserError, match="takes 6 sequences.*engine has 4: ask for fewer"):
        engine.submit(many)
    assert not engine.busy
    for plan in ((), ("text",) * 5, ("video",)):
        with pytest.raises(UserError, match="ask for 1 to 4 of text and audio"):
            Request(prompt, requests[0].sampling, plan)
    with pytest.raises(UserError, match="0 hypotheses"):
        ask(prompt, WARM, hypotheses=0)
    for plan in (None, ("text", "audio")):
        with pytest.raises(UserError, match="no sampling settings for audio"):
            Request(prompt, {"text": WARM}, plan)
