"""A model, prompts and requests that the tests of generation share."""

import jax
import numpy as np
from flax import nnx

from bagpiper_jax.conversation import Message, encode_prompt
from bagpiper_jax.inference.requests import Request
from bagpiper_jax.log_mel import mel_windows
from bagpiper_jax.modeling.config import get_config


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
