"""What a client may ask: OpenAI's chat completions, and the fields of the published server.

The published server is a fork of vLLM; its clients send `vllm_xargs`, `top_k` and `stop_token_ids`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from bagpiper_jax.serving.refusals import Refusal

_SHOWN = 5  # faults of a body that one message names

Temperature = Annotated[float, Field(ge=0, le=100)]
TopK = Annotated[int, Field(ge=-1, le=2**31 - 1)]
Rows = Annotated[int, Field(ge=1, le=2**31 - 1)]


class _Form(BaseModel):
    """Fields that are null are as if they were not there; unknown ones are faults."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _no_nulls(cls, value: Any) -> Any:
        if isinstance(value, dict):
            return {name: v for name, v in value.items() if v is not None}
        return value


class TextPart(_Form):
    """A part of a message."""

    type: Literal["text"]
    text: str


class InputAudio(_Form):
    """A file's bytes in base64. They tell their format themselves."""

    data: str
    format: str = "wav"


class AudioPart(_Form):
    """A part of a message of the user or the system."""

    type: Literal["input_audio"]
    input_audio: InputAudio


def _as_parts(content: Any) -> Any:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


Part = Annotated[TextPart | AudioPart, Field(discriminator="type")]
Parts = Annotated[list[Part], Field(max_length=64), BeforeValidator(_as_parts)]


class ChatMessage(_Form):
    """A turn so far."""

    role: Literal["system", "user", "assistant"]
    content: Parts = []
    reasoning_content: str = ""  # of the assistant: its plan
    name: str = ""  # not used
    audio: dict[str, Any] | None = None
    annotations: list | None = Field(None, max_length=0)
    tool_calls: list | None = Field(None, max_length=0)

    @model_validator(mode="after")
    def _check(self):
        if self.audio is not None:
            raise ValueError(
                "audio of earlier answers is not kept: leave `audio` out, send its text as content"
            )
        if not self.content:
            raise ValueError("it has no content")
        if self.reasoning_content and self.role != "assistant":
            raise ValueError("only the assistant has reasoning_content")
        if self.role == "assistant" and any(isinstance(p, AudioPart) for p in self.content):
            raise ValueError("only the user and the system may send audio")
        return self


class AudioFormat(_Form):
    """Of the audio that is answered."""

    format: Literal["wav", "pcm16"] | None = None
    voice: Any = None  # not used: the scene's words tell the voices


class StreamOptions(_Form):
    """What a stream tells besides."""

    include_usage: bool = False
    include_obfuscation: Literal[False] = False


class XArgs(_Form):
    """The fields of the published server."""

    mode: Literal["text", "audio", "text_audio"] | None = None
    phase: Literal["text"] = "text"  # the published server's first phase; it says nothing here
    text_temperature: Temperature | None = None
    audio_temperature: Temperature | None = None
    text_topk: TopK | None = None
    audio_topk: TopK | None = None
    cfg: Annotated[float, Field(ge=0, le=100)] | None = None


Zero = Annotated[float, Field(ge=0, le=0)]


class ChatBody(_Form):
    """The body of `POST /v1/chat/completions`."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=1024)]
    model: str | None = None
    modalities: Annotated[list[Literal["text", "audio"]], Field(min_length=1)] | None = None
    audio: AudioFormat = AudioFormat()
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    n: Annotated[int, Field(ge=1, le=128)] = 1
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    temperature: Temperature | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: TopK | None = None
    max_tokens: Rows | None = None
    max_completion_tokens: Rows | None = None
    vllm_xargs: XArgs = XArgs()
    # messages end at <|eos|> and <|eot|> in any case
    stop_token_ids: list[Literal[2, 3]] = []

    # neutral values only
    frequency_penalty: Zero = 0
    presence_penalty: Zero = 0
    logprobs: Literal[False] = False
    # not used: they change no answer
    user: Any = None
    safety_identifier: Any = None
    prompt_cache_key: Any = None
    metadata: Any = None
    store: Any = None
    service_tier: Any = None

    @model_validator(mode="after")
    def _check(self):
        if self.stream and self.audio.format == "wav":
            raise ValueError("a stream of audio has the format pcm16: a WAV file tells its length")
        mode, asked = self.vllm_xargs.mode, self.modalities
        if mode and asked and {*mode.split("_")} != {*asked}:
            raise ValueError(f"modalities {asked} and vllm_xargs.mode {mode!r} differ: give one")
        return self

    @property
    def plan(self) -> tuple[str, ...]:
        """Modalities of the answer's messages: a caption comes before its sound."""
        if self.vllm_xargs.mode:
            return tuple(self.vllm_xargs.mode.split("_"))
        asked = self.modalities or ["text"]
        return tuple(m for m in ("text", "audio") if m in asked)

    @property
    def max_rows(self) -> int | None:
        bounds = [n for n in (self.max_completion_tokens, self.max_tokens) if n]
        return min(bounds, default=None)

    def sampling(self, modality: str) -> dict[str, float]:
        """The fields of `Sampling` that were sent, for one modality."""
        x = self.vllm_xargs
        if modality == "text":
            own = {"temperature": x.text_temperature, "top_k": x.text_topk}
        else:
            own = {"temperature": x.audio_temperature, "top_k": x.audio_topk, "cfg": x.cfg}
        sent = {"temperature": self.temperature, "top_k": self.top_k, "top_p": self.top_p}
        sent |= {name: value for name, value in own.items() if value is not None}
        return {name: value for name, value in sent.items() if value is not None}


def read_body(data: bytes) -> ChatBody:
    """A body's bytes, checked.

    Raises:
      Refusal: 400, with what is wrong where.
    """
    try:
        return ChatBody.model_validate_json(data)
    except ValidationError as e:
        faults = [(_path(f["loc"]), f) for f in e.errors(include_url=False, include_input=False)]
    except ValueError as e:  # RecursionError and the like are none of these
        raise Refusal(400, f"the body cannot be read: {e}") from e
    unknown = [path for path, fault in faults if fault["type"] == "extra_forbidden"]
    told = [f"unknown fields: {', '.join(unknown[:_SHOWN])}"] if unknown else []
    told += [_tell(path, f) for path, f in faults if f["type"] != "extra_forbidden"][:_SHOWN]
    param = faults[0][0] or None
    raise Refusal(400, "; ".join(told), param=param)


def _path(location: tuple) -> str:
    """`messages[0].content[1].text`; without the names of a union's cases."""
    path = ""
    for before, part in zip(("", *location), location):
        if isinstance(part, int):
            path += f"[{part}]"
        elif not (isinstance(before, int) and part in ("text", "input_audio")):
            path += f".{part}" if path else part
    return path


def _tell(path: str, fault: dict) -> str:
    message = fault["msg"].removeprefix("Value error, ")
    return f"{path}: {message}" if path else message
