"""Causal attention of packed rows: the kernels of TPUs and GPUs, and the choice among them.

Every backend computes `attention.causal_attention`, except on padding positions, whose outputs are
finite and otherwise without meaning.
"""

from __future__ import annotations

import math
import warnings

import jax
import jax.numpy as jnp

from bagpiper_jax.errors import UserError
from bagpiper_jax.ops import attention
from bagpiper_jax.sharding import on_mesh, partition

BACKENDS = ("auto", "xla", "splash", "cudnn")

PLATFORMS = {"splash": "tpu", "cudnn": "gpu"}  # of the backends that run on one alone
_FASTEST = {platform: backend for backend, platform in PLATFORMS.items()}


def causal_attention(
    q, k, v, segment_ids, *, backend: str = "auto", interpret: bool = False
) -> jax.Array:
    """Self-attention of packed rows: within an example, to itself and before.

    Args:
      q: [B, T, N, H].
      k, v: [B, T, G, H], N a multiple of G.
      segment_ids: int [B, T]; 0 is padding.
      backend: one of BACKENDS; "auto" is that of `fastest_backend`, or XLA, with a warning,
        for what it does not take.
      interpret: run the splash kernel as plain JAX, for tests without a TPU.

    Returns:
      [B, T, N, H] in the dtype of q.

    Raises:
      UserError: no such backend, or a named one that does not take these shapes or this dtype.
    """
    if backend == "auto":
        backend = fastest_backend()
        if reason := _refusal(backend, q, k):
            warnings.warn(f"XLA computes attention instead, slower: {reason}", stacklevel=2)
            backend = "xla"
    if backend == "xla":
        return attention.causal_attention(q, k, v, segment_ids)
    if backend == "splash":
        return splash_attention(q, k, v, segment_ids, interpret=interpret)
    if backend == "cudnn":
        return cudnn_attention(q, k, v, segment_ids)
    raise UserError(f"attention backend {backend!r} is none of {', '.join(BACKENDS)}")


def fastest_backend() -> str:
    """Splash on TPUs, cuDNN on GPUs, else XLA.

    The platform is that of the mesh in context, which may be one to compile for and not the one at
    hand, or that of JAX's default backend if `jax.set_mesh` has set no mesh.

    Raises:
      UserError: the mesh in context is an abstract one that does not say its devices.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return _FASTEST.get(jax.default_backend(), "xla")
    if mesh.abstract_device is None:
        raise UserError(
            "attention backend 'auto' needs a mesh with devices: "
            f"choose one of {', '.join(BACKENDS[1:])}"
        )
    return _FASTEST.get(mesh.abstract_device.platform, "xla")


def _refusal(backend: str, q, k) -> str:
    """Why a backend does not take these inputs on the mesh in context; empty if it does."""
    length, dim = q.shape[1], q.shape[-1]
    if backend == "splash" and length % 128:
        return (
            f"attention backend splash takes rows of a multiple of 128 positions, not {length}: "
            "choose another length or backend xla"
        )
    if backend == "cudnn" and q.dtype not in (jnp.bfloat16, jnp.float16):
        return (
            f"attention backend cudnn takes bfloat16 or float16, not {q.dtype}: "
            "choose another dtype or backend xla"
        )
    if backend == "cudnn" and (dim % 8 or dim > 256 or length % 2):
        return (
            "attention backend cudnn takes a head dim of a multiple of 8 up to 256 and an even "
            f"length, not {dim} and {length}: choose backend xla"
        )
    return "" if backend == "xla" else _undivided(q, k)


def _undivided(q, k) -> str:
    """What the mesh in context does not deal out evenly to its devices; empty if nothing."""
    mesh = jax.sharding.get_abstract_mesh()
    for axis, size, what in (("batch", q.shape[0], "rows"), ("heads", k.shape[2], "k/v heads")):
        names = partition(mesh, (axis,))[0] or ()
        names = (names,) if isinstance(names, str) else names
        if size % math.prod(mesh.shape[name] for name in names):
            shape = " × ".join(f"{name} {mesh.shape[name]}" for name in names)
            return (
                f"the mesh ({shape}) does not divide {size} {what}: "
                "choose smaller axes or attention backend xla"
            )
    return ""


def _must_take(backend: str, q, k) -> None:
    if reason := _refusal(backend, q, k):
        raise UserError(reason)


def splash_attention(q, k, v, segment_ids, *, interpret: bool = False) -> jax.Array:
    """`causal_attention` by the Pallas kernel for TPUs, which visits no block above the diagonal.

    Raises:
      UserError: T is not a multiple of 128, or the mesh in context does not divide B or G.
    """
    _must_take("splash", q, k)
    length, dim = q.shape[1], q.shape[-1]
    # half a second to import, of use on TPUs only
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    # 512 is MaxText's default; a block must divide the length
    block = math.gcd(length, 512)
    sizes = splash.BlockSizes(
        block_q=block,
        block_kv=block,
        block_q_dkv=block,
        block_kv_dkv=block,
        block_q_dq=block,
        block_kv_dq=block,
    )

    def attend(q, k, v, segment_ids):
        # built where it is used: its arrays belong to this trace, and its heads are this device's
        mask = splash.MultiHeadMask([splash.CausalMask((length, length))] * q.shape[2])
        kernel = splash.make_splash_mha(
            mask, block_sizes=sizes, head_shards=1, q_seq_shards=1, interpret=interpret
        )
        q, k, v = (x.transpose(0, 2, 1, 3) for x in (q * dim**-0.5, k, v))
        # padding is a segment like others, so that no softmax is over nothing
        out = jax.vmap(kernel)(q, k, v, splash.SegmentIds(segment_ids, segment_ids))
        return out.transpose(0, 2, 1, 3)

    return _on_each_device(attend, q, k, v, segment_ids)


def cudnn_attention(q, k, v, segment_ids) -> jax.Array:
    """`causal_attention` by the cuDNN kernel for NVIDIA GPUs.

    The segments go in as a bias [B, 1, T, T], so its memory grows with T², unlike splash's.

    Raises:
      UserError: q is not bfloat16 or float16, H is not a multiple of 8 up to 256 (before Hopper
        JAX takes 128 at most), T is odd, or the mesh in context does not divide B or G.
    """
    _must_take("cudnn", q, k)

    def attend(q, k, v, segment_ids):
        # padding attends to padding, so that no softmax is over masked scores alone
        mask = segment_ids[:, None, :, None] == segment_ids[:, None, None, :]
        return jax.nn.dot_product_attention(
            q, k, v, mask=mask, is_causal=True, implementation="cudnn"
        )

    return _on_each_device(attend, q, k, v, segment_ids)


def _on_each_device(attend, q, k, v, segment_ids):
    """`attend`, on each device of the mesh in context with its rows and its heads."""
    heads, rows = ("batch", None, "heads"), ("batch",)
    run = on_mesh(lambda _, *arrays: attend(*arrays), (heads, heads, heads, rows), heads)
    return run(q, k, v, segment_ids)
