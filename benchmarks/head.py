"""The head's two identities: the expanded form of the reference, with one of them, with both.

expanded: a product of each stream's hidden states with the head. one product: the logits of stream
k are W·h + W·s_k, log-sum-exps stream by stream. fused: these factorise too, which is
`ops.fused_cross_entropy`, as it trains.

    python benchmarks/head.py [--rows 2048] [--hidden 256] [--text 1024] [--codes 256] [--scale 100]

Prints how far loss and gradients are from the expanded form's, the time of one step (median of
--repeats, in turns, each after one that does not count) and temporary memory. With --compile-only
nothing runs: so the memory at the shapes of the 8B model is

    python benchmarks/head.py --rows 8192 --hidden 4096 --text 151936 --codes 1024 --compile-only

With --scale 100 the softmaxes of the streams peak far apart: the factors underflow, and the plain
form of the log-sum-exps is used.
"""

import argparse
import statistics
import time

import jax
import jax.numpy as jnp

from bagpiper_jax.modeling.bagpiper import TABLE_MULTIPLE
from bagpiper_jax.ops.fused_cross_entropy import HeadShape, fused_cross_entropy
from bagpiper_jax.vocab import Vocabulary


def expanded(hidden, targets, head, streams_emb, vocab: Vocabulary):
    """Each stream's hidden states and logits, those after the first over the codec ids alone."""
    total = 0.0
    for k in range(vocab.num_streams):
        start = vocab.codec_start if k else 0
        states = hidden + streams_emb[k] if k else hidden
        rows = head[start : vocab.size]
        logits = jnp.einsum("nd,vd->nv", states, rows, preferred_element_type=jnp.float32)
        own = jnp.take_along_axis(logits, targets[:, k, None] - start, -1)[:, 0]
        total += (jax.nn.logsumexp(logits, -1) - own).sum()
    return total


def one_product(hidden, targets, head, streams_emb, vocab: Vocabulary):
    """The same with one product for all streams, and their offsets beside it."""
    rows = head[: vocab.size]
    logits = jnp.einsum("nd,vd->nv", hidden, rows, preferred_element_type=jnp.float32)
    added = jnp.einsum("kd,vd->kv", streams_emb, rows, preferred_element_type=jnp.float32)
    total = 0.0
    for k in range(vocab.num_streams):
        start = vocab.codec_start if k else 0
        own = logits[:, start:] + added[k, start:] if k else logits
        target = jnp.take_along_axis(own, targets[:, k, None] - start, -1)[:, 0]
        total += (jax.nn.logsumexp(own, -1) - target).sum()
    return total


def main() -> None:
    """Command line entry."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    sizes = {"rows": 2048, "hidden": 256, "text": 1024, "codes": 256, "chunk": 512, "repeats": 5}
    for name, value in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument(
        "--scale", type=float, default=1.0, help="of hidden states and stream embeddings"
    )
    parser.add_argument("--compile-only", action="store_true")
    args = parser.parse_args()
    vocab = Vocabulary(text_size=args.text, codebook_size=args.codes)
    shape = HeadShape(vocab.size, vocab.codec_start, vocab.stream_size, 0.0, args.chunk)

    def fused(hidden, targets, head, emb):
        ones = jnp.ones(targets.shape)
        rows = (x[None] for x in (hidden, targets, ones > 0, ones))
        return fused_cross_entropy(*rows, head, emb, shape)[0]

    forms = {
        "expanded": lambda *x: expanded(*x, vocab),
        "one product": lambda *x: one_product(*x, vocab),
        "fused": fused,
    }
    table = -(-vocab.size // TABLE_MULTIPLE) * TABLE_MULTIPLE
    arrays = (
        jax.ShapeDtypeStruct((args.rows, args.hidden), jnp.float32),
        jax.ShapeDtypeStruct((args.rows, vocab.num_streams), jnp.int32),
        jax.ShapeDtypeStruct((table, args.hidden), jnp.float32),
        jax.ShapeDtypeStruct((vocab.num_streams, args.hidden), jnp.float32),
    )
    kind = jax.devices()[0].device_kind
    print(f"{args.rows} rows, hidden {args.hidden}, {vocab.size} ids, fp32, {kind}")
    steps, memory = {}, {}
    for name, form in forms.items():
        step = jax.jit(jax.value_and_grad(form, argnums=(0, 2, 3)))
        steps[name] = step.lower(*arrays).compile()
        memory[name] = steps[name].memory_analysis().temp_size_in_bytes / 2**20
        less = memory["expanded"] / memory[name]
        print(f"{name:11} {memory[name]:.0f} MiB temporary, {less:.1f} times less")
    if args.compile_only:
        return

    keys = iter(jax.random.split(jax.random.key(0), 4))
    codes = jax.random.randint(next(keys), (args.rows, vocab.num_streams), 1, vocab.stream_size)
    values = (
        args.scale * jax.random.normal(next(keys), (args.rows, args.hidden)),
        jnp.asarray(vocab.stream_pads) + codes,
        0.05 * jax.random.normal(next(keys), (table, args.hidden)),
        0.3 * args.scale * jax.random.normal(next(keys), (vocab.num_streams, args.hidden)),
    )
    loss, grads = steps["expanded"](*values)
    print("apart from expanded: the loss, of it; gradients, of their largest")
    for form in list(forms)[1:]:
        other, others = steps[form](*values)
        apart = {"loss": abs(other - loss) / loss}
        for name, a, b in zip(("hidden", "head", "streams"), others, grads, strict=True):
            apart[name] = jnp.abs(a - b).max() / jnp.abs(b).max()
        print(f"{form:11}", ", ".join(f"{name} {float(x):.1e}" for name, x in apart.items()))
    times = {name: [] for name in steps}
    for _ in range(args.repeats):
        for name, step in steps.items():
            jax.block_until_ready(step(*values))  # the other form's memory is given back meanwhile
            start = time.perf_counter()
            jax.block_until_ready(step(*values))
            times[name].append(time.perf_counter() - start)
    seconds = {name: statistics.median(t) for name, t in times.items()}
    for name in steps:
        faster = seconds["expanded"] / seconds[name]
        print(f"{name:11} {seconds[name]:.3f} s, {faster:.1f} times as fast")
    # what no form can avoid: the product with the head, forward and twice backward
    flops = 6 * args.rows * args.hidden * vocab.size
    rate = flops / seconds["fused"] / 1e9
    print(f"products with the head: {flops / 1e9:.1f} GFLOP, {rate:.0f} GFLOP/s")


if __name__ == "__main__":
    main()
