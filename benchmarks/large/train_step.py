"""A training step here and in plain PyTorch, eager and compiled: the same small Bagpiper.

    python benchmarks/large/train_step.py [--model mini] [--rows 4] [--length 512] [--windows 12]

Forward, backward, clip and AdamW in float32, from the same random weights, in turns in one run on
all cores; needs the extra `convert`. The PyTorch model is what one would write from the paper: SDPA
attention with a mask, eight streams of logits (those after the first over the codec ids alone).
Their first losses must agree, or nothing is measured.
"""

import argparse
import os
import re
import statistics
import sys
import time

import jax
import numpy as np
import optax
import torch
import torch.nn.functional as F
from flax import nnx
from torch import nn

from bagpiper_jax.log_mel import TOKENS_PER_WINDOW
from bagpiper_jax.modeling.audio_encoder import sinusoids
from bagpiper_jax.modeling.bagpiper import Bagpiper
from bagpiper_jax.modeling.config import get_config
from bagpiper_jax.training.step import init_state, make_train_step
from bagpiper_jax.trees import dotted

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
from train_step import make_batch  # noqa: E402

AGREEMENT = 1e-5  # of the first losses: sums in another order, in float32

# pieces of the names of parameters here → there, in this order
_NAMES = (
    *(("model.", ""), ("embed_tokens", "embed.weight"), ("audio_tower.layers", "tower")),
    *(("audio_tower.", ""), ("conv2d1", "convs.0"), ("conv2d2", "convs.1"), ("conv2d3", "convs.2")),
    *(("input_layernorm", "norms.0"), ("post_attention_layernorm", "norms.1")),
    *(("q_norm", "norms.2"), ("k_norm", "norms.3")),
    *(("self_attn_layer_norm", "norm1"), ("final_layer_norm", "norm2")),
    *(("self_attn.", ""), ("mlp.", ""), ("out_proj", "out"), ("_proj", "")),
    *(("kernel", "weight"), ("scale", "weight")),
)


class DecoderLayer(nn.Module):
    """A layer of Qwen3."""

    def __init__(self, c):
        super().__init__()
        self.heads = c.num_attention_heads, c.num_key_value_heads, c.head_dim
        n, g, h = self.heads
        self.q = nn.Linear(c.hidden_size, n * h, bias=False)
        self.k = nn.Linear(c.hidden_size, g * h, bias=False)
        self.v = nn.Linear(c.hidden_size, g * h, bias=False)
        self.o = nn.Linear(n * h, c.hidden_size, bias=False)
        self.norms = nn.ModuleList(nn.RMSNorm(d, 1e-6) for d in (c.hidden_size,) * 2 + (h, h))
        self.gate = nn.Linear(c.hidden_size, c.intermediate_size, bias=False)
        self.up = nn.Linear(c.hidden_size, c.intermediate_size, bias=False)
        self.down = nn.Linear(c.intermediate_size, c.hidden_size, bias=False)

    def forward(self, x, cos, sin, mask):
        n, g, h = self.heads
        y = self.norms[0](x)
        q = self.norms[2](self.q(y).unflatten(-1, (n, h))).transpose(1, 2)
        k = self.norms[3](self.k(y).unflatten(-1, (g, h))).transpose(1, 2)
        v = self.v(y).unflatten(-1, (g, h)).transpose(1, 2)
        turn = lambda t: torch.cat([-t[..., h // 2 :], t[..., : h // 2]], -1)  # noqa: E731
        q, k = q * cos + turn(q) * sin, k * cos + turn(k) * sin
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
        x = x + self.o(y.transpose(1, 2).flatten(2))
        y = self.norms[1](x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class EncoderLayer(nn.Module):
    """A layer of the audio tower."""

    def __init__(self, c):
        super().__init__()
        self.heads = c.encoder_attention_heads
        self.qkv = nn.Linear(c.d_model, 3 * c.d_model)
        self.out = nn.Linear(c.d_model, c.d_model)
        self.norm1, self.norm2 = nn.LayerNorm(c.d_model), nn.LayerNorm(c.d_model)
        self.fc1 = nn.Linear(c.d_model, c.encoder_ffn_dim)
        self.fc2 = nn.Linear(c.encoder_ffn_dim, c.d_model)

    def forward(self, x):
        parts = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1))
        q, k, v = (t.transpose(1, 2) for t in parts.unbind(2))
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class PlainBagpiper(nn.Module):
    """The whole model and its loss."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        c, e, hidden = config.decoder, config.encoder, config.decoder.hidden_size
        self.embed = nn.Embedding(config.vocab.size, hidden, padding_idx=0)
        self.layers = nn.ModuleList(DecoderLayer(c) for _ in range(c.num_hidden_layers))
        self.norm = nn.RMSNorm(hidden, 1e-6)
        self.stream_emb = nn.Parameter(torch.zeros(config.vocab.num_streams, hidden))
        width = e.downsample_hidden_size
        self.convs = nn.ModuleList(nn.Conv2d(i, width, 3, 2, 1) for i in (1, width, width))
        self.conv_out = nn.Linear(width * 16, e.d_model, bias=False)
        self.tower = nn.ModuleList(EncoderLayer(e) for _ in range(e.encoder_layers))
        self.ln_post = nn.LayerNorm(e.d_model)
        self.proj1, self.proj2 = nn.Linear(e.d_model, e.d_model), nn.Linear(e.d_model, e.output_dim)
        self.adaptor = nn.Linear(e.output_dim, hidden)
        places = torch.from_numpy(sinusoids(TOKENS_PER_WINDOW, e.d_model))
        self.register_buffer("places", places)
        self.register_buffer("weights", torch.from_numpy(config.vocab.token_weights()))
        for p in self.parameters():
            if p.ndim > 1:
                nn.init.normal_(p, std=0.02)

    def encode(self, mel):
        rows, windows = mel.shape[:2]
        x = mel.flatten(0, 1)[:, None].transpose(2, 3)  # [n, 1, M, 100]
        for conv in self.convs:
            x = F.gelu(conv(x))
        x = self.conv_out(x.permute(0, 3, 1, 2).flatten(2)) + self.places
        x = x.reshape(-1, self.config.encoder.block_windows * TOKENS_PER_WINDOW, x.shape[-1])
        for layer in self.tower:
            x = layer(x)
        x = self.proj2(F.gelu(self.proj1(self.ln_post(x))))
        return self.adaptor(x.reshape(rows, windows * TOKENS_PER_WINDOW, -1))

    def forward(self, tokens, loss_mask, segments, positions, mel, audio_index):
        c, vocab = self.config.decoder, self.config.vocab
        table = self.embed.weight
        x = self.embed(tokens[..., 0])
        x = x + (self.embed(tokens[..., 1:]) * (tokens[..., 1:, None] > 0)).sum(2)
        index = audio_index.clamp(min=0)[..., None].expand(-1, -1, x.shape[-1])
        x = torch.where((audio_index >= 0)[..., None], self.encode(mel).gather(1, index), x)
        steps = torch.arange(0, c.head_dim, 2) / c.head_dim
        angles = positions[:, None, :, None] * c.rope_theta**-steps
        angles = torch.cat([angles, angles], -1)
        cos, sin = angles.cos(), angles.sin()
        same = segments[:, None, :, None] == segments[:, None, None, :]
        mask = same & torch.ones(same.shape[-2:], dtype=torch.bool).tril()
        for layer in self.layers:
            x = layer(x, cos, sin, mask)
        x = self.norm(x)[:, :-1].reshape(-1, x.shape[-1])
        targets = tokens[:, 1:].reshape(-1, vocab.num_streams)
        wanted = (loss_mask[:, 1:] & (segments[:, 1:] == segments[:, :-1])[..., None]).flatten(0, 1)
        loss = 0.0
        for k in range(vocab.num_streams):
            start = vocab.codec_start if k else 0
            logits = (x + self.stream_emb[k] if k else x) @ table[start:].T
            ids = (targets[:, k] - start).clamp(min=0)
            each = F.cross_entropy(logits, ids, reduction="none") * self.weights[targets[:, k]]
            each = each + self.config.z_loss * logits.logsumexp(-1) ** 2
            loss = loss + (each * wanted[:, k]).sum()
        return loss / wanted[:, 0].sum()


def copy_weights(plain: PlainBagpiper, params: dict) -> None:
    """Gives it the weights of a `Bagpiper` with one table, a nested dict."""
    values = {}
    for path, value in dotted(jax.device_get(params)).items():
        stacked, name = ".layers." in path, path
        for here, there in _NAMES:
            name = name.replace(here, there)
        for i, part in enumerate(value if stacked else [value]):
            own = re.sub("^(layers|tower)", rf"\1.{i}", name) if stacked else name
            # kernels are [in, out] and [time, mel, in, out], the table has rows in excess
            part = part.T if path.endswith("kernel") else part
            part = part[: plain.config.vocab.size] if own == "embed.weight" else part
            values[own] = torch.tensor(np.ascontiguousarray(part))
    for i in range(len(plain.tower)):
        for leaf in ("weight", "bias"):
            parts = [values.pop(f"tower.{i}.{name}.{leaf}") for name in "qkv"]
            values[f"tower.{i}.qkv.{leaf}"] = torch.cat(parts)
    plain.load_state_dict(dict(plain.named_buffers()) | values)


def torch_batch(batch) -> list[torch.Tensor]:
    """What `PlainBagpiper` takes of a `Batch`."""
    fields = ("tokens", "loss_mask", "segment_ids", "positions", "mel", "audio_index")
    tensors = (torch.from_numpy(np.asarray(getattr(batch, name))) for name in fields)
    return [t.long() if t.dtype == torch.int32 else t for t in tensors]


def main() -> None:
    """Command line entry."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="mini")
    for name, value in (("rows", 4), ("length", 512), ("windows", 12), ("rounds", 5)):
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    config = get_config(args.model)
    batch = make_batch(config, args.rows, args.length, args.windows)
    tokens = args.rows * args.length

    model = Bagpiper(config, rngs=nnx.Rngs(0))
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(1e-3, b2=0.95, weight_decay=0.1)
    )
    # they start from zero, which would tell nothing of the losses
    noise = jax.random.normal(jax.random.key(1), model.stream_emb.shape)
    model.stream_emb[...] = 0.02 * noise
    weights = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    kept = jax.device_get(weights)  # a step takes the others
    state = init_state(weights, optimizer)
    step = make_train_step(model, optimizer, optax.constant_schedule(1e-3))
    ours = jax.device_put(jax.tree.map(lambda x: x[None], batch))

    def jax_step():
        nonlocal state
        state, metrics = step(state, ours)
        return float(metrics["loss"])

    theirs = torch_batch(batch)

    def torch_step(compiled: bool):
        plain = PlainBagpiper(config)
        copy_weights(plain, kept)
        call = torch.compile(plain) if compiled else plain
        adam = torch.optim.AdamW(
            plain.parameters(), 1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True
        )

        def run():
            loss = call(*theirs)
            loss.backward()
            nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
            adam.step()
            adam.zero_grad(set_to_none=True)
            return loss.item()

        return run

    steps = {"here": jax_step, "torch": torch_step(False), "torch compiled": torch_step(True)}
    print(
        f"{args.model}, {tokens} tokens a step, fp32, torch {torch.__version__}, "
        f"jax {jax.__version__}"
    )
    first = {}
    for name, run in steps.items():
        began = time.perf_counter()
        losses = [run() for _ in range(2)]
        first[name] = losses[0]
        print(f"{name:15} first two steps {time.perf_counter() - began:.0f} s, loss {losses}")
        if abs(losses[0] / first["here"] - 1) > AGREEMENT:
            sys.exit(f"{name} computes another loss")
    times = {name: [] for name in steps}
    for _ in range(args.rounds):
        for name, run in steps.items():  # in turns: what else the machine does meets all alike
            began = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - began)
    medians = {name: statistics.median(t) for name, t in times.items()}
    for name, seconds in medians.items():
        print(f"{name:15} {seconds:.3f} s a step, {tokens / seconds:.0f} tokens/s")
    best = min(medians["torch"], medians["torch compiled"])
    print(f"here: {best / medians['here']:.2f} times the better of the two")


if __name__ == "__main__":
    main()
