"""Events of the engine → OpenAI's forms of an answer, whole or in chunks."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import time
import uuid
import wave
from collections.abc import Iterator

import numpy as np

from bagpiper_jax.inference.pipeline import Pipeline
from bagpiper_jax.inference.replies import PlanStream
from bagpiper_jax.inference.requests import Event
from bagpiper_jax.inference.streaming import AnswerStream
from bagpiper_jax.serving.conversations import Asked


@dataclasses.dataclass(frozen=True)
class Piece:
    """What a hypothesis has grown by.

    Attributes:
      hypothesis: which one, from 0.
      modality: of the message that grew.
      plan, text: of it, if it is text.
      pcm: of it, if it is audio: 16 bits a sample, little-endian.
      finish: "stop" or "length" where the answer is complete with it.
    """

    hypothesis: int
    modality: str
    plan: str
    text: str
    pcm: bytes
    finish: str | None


class Hypothesis:
    """One answer as it grows."""

    def __init__(self, pipeline: Pipeline, messages: int):
        """`messages`: how many were asked for."""
        self._answer = AnswerStream(pipeline.config.vocab, pipeline.tokenizer, pipeline.codec)
        self._plan = PlanStream()
        self._messages, self._cut = messages, False

    def push(self, event: Event) -> Piece:
        """Decodes an event: text, or sound, which takes a while."""
        delta = self._answer.push(event)
        plan, text = self._plan.push(delta.text)
        if event.modality == "text" and delta.end:
            rest = self._plan.finish()
            plan, text = plan + rest.plan, text + rest.answer
        self._cut |= delta.cut
        finish = None
        if event.last:
            whole = event.message + 1 == self._messages and not self._cut
            finish = "stop" if whole else "length"
        samples = np.round(np.clip(delta.wav, -1, 1) * 32_767).astype("<i2")
        return Piece(event.hypothesis, event.modality, plan, text, samples.tobytes(), finish)


class Reply:
    """The answer to one request, in OpenAI's forms."""

    def __init__(self, asked: Asked, model: str, sample_rate: int):
        """`model`: its name; `sample_rate`: of the codec."""
        self._asked, self._model, self._rate = asked, model, sample_rate
        self._id, self._created = f"chatcmpl-{uuid.uuid4().hex}", int(time.time())
        self._parts: list[list[Piece]] = [[] for _ in range(asked.request.hypotheses)]
        self._rows = {"text": 0, "audio": 0}

    def count(self, event: Event) -> None:
        """Counts an event's rows for the usage."""
        self._rows[event.modality] += len(event.rows)

    def add(self, piece: Piece) -> None:
        """Keeps a piece for `whole`."""
        self._parts[piece.hypothesis].append(piece)

    def whole(self) -> bytes:
        """The answer as one JSON object."""
        choices = [self._choice(i, parts) for i, parts in enumerate(self._parts)]
        return _json(self._head("chat.completion") | {"choices": choices, "usage": self._usage()})

    def chunks(self, piece: Piece) -> Iterator[bytes]:
        """The next chunks of a stream, as server-sent events."""
        before = self._parts[piece.hypothesis]
        if not before:
            yield self._chunk(piece, {"role": "assistant", "content": ""})
        if piece.plan:
            yield self._chunk(piece, {"reasoning_content": piece.plan})
        if piece.text:
            yield self._chunk(piece, {"content": piece.text})
        first = piece.modality == "audio" and all(p.modality != "audio" for p in before)
        if piece.pcm or first:
            audio = {"id": self._audio_id(piece.hypothesis), "data": _base64(piece.pcm)}
            if first:
                audio |= {"transcript": _text(before), "sample_rate": self._rate}
                audio["expires_at"] = self._created  # it is not kept
            yield self._chunk(piece, {"audio": audio})
        if piece.finish:
            yield self._chunk(piece, {}, piece.finish)
        before.append(dataclasses.replace(piece, pcm=b""))

    def tail(self) -> Iterator[bytes]:
        """The end of a stream."""
        if self._asked.usage:
            chunk = self._head("chat.completion.chunk") | {"choices": [], "usage": self._usage()}
            yield event_of(chunk)
        yield b"data: [DONE]\n\n"

    def _choice(self, index: int, parts: list[Piece]) -> dict:
        plan = "".join(p.plan for p in parts)
        has_text = any(p.modality == "text" for p in parts)
        message = {
            "role": "assistant",
            "content": _text(parts) if has_text else None,
            "reasoning_content": plan or None,
            "refusal": None,
        }
        if any(p.modality == "audio" for p in parts):
            pcm = b"".join(p.pcm for p in parts)
            message["audio"] = {
                "id": self._audio_id(index),
                "data": _base64(pcm if self._asked.format == "pcm16" else _wav(pcm, self._rate)),
                "transcript": _text(parts),
                "expires_at": self._created,  # it is not kept
                "sample_rate": self._rate,
            }
        finish = parts[-1].finish
        return {"index": index, "message": message, "logprobs": None, "finish_reason": finish}

    def _chunk(self, piece: Piece, delta: dict, finish: str | None = None) -> bytes:
        choice = {"index": piece.hypothesis, "delta": delta, "logprobs": None}
        choice["finish_reason"] = finish
        chunk = self._head("chat.completion.chunk") | {"choices": [choice]}
        return event_of(chunk | {"usage": None} if self._asked.usage else chunk)

    def _head(self, kind: str) -> dict:
        head = {"id": self._id, "object": kind, "created": self._created, "model": self._model}
        return head | {"system_fingerprint": None}

    def _audio_id(self, index: int) -> str:
        return f"audio-{self._id.removeprefix('chatcmpl-')}-{index}"

    def _usage(self) -> dict:
        prompt, made = len(self._asked.request.prompt), sum(self._rows.values())
        return {
            "prompt_tokens": prompt,
            "completion_tokens": made,
            "total_tokens": prompt + made,
            "prompt_tokens_details": {"audio_tokens": self._asked.audio_rows},
            "completion_tokens_details": {"audio_tokens": self._rows["audio"]},
        }


def event_of(value: dict) -> bytes:
    """A server-sent event."""
    return b"data: " + _json(value) + b"\n\n"


def _json(value: dict) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def _text(parts: list[Piece]) -> str:
    return "".join(p.text for p in parts)


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _wav(pcm: bytes, sample_rate: int) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(sample_rate)
        out.writeframes(pcm)
    return file.getvalue()
