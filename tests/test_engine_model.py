"""The engine and its model: samples follow the distribution, on a mesh and in int8 too."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from generation import PLACES, ask, ending_model, same, varied_requests
from scipy import stats

from bagpiper_jax import vocab as vocab_lib
from bagpiper_jax.errors import UserError
from bagpiper_jax.inference import steps
from bagpiper_jax.inference.engine import Engine
from bagpiper_jax.inference.sampling import Sampling, choose
from bagpiper_jax.inference.served_model import ServedModel
from bagpiper_jax.sharding import make_mesh, parameter_shardings
from bagpiper_jax.trees import dotted, set_leaves


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
