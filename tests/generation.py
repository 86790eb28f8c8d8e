"""A model, prompts and requests that the tests of generation share."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from bagpiper_jax import vocab as vocab_lib
from bagpiper_jax.conversation import Message, encode_prompt
from bagpiper_jax.inference.requests import Request
from bagpiper_jax.inference.sampling import Sampling
from bagpiper_jax.log_mel import mel_windows
from bagpiper_jax.modeling.config import get_config

PLACES = 4
WARM = Sampling(temperature=1.0, top_k=8, cfg=1.0, min_rows=2, max_rows=20)
GUIDED = dataclasses.replace(WARM, cfg=2.0, top_p=0.9)


class Bytes:
    """A tokenizer of UTF-8 bytes."""

    vocab_size = 320

    def encode(self, text):
        return list(text.encode())

    def decode(self, ids):
        return bytes(i for i in ids if i < 256).decode(errors="replace")


def clear_model(make_model):
    """Random weights, scaled up so that the most likely token is clear of rounding."""
    model = make_model(get_config("tiny"), seed=3)
    params = nnx.state(model, nnx.Param)
    nnx.update(model, jax.tree.map(lambda x: 3 * x if x.ndim >= 2 else x, params))
    return model


def conversations():
    rng = np.random.default_rng(0)
    clip = mel_windows(rng.normal(size=23_000).astype(np.float32))
    short = mel_windows(rng.normal(size=5_000).astype(np.float32))
    codes = rng.integers(0, 16, (5, 4))
    return [
        [Message("user", "text", "a bell")],
        [Message("user", "audio", clip)],
        [Message("system", "text", "be brief"), Message("user", "audio", short)],
        [Message("user", "text", "x"), Message("assistant", "audio", codes)],
    ]


def prompts(vocab):
    return [encode_prompt(c, vocab, Bytes()) for c in conversations()]


def same(ours, theirs):
    """Whether two answers are equal: hypotheses of messages."""
    return [[(m.modality, m.end, m.rows.tolist()) for m in h] for h in ours] == [
        [(m.modality, m.end, m.rows.tolist()) for m in h] for h in theirs
    ]


def ask(prompt, sampling, *plan, **settings):
    """A request with the same settings for both modalities; without a plan the model chooses."""
    return Request(prompt, {"text": sampling, "audio": sampling}, plan or None, **settings)


def ending_model(make_model):
    """With end tokens that come now and then, so that answers are of all lengths."""
    model = clear_model(make_model)
    ends = jnp.array([vocab_lib.EOS, vocab_lib.EOT])
    model.lm_head[...] = model.lm_head[...].at[ends].mul(1.5)
    return model


def varied_requests(vocab):
    """Prompts, plans and settings of all kinds, and a seed for each."""
    bell, clip, system, codes = prompts(vocab)
    cold = dataclasses.replace(WARM, temperature=0.0, min_rows=9)
    asked = [
        ask(bell, WARM, "text"),
        ask(clip, GUIDED, "text"),
        ask(system, WARM, "audio"),
        ask(codes, GUIDED, "audio"),
        ask(bell, dataclasses.replace(GUIDED, max_rows=40), "text", "audio"),
        ask(clip, dataclasses.replace(WARM, max_rows=70), "audio", "text"),
        ask(codes, GUIDED, hypotheses=2),
        ask(system, WARM, hypotheses=3),
        ask(bell, cold, "audio"),
    ]
    return [dataclasses.replace(request, seed=i % 4) for i, request in enumerate(asked)]
