"""What Prometheus reads of the server."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 300)


class Metrics:
    """The figures of one server, in a registry of their own."""

    def __init__(self):
        self.registry = registry = CollectorRegistry()
        # each can be seen before it first happens
        self.requests = Counter(
            "bagpiper_requests", "Requests by how they ended", ["outcome"], registry=registry
        )
        self.running = Gauge("bagpiper_requests_running", "In the batch", registry=registry)
        self.waiting = Gauge(
            "bagpiper_requests_waiting", "Accepted, not yet in the batch", registry=registry
        )
        self.rows = Counter(
            "bagpiper_rows_generated", "Rows: text tokens, audio frames", ["modality"],
            registry=registry,
        )  # fmt: skip
        self.tokens = Counter(
            "bagpiper_tokens_generated", "Tokens: one a row of text, one a stream of audio",
            ["modality"], registry=registry,
        )  # fmt: skip
        self.prompt_rows = Counter("bagpiper_prompt_rows", "Rows of prompts", registry=registry)
        self.first_token = Histogram(
            "bagpiper_time_to_first_token_seconds", "From request to the first rows", ["modality"],
            buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        self.duration = Histogram(
            "bagpiper_request_duration_seconds", "From request to the end of the answer",
            ["outcome"], buckets=_SECONDS, registry=registry,
        )  # fmt: skip

    def ended(self, outcome: str, seconds: float) -> None:
        """Counts a request that is over."""
        self.requests.labels(outcome).inc()
        self.duration.labels(outcome).observe(seconds)

    def grew(self, modality: str, rows: int, streams: int) -> None:
        """Counts rows of an answer."""
        self.rows.labels(modality).inc(rows)
        self.tokens.labels(modality).inc(rows * (1 if modality == "text" else streams))
