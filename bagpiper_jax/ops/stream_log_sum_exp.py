"""Log-sum-exps of all streams over the codec range, from one set of logits.

The logits of stream k are L + c_k with c_k = W·s_k, the same for every row. So the log-sum-exp
factorises, Σ_v exp(L_v + c_kv) = Σ_v exp(L_v) · exp(c_kv): the exponentials of the logits are taken
once and multiplied with a [codec, K] matrix. Maxima are taken per stream range on both factors
and the ranges combined in log space; where a sum still vanishes, the plain form is used.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

# below this a factorised sum has lost its precision to underflow
_TINY = 1e-30


def _factors(logits, offsets, ranges):
    """exp(L − m) [n, J, R], m [n, J], exp(c − q) [K, J, R], q [K, J] over J ranges of R ids."""
    split_l = logits.reshape(len(logits), ranges, -1)
    split_c = offsets.reshape(len(offsets), ranges, -1)
    max_l, max_c = split_l.max(-1), split_c.max(-1)
    return jnp.exp(split_l - max_l[..., None]), max_l, jnp.exp(split_c - max_c[..., None]), max_c


def _factorised(exp_l, max_l, exp_c, max_c):
    """Log-sum-exp [n, K], and the smallest scaled sum, which tells whether to trust it."""
    sums = jnp.einsum("njr,kjr->nkj", exp_l, exp_c)
    shift = max_l[:, None] + max_c[None]
    # a range whose sum vanished matters only if no other range outweighs what it may have lost
    logs = jnp.log(jnp.maximum(sums, _TINY)) + shift
    total = jax.nn.logsumexp(logs, axis=-1)
    lost = jnp.where(sums < _TINY, logs, -jnp.inf).max(-1)
    return total, jnp.all(lost < total - 20.0)


def _plain(logits, offsets):
    return jax.lax.map(lambda c: jax.nn.logsumexp(logits + c, axis=-1), offsets).T


@jax.custom_vjp
def stream_log_sum_exp(logits: jax.Array, offsets: jax.Array) -> jax.Array:
    """log Σ_v exp(logits[n, v] + offsets[k, v]) for every row and stream.

    Args:
      logits: float32 [n, Vc], codec range of W·h. Vc is split into K equal ranges, the streams',
        for the maxima.
      offsets: float32 [K, Vc], codec range of W·s_k; zero for stream 0.

    Returns:
      float32 [n, K].
    """
    return _forward(logits, offsets)[0]


def _forward(logits, offsets):
    factors = _factors(logits, offsets, len(offsets))
    total, trusted = _factorised(*factors)
    total = jax.lax.cond(trusted, lambda: total, lambda: _plain(logits, offsets))
    return total, (logits, offsets, factors, total, trusted)


def _backward(saved, grad):
    logits, offsets, (exp_l, max_l, exp_c, max_c), total, trusted = saved

    def factorised():
        # softmax = exp_l · exp_c · scale; the scale may be large only where the others are small
        scale = jnp.exp(max_l[:, None] + max_c[None] - total[..., None])
        weighted = grad[..., None] * scale
        d_logits = exp_l * jnp.einsum("nkj,kjr->njr", weighted, exp_c)
        d_offsets = exp_c * jnp.einsum("nkj,njr->kjr", weighted, exp_l)
        return d_logits.reshape(logits.shape), d_offsets.reshape(offsets.shape)

    def plain():
        def add(d_logits, stream):
            offset, lse, g = stream
            p = g[:, None] * jnp.exp(logits + offset - lse[:, None])
            return d_logits + p, p.sum(0)

        zeros = jnp.zeros_like(logits)
        return jax.lax.scan(add, zeros, (offsets, total.T, grad.T))

    return jax.lax.cond(trusted, factorised, plain)


stream_log_sum_exp.defvjp(_forward, _backward)
