"""The fused head against the plain form: expanded hidden states, two softmaxes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bagpiper_jax.ops.fused_cross_entropy import HeadShape, fused_cross_entropy
from bagpiper_jax.ops.stream_log_sum_exp import stream_log_sum_exp

STREAMS, STREAM_SIZE, TEXT = 4, 17, 60
VOCAB = TEXT + STREAMS * STREAM_SIZE


def plain(hidden, targets, mask, head, stream_emb):
    """Cross-entropy and log-sum-exp [N, K], written from the definition."""
    expanded = hidden[:, None] + stream_emb.at[0].set(0)[None]
    logits = jnp.einsum("nkd,vd->nkv", expanded, head[:VOCAB])
    in_codec = jnp.arange(VOCAB) >= TEXT
    allowed = jnp.stack([jnp.ones(VOCAB, bool)] + [in_codec] * (STREAMS - 1))
    logits = jnp.where(allowed, logits, -jnp.inf)
    lse = jax.nn.logsumexp(logits, axis=-1)
    at = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return jnp.where(mask, lse - at, 0), jnp.where(mask, lse, 0), logits.argmax(-1)


def case(seed, rows=50, scale=1.0, emb_scale=1.0, dim=16):
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=(rows, dim)) * scale
    head = rng.normal(size=(VOCAB + 11, dim))
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


@pytest.mark.parametrize("chunk", [1024, 16])
@pytest.mark.parametrize("scale,emb_scale", SCALES)
def test_values_and_gradients_agree_with_the_plain_form(scale, emb_scale, chunk):
    hidden, targets, mask, head, stream_emb = case(0, scale=scale, emb_scale=emb_scale)
    weights = jax.random.uniform(jax.random.key(1), mask.shape)

    def fused_loss(hidden, head, stream_emb):
        loss, out = fused(
            hidden, targets, mask, weights, head, stream_emb, chunk=chunk, z_loss=1e-3
        )
        return 2 * loss, out  # a scale, so that the cotangent is not one

    def plain_loss(hidden, head, stream_emb):
        ce, lse, _ = plain(hidden, targets, mask, head, stream_emb)
        return 2 * (weights * ce + 1e-3 * lse**2).sum()

    (value, out), grads = jax.value_and_grad(fused_loss, argnums=(0, 1, 2), has_aux=True)(
        hidden, head, stream_emb
    )
    ours = value, grads
    ce, lse, _ = plain(hidden, targets, mask, head, stream_emb)
    np.testing.assert_allclose(out.cross_entropy, ce, rtol=2e-5, atol=2e-5 * float(lse.max()))
    np.testing.assert_allclose(out.log_sum_exp, lse, rtol=2e-5)
    only = fused(hidden, targets, mask, weights, head, stream_emb, chunk=chunk, z_loss=1e-3)
    np.testing.assert_allclose(2 * only[0], value, rtol=1e-6)  # without gradients: the same
    theirs = jax.value_and_grad(plain_loss, argnums=(0, 1, 2))(hidden, head, stream_emb)
    np.testing.assert_allclose(ours[0], theirs[0], rtol=2e-5)
    for mine, other in zip(ours[1], theirs[1], strict=True):
        np.testing.assert_allclose(mine, other, rtol=2e-4, atol=2e-4 * float(jnp.abs(other).max()))


def test_adversarial_maxima_that_do_not_meet():
    """The offsets vanish where the logits peak: the factorised sum underflows, not the result."""
    logits = jnp.full((3, 2 * 8), -200.0).at[:, 0].set(0.0)
    offsets = jnp.zeros((2, 16)).at[1, 0].set(-400.0)
    want = jax.nn.logsumexp(logits[:, None] + offsets[None], axis=-1)
    got, grads = jax.vjp(stream_log_sum_exp, logits, offsets)
    np.testing.assert_allclose(got, want, rtol=1e-6)
    ours = grads(jnp.ones_like(got))
    plain_lse = lambda x, c: jax.nn.logsumexp(x[:, None] + c[None], axis=-1)  # noqa: E731
    theirs = jax.vjp(plain_lse, logits, offsets)[1](jnp.ones_like(got))
    for mine, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(mine, other, atol=1e-5)


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
