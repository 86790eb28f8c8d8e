"""Backends of causal attention against the plain formula, alone and on a mesh; their choice."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AbstractDevice, AbstractMesh, Mesh

from bagpiper_jax.errors import UserError
from bagpiper_jax.ops import attention, flash_attention
from bagpiper_jax.ops.flash_attention import causal_attention

DIM = 128
CPU_BACKENDS = ("xla", "splash")


def plain(q, k, v, segments):
    """softmax(q kᵀ / √H + mask) v over the full square, every head written out."""
    length, share = q.shape[1], q.shape[2] // k.shape[2]
    k, v = (jnp.repeat(x, share, axis=2) for x in (k, v))
    scores = jnp.einsum("btnh,bsnh->bnts", q, k) / np.sqrt(q.shape[-1])
    slots = np.arange(length)
    seen = (segments[:, :, None] == segments[:, None, :]) & (slots <= slots[:, None])
    weights = jax.nn.softmax(jnp.where(seen[:, None], scores, -jnp.inf), axis=-1)
    return jnp.einsum("bnts,bsnh->btnh", weights, v)


def packed(batch, length, seed=0):
    """Segment ids of rows with three examples each, of any lengths, then padding."""
    rng = np.random.default_rng(seed)
    ends = np.sort(rng.choice(np.arange(1, length), (batch, 3), replace=False))
    ids = 1 + (np.arange(length)[None, :, None] >= ends[:, None]).sum(-1)
    return np.where(ids > 3, 0, ids).astype(np.int32)


def heads(batch, length, queries, groups, seed=0, dim=DIM):
    rng = np.random.default_rng(seed)
    shape = lambda n: (batch, length, n, dim)  # noqa: E731
    return [rng.standard_normal(shape(n), dtype=np.float32) for n in (queries, groups, groups)]


def with_gradients(attend, q, k, v, segments):
    """Output and gradients of a random sum of it, all zero on padding."""
    valid = (segments > 0)[..., None, None]
    weights = np.random.default_rng(9).standard_normal(q.shape, dtype=np.float32) * valid

    @jax.jit
    def run(q, k, v, segments):
        out, pull = jax.vjp(lambda *x: attend(*x, segments), q, k, v)
        return out, *pull(weights.astype(out.dtype))

    return [np.asarray(x, np.float32) * valid for x in run(q, k, v, segments)]


def assert_close(found, expected, tolerance=1e-5):
    for name, a, b in zip(("output", "dq", "dk", "dv"), found, expected):
        assert np.abs(a - b).max() <= tolerance * np.abs(b).max(), name


def cube():
    return Mesh(np.array(jax.devices()[:8]).reshape(2, 2, 2), ("replica", "fsdp", "tensor"))


def on_cpu(backend):
    return lambda *x: causal_attention(*x, backend=backend, interpret=True)


@pytest.mark.parametrize("length,groups", [(128, 2), (256, 1), (384, 2)])
@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_backend_is_the_plain_formula(backend, length, groups):
    """384 positions are three blocks of splash, the others one."""
    inputs = *heads(2, length, 4, groups), packed(2, length)
    assert_close(with_gradients(on_cpu(backend), *inputs), with_gradients(plain, *inputs))


@pytest.mark.skipif(
    jax.default_backend() != "gpu",
    reason="cuDNN needs a GPU: there, pytest --noconftest -k cudnn tests/test_attention.py",
)
@pytest.mark.parametrize("length,groups", [(128, 2), (256, 1)])
def test_cudnn_is_the_plain_formula(length, groups):
    *qkv, segments = *heads(2, length, 4, groups), packed(2, length)
    half = [x.astype(jnp.bfloat16) for x in qkv]
    exact = with_gradients(plain, *(x.astype(np.float32) for x in half), segments)
    assert_close(with_gradients(on_cpu("cudnn"), *half, segments), exact, 0.02)
    assert_close(with_gradients(on_cpu("auto"), *half, segments), exact, 0.02)


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_padding_gives_finite_numbers(backend):
    """A row of padding alone, and losses that reach it."""
    q, k, v = heads(2, 128, 2, 1)
    segments = packed(2, 128)
    segments[1] = 0

    @jax.jit
    def run(q, k, v):
        out, pull = jax.vjp(lambda *x: on_cpu(backend)(*x, segments), q, k, v)
        return out, pull(out)

    assert all(np.isfinite(x).all() for x in jax.tree.leaves(run(q, k, v)))


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_a_mesh_changes_nothing(backend):
    inputs = *heads(4, 128, 4, 2), packed(4, 128)
    expected = with_gradients(plain, *inputs)
    with jax.set_mesh(cube()):
        assert_close(with_gradients(on_cpu(backend), *inputs), expected)


@pytest.mark.parametrize("length", [100, 1100])
def test_blocks_need_not_divide_the_length(length):
    """Blocks of 64 positions, then of 128."""
    *qkv, segments = *heads(1, length, 2, 1, dim=8), packed(1, length)
    out, expected = jax.jit(on_cpu("xla"))(*qkv, segments), plain(*qkv, segments)
    assert_close([out[segments > 0]], [expected[segments > 0]])


def test_long_rows_have_few_blocks():
    shape = jax.ShapeDtypeStruct((1, 8192, 2, 8), jnp.float32)
    segments = jax.ShapeDtypeStruct((1, 8192), jnp.int32)
    traced = jax.make_jaxpr(attention.causal_attention)(shape, shape, shape, segments)
    products = [e for e in traced.eqns if e.primitive.name == "dot_general"]
    assert len(products) == 2 * 16


@pytest.fixture(scope="module")
def compiled():
    """Of one shape, so that the examples of a property compile nothing."""
    return {backend: jax.jit(on_cpu(backend)) for backend in CPU_BACKENDS}


@pytest.mark.parametrize("backend", CPU_BACKENDS)
@given(seed=st.integers(0, 2**32 - 1), changed=st.integers(0, 3), size=st.sampled_from([1.0, 1e3]))
@settings(max_examples=15)
def test_segments_do_not_meet(compiled, backend, seed, changed, size):
    """Whatever stands in another segment, or in padding: not a bit of this one changes."""
    inputs, segments = heads(1, 128, 2, 1, seed), packed(1, 128, seed)
    other, rest = segments == changed, (segments != changed) & (segments > 0)
    before = np.asarray(compiled[backend](*inputs, segments))
    noise = heads(1, 128, 2, 1, seed + 1)
    new = [np.where(other[..., None, None], size * n, x) for n, x in zip(noise, inputs)]
    after = np.asarray(compiled[backend](*new, segments))
    np.testing.assert_array_equal(after[rest], before[rest])


def abstract_mesh(device):
    mesh = AbstractMesh((4,), ("fsdp",), abstract_device=device)
    return jax.sharding.use_abstract_mesh(mesh)


def test_the_fastest_backend_follows_the_mesh():
    assert flash_attention.fastest_backend() == "xla"
    with jax.set_mesh(Mesh(np.array(jax.devices()[:2]), ("fsdp",))):
        assert flash_attention.fastest_backend() == "xla"
        assert jax.jit(lambda: flash_attention.fastest_backend() == "xla")()  # in a trace too
    for platform, backend in (("tpu", "splash"), ("gpu", "cudnn"), ("cpu", "xla")):
        with abstract_mesh(AbstractDevice("a kind", None, platform=platform)):
            assert flash_attention.fastest_backend() == backend
    with abstract_mesh(None), pytest.raises(UserError, match="choose one of xla, splash, cudnn"):
        flash_attention.fastest_backend()


@pytest.mark.parametrize(
    "platform,rows,length,dim,dtype,chosen",
    [
        ("tpu", 4, 256, 64, "float32", "splash"),
        ("tpu", 4, 200, 64, "bfloat16", "xla"),
        ("tpu", 3, 256, 64, "bfloat16", "xla"),  # the mesh has four groups
        ("gpu", 4, 200, 64, "bfloat16", "cudnn"),
        ("gpu", 4, 256, 64, "float32", "xla"),
        ("gpu", 4, 201, 64, "bfloat16", "xla"),
        ("gpu", 4, 256, 12, "bfloat16", "xla"),
        ("gpu", 3, 256, 64, "bfloat16", "xla"),
        ("cpu", 3, 201, 12, "float32", "xla"),
    ],
)
def test_auto_takes_what_the_fastest_backend_refuses(
    platform, rows, length, dim, dtype, chosen, monkeypatch
):
    """Neither kernel can be traced for a machine without its device: names stand for them."""
    for name in ("splash", "cudnn"):
        monkeypatch.setattr(flash_attention, f"{name}_attention", lambda *_, name=name, **__: name)
    q = jax.ShapeDtypeStruct((rows, length, 2, dim), dtype)
    segments = jax.ShapeDtypeStruct((rows, length), jnp.int32)
    with abstract_mesh(AbstractDevice("a kind", None, platform=platform)):
        if chosen != "xla":
            assert causal_attention(q, q, q, segments) == chosen
            return
        with warnings.catch_warnings(record=True) as told:
            assert jax.eval_shape(causal_attention, q, q, q, segments).shape == q.shape
        texts = [str(w.message) for w in told]
        assert len(texts) == (platform != "cpu")  # there it is the fastest
        assert all("XLA computes attention instead, slower: " in text for text in texts)


@pytest.mark.parametrize(
    "backend,length,dim,dtype,message",
    [
        ("flash", 128, 128, "float32", "'flash' is none of auto, xla, splash, cudnn"),
        ("splash", 200, 128, "float32", "multiple of 128 positions, not 200"),
        ("cudnn", 128, 128, "float32", "bfloat16 or float16, not float32"),
        ("cudnn", 128, 12, "bfloat16", "a multiple of 8 up to 256 .*, not 12 and 128"),
        ("cudnn", 127, 64, "float16", "an even length, not 64 and 127"),
    ],
)
def test_what_a_backend_does_not_take(backend, length, dim, dtype, message):
    shape = jax.ShapeDtypeStruct((1, length, 1, dim), dtype)
    segments = jax.ShapeDtypeStruct((1, length), jnp.int32)
    with pytest.raises(UserError, match=message):
        jax.eval_shape(on_cpu(backend), shape, shape, shape, segments)


@pytest.mark.parametrize(
    "batch,groups,message",
    [(3, 2, "replica 2 × fsdp 2.* does not divide 3 rows"), (4, 1, "tensor 2.* 1 k/v heads")],
)
def test_what_a_mesh_does_not_divide(batch, groups, message):
    q, k, v = heads(batch, 128, 2, groups)
    with jax.set_mesh(cube()), pytest.raises(UserError, match=message):
        on_cpu("splash")(q, k, v, packed(batch, 128))
