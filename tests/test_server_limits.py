"""The server where there is much to do: queues, time limits, failures, ends, clients that go."""

import contextlib
import json
import logging
import signal
import socket
import threading
import time
import urllib.parse

import openai
import pytest
from tiny_server import SAY, ask, connect, figure, get, post, serving, tiny_pipeline


@pytest.fixture(scope="module")
def engine_pipeline(make_model):
    return tiny_pipeline(make_model)


@pytest.fixture
def pipeline(engine_pipeline, monkeypatch):
    """Its methods and texts may be replaced for one test."""
    monkeypatch.setattr(engine_pipeline.tokenizer, "text", None, raising=False)
    yield engine_pipeline
    assert not engine_pipeline.engine.busy


@pytest.fixture
def url(pipeline):
    with serving(pipeline) as (url, _):
        yield url


def until(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


class Gate:
    """Holds the engine before its next step while it is closed; steps are short."""

    def __init__(self, engine, monkeypatch):
        step, self.open, self.reached = engine.step, threading.Event(), threading.Event()

        def gated(limit):
            self.reached.set()
            assert self.open.wait(60)
            return step(min(limit, 4))

        monkeypatch.setattr(engine, "step", gated)


@pytest.fixture
def gate(pipeline, monkeypatch):
    gate = Gate(pipeline.engine, monkeypatch)
    yield gate
    gate.open.set()


class InThread(threading.Thread):
    """A call whose result, or error, is fetched later."""

    def __init__(self, function, *args, **settings):
        super().__init__(daemon=True)
        self._call = lambda: function(*args, **settings)
        self.start()

    def run(self):
        try:
            self._out, self._error = self._call(), None
        except Exception as e:
            self._error = e

    def result(self):
        self.join(60)
        if self._error:
            raise self._error
        return self._out


def test_large_bodies_are_refused_early(pipeline):
    with serving(pipeline, max_body=100_000) as (url, server):
        status, body, _ = post(url, b"x" * 200_000)
        assert status == 413 and "100000 bytes" in body["error"]["message"]
        host, port = urllib.parse.urlsplit(url).netloc.split(":")
        with socket.create_connection((host, int(port)), timeout=20) as raw:
            raw.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n")
            raw.sendall(b"Transfer-Encoding: chunked\r\n\r\n")
            sent, answer = 0, b""
            raw.setblocking(False)
            while b"\r\n\r\n" not in answer:  # no end of the body is ever sent
                with contextlib.suppress(BlockingIOError):
                    sent += raw.send(b"400\r\n" + b"x" * 1024 + b"\r\n") if sent < 10**7 else 0
                with contextlib.suppress(BlockingIOError):
                    answer += raw.recv(4096)
            assert answer.startswith(b"HTTP/1.1 413 ")
        until(lambda: server._service.idle)
        status, _, _ = post(url, {"messages": SAY, "max_tokens": 2})
        assert status == 200


def test_a_full_queue_refuses_at_once(pipeline, gate):
    with serving(pipeline, queue=2) as (url, _):
        asked = [InThread(ask, url, seed=i, max_tokens=2) for i in range(2)]
        until(lambda: figure(url, "bagpiper_requests_waiting") == 2)
        began = time.monotonic()
        status, body, headers = post(url, {"messages": SAY})
        assert status == 429 and int(headers["Retry-After"]) >= 1
        assert body["error"]["type"] == "rate_limit_error"
        assert time.monotonic() - began < 2
        gate.open.set()
        assert all(thread.result().choices for thread in asked)
        assert ask(url, max_tokens=2).choices
        assert figure(url, 'bagpiper_requests_total{outcome="queue_full"}') == 1


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_frees_its_place(pipeline, gate, stream, monkeypatch):
    cancelled = []
    cancel = pipeline.engine.cancel
    monkeypatch.setattr(pipeline.engine, "cancel", lambda n: cancelled.append(n) or cancel(n))
    with serving(pipeline) as (url, server):
        with contextlib.closing(connect(url)) as connection:
            body = json.dumps({"messages": SAY, "stream": stream})
            connection.request("POST", "/v1/chat/completions", body)
            assert gate.reached.wait(20)
        until(lambda: server._service.idle)
        gate.open.set()
        until(lambda: cancelled and not pipeline.engine.busy)
        until(lambda: figure(url, 'bagpiper_requests_total{outcome="disconnected"}') == 1)


def test_a_client_that_goes_amid_a_stream_frees_its_place(pipeline, monkeypatch):
    steps, step = threading.Semaphore(1), pipeline.engine.step
    monkeypatch.setattr(pipeline.engine, "step", lambda n: steps.acquire(timeout=60) and step(n))
    with serving(pipeline) as (url, server):
        with contextlib.closing(connect(url)) as connection:
            body = json.dumps({"messages": SAY, "stream": True})
            connection.request("POST", "/v1/chat/completions", body)
            response = connection.getresponse()
            assert response.status == 200 and response.readline().startswith(b"data: ")
            assert not server._service.idle
            response.close()
        until(lambda: server._service.idle)
        steps.release(10)
        until(lambda: not pipeline.engine.busy)


@pytest.mark.parametrize("stream", [False, True])
def test_time_is_limited(pipeline, gate, stream):
    with serving(pipeline, timeout=0.3) as (url, server):
        status, body, _ = post(url, {"messages": SAY, "stream": stream})
        assert status == 504 and body["error"]["code"] == "timeout"
        assert server._service.idle
        gate.open.set()
        until(lambda: not pipeline.engine.busy)


def test_time_is_limited_amid_a_stream(pipeline, monkeypatch):
    steps, step = threading.Semaphore(1), pipeline.engine.step
    monkeypatch.setattr(pipeline.engine, "step", lambda n: steps.acquire(timeout=60) and step(n))
    with serving(pipeline, timeout=3.0) as (url, _):
        stream = ask(url, stream=True)
        with pytest.raises(openai.APIError, match="not complete after 3 s"):
            list(stream)
        steps.release(10)
        until(lambda: not pipeline.engine.busy)


def test_a_failure_of_the_engine_fails_its_requests_only(pipeline, url, monkeypatch, caplog):
    def fail(limit):
        raise RuntimeError("out of\nmemory")

    with monkeypatch.context() as patch, caplog.at_level(logging.INFO):
        patch.setattr(pipeline.engine, "step", fail)
        asked = [InThread(post, url, {"messages": SAY, "stream": s}) for s in (False, True)]
        for thread in asked:
            status, body, _ = thread.result()
            assert status == 500 and body["error"]["type"] == "server_error"
            assert "memory" not in body["error"]["message"]
    lines = [r.getMessage() for r in caplog.records if r.name.startswith("bagpiper")]
    assert 1 <= len(lines) <= 2 and all("RuntimeError: out of memory" in x for x in lines)
    assert get(url, "/health")[0] == 200
    assert ask(url, max_tokens=2).choices


def test_health_tells_that_the_thread_has_ended(pipeline, monkeypatch):
    def end(limit):
        raise SystemExit

    with serving(pipeline) as (url, _), monkeypatch.context() as patch:
        patch.setattr(pipeline.engine, "step", end)
        assert post(url, {"messages": SAY})[0] == 503
        until(lambda: get(url, "/health")[0] == 503)
        status, body, _ = post(url, {"messages": SAY})
        assert status == 503 and "restart" in body["error"]["message"]


def test_an_end_waits_for_requests_and_takes_no_new_ones(pipeline, gate):
    with serving(pipeline) as (url, server):
        running = InThread(ask, url, max_tokens=2)
        assert gate.reached.wait(20)
        server.handle_exit(signal.SIGTERM, None)
        status, body, _ = post(url, {"messages": SAY})
        assert status == 503 and "shutting down" in body["error"]["message"]
        gate.open.set()
        assert running.result().choices
        until(lambda: server.should_exit)


def test_an_end_does_not_wait_for_ever(pipeline, gate):
    with serving(pipeline, grace=0.2) as (url, server):
        running = InThread(post, url, {"messages": SAY})
        assert gate.reached.wait(20)
        server.handle_exit(signal.SIGTERM, None)
        until(lambda: server.should_exit)
        gate.open.set()
        status, body, _ = running.result()
        assert status == 503 and "shutting down" in body["error"]["message"]


def test_many_clients_at_once(url):
    """More than fit the batch, of all kinds: each gets what it would get alone."""
    kinds = [{}, {"modalities": ["audio"]}, {"n": 2}]
    wanted = [ask(url, seed=i, **kind).choices for i, kind in enumerate(kinds)]
    threads = [InThread(ask, url, seed=i % 3, **kinds[i % 3]) for i in range(12)]
    for i, thread in enumerate(threads):
        for mine, alone in zip(thread.result().choices, wanted[i % 3], strict=True):
            assert mine.message.content == alone.message.content
            if alone.message.audio:
                assert mine.message.audio.data == alone.message.audio.data
