"""The fused head against its definition: expanded hidden states, two softmaxes, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bagpiper_jax.ops.fused_cross_entropy import HeadShape, fused_cross_entropy
from bagpiper_jax.ops.stream_log_sum_exp import (
    make_offsets,
    stream_gradients,
    stream_log_sum_exp,
)

STREAMS, STREAM_SIZE, TEXT = 4, 17, 60
VOCAB = TEXT + STREAMS * STREAM_SIZE


def reference(hidden, targets, mask, weights, head, stream_emb, z_loss):
    """Loss, its gradients, cross-entropy and log-sum-exp [N, K], by definition in float64."""
    hidden, weights, head, stream_emb = (
        np.asarray(x, np.float64) for x in (hidden, weights, head, stream_emb)
    )
    targets, mask = np.asarray(targets)[..., None], np.asarray(mask)
    stream_emb[0] = 0
    expanded = hidden[:, None] + stream_emb[None]
    logits = expanded @ head[:VOCAB].T
    logits[:, 1:, :TEXT] = -np.inf  # only stream 0 has text
    lse = np.logaddexp.reduce(logits, axis=-1)
    ce = np.where(mask, lse - np.take_along_axis(logits, targets, axis=-1)[..., 0], 0)
    lse_masked = np.where(mask, lse, 0)
    loss = (weights * ce + z_loss * lse_masked**2).sum()
    weights = np.where(mask, weights, 0)[..., None]
    d_logits = np.exp(logits - lse[..., None]) * (weights + 2 * z_loss * lse_masked[..., None])
    at = np.take_along_axis(d_logits, targets, axis=-1)
    np.put_along_axis(d_logits, targets, at - weights, axis=-1)
    d_head = np.zeros_like(head)
    d_head[:VOCAB] = np.einsum("nkv,nkd->vd", d_logits, expanded)
    d_expanded = d_logits @ head[:VOCAB]
    d_emb = d_expanded.sum(0)
    d_emb[0] = 0
    return loss, (d_expanded.sum(1), d_head, d_emb), ce, lse_masked


def case(seed, rows=50, scale=1.0, emb_scale=1.0, dim=16, padding=11):
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=(rows, dim)) * scale
    head = rng.normal(size=(VOCAB + padding, dim))
    stream_emb = rng.normal(size=(STREAMS, dim)) * emb_scale
    targets = np.zeros((rows, STREAMS), np.int32)
    targets[:, 0] = rng.integers(0, VOCAB, rows)
    starts = TEXT + np.arange(STREAMS) * STREAM_SIZE
    targets[:, 1:] = starts[1:] + rng.integers(0, STREAM_SIZE, (rows, STREAMS - 1))
    mask = rng.random((rows, STREAMS)) < 0.7
    targets[~mask] = 0  # as in a batch: id 0 where there is no target
    to32 = lambda x: jnp.asarray(x, jnp.float32)  # noqa: E731
    return to32(hidden), jnp.asarray(targets), jnp.asarray(mask), to32(head), to32(stream_emb)


def fused(hidden, targets, mask, weights, head, stream_emb, *, chunk=1024, batch=2, z_loss=0.0):
    """The op on rows of a batch: (loss, `HeadLoss` of [N, K])."""
    rows = lambda x: x.reshape(batch, -1, x.shape[-1])  # noqa: E731
    shape = HeadShape(VOCAB, TEXT, STREAM_SIZE, z_loss, chunk)
    inputs = map(rows, (hidden, targets, mask, weights))
    loss, out = fused_cross_entropy(*inputs, head, stream_emb, shape)
    return loss, jax.tree.map(lambda x: x.reshape(-1, x.shape[-1]), out)


# large scales make the softmaxes of different streams peak in different places, far apart
SCALES = [(0.3, 0.0), (1.0, 1.0), (1.0, 8.0), (8.0, 8.0), (30.0, 30.0), (100.0, 0.1)]


# more padding than a 64th of the head is cut off before the products, less goes through them
@pytest.mark.parametrize("chunk,padding", [(1024, 11), (16, 11), (1024, 0), (16, 1)])
@pytest.mark.parametrize("scale,emb_scale", SCALES)
def test_values_and_gradients_agree_with_float64(scale, emb_scale, chunk, padding):
    inputs = case(0, scale=scale, emb_scale=emb_scale, padding=padding)
    hidden, targets, mask, head, stream_emb = inputs
    weights = jax.random.uniform(jax.random.key(1), mask.shape)

    def fused_loss(hidden, head, stream_emb):
        loss, out = fused(
            hidden, targets, mask, weights, head, stream_emb, chunk=chunk, z_loss=1e-3
        )
        return 2 * loss, out  # a scale, so that the cotangent is not one

    (value, out), grads = jax.value_and_grad(fused_loss, argnums=(0, 1, 2), has_aux=True)(
        hidden, head, stream_emb
    )
    loss, want, ce, lse = reference(hidden, targets, mask, weights, head, stream_emb, 1e-3)
    # float32 rounds logits of hundreds by some 3e-5, which exponentials make a relative error
    tolerance = 5e-5 if scale == 100 else 1e-5

    def assert_near(mine, wanted, largest):
        np.testing.assert_allclose(mine, wanted, rtol=0, atol=tolerance * np.abs(largest).max())

    assert_near(value, 2 * loss, 2 * loss)
    assert_near(out.cross_entropy, ce, lse)  # a difference of two of lse's size
    assert_near(out.log_sum_exp, lse, lse)
    for mine, wanted in zip(grads, want, strict=True):
        assert_near(mine, 2 * wanted, 2 * wanted)
    assert not grads[1][VOCAB:].any()
    only = fused(hidden, targets, mask, weights, head, stream_emb, chunk=chunk, z_loss=1e-3)
    np.testing.assert_allclose(2 * only[0], value, rtol=1e-6)  # without gradients: the same


def test_masked_targets_and_their_weights_may_be_anything():
    hidden, targets, mask, *tables = case(5)
    weights = jax.random.uniform(jax.random.key(1), mask.shape)

    def values_and_gradients(targets, weights):
        return jax.value_and_grad(
            lambda *x: fused(x[0], targets, mask, weights, *x[1:]), (0, 1, 2), has_aux=True
        )(hidden, *tables)

    want = values_and_gradients(targets, weights)
    for target in (VOCAB, VOCAB + 11, -1, 2**31 - 1):
        others = jnp.where(mask, targets, target), jnp.where(mask, weights, jnp.nan)
        jax.tree.map(np.testing.assert_array_equal, values_and_gradients(*others), want)


def log_sum_exps(logits, offsets, wanted, grad):
    """Values, gradients of their weighed sum, and whether the factorised form was taken."""
    added = make_offsets(offsets)
    values, sums = stream_log_sum_exp(logits, added, wanted)
    grads = stream_gradients(sums, added, values, jnp.where(wanted, grad, 0))
    return jnp.where(wanted, values, 0), grads, bool(sums.trusted)


def plain_log_sum_exps(logits, offsets, wanted, grad):
    def values(logits, offsets):
        return jnp.where(wanted, jax.nn.logsumexp(logits[:, None] + offsets[None], axis=-1), 0)

    grads = jax.grad(lambda *x: (grad * values(*x)).sum(), (0, 1))(logits, offsets)
    return values(logits, offsets), grads


@pytest.mark.parametrize(
    "apart,factorised", [(0.0, True), (60.0, True), (80.0, False), (400.0, False)]
)
def test_maxima_that_do_not_meet(apart, factorised):
    """The offsets vanish where the logits peak: the factorised sum underflows, not the result."""
    logits = jnp.linspace(0, 1, 3 * 16).reshape(3, 16).at[:, 0].set(apart)
    offsets = jnp.zeros((2, 16)).at[1, 0].set(-2 * apart)
    wanted = jnp.ones((3, 2), bool)
    grad = jax.random.normal(jax.random.key(0), wanted.shape)
    values, grads, taken = log_sum_exps(logits, offsets, wanted, grad)
    assert taken == factorised
    want, want_grads = plain_log_sum_exps(logits, offsets, wanted, grad)
    np.testing.assert_allclose(values, want, rtol=1e-6)
    for mine, other in zip(grads, want_grads, strict=True):
        np.testing.assert_allclose(mine, other, atol=1e-5)


def test_rows_that_are_not_wanted_do_not_slow_the_others():
    logits = jnp.linspace(0, 1, 3 * 16).reshape(3, 16).at[1, 0].set(300.0)
    offsets = jnp.linspace(0, 1, 2 * 16).reshape(2, 16).at[1, 0].set(-400.0)
    wanted = jnp.ones((3, 2), bool).at[1, 1].set(False)
    grad = jax.random.normal(jax.random.key(0), wanted.shape)
    values, grads, taken = log_sum_exps(logits, offsets, wanted, grad)
    assert taken
    assert not log_sum_exps(logits, offsets, jnp.ones((3, 2), bool), grad)[2]
    want, want_grads = plain_log_sum_exps(logits, offsets, wanted, grad)
    np.testing.assert_allclose(values, want, rtol=1e-6)
    for mine, other in zip(grads, want_grads, strict=True):
        np.testing.assert_allclose(mine, other, atol=5e-5)  # exponents of 300


def test_accuracy_counts_targets_that_are_most_likely():
    hidden, targets, mask, head, stream_emb = case(3)
    _, out = fused(hidden, targets, mask, mask, head, stream_emb)
    assert out.correct.shape == targets.shape
    best0 = jnp.argmax(hidden @ head[:VOCAB].T, axis=-1)
    np.testing.assert_array_equal(out.correct[:, 0] > 0, (best0 == targets[:, 0]) & mask[:, 0])
    for k in range(1, STREAMS):
        start = TEXT + k * STREAM_SIZE
        logits = (hidden + stream_emb[k]) @ head[start : start + STREAM_SIZE].T
        right = (logits.argmax(-1) + start == targets[:, k]) & mask[:, k]
        np.testing.assert_array_equal(out.correct[:, k] > 0, right)


def test_no_array_of_rows_by_vocabulary_survives_chunking():
    """The largest array of the compiled loss and its gradient holds one chunk of logits."""
    rows, chunk = 4096, 64
    hidden, targets, mask, head, stream_emb = case(0, rows=rows)

    def temporaries(chunk):
        def loss(hidden, head, stream_emb):
            return fused(hidden, targets, mask, mask, head, stream_emb, chunk=chunk)[0]

        compiled = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(hidden, head, stream_emb)
        return compiled.compile().memory_analysis().temp_size_in_bytes

    assert temporaries(chunk) < temporaries(rows) / 4
