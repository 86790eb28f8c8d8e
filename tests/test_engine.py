"""The engine: an answer is the same in any company, and follows the model's distribution."""

import dataclasses
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from generation import ask, clear_model, prompts, same
from scipy import stats

from bagpiper_jax import vocab as vocab_lib
from bagpiper_jax.errors import UserError
from bagpiper_jax.inference import engine as engine_module
from bagpiper_jax.inference import sequences, steps
from bagpiper_jax.inference.engine import Engine
from bagpiper_jax.inference.requests import Generated, Request
from bagpiper_jax.inference.sampling import Sampling, choose
from bagpiper_jax.inference.served_model import ServedModel
from bagpiper_jax.sharding import make_mesh, parameter_shardings
from bagpiper_jax.trees import dotted, set_leaves

PLACES = 4
WARM = Sampling(temperature=1.0, top_k=8, cfg=1.0, min_rows=2, max_rows=20)
GUIDED = dataclasses.replace(WARM, cfg=2.0, top_p=0.9)


@pytest.fixture(scope="module")
def model(make_model):
    """With end tokens that come now and then, so that answers are of all lengths."""
    model = clear_model(make_model)
    ends = jnp.array([vocab_lib.EOS, vocab_lib.EOT])
    model.lm_head[...] = model.lm_head[...].at[ends].mul(1.5)
    return model


@pytest.fixture(scope="module")
def engine(model):
    """Idle before and after each test."""
    return Engine(model, max_sequences=PLACES)


@pytest.fixture(scope="module")
def requests(model):
    """Prompts, plans and settings of all kinds, and a seed for each."""
    bell, clip, system, codes = prompts(model.config.vocab)
    cold = dataclasses.replace(WARM, temperature=0.0, min_rows=9)
    asked = [
        ask(bell, WARM, "text"),
        ask(clip, GUIDED, "text"),
        ask(system, WARM, "audio"),
        ask(codes, GUIDED, "audio"),
        ask(bell, dataclasses.replace(GUIDED, max_rows=40), "text", "audio"),
        ask(clip, dataclasses.replace(WARM, max_rows=70), "audio", "text"),
        ask(codes, GUIDED, hypotheses=2),
        ask(system, WARM, hypotheses=3),
        ask(bell, cold, "audio"),
    ]
    return [dataclasses.replace(request, seed=i % 4) for i, request in enumerate(asked)]


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


# the distribution that is sampled


@pytest.fixture(scope="module")
def many(model):
    return Engine(model, max_sequences=2048)


def exact(logits, settings):
    """Probabilities [..., n] of tokens whose logits [..., n] are mixed; −inf is not allowed."""
    order = np.argsort(-logits, axis=-1, kind="stable")
    ranked = np.take_along_axis(logits, order, -1) / settings.temperature
    ranked[..., settings.top_k or None :] = -np.inf if settings.top_k else 0
    p = np.exp(ranked - ranked[..., :1])
    p /= p.sum(-1, keepdims=True)
    p[np.cumsum(p, -1) - p >= settings.top_p] = 0
    p /= p.sum(-1, keepdims=True)
    out = np.zeros_like(p)
    np.put_along_axis(out, order, p, -1)
    return out


def logits_of(model, context, rows):
    """The model's logits of all streams at each generated row, float64 [R, n, K, V]."""
    count, length, streams = rows.shape
    tokens = np.concatenate([np.repeat(context[None], count, 0), rows[:, :-1]], axis=1)
    positions = np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape[:2])

    @jax.jit
    def run(tokens, positions):
        hidden = model.decode(model.embed(tokens), positions, jnp.ones_like(positions))
        shared, offsets = model.logits(hidden[:, -length:])
        return shared, offsets

    shared, offsets = (np.asarray(x, np.float64) for x in run(tokens, positions))
    return shared[:, :, None] + offsets


@pytest.mark.parametrize("cfg", [1.0, 2.0])
@pytest.mark.parametrize("modality", ["text", "audio"])
def test_samples_follow_the_model(model, many, requests, modality, cfg):
    """Every row and stream of many hypotheses against the exact distribution of the uncached model.

    A token's place in its distribution, spread evenly over its probability, is uniform.
    """
    vocab, rows_of = model.config.vocab, 5
    settings = Sampling(3.0, 12, cfg, min_rows=9, max_rows=13, top_p=0.95)
    prompt, hypotheses = requests[0].prompt, 1000
    request = ask(prompt, settings, modality, hypotheses=hypotheses, seed=11)
    (answer,) = many.generate([request])
    rows = np.stack([messages[0].rows[:rows_of] for messages in answer])
    marker = np.zeros((1, vocab.num_streams), np.int32)
    marker[0, 0] = vocab_lib.MODALITIES[modality]
    context = np.concatenate([prompt.tokens, marker])
    logits = logits_of(model, context, rows)
    if cfg != 1:
        logits = cfg * logits + (1 - cfg) * logits_of(model, np.zeros_like(context), rows)
    rng = np.random.default_rng(0)
    for k in range(1 if modality == "text" else vocab.num_streams):
        start, stop = vocab.stream_range(k)
        start, stop = (
            (vocab.text_start, vocab.codec_start) if modality == "text" else (start + 1, stop)
        )
        p = exact(logits[:, k:, k, start:stop], settings)
        token = rows[:, k:, k] - start
        assert (token >= 0).all() and (token < stop - start).all()
        mine = np.take_along_axis(p, token[..., None], -1)[..., 0]
        assert (mine > 0).all()  # inside top-k and top-p
        below = np.where(np.arange(p.shape[-1]) < token[..., None], p, 0).sum(-1)
        place = below + rng.random(mine.shape) * mine
        counts = np.histogram(place, 20, (0, 1))[0]
        assert stats.chisquare(counts).pvalue > 1e-3, (k, counts)
        # the first row, token by token
        want = p[0, 0] * hypotheses
        seen = np.bincount(token[:, 0], minlength=len(want))
        if k == 0:
            assert len(seen[want > 0]) > 2
            assert stats.chisquare(seen[want > 0], want[want > 0]).pvalue > 1e-3


def test_noise_of_a_candidate_does_not_depend_on_the_bound():
    """A row's token is the same beside rows that take more candidates, or all of them."""
    logits = jax.random.normal(jax.random.key(0), (100, 3, 100))
    keys = jax.random.split(jax.random.key(1), 100)
    settings = [jnp.full(100, x) for x in (1.0, 20, 0.95)]
    pick = jax.jit(choose, static_argnames=("bound", "nucleus"))
    tokens = [np.asarray(pick(logits, keys, *settings, bound=b, nucleus=True)) for b in (20, 64, 0)]
    assert len(np.unique(tokens[0])) > 50
    for other in tokens[1:]:
        np.testing.assert_array_equal(other, tokens[0])


# other layouts of the weights


@pytest.mark.parametrize("sizes", [{"tensor": 2}, {"fsdp": 2, "tensor": 2}])
def test_a_mesh_changes_nothing(model, engine, requests, sizes):
    count = int(np.prod(list(sizes.values())))
    mesh = make_mesh(sizes, jax.devices()[:count])
    settings = Sampling(temperature=0.0, top_k=20, cfg=3.0, min_rows=8, max_rows=10)
    asked = [ask(r.prompt, settings, m) for r, m in zip(requests[:4], ("text", "audio") * 2)]
    expected = engine.generate(asked)
    split = nnx.clone(model)
    weights = {path: leaf[...] for path, leaf in dotted(nnx.state(model)).items()}
    shardings = parameter_shardings(mesh, {path: x.shape for path, x in weights.items()})
    set_leaves(split, jax.device_put(weights, shardings))
    spread = Engine(split, mesh=mesh)
    for ours, theirs in zip(spread.generate(asked), expected):
        assert same(ours, theirs)
    assert len(spread._batch._params["text_head"][...].sharding.device_set) == count


def test_a_mesh_that_splits_a_head_is_told(model):
    mesh = make_mesh({"tensor": 4}, jax.devices()[:4])
    with pytest.raises(UserError, match="tensor=4 does not divide the 2 key/value heads"):
        Engine(model, mesh=mesh)


def test_int8_is_near(tiny_model, requests):
    pytest.importorskip("qwix", reason="the extra int8")
    tokens = jnp.asarray(requests[1].prompt.tokens)[None]

    def logits(quantize):
        served = ServedModel(tiny_model, quantize)
        empty = [
            steps.LayerCache.empty(tiny_model.config.decoder, 1, tokens.shape[1], jnp.float32)
            for _ in served.layers
        ]
        hidden, _ = served.extend(served.embed(tokens), empty, jnp.zeros(1, jnp.int32))
        return served, np.asarray(served.text_logits(hidden[0]))

    served, ours = logits("int8")
    _, theirs = logits(None)
    error = np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)
    assert 0 < error < 0.02, error
    attention = served.layers[0].self_attn
    assert attention.q_proj.kernel.dtype == jnp.int8 and attention.q_norm.weight.dtype != jnp.int8
    # an engine of it answers, and reads less of the layers
    small = Engine(tiny_model, quantize="int8")
    (message,) = small.generate([requests[0]])[0][0]
    assert len(message.rows) and small.row_bytes("text") < Engine(tiny_model).row_bytes("text")


def test_int8_is_read_at_every_row(tiny_model):
    """The compiler must not widen the kernels once, before the loop: then none would be saved."""
    pytest.importorskip("qwix", reason="the extra int8")
    graph, state = nnx.split(ServedModel(tiny_model, "int8"))

    @jax.jit
    def loop(state, x):
        layer = nnx.merge(graph, state).layers[0]
        return jax.lax.fori_loop(0, 9, lambda _, x: x + layer.mlp(x), x)

    program = loop.lower(state, jnp.ones((1, 1, 32))).compile().as_text()
    whiles = [line for line in program.splitlines() if " while(" in line]
    assert whiles and all("s8[32,48]" in line and "f32[32,48]" not in line for line in whiles)


def test_quantisation_that_is_not_there_is_told(model, monkeypatch):
    with pytest.raises(UserError, match="no quantisation 'int3': choose int8"):
        ServedModel(model, "int3")
    monkeypatch.setitem(sys.modules, "qwix", None)
    with pytest.raises(UserError, match=r"pip install 'bagpiper_jax\[int8\]'"):
        ServedModel(model, "int8")
