"""`Pipeline`: audio → caption, caption → audio, conversations."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh

from bagpiper_jax.audio import SAMPLE_RATE, any_audio
from bagpiper_jax.conversation import Message, encode_prompt
from bagpiper_jax.errors import UserError
from bagpiper_jax.inference.engine import Engine
from bagpiper_jax.inference.replies import Sound, Text
from bagpiper_jax.inference.requests import Generated, Request
from bagpiper_jax.inference.sampling import AUDIO, TEXT, Sampling
from bagpiper_jax.inference.streaming import STREAM_ROWS, AnswerStream, Delta
from bagpiper_jax.loading import load
from bagpiper_jax.log_mel import mel_windows
from bagpiper_jax.modeling.bagpiper import Bagpiper
from bagpiper_jax.modeling.codec import Codec
from bagpiper_jax.release import MINI, SAMPLING_FILE, load_assets
from bagpiper_jax.tokenizer import Tokenizer


class Pipeline:
    """A model with its tokenizer and codec, ready to use.

    Attributes:
      sampling: default settings by modality.
      engine: what generates.
    """

    def __init__(
        self,
        model: Bagpiper,
        tokenizer: Tokenizer,
        codec: Codec,
        *,
        text: Sampling = TEXT,
        audio: Sampling = AUDIO,
        max_sequences: int = 32,
        quantize: str | None = None,
        mesh: Mesh | None = None,
    ):
        """`max_sequences`, `quantize` and `mesh`: see `Engine`."""
        self.config = model.config
        self.tokenizer = tokenizer
        self.codec = codec
        self.sampling = {"text": text, "audio": audio}
        self.engine = Engine(model, max_sequences=max_sequences, quantize=quantize, mesh=mesh)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike = MINI,
        mesh: Mesh | None = None,
        dtype: Any = None,
        **settings,
    ) -> Pipeline:
        """From a model directory (see `release`); the embedded mini model by default.

        `mesh` and `dtype` are those of `bp.load`; `settings` go to `Pipeline`.

        A `sampling.json` beside the weights holds the settings chosen for them on development data.

        Raises:
          UserError: something is missing, damaged or does not fit.
        """
        assets = load_assets(os.fspath(path))
        model = load(path, mesh, dtype)
        sampling = {"text": TEXT, "audio": AUDIO}
        file = os.path.join(path, SAMPLING_FILE)
        if os.path.exists(file):
            try:
                with open(file, encoding="utf-8") as f:
                    for kind, values in json.load(f).items():
                        sampling[kind] = dataclasses.replace(sampling[kind], **values)
            except (ValueError, KeyError, TypeError, AttributeError) as e:
                raise UserError(f"{file} is damaged: {e}") from e
        return cls(model, assets.tokenizer, assets.codec, mesh=mesh, **{**sampling, **settings})

    def replace_weights(self, params) -> None:
        """Other weights of the same model, a nested dict as `load_weights` gives."""
        self.engine.replace_weights(params)

    def warm_up(self) -> None:
        """Compiles what a description and a rendering run, so that the first one does not wait."""
        noise = np.random.default_rng(0).normal(0, 0.1, 2 * SAMPLE_RATE).astype(np.float32)
        self.describe(noise)
        self.render_batch(["a bell"])

    def describe(
        self,
        audio: Any,
        question: str = "",
        *,
        sample_rate: int = SAMPLE_RATE,
        sampling: Sampling | None = None,
        seed: int = 0,
    ) -> Text:
        """Writes a caption for a clip, or answers a question about it.

        Args:
          audio: a path, a file's bytes, an array [S] or [S, channels], or (array, rate); 0.1 to
            30 s.
          question: text after the clip; a base model needs none.
          sample_rate: of an array without its rate.
          sampling: settings; those of the model if None.
          seed: of the sampling.

        Returns:
          the text, a `str`; its `plan` is what stood in `<think>`.

        Raises:
          UserError: see `any_audio`; or the prompt does not fit the context.
        """
        wav = any_audio(audio, sample_rate)
        return self.describe_batch([wav], question, sampling=sampling, seed=seed)[0]

    def describe_batch(
        self,
        audios: Sequence[Any],
        question: str | Sequence[str] = "",
        *,
        sampling: Sampling | None = None,
        seed: int = 0,
    ) -> list[Text]:
        """Captions of clips, in any form that `describe` takes, or answers to questions about them.

        Arrays are at 16 kHz. `question`: one for all clips, or one for each.
        """
        asked = [question] * len(audios) if isinstance(question, str) else question
        conversations = [
            [self.listen(audio), *([Message("user", "text", text)] if text else [])]
            for audio, text in zip(audios, asked, strict=True)
        ]
        answers = self._answer(conversations, "text", sampling, seed)
        return [Text.of(answer.content) for (answer,) in answers]

    def render(self, text: str, *, sampling: Sampling | None = None, seed: int = 0) -> Sound:
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
    ) -> list[Sound]:
        """Audio from captions; an entry is empty where the model ended at once."""
        conversations = [[Message("user", "text", text)] for text in texts]
        answers = self._answer(conversations, "audio", sampling, seed)
        return [self.play(answer) for (answer,) in answers]

    def chat(
        self,
        messages: Sequence[Message],
        *,
        modalities: Sequence[str] | None = None,
        sampling: dict[str, Sampling] | None = None,
        seed: int = 0,
    ) -> list[Message]:
        """The assistant's next messages.

        Audio comes as codec codes, which a further turn needs; `play` makes sound of them, and
        `Text.of` splits a text's plan off.

        Args:
          messages: so far; clips as `listen` gives them.
          modalities: of the answer's messages, like ("text", "audio"). If None the model chooses
            them, and `<|eot|>` asks for another message.
          sampling: settings by modality, in place of the model's.
          seed: of the sampling.

        Raises:
          UserError: the conversation does not fit the context.
        """
        return self.chat_batch([messages], modalities=modalities, sampling=sampling, seed=seed)[0]

    def chat_batch(
        self,
        conversations: Sequence[Sequence[Message]],
        *,
        modalities: Sequence[str] | None = None,
        sampling: dict[str, Sampling] | None = None,
        seed: int = 0,
    ) -> list[list[Message]]:
        """`chat` on many conversations at once."""
        requests = [self.request(c, modalities, sampling, seed) for c in conversations]
        answers = self.engine.generate(requests)
        return [[self._message(g) for g in answer[0]] for answer in answers]

    def stream(
        self,
        messages: Sequence[Message],
        *,
        modalities: Sequence[str] | None = None,
        sampling: dict[str, Sampling] | None = None,
        seed: int = 0,
    ) -> Iterator[Delta]:
        """`chat` while it is generated: text as it comes, and sound from the first frames on.

        Closing the iterator ends the generation.
        """
        request = self.request(messages, modalities, sampling, seed)
        answer = AnswerStream(self.config.vocab, self.tokenizer, self.codec)
        with contextlib.closing(self.engine.stream(request, STREAM_ROWS)) as events:
            for event in events:
                yield answer.push(event)

    def listen(self, audio: Any, *, role: str = "user") -> Message:
        """A clip as a message, in any form that `describe` takes."""
        return Message(role, "audio", mel_windows(any_audio(audio)))

    def play(self, message: Message) -> Sound:
        """The sound of an audio message of the assistant."""
        codes = message.content
        wav = self.codec.decode(codes) if len(codes) else np.zeros(0, np.float32)
        return Sound.of(wav, self.codec.sample_rate)

    def request(
        self,
        messages: Sequence[Message],
        modalities: Sequence[str] | None = None,
        sampling: dict[str, Sampling] | None = None,
        seed: int = 0,
        hypotheses: int = 1,
    ) -> Request:
        """A conversation as the engine takes it."""
        prompt = encode_prompt(messages, self.config.vocab, self.tokenizer)
        one = isinstance(modalities, str)
        plan = (modalities,) if one else modalities and tuple(modalities)
        return Request(prompt, {**self.sampling, **(sampling or {})}, plan, seed, hypotheses)

    def _answer(self, conversations, modality, sampling, seed) -> list[list[Message]]:
        settings = {modality: sampling} if sampling else None
        return self.chat_batch(conversations, modalities=(modality,), sampling=settings, seed=seed)

    def _message(self, generated: Generated) -> Message:
        vocab = self.config.vocab
        if generated.modality == "text":
            text = self.tokenizer.decode(vocab.tokens_to_text(generated.rows[:, 0]))
            return Message("assistant", "text", text)
        return Message("assistant", "audio", vocab.deinterleave(generated.rows))
