"""A pipeline without a model, which answers by a script, and ears that hear what it says."""

import hashlib
from types import SimpleNamespace

import numpy as np
from generation import Bytes

from bagpiper_jax.evaluation.remembering import fingerprint
from bagpiper_jax.evaluation.text_metrics import DIGITS
from bagpiper_jax.inference.pipeline import Pipeline
from bagpiper_jax.inference.requests import Generated
from bagpiper_jax.inference.sampling import AUDIO, TEXT
from bagpiper_jax.modeling.config import get_config
from bagpiper_jax.vocab import EOS


def _dice(value):
    return np.random.default_rng(int(fingerprint(value)[:15], 16))


class Script:
    """In place of an engine: the same request gets the same answer, another one another."""

    def __init__(self, vocab):
        self.vocab = vocab
        self.calls = []

    def generate(self, requests):
        self.calls.append(len(requests))
        return [[[self._message(r)]] for r in requests]

    def _message(self, request):
        dice = _dice((request.prompt, request.sampling["audio"].cfg, request.seed))
        (modality,) = request.modalities
        if modality == "audio":
            codes = dice.integers(0, self.vocab.codebook_size, (3, self.vocab.num_streams))
            return Generated("audio", self.vocab.interleave(codes), EOS)
        words = " ".join(dice.choice(DIGITS[:3], 2))
        text = f'A woman says "{words}" and rain falls. The recording is clean.'
        ids = self.vocab.text_to_tokens(Bytes().encode(text))
        rows = np.zeros((len(ids), self.vocab.num_streams), np.int32)
        rows[:, 0] = ids
        return Generated("text", rows, EOS)


class ScriptedPipeline(Pipeline):
    """A pipeline with a script for an engine, and a codec that holds each frame's first code."""

    def __init__(self):
        self.config = get_config("tiny")
        self.tokenizer = Bytes()
        self.codec = SimpleNamespace(
            encode=lambda wav: np.round(wav[::320, None] * 100).astype(int),
            decode=lambda codes: np.repeat(codes[:, 0] / 100, 320).astype(np.float32),
            sample_rate=16_000,
        )
        self.sampling = {"text": TEXT, "audio": AUDIO}
        self.engine = Script(self.config.vocab)


class ScriptedEars:
    """In place of Whisper: words that depend on the sound alone."""

    def transcribe_all(self, wavs):
        for wav in wavs:
            digest = hashlib.sha256(np.asarray(wav).tobytes()).digest()
            yield " ".join(DIGITS[byte % 10] for byte in digest[:2])
