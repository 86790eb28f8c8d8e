"""The fused head's loss and gradients against the expanded form that the reference computes.

    python benchmarks/fused_head.py [--rows 2048] [--hidden 256] [--text 1024] [--codes 1024]

Prints time of one step (median of --repeats) and temporary memory of both, measured side by side.
"""

import argparse
import statistics
import time

import jax
import jax.numpy as jnp

from bagpiper_jax.ops.fused_cross_entropy import HeadShape, fused_cross_entropy
from bagpiper_jax.vocab import Vocabulary


def expanded(hidden, targets, mask, head, streams_emb, vocab: Vocabulary):
    """Hidden states expanded K times, logits of each, two cross-entropies (BAGPIPER, section 4)."""
    streams = streams_emb.at[0].set(0)
    logits = jnp.einsum("nkd,vd->nkv", hidden[:, None] + streams[None], head)
    codec = jnp.arange(head.shape[0]) >= vocab.codec_start
    open_ = codec[None] | (jnp.arange(len(streams)) == 0)[:, None]
    logits = jnp.where(open_[None], logits, -jnp.inf)
    losses = (
        jax.nn.logsumexp(logits, -1) - jnp.take_along_axis(logits, targets[..., None], -1)[..., 0]
    )
    return jnp.where(mask, losses, 0).sum()


def main() -> None:
    """Command line entry."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name, value in (
        ("rows", 2048),
        ("hidden", 256),
        ("text", 1024),
        ("codes", 1024),
        ("chunk", 512),
    ):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    vocab = Vocabulary(text_size=args.text, codebook_size=args.codes)
    keys = iter(jax.random.split(jax.random.key(0), 4))
    hidden = jax.random.normal(next(keys), (args.rows, args.hidden))
    head = 0.05 * jax.random.normal(next(keys), (vocab.size, args.hidden))
    emb = 0.3 * jax.random.normal(next(keys), (vocab.num_streams, args.hidden))
    pads = jnp.asarray(vocab.stream_pads)
    codes = jax.random.randint(next(keys), (args.rows, vocab.num_streams), 1, vocab.stream_size)
    targets, mask = pads + codes, jnp.ones((args.rows, vocab.num_streams), bool)

    shape = HeadShape(vocab.size, vocab.codec_start, vocab.stream_size, 0.0, args.chunk)

    def fused(hidden, head, emb):
        rows = (x[None] for x in (hidden, targets, mask, mask))
        return fused_cross_entropy(*rows, head, emb, shape)[0]

    forms = {
        "expanded": lambda *x: expanded(x[0], targets, mask, *x[1:], vocab),
        "fused": fused,
    }
    device = jax.devices()[0]
    print(f"{args.rows} rows, hidden {args.hidden}, {vocab.size} ids, fp32, {device.device_kind}")
    results = {}
    for name, form in forms.items():
        step = jax.jit(jax.value_and_grad(form, argnums=(0, 1, 2)))
        compiled = step.lower(hidden, head, emb).compile()
        value = float(compiled(hidden, head, emb)[0])
        times = []
        for _ in range(args.repeats):
            start = time.perf_counter()
            jax.block_until_ready(compiled(hidden, head, emb))
            times.append(time.perf_counter() - start)
        memory = compiled.memory_analysis().temp_size_in_bytes / 2**20
        results[name] = (statistics.median(times), memory)
        print(f"{name:9} loss {value:.6g}  {results[name][0]:.3f} s  {memory:.0f} MiB temporary")
    (slow, large), (fast, small) = results["expanded"], results["fused"]
    print(f"fused: {slow / fast:.1f} times as fast, {large / small:.1f} times less memory")
    # what no form can avoid: the product with the head, forward and twice backward
    products = 6 * args.rows * args.hidden * vocab.size
    print(
        f"products with the head: {products / 1e9:.1f} GFLOP, {products / fast / 1e9:.0f} GFLOP/s"
    )


if __name__ == "__main__":
    main()
