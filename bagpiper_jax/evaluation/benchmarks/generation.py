"""What the model under test answers and speaks: conversations in, replies and sounds out.

A reply may caption and reason first (`conversation.captioned_answer`); only the answer is scored.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from bagpiper_jax.audio import SAMPLE_RATE
from bagpiper_jax.conversation import Message, split_answer
from bagpiper_jax.errors import UserError
from bagpiper_jax.evaluation.benchmarks.item import Item, load_clip
from bagpiper_jax.evaluation.mini_probes import in_chunks


class Generator(Protocol):
    """What the benchmarks ask of `inference.pipeline.Pipeline`."""

    def listen(self, audio: Any) -> Message:
        """A clip, float32 [S] at 16 kHz, as a message of the user."""

    def chat_batch(
        self, conversations, *, modalities, sampling=None, seed=0
    ) -> list[list[Message]]:
        """The assistant's messages of each conversation."""

    def play(self, message: Message) -> np.ndarray:
        """The sound of an audio message: float32 [S], with its `sample_rate`."""


@dataclasses.dataclass(frozen=True)
class Reply:
    """What the model wrote about a recording.

    Attributes:
      output: all of it.
      answer: its last part, without caption and plan; "" where it never came so far.
      problem: why the model was not asked, such as a silent recording; it counts as no answer.
      seconds_cut: of the recording that the model did not hear.
    """

    output: str = ""
    problem: str = ""
    seconds_cut: float = 0.0

    @property
    def answer(self) -> str:
        return split_answer(self.output)[1]


def item_fields(benchmark: str, item: Item, prompt: str, reply: Reply, seed: int) -> dict[str, Any]:
    """What is kept of a question and its reply, whatever the benchmark."""
    return {
        "benchmark": benchmark,
        "key": item.key,
        "seed": seed,
        "audio": str(item.audio),
        "prompt": prompt,
        "truth": item.answer,
        "output": reply.output,
        "answer": reply.answer,
        "problem": reply.problem,
        "seconds_cut": round(reply.seconds_cut, 2),
    }


def reply_figures(items: Sequence[dict[str, Any]]) -> dict[str, int]:
    """How many items were not asked, and how many were heard in part."""
    return {
        "items": len(items),
        "not_asked": sum(bool(item["problem"]) for item in items),
        "cut_to_30_s": sum(item["seconds_cut"] > 0 for item in items),
    }


def reply_to(
    generator: Generator,
    items: Sequence[Item],
    questions: Sequence[str],
    sampling: Any,
    *,
    seed: int,
    name: str,
) -> list[Reply]:
    """What the model writes about each recording.

    Args:
      generator: a pipeline.
      items: with their recordings.
      questions: text after each; "" asks for a caption.
      sampling: settings by modality; None: the model's own.
      seed: of the sampling.
      name: of the progress bar.

    Raises:
      UserError: not one item could be asked.
    """

    def chunk(part: Sequence[tuple[Item, str]]) -> list[Reply]:
        replies, asked, conversations = [], [], []
        for i, (item, question) in enumerate(part):
            try:
                wav, cut = load_clip(item.audio)
            except UserError as e:  # counted, since some released recordings are silent
                replies.append(Reply(problem=str(e)))
                continue
            after = [Message("user", "text", question)] if question else []
            conversations.append([generator.listen(wav), *after])
            asked.append(i)
            replies.append(Reply(seconds_cut=cut))
        messages = _chat(generator, conversations, ("text",), sampling, seed)
        for i, answer in zip(asked, messages, strict=True):
            change = {"problem": answer} if isinstance(answer, str) else {"output": _text(answer)}
            replies[i] = dataclasses.replace(replies[i], **change)
        return replies

    replies = in_chunks(chunk, list(zip(items, questions, strict=True)), name)
    if replies and all(reply.problem for reply in replies):
        first = replies[0].problem
        raise UserError(f"{name}: none of {len(replies)} items could be asked; the first: {first}")
    return replies


def speak(
    generator: Generator,
    prompts: Sequence[str],
    modalities: Sequence[str],
    sampling: Any,
    *,
    seed: int,
) -> list[np.ndarray]:
    """What the model makes of a few texts: float32 [S] at 16 kHz, empty where nothing came.

    Args:
      generator: a pipeline.
      prompts: text of the user.
      modalities: of the answer's messages: ("audio",), or ("text", "audio") where a caption is
        written first.
      sampling: settings by modality; None: the model's own.
      seed: of the sampling.
    """
    conversations = [[Message("user", "text", text)] for text in prompts]
    answers = generator.chat_batch(
        conversations, modalities=tuple(modalities), sampling=sampling, seed=seed
    )
    return [_sound(generator, messages) for messages in answers]


def _chat(generator, conversations, modalities, sampling, seed) -> list[list[Message] | str]:
    """Messages of each conversation, or why there are none."""
    options = {"modalities": modalities, "sampling": sampling, "seed": seed}
    if not conversations:
        return []
    try:
        return generator.chat_batch(conversations, **options)
    except UserError as e:
        if len(conversations) == 1:
            return [str(e)]
    # one that does not fit the context must not take the others with it
    return [_chat(generator, [c], modalities, sampling, seed)[0] for c in conversations]


def _text(messages: Sequence[Message]) -> str:
    return "\n\n".join(m.content for m in messages if m.modality == "text")


def _sound(generator: Generator, messages: Sequence[Message]) -> np.ndarray:
    spoken = [m for m in messages if m.modality == "audio"]
    if not spoken:
        return np.zeros(0, np.float32)
    wav = generator.play(spoken[-1])
    rate = getattr(wav, "sample_rate", None) or SAMPLE_RATE
    wav = np.asarray(wav, np.float32)
    if rate == SAMPLE_RATE or not len(wav):
        return wav
    import librosa

    return librosa.resample(wav, orig_sr=rate, target_sr=SAMPLE_RATE)
