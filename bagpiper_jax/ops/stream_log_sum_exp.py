"""Log-sum-exps of all streams over the codec range, from one set of logits.

The logits of stream k are L + c_k with c_k = W·s_k, the same for every row. So the log-sum-exp
factorises, Σ_v exp(L_v + c_kv) = Σ_v exp(L_v) · exp(c_kv): the exponentials of the logits are taken
once and multiplied with those of the offsets, which are taken once for all rows. Each factor is
divided by its largest value; where the two peak so far apart that a sum all but vanishes, the plain
form is used, for the whole chunk and at K times the exponentials. A trained mini model's are 16
nats apart at most, of the 69 that may be.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

# of terms that are at most one; each may lose 1e-38 to underflow, 1e-4 of such a sum of 8,200
_TINY = 1e-30
# else TPUs and GPUs round the exponentials, and a probability may come out above one
_HIGHEST = jax.lax.Precision.HIGHEST


class Offsets(NamedTuple):
    """What the streams add to every row's logits, and its factors; `make_offsets` makes it.

    Attributes:
      values: float32 [K, Vc], c.
      largest: [K], its maxima q.
      exp: [K, Vc], exp(c − q).
    """

    values: jax.Array
    largest: jax.Array
    exp: jax.Array


class Sums(NamedTuple):
    """What the gradient needs of a chunk of n rows.

    Attributes:
      logits: float32 [n, Vc], L.
      largest: [n], its maxima m.
      exp: [n, Vc], exp(L − m).
      trusted: bool, whether no wanted sum of products vanished.
    """

    logits: jax.Array
    largest: jax.Array
    exp: jax.Array
    trusted: jax.Array


def make_offsets(values: jax.Array) -> Offsets:
    """Factors of the streams' offsets c [K, Vc]; zero for stream 0."""
    largest = values.max(-1)
    return Offsets(values, largest, jnp.exp(values - largest[:, None]))


def stream_log_sum_exp(
    logits: jax.Array, added: Offsets, wanted: jax.Array
) -> tuple[jax.Array, Sums]:
    """log Σ_v exp(logits[n, v] + c[k, v]) for every row and stream.

    Args:
      logits: float32 [n, Vc], codec range of W·h.
      added: of the codec range of W·s_k.
      wanted: bool [n, K]; the others may be anything.

    Returns:
      (float32 [n, K], what `stream_gradients` needs).
    """
    largest = logits.max(-1)
    exp = jnp.exp(logits - largest[:, None])
    products = jnp.einsum("nv,kv->nk", exp, added.exp, precision=_HIGHEST)
    trusted = jnp.all((products > _TINY) | ~wanted)

    def factorised():
        return jnp.log(jnp.maximum(products, _TINY)) + largest[:, None] + added.largest

    def plain():
        return jax.lax.map(lambda c: jax.nn.logsumexp(logits + c, axis=-1), added.values).T

    total = jax.lax.cond(trusted, factorised, plain)
    return total, Sums(logits, largest, exp, trusted)


def stream_gradients(
    sums: Sums, added: Offsets, log_sum_exp: jax.Array, grad: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Gradients of Σ grad · log-sum-exp.

    Args:
      sums: of `stream_log_sum_exp`.
      added: the same as there.
      log_sum_exp: [n, K], as it came from there or, where other ids count too, larger.
      grad: [n, K]; zero where it was not wanted.

    Returns:
      (with respect to logits, [n, Vc]; to the offsets, [K, Vc]), float32.
    """

    def factorised():
        # softmax = exp(L − m) · exp(c − q) · scale, and scale is at most 1 / _TINY where wanted
        scale = jnp.exp(sums.largest[:, None] + added.largest - log_sum_exp)
        weighted = grad * scale
        of_logits = jnp.einsum("nk,kv->nv", weighted, added.exp, precision=_HIGHEST)
        of_offsets = jnp.einsum("nk,nv->kv", weighted, sums.exp, precision=_HIGHEST)
        return sums.exp * of_logits, added.exp * of_offsets

    def plain():
        def add(d_logits, stream):
            offset, lse, g = stream
            p = g[:, None] * jnp.exp(sums.logits + offset - lse[:, None])
            return d_logits + p, p.sum(0)

        zeros = jnp.zeros_like(sums.logits)
        return jax.lax.scan(add, zeros, (added.values, log_sum_exp.T, grad.T))

    return jax.lax.cond(sums.trusted, factorised, plain)
