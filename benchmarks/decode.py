"""Generation of audio rows, beside PyTorch on the same device, and how near to the memory's limit.

    python benchmarks/decode.py [--model mini] [--rows 128] [--prompt 64] [--batches 1 4 16]

One row is one step of the decoder and eight codec tokens. PyTorch's side is `Qwen3Model` of
transformers with its cache and eight heads, float32, eager, sampled the same way; left out where
torch is not installed. Both sides make every prompt and every row, in turns; the median of
--repeats counts.

The limit: every row reads the layers and the codec's part of the head once for the whole batch, and
each sequence's cache. A guided answer is two sequences.
"""

import argparse
import dataclasses
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from bagpiper_jax.conversation import Example
from bagpiper_jax.inference.engine import Engine
from bagpiper_jax.inference.requests import Request
from bagpiper_jax.inference.sampling import Sampling
from bagpiper_jax.modeling.bagpiper import Bagpiper
from bagpiper_jax.modeling.config import get_config


def random_model(config, dtype) -> Bagpiper:
    """Weights from N(0, 0.02), made on the device."""
    model = Bagpiper.abstract(config, dtype=dtype)
    graph, state = nnx.split(model)
    leaves, tree = jax.tree.flatten(state)
    make = jax.jit(
        lambda key, leaf: 0.02 * jax.random.normal(key, leaf.shape, dtype), static_argnums=1
    )
    keys = jax.random.split(jax.random.key(0), len(leaves))
    made = [make(k, jax.ShapeDtypeStruct(x.shape, dtype)) for k, x in zip(keys, leaves)]
    return nnx.merge(graph, jax.tree.unflatten(tree, made))


def bandwidth(dtype) -> tuple[float, float]:
    """Bytes per second of a copy (read and written) and of a sum (read) over half a GiB."""
    size = 2**29 // np.dtype(dtype).itemsize
    x = jnp.ones((8, size // 8), dtype)
    move = jax.jit(lambda x: x + 1, donate_argnums=0)
    total = jax.jit(lambda x: x.sum(axis=1, dtype=jnp.float32))
    copies, sums = [], []
    for _ in range(6):
        start = time.perf_counter()
        x = jax.block_until_ready(move(x))
        copies.append(time.perf_counter() - start)
        start = time.perf_counter()
        jax.block_until_ready(total(x))
        sums.append(time.perf_counter() - start)
    return 2 * x.nbytes / min(copies[1:]), x.nbytes / min(sums[1:])


def requests(config, batch: int, prompt: int, rows: int, cfg: float) -> list[Request]:
    """Prompts of random text whose answers take exactly `rows` rows."""
    rng = np.random.default_rng(0)
    vocab = config.vocab
    audio = Sampling(0.8, 20, cfg, min_rows=rows - 1, max_rows=rows)
    made = []
    for i in range(batch):
        tokens = np.zeros((prompt - 1, vocab.num_streams), np.int32)
        tokens[:, 0] = rng.integers(vocab.text_start, vocab.codec_start, prompt - 1)
        example = Example(tokens, np.zeros(tokens.shape, bool))
        made.append(Request(example, {"audio": audio}, ("audio",), seed=i))
    return made


def torch_peer(config):
    """A function (batch, prompt, rows, cfg) that generates with transformers' Qwen3, or None."""
    try:
        import torch
        from transformers import Qwen3Config, Qwen3Model
    except ImportError:
        return None
    decoder, vocab = config.decoder, config.vocab
    values = dataclasses.asdict(decoder)
    theta = values.pop("rope_theta")
    original = Qwen3Config(
        **values,
        vocab_size=vocab.size,
        rope_parameters={"rope_type": "default", "rope_theta": theta},
        attn_implementation="sdpa",
    )
    model = Qwen3Model(original).eval()
    heads = 0.02 * torch.randn(vocab.num_streams, vocab.stream_size, decoder.hidden_size)
    streams = 0.02 * torch.randn(vocab.num_streams, decoder.hidden_size)
    starts = vocab.codec_start + vocab.stream_size * torch.arange(vocab.num_streams)

    @torch.inference_mode()
    def generate(batch, prompt, rows, cfg):
        ids = torch.randint(vocab.text_start, vocab.codec_start, (batch, prompt))
        if cfg != 1:
            ids = torch.cat([ids, torch.zeros_like(ids)])
        out = model(input_ids=ids, use_cache=True)
        for _ in range(rows):
            hidden = out.last_hidden_state[:, -1]
            logits = torch.einsum("bkd,kvd->bkv", hidden[:, None] + streams, heads)
            if cfg != 1:
                logits = cfg * logits[:batch] + (1 - cfg) * logits[batch:]
            values, index = logits.topk(20, dim=-1)
            chances = torch.softmax(values / 0.8, -1).flatten(0, 1)
            pick = torch.multinomial(chances, 1).view(batch, -1, 1)
            row = starts + index.gather(-1, pick)[..., 0]
            x = model.embed_tokens(row).sum(1, keepdim=True)
            if cfg != 1:
                x = torch.cat([x, x])
            out = model(inputs_embeds=x, past_key_values=out.past_key_values, use_cache=True)
        return rows

    return generate


def main() -> None:
    """Command line entry."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="mini")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--quantize", default=None)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--cfg", type=float, nargs="+", default=[1.0, 3.0])
    for name, value in (("rows", 128), ("prompt", 64), ("repeats", 3)):
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    config = get_config(args.model)
    # nothing is heard here: the published encoder would be half of a small model
    config = dataclasses.replace(config, encoder=get_config("mini").encoder)
    dtype = np.dtype(args.dtype)
    engine = Engine(
        random_model(config, dtype), quantize=args.quantize, max_sequences=2 * max(args.batches)
    )
    peer = torch_peer(config) if jax.default_backend() == "cpu" else None
    copied, read = bandwidth(dtype)
    weights = engine.row_bytes("audio")
    print(f"{args.model}, {dtype.name}, {jax.devices()[0].device_kind}")
    print(
        f"copy {copied / 1e9:.1f} GB/s, read {read / 1e9:.1f} GB/s; "
        f"a row reads {weights / 1e6:.1f} MB of weights"
    )
    decoder = config.decoder
    position = 2 * decoder.num_hidden_layers * decoder.num_key_value_heads * decoder.head_dim
    print("batch  cfg    rows/s  PyTorch  ratio  MB a row  of copy  of read")
    for batch in args.batches:
        for cfg in args.cfg:
            ask = requests(config, batch, args.prompt, args.rows, cfg)
            mine, theirs = [], []
            for _ in range(args.repeats + 1):
                start = time.perf_counter()
                answers = engine.generate(ask)
                mine.append(time.perf_counter() - start)
                assert all(len(a[0][0].rows) == args.rows for a in answers)
                if peer:
                    start = time.perf_counter()
                    peer(batch, args.prompt, args.rows, cfg)
                    theirs.append(time.perf_counter() - start)
            taken = statistics.median(mine[1:])
            sequences = batch * (1 + (cfg != 1))
            context = args.prompt + args.rows / 2
            moved = weights + sequences * context * position * dtype.itemsize
            rate = args.rows / taken * moved
            compared = "      –      –"
            if peer:
                other = statistics.median(theirs[1:])
                compared = f"{batch * args.rows / other:7.1f} {other / taken:5.1f}x"
            print(
                f"{batch:5} {cfg:4.1f} {batch * args.rows / taken:9.1f}  {compared} "
                f"{moved / 1e6:9.1f} {rate / copied:8.0%} {rate / read:8.0%}",
                flush=True,
            )


if __name__ == "__main__":
    main()
