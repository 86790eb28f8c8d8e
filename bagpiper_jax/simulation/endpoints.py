"""One request to a model: OpenAI-compatible chat completions, or Gemini. Retries are not made here.

Both SDKs come with retries of their own, which do not always heed Retry-After and which nobody
counts: they are off, `client` makes them.
"""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import email.utils
import json
import time
from collections.abc import Mapping
from typing import Any, Protocol

from bagpiper_jax.errors import UserError
from bagpiper_jax.simulation.config import ModelConfig
from bagpiper_jax.simulation.secrets import Secret

AGAIN = (408, 409, 425, 429, 500, 502, 503, 504, 529)
FOR_ALL = (401, 403, 404)  # no other request would fare better
MAX_REASON = 300  # characters of an endpoint's message that are kept


@dataclasses.dataclass(frozen=True)
class Query:
    """A question to a model.

    Attributes:
      system, prompt: what it is told; no system message is sent where it is empty.
      schema: JSON schema of the answer.
      audio: a WAV file, or None.
      audio_seconds: its duration.
      sample: number of the answer, where one question is asked several times.
      attempt: bad answers that came before.
    """

    system: str
    prompt: str
    schema: Mapping[str, Any]
    audio: bytes | None = None
    audio_seconds: float = 0.0
    sample: int = 0
    attempt: int = 0

    def seed(self, first: int) -> int:
        """Of the sampling: another for each sample and attempt."""
        return first + self.sample + 1_000 * self.attempt


@dataclasses.dataclass(frozen=True)
class Usage:
    """Tokens as the endpoint counted them: text read, audio read, written (thoughts too)."""

    text: int = 0
    audio: int = 0
    output: int = 0


@dataclasses.dataclass(frozen=True)
class Reply:
    """What came back.

    Attributes:
      text: the answer.
      usage: None where the endpoint did not tell.
      complete: the answer was not cut off.
    """

    text: str
    usage: Usage | None
    complete: bool


class Busy(Exception):
    """The endpoint did not answer: ask again, not before `retry_after` seconds if it said so."""

    def __init__(self, reason: str, retry_after: float | None = None):
        super().__init__(reason)
        self.retry_after = retry_after


class Refused(Exception):
    """This request will not be answered, however often it is sent: the model will not (`by_model`),
    or the endpoint does not take it."""

    def __init__(self, reason: str, by_model: bool = True):
        super().__init__(reason)
        self.by_model = by_model


class Endpoint(Protocol):
    """A model that can be asked."""

    secret: Secret

    async def ask(self, query: Query) -> Reply:
        """Sends one request.

        Raises:
          Busy, Refused: see there.
          UserError: no request would be answered: wrong key, model or address, spent quota.
        """
        ...

    async def close(self) -> None:
        """Ends its connections."""
        ...


def connect(model: ModelConfig) -> Endpoint:
    """The endpoint of a model; its key comes from the environment.

    Raises:
      UserError: the key is not set, or the extra `simulate` is not installed.
    """
    secret = Secret.from_environment(model.key_env)
    try:
        return (OpenAIEndpoint if model.api == "openai" else GeminiEndpoint)(model, secret)
    except ImportError as e:
        raise UserError(f"simulation needs: pip install 'bagpiper_jax[simulate]' ({e})") from e


class OpenAIEndpoint:
    """Chat completions with `input_audio`: OpenAI, vLLM, SGLang and others."""

    def __init__(self, model: ModelConfig, secret: Secret):
        import openai

        self.model, self.secret = model, secret
        self._errors = openai
        self._client = openai.AsyncOpenAI(
            api_key=secret.reveal() or "none",
            base_url=model.base_url or "https://api.openai.com/v1",
            timeout=model.timeout_s,
            max_retries=0,
        )

    async def ask(self, query: Query) -> Reply:
        content: list[dict] = [{"type": "text", "text": query.prompt}]
        if query.audio is not None:
            data = base64.b64encode(query.audio).decode()
            content.append({"type": "input_audio", "input_audio": {"data": data, "format": "wav"}})
        system = [{"role": "system", "content": query.system}] if query.system else []
        options: dict[str, Any] = {}
        if self.model.structured == "schema":
            named = {"name": "answer", "schema": query.schema, "strict": True}
            options["response_format"] = {"type": "json_schema", "json_schema": named}
        elif self.model.structured == "json":
            options["response_format"] = {"type": "json_object"}
        if self.model.seed >= 0:
            options["seed"] = query.seed(self.model.seed)
        request = self._client.chat.completions.create(
            model=self.model.name,
            messages=[*system, {"role": "user", "content": content}],
            temperature=self.model.temperature,
            top_p=self.model.top_p,
            max_completion_tokens=self.model.max_tokens,
            **options,
        )
        try:
            async with asyncio.timeout(self.model.timeout_s):
                answer = await request
            choice = answer.choices[0]
            text = choice.message.content or ""
        except TimeoutError:
            raise Busy(f"no answer within {self.model.timeout_s:g} s") from None
        except self._errors.APIStatusError as e:
            raise self._failure(e.status_code, _message(e.body), e.response.headers) from None
        except self._errors.APIConnectionError as e:
            cause = e.__cause__ or e
            raise Busy(f"no connection: {type(cause).__name__} {self._blot(cause)}") from None
        except (ValueError, LookupError, TypeError, AttributeError, self._errors.APIError) as e:
            raise Busy(f"the answer is no chat completion: {self._blot(e)}") from None
        if choice.finish_reason == "content_filter" or choice.message.refusal:
            raise Refused("the model refused: " + self._blot(choice.message.refusal or "filtered"))
        usage = None
        if answer.usage is not None:
            details = answer.usage.prompt_tokens_details
            audio = (details.audio_tokens if details else 0) or 0
            usage = Usage(answer.usage.prompt_tokens - audio, audio, answer.usage.completion_tokens)
        return Reply(self.secret.blot(text), usage, choice.finish_reason != "length")

    def _failure(self, status: int, message: str, headers) -> Exception:
        return _failure(self.model, status, self._blot(message), headers)

    def _blot(self, text) -> str:
        return _blot(self.secret, text)

    async def close(self) -> None:
        await self._client.close()


class GeminiEndpoint:
    """Gemini's `generateContent` with audio in the request."""

    def __init__(self, model: ModelConfig, secret: Secret):
        from google import genai
        from google.genai import errors, types

        self.model, self.secret = model, secret
        self._types, self._errors = types, errors
        self._client = genai.Client(
            api_key=secret.reveal() or "none",
            vertexai=False,
            http_options=types.HttpOptions(
                base_url=model.base_url or None,
                api_version="v1beta",  # has `responseJsonSchema`
                timeout=round(model.timeout_s * 1000),
                retry_options=types.HttpRetryOptions(attempts=1),
            ),
        )

    async def ask(self, query: Query) -> Reply:
        types, model = self._types, self.model
        parts: list[Any] = [types.Part.from_text(text=query.prompt)]
        if query.audio is not None:
            parts.insert(0, types.Part.from_bytes(data=query.audio, mime_type="audio/wav"))
        config = types.GenerateContentConfig(
            system_instruction=query.system or None,
            temperature=model.temperature,
            top_p=model.top_p,
            max_output_tokens=model.max_tokens,
            seed=query.seed(model.seed) if model.seed >= 0 else None,
            response_mime_type=None if model.structured == "none" else "application/json",
            response_json_schema=query.schema if model.structured == "schema" else None,
        )
        request = self._client.aio.models.generate_content(
            model=model.name, contents=[types.Content(role="user", parts=parts)], config=config
        )
        try:
            async with asyncio.timeout(model.timeout_s):
                answer = await request
        except TimeoutError:
            raise Busy(f"no answer within {model.timeout_s:g} s") from None
        except self._errors.APIError as e:
            headers = getattr(e.response, "headers", {})
            raise self._failure(e.code, _message(e.details), headers, _delay(e.details)) from None
        except (ValueError, LookupError, TypeError, AttributeError) as e:
            raise Busy(f"the answer is no Gemini response: {self._blot(e)}") from None
        except Exception as e:  # of whichever HTTP library the SDK uses
            if not isinstance(e, OSError) and _package(e) not in ("httpx2", "httpx", "google"):
                raise
            raise Busy(f"no connection: {type(e).__name__} {self._blot(e)}") from None
        feedback = answer.prompt_feedback
        if feedback is not None and feedback.block_reason:
            raise Refused(f"the prompt was blocked: {self._blot(feedback.block_reason)}")
        if not answer.candidates:
            raise Busy("the answer has no candidates")
        first = answer.candidates[0]
        reason = getattr(first.finish_reason, "name", first.finish_reason) or "STOP"
        if reason not in ("STOP", "MAX_TOKENS"):
            raise Refused(f"the model stopped: {reason}")
        pieces = (first.content.parts if first.content else None) or []
        text = "".join(part.text or "" for part in pieces if not part.thought)
        return Reply(self.secret.blot(text), _gemini_usage(answer), reason == "STOP")

    def _failure(self, status: int, message: str, headers, delay: float | None) -> Exception:
        return _failure(self.model, status, self._blot(message), headers, delay)

    def _blot(self, text) -> str:
        return _blot(self.secret, text)

    async def close(self) -> None:
        await self._client.aio.aclose()


def _package(error: Exception) -> str:
    return type(error).__module__.split(".")[0]


def _gemini_usage(answer) -> Usage | None:
    meta = answer.usage_metadata
    if meta is None:
        return None
    audio = sum(
        (detail.token_count or 0)
        for detail in meta.prompt_tokens_details or ()
        if getattr(detail.modality, "name", detail.modality) == "AUDIO"
    )
    written = (meta.candidates_token_count or 0) + (meta.thoughts_token_count or 0)
    return Usage((meta.prompt_token_count or 0) - audio, audio, written)


def _failure(
    model: ModelConfig, status: int, message: str, headers, delay: float | None = None
) -> Exception:
    """The exception that an HTTP status stands for."""
    reason = f"HTTP {status}: {message}"
    if status in FOR_ALL:
        which = f" (its key is in {model.key_env})" if model.key_env else ""
        return UserError(f"{model.name} cannot be asked{which}: {reason}")
    if status == 429 and "insufficient_quota" in message:
        return UserError(f"{model.name} cannot be asked, its quota is spent: {reason}")
    if status in AGAIN:
        return Busy(reason, retry_after(headers) if delay is None else delay)
    return Refused(reason, by_model=False)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that a response asks to wait: `retry-after-ms`, or Retry-After (RFC 9110)."""
    try:
        if "retry-after-ms" in headers:
            return max(0.0, float(headers["retry-after-ms"]) / 1000)
        return max(0.0, float(headers["retry-after"]))
    except KeyError:
        return None
    except ValueError:
        when = email.utils.parsedate_tz(headers.get("retry-after", ""))
        return None if when is None else max(0.0, email.utils.mktime_tz(when) - time.time())


def _delay(details: Any) -> float | None:
    """Seconds of the RetryInfo that Gemini puts into the body, such as "17s"."""
    try:
        for entry in details["error"]["details"]:
            if str(entry.get("@type", "")).endswith("RetryInfo"):
                return float(entry["retryDelay"].rstrip("s"))
    except (TypeError, KeyError, AttributeError, ValueError):
        pass
    return None


def _message(body: Any) -> str:
    """What an error response says, however it is wrapped."""
    if isinstance(body, Mapping):
        inner = body.get("error", body)
        if isinstance(inner, Mapping):
            code = inner.get("code")
            text = str(inner.get("message", ""))
            return f"{code}: {text}" if isinstance(code, str) else text
        return str(inner)
    return body if isinstance(body, str) else json.dumps(body, default=str)


def _blot(secret: Secret, text: Any) -> str:
    """One short line without the key, which might lie across the cut: blotted first."""
    return secret.blot(" ".join(str(text).split()))[:MAX_REASON]
