"""A training step of the mini model: time of its parts, and how far from what the matmuls need.

    python benchmarks/train_step.py [--model mini] [--batch 4] [--length 512] [--windows 12]

The limit is the products' FLOPs (`modeling/flops.py`) at the rate that one large product reaches in
the same run.
"""

import argparse
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from bagpiper_jax.input_pipeline.batch import Batch
from bagpiper_jax.log_mel import NUM_MELS, WINDOW_FRAMES
from bagpiper_jax.modeling.bagpiper import Bagpiper
from bagpiper_jax.modeling.config import get_config
from bagpiper_jax.modeling.flops import step_flops
from bagpiper_jax.training.step import init_state, make_train_step


def seconds(call, repeats: int = 5) -> float:
    """Median time of a call after the first."""
    jax.block_until_ready(call())
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(call())
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def make_batch(config, batch: int, length: int, windows: int) -> Batch:
    """Half text, half audio of the assistant, and clips in the text."""
    rng = np.random.default_rng(0)
    vocab = config.vocab
    tokens = np.zeros((batch, length, vocab.num_streams), np.int32)
    tokens[..., 0] = rng.integers(vocab.text_start, vocab.codec_start, (batch, length))
    half = length // 2
    codes = rng.integers(1, vocab.stream_size, (batch, length - half, vocab.num_streams))
    tokens[:, half:] = vocab.stream_pads + codes
    index = np.full((batch, length), -1, np.int32)
    index[:, 8 : 8 + min(half - 8, windows * 13)] = np.arange(min(half - 8, windows * 13))
    mel = rng.standard_normal((batch, windows, WINDOW_FRAMES, NUM_MELS), np.float32)
    return Batch(
        tokens=tokens,
        loss_mask=tokens > 0,
        segment_ids=np.ones((batch, length), np.int32),
        positions=np.tile(np.arange(length, dtype=np.int32), (batch, 1)),
        mel=mel,
        mel_frames=np.full((batch, windows), WINDOW_FRAMES, np.int32),
        audio_index=index,
    )


def main() -> None:
    """Command line entry."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="mini")
    for name, value in (("batch", 4), ("length", 512), ("windows", 12)):
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    config = get_config(args.model)
    model = Bagpiper(config, rngs=nnx.Rngs(0))
    graph, params = nnx.split(model, nnx.Param)
    batch = jax.device_put(make_batch(config, args.batch, args.length, args.windows))
    tokens = args.batch * args.length

    def grad(f):
        step = jax.jit(jax.grad(lambda p: f(nnx.merge(graph, p))))
        return lambda: step(params)

    x = jnp.ones((args.batch, args.length, config.decoder.hidden_size))
    parts = {
        "encoder": grad(lambda m: (m.encode_audio(batch.mel, batch.mel_frames) ** 2).sum()),
        "decoder": grad(lambda m: (m.decode(x, batch.positions, batch.segment_ids) ** 2).sum()),
        "whole loss": grad(lambda m: m.loss(batch)[0]),
    }
    side = 2048
    a = jnp.ones((side, side))
    product = jax.jit(lambda a: a @ a)
    peak = 2 * side**3 / seconds(lambda: product(a))
    print(f"{args.model}: {tokens} tokens, {args.batch * args.windows} mel windows, fp32")
    print(f"a product of {side} x {side} matrices runs at {peak / 1e9:.0f} GFLOP/s")
    flops = step_flops(config, rows=args.batch, length=args.length, windows=args.windows, frozen=())
    needed = {
        "encoder": flops.encoder,
        "decoder": flops.decoder + flops.attention,
        "whole loss": flops.total,
    }

    def tell(name: str, taken: float, flops: float) -> None:
        print(
            f"{name:11} {taken:.3f} s for {flops / 1e9:5.1f} GFLOP of products: "
            f"{flops / taken / peak:.0%} of that rate"
        )

    for name, call in parts.items():
        tell(name, seconds(call), needed[name])
    schedule = optax.constant_schedule(1e-3)
    step = make_train_step(model, optax.adamw(schedule), schedule)
    state = init_state(nnx.to_pure_dict(params), optax.adamw(schedule))
    batches = jax.tree.map(lambda x: x[None], batch)  # one micro-batch

    def run():
        nonlocal state
        state, _ = step(state, batches)
        return state.step

    taken = seconds(run)
    tell("whole step", taken, flops.total)
    print(f"{tokens / taken:.0f} tokens/s")


if __name__ == "__main__":
    main()
