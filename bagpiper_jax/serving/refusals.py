"""What the server answers where it does not answer: OpenAI's error form."""

from __future__ import annotations

_KINDS = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


class Refusal(Exception):
    """A request that gets an error.

    Attributes:
      status: of HTTP.
      outcome: how the metrics count it.
      headers: of the response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        outcome: str = "bad_request",
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.outcome, self.headers = status, outcome, headers or {}
        self._param, self._code = param, code

    @property
    def body(self) -> dict:
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        error = {
            "message": str(self),
            "type": _KINDS.get(self.status, kind),
            "param": self._param,
            "code": self._code,
        }
        return {"error": error}


def full() -> Refusal:
    """As many requests wait as may wait."""
    return Refusal(
        429,
        "too many requests are waiting: try again later",
        outcome="queue_full",
        code="rate_limit_exceeded",
        headers={"Retry-After": "1"},
    )


def unavailable(why: str) -> Refusal:
    """The server answers nothing now."""
    return Refusal(
        503, why, outcome="unavailable", code="unavailable", headers={"Retry-After": "5"}
    )


def failed() -> Refusal:
    """Something broke that is no fault of the request; the log tells what."""
    return Refusal(500, "the server failed at this request", outcome="error", code="internal_error")


def late(seconds: float) -> Refusal:
    """The answer took too long."""
    return Refusal(
        504, f"the answer was not complete after {seconds:g} s", outcome="timeout", code="timeout"
    )
