"""`Pipeline`: audio → caption, caption → audio, conversations."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh

from bagpiper_jax import vocab as vocab_lib
from bagpiper_jax.audio import SAMPLE_RATE, prepare_audio
from bagpiper_jax.conversation import Message, encode_prompt, extend_prompt
from bagpiper_jax.errors import UserError
from bagpiper_jax.inference.generate import Generator
from bagpiper_jax.inference.sampling import AUDIO, TEXT, Sampling
from bagpiper_jax.loading import load
from bagpiper_jax.log_mel import mel_windows
from bagpiper_jax.modeling.bagpiper import Bagpiper
from bagpiper_jax.modeling.codec import Codec
from bagpiper_jax.release import MINI, SAMPLING_FILE, load_assets
from bagpiper_jax.tokenizer import Tokenizer

_ROOM_STEP = 64  # rows
_MAX_MESSAGES = 4


class Pipeline:
    """A model with its tokenizer and codec, ready to use."""

    def __init__(
        self,
        model: Bagpiper,
        tokenizer: Tokenizer,
        codec: Codec,
        *,
        text: Sampling = TEXT,
        audio: Sampling = AUDIO,
    ):
        self.config = model.config
        self.tokenizer = tokenizer
        self.codec = codec
        self.sampling = {"text": text, "audio": audio}
        self._generator = Generator(model)

    @classmethod
    def load(
        cls, path: str | os.PathLike = MINI, mesh: Mesh | None = None, dtype: Any = None
    ) -> Pipeline:
        """From a model directory (see `release`); the embedded mini model by default.

        `mesh` and `dtype` are those of `bp.load`.

        A `sampling.json` beside the weights holds the settings chosen for them on development data.

        Raises:
          UserError: something is missing, damaged or does not fit.
        """
        assets = load_assets(os.fspath(path))
        model = load(path, mesh, dtype)
        settings = {"text": TEXT, "audio": AUDIO}
        file = os.path.join(path, SAMPLING_FILE)
        if os.path.exists(file):
            try:
                with open(file, encoding="utf-8") as f:
                    for kind, values in json.load(f).items():
                        settings[kind] = dataclasses.replace(settings[kind], **values)
            except (ValueError, KeyError, TypeError, AttributeError) as e:
                raise UserError(f"{file} is damaged: {e}") from e
        return cls(model, assets.tokenizer, assets.codec, **settings)

    def replace_weights(self, params) -> None:
        """Other weights of the same model, a nested dict as `load_weights` gives."""
        self._generator.replace_weights(params)

    def describe(
        self,
        wav: np.ndarray,
        *,
        sample_rate: int = SAMPLE_RATE,
        sampling: Sampling | None = None,
        seed: int = 0,
    ) -> str:
        """Writes a caption for a clip: float [S] or [S, channels], 0.1 to 30 s.

        Raises:
          UserError: see `prepare_audio`.
        """
        wav = prepare_audio(wav, sample_rate)
        return self.describe_batch([wav], sampling=sampling, seed=seed)[0]

    def describe_batch(
        self, wavs: Sequence[np.ndarray], *, sampling: Sampling | None = None, seed: int = 0
    ) -> list[str]:
        """Captions of clips, float [S] each, mono at 16 kHz."""
        conversations = [[Message("user", "audio", mel_windows(wav))] for wav in wavs]
        return [m.content for m in self._answer(conversations, "text", sampling, seed)]

    def render(self, text: str, *, sampling: Sampling | None = None, seed: int = 0) -> np.ndarray:
        """Audio from a caption: float32 [S], mono at the codec's rate.

        Raises:
          UserError: the caption is empty or too long, or the model ended at once.
        """
        if not text.strip():
            raise UserError("there is no caption to render: describe a scene")
        wav = self.render_batch([text], sampling=sampling, seed=seed)[0]
        if not len(wav):
            raise UserError(
                "the model ended the audio at once: try another caption, or a temperature"
            )
        return wav

    def render_batch(
        self, texts: Sequence[str], *, sampling: Sampling | None = None, seed: int = 0
    ) -> list[np.ndarray]:
        """Audio from captions; an entry is empty where the model ended at once."""
        conversations = [[Message("user", "text", text)] for text in texts]
        codes = [m.content for m in self._answer(conversations, "audio", sampling, seed)]
        return [self.codec.decode(c) if len(c) else np.zeros(0, np.float32) for c in codes]

    def chat(self, messages: Sequence[Message], *, seed: int = 0) -> list[Message]:
        """The assistant's next messages; the model chooses their modalities.

        An `<|eot|>` asks for another message. Audio comes as codec codes, `codec.decode` plays
        them.
        """
        answers: list[Message] = []
        prompt = self._prompt(messages)
        for turn in range(_MAX_MESSAGES):
            kind, rows, end = self._generate([prompt], self.sampling, None, seed + turn)[0]
            answers.append(self._message(kind, rows))
            if end != vocab_lib.EOT:
                break
            prompt = extend_prompt(prompt, kind, rows)
        return answers

    def _answer(self, conversations, modality, sampling, seed) -> list[Message]:
        settings = {**self.sampling, **({modality: sampling} if sampling else {})}
        prompts = [self._prompt(c) for c in conversations]
        answers = self._generate(prompts, settings, modality, seed)
        return [self._message(kind, rows) for kind, rows, _ in answers]

    def _prompt(self, messages):
        return encode_prompt(messages, self.config.vocab, self.tokenizer)

    def _generate(self, prompts, settings: dict[str, Sampling], modality: str | None, seed: int):
        """Answers that stay inside the context; its room is cut to steps, so few are compiled."""
        context, longest = self.config.decoder.max_position_embeddings, max(map(len, prompts))
        room = (context - longest) // _ROOM_STEP * _ROOM_STEP
        if room <= 0:
            raise UserError(
                f"the prompt takes {longest} rows, the context holds {context}: shorten it"
            )
        settings = {
            kind: dataclasses.replace(
                s, max_rows=min(s.max_rows, room), min_rows=min(s.min_rows, room - 1)
            )
            for kind, s in settings.items()
        }
        return self._generator.generate(prompts, settings, modality=modality, seed=seed)

    def _message(self, kind: str, rows: np.ndarray) -> Message:
        vocab = self.config.vocab
        if kind == "text":
            text = self.tokenizer.decode(vocab.tokens_to_text(rows[:, 0]))
            return Message("assistant", "text", text)
        return Message("assistant", "audio", vocab.deinterleave(rows))
