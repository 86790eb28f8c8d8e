"""Bodies of requests → what the engine takes: audio decoded, text in rows."""

from __future__ import annotations

import base64
import binascii
import dataclasses
import itertools
import secrets
from collections.abc import Iterator

from bagpiper_jax.audio import decode_audio
from bagpiper_jax.conversation import Message
from bagpiper_jax.errors import UserError
from bagpiper_jax.inference.pipeline import Pipeline
from bagpiper_jax.inference.requests import Request
from bagpiper_jax.log_mel import mel_windows
from bagpiper_jax.serving.protocol import AudioPart, ChatBody, ChatMessage, read_body
from bagpiper_jax.serving.refusals import Refusal

# no text of so many bytes for each row of the context can fit: it need not be encoded
_BYTES_PER_ROW = 64


@dataclasses.dataclass(frozen=True)
class Asked:
    """A request, and how its answer shall look.

    Attributes:
      request: as the engine takes it.
      audio_rows: of its prompt.
      stream, usage: whether the answer comes in pieces, and whether they end with the usage.
      format: of audio, "wav" or "pcm16".
    """

    request: Request
    audio_rows: int
    stream: bool
    usage: bool
    format: str


def read_request(data: bytes, pipeline: Pipeline, model: str) -> Asked:
    """The bytes of a body, understood. It takes a while: not for an event loop.

    Args:
      data: JSON.
      pipeline: whose tokenizer, settings and context count.
      model: the name that the body may ask for.

    Raises:
      Refusal: 400 with what is wrong; 404 for another model.
    """
    body = read_body(data)
    if body.model not in (None, model):
        raise Refusal(
            404, f"there is no model {body.model!r} here, but {model!r}", code="model_not_found",
            param="model",
        )  # fmt: skip
    try:
        return _asked(body, pipeline)
    except UserError as e:
        raise Refusal(400, str(e), code="invalid_value") from e


def _asked(body: ChatBody, pipeline: Pipeline) -> Asked:
    context = pipeline.config.decoder.max_position_embeddings
    messages: list[Message] = []
    text_bytes = audio_rows = 0
    for i, sent in enumerate(body.messages):
        for message in _messages(sent, f"messages[{i}]"):
            messages.append(message)
            if message.modality == "text":
                text_bytes += len(message.content.encode(errors="replace"))
            else:
                audio_rows += message.content.num_tokens
            # checked as it grows: many long clips would cost their features' memory
            if text_bytes > _BYTES_PER_ROW * context or audio_rows > context:
                raise UserError(f"the prompt is too long for a context of {context} rows")
    sampling = {
        modality: dataclasses.replace(
            settings, **_bounded(body.sampling(modality), pipeline.config.vocab.text_size)
        )
        for modality, settings in pipeline.sampling.items()
    }
    seed = secrets.randbits(32) if body.seed is None else body.seed
    request = pipeline.request(messages, body.plan, sampling, seed, body.n)
    request = dataclasses.replace(request, max_rows=body.max_rows)
    kind = body.audio.format or ("pcm16" if body.stream else "wav")
    return Asked(request, audio_rows, body.stream, body.stream_options.include_usage, kind)


def _bounded(sampling: dict[str, float], vocabulary: int) -> dict[str, float]:
    """vLLM's −1 is all; more than all is all, and needs no program of its own."""
    top_k = sampling.get("top_k")
    if top_k is not None and not 0 < top_k < vocabulary:
        sampling["top_k"] = 0
    return sampling


def _messages(sent: ChatMessage, where: str) -> Iterator[Message]:
    """A turn as the model was trained on turns: one message a clip, one a run of text."""
    plan = f"<think>\n{sent.reasoning_content}\n</think>\n\n" if sent.reasoning_content else ""
    numbered = enumerate(sent.content)
    for is_audio, run in itertools.groupby(numbered, lambda item: isinstance(item[1], AudioPart)):
        if not is_audio:
            text = plan + "\n".join(part.text for _, part in run)
            yield Message(sent.role, "text", text)
            continue
        for i, part in run:
            clip = _clip(part.input_audio.data, f"the clip in {where}.content[{i}]")
            yield Message(sent.role, "audio", clip)


def _clip(data: str, name: str):
    try:
        file = base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as e:
        raise UserError(f"{name} is not base64: {e}") from e
    return mel_windows(decode_audio(file, name))
