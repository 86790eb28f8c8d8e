"""Requests for held-out scenes in words of their own: what Whisper hears in what the model makes.

The model chooses by itself whether it writes a caption before the audio; see `question_probe`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from bagpiper_jax.conversation import Message
from bagpiper_jax.errors import UserError
from bagpiper_jax.evaluation.mini_probes import in_chunks, words_and_events_right
from bagpiper_jax.evaluation.rendering_probe import (
    control_by_kind,
    errors_by_kind,
    errors_of,
    hear,
    spoken_scenes,
)
from bagpiper_jax.evaluation.text_metrics import bootstrap_ratio
from bagpiper_jax.input_pipeline.scenes import Corpus, request


class Performer(Protocol):
    """What the probe asks of `inference.pipeline.Pipeline`."""

    def chat_batch(self, conversations, *, modalities=None, sampling=None, seed=0):
        """The assistant's messages in answer to each conversation."""

    def play(self, message: Message) -> np.ndarray:
        """The sound of an audio message, float32 [S] at 16 kHz."""


def request_probe(
    generator: Performer,
    corpus: Corpus,
    whisper: Any,
    sampling: dict[str, Any],
    *,
    split: str,
    counts: dict[str, int],
    seed: int = 1,
) -> tuple[dict[str, Any], list[dict[str, Any]], list[np.ndarray]]:
    """Word error rate of what was asked for, by kind of string.

    Beside it: `control`, what is heard against the words of another request; `captioned`, the share
    of answers with a caption; `caption_right`, of those, with the right words and events.

    Args:
      generator: a pipeline.
      whisper: `asr.Whisper`.
      sampling: by modality.
      split: of the scenes.
      counts: how many requests of each kind, see `rendering_probe.spoken_scenes`.
      seed: of scenes, sampling and intervals.

    Returns:
      the figures, one item per request, the clips in the same order.

    Raises:
      UserError: the split has too few scenes of a kind, or all say the same.
    """
    spoken = spoken_scenes(corpus, split, counts, seed)
    if len({s.text for s in spoken}) < 2:
        raise UserError("the request probe needs two requests with different words at least")
    wishes = [request(s.scene) for s in spoken]

    def answer(part: Sequence[str]) -> list[tuple[str, np.ndarray]]:
        conversations = [[Message("user", "text", wish)] for wish in part]
        answers = generator.chat_batch(conversations, sampling=sampling, seed=seed)
        return [_text_and_sound(generator, messages) for messages in answers]

    answers = in_chunks(answer, wishes, f"requests {split}")
    wavs = [wav for _, wav in answers]
    heard = hear(whisper, wavs, "requests")
    items = []
    for s, wish, (caption, wav), text in zip(spoken, wishes, answers, heard, strict=True):
        item = {
            "probe": "requests",
            "split": split,
            "profile": s.scene.profile,
            "seed": seed,
            "index": s.scene.index,
            "kind": s.kind,
            "request": wish,
            "truth": s.text,
            "output": caption,
            "seconds": round(len(wav) / 16_000, 2),
            "heard": text,
            "errors": errors_of(s, text),
        }
        if caption:
            labels = corpus.event_labels
            item["caption_right"] = words_and_events_right(s.scene, caption, labels)
        items.append(item)
    captioned = [item for item in items if "caption_right" in item]
    figures: dict[str, Any] = {
        "split": split,
        "counts": counts,
        "wer": errors_by_kind(spoken, heard, seed),
        "control": {"wer": control_by_kind(spoken, heard, seed)},
        "captioned": bootstrap_ratio(
            ["caption_right" in item for item in items], np.ones(len(items)), seed=seed
        ),
    }
    if captioned:
        figures["caption_right"] = bootstrap_ratio(
            [item["caption_right"] for item in captioned],
            np.ones(len(captioned)),
            groups=[item["index"] for item in captioned],
            seed=seed,
        )
    return figures, items, wavs


def _text_and_sound(generator: Performer, messages: Sequence[Message]) -> tuple[str, np.ndarray]:
    """What an answer wrote, and its last sound; empty where it made none."""
    texts = [message.content for message in messages if message.modality == "text"]
    sounds = [message for message in messages if message.modality == "audio"]
    wav = generator.play(sounds[-1]) if sounds else np.zeros(0, np.float32)
    return " ".join(texts), np.asarray(wav)
