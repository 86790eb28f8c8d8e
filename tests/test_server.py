"""The server over real HTTP, with OpenAI's own client: a tiny random model, a codec of a line."""

import base64
import contextlib
import http.client
import io
import json
import logging
import signal
import socket
import threading
import time
import tracemalloc
import urllib.parse

import numpy as np
import openai
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from bagpiper_jax.audio import decode_audio
from bagpiper_jax.inference.pipeline import Pipeline
from bagpiper_jax.inference.replies import PlanStream, split_plan
from bagpiper_jax.inference.sampling import Sampling
from bagpiper_jax.modeling.config import get_config
from bagpiper_jax.serving.app import create_app
from bagpiper_jax.serving.http_server import Server

SAY = [{"role": "user", "content": "a bell"}]


class Characters:
    """A tokenizer whose every id is one character."""

    vocab_size = 320
    text = None  # what all answers say, if anything

    def encode(self, text):
        return [ord(c) % 256 for c in text]

    def decode(self, ids):
        ids = list(ids)
        return self.text[: len(ids)] if self.text else "".join(chr(0x100 + i) for i in ids)


class Steps:
    """A codec whose sound is its first stream's codes."""

    sample_rate, hop, frame_rate, codebook_sizes = 16_000, 320, 50.0, (16,) * 4

    def stream(self):
        return self

    def push(self, codes):
        return np.repeat(codes[:, 0] / 16 - 0.5, self.hop).astype(np.float32)

    def finish(self):
        return np.zeros(0, np.float32)


@pytest.fixture(scope="module")
def engine_pipeline(make_model):
    return Pipeline(
        make_model(get_config("tiny"), seed=3),
        Characters(),
        Steps(),
        text=Sampling(1.0, 0, 1.0, min_rows=12, max_rows=24),
        audio=Sampling(1.0, 0, 1.0, min_rows=12, max_rows=24),
        max_sequences=4,
    )


@pytest.fixture
def pipeline(engine_pipeline, monkeypatch):
    """Its methods and texts may be replaced for one test."""
    monkeypatch.setattr(engine_pipeline.tokenizer, "text", None, raising=False)
    yield engine_pipeline
    assert not engine_pipeline.engine.busy


@contextlib.contextmanager
def serving(pipeline, *, grace=5, **settings):
    """The server in a thread: (base URL, server)."""
    app = create_app(pipeline, model="tiny", **settings)
    server = Server(app, grace=grace)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            while not server.started:
                time.sleep(0.01)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}", server
        finally:
            server.should_exit = True
            app.state.service.stop(0)
            thread.join(20)
            assert not thread.is_alive()
            app.state.service.stop(20)


@pytest.fixture
def url(pipeline):
    with serving(pipeline) as (url, _):
        yield url


def client(url, **settings):
    options = {"api_key": "none", "max_retries": 0, "timeout": 60} | settings
    return openai.OpenAI(base_url=f"{url}/v1", **options)


def ask(url, messages=SAY, **settings):
    return client(url).chat.completions.create(model="tiny", messages=messages, **settings)


def connect(url):
    return http.client.HTTPConnection(urllib.parse.urlsplit(url).netloc, timeout=60)


def post(url, body, headers=None, path="/v1/chat/completions"):
    """(status, body, headers) of a request."""
    with contextlib.closing(connect(url)) as connection:
        data = body if isinstance(body, bytes) else json.dumps(body)
        connection.request("POST", path, data, headers or {})
        response = connection.getresponse()
        return response.status, json.loads(response.read()), response.headers


def get(url, path, headers=None):
    with contextlib.closing(connect(url)) as connection:
        connection.request("GET", path, headers=headers or {})
        response = connection.getresponse()
        return response.status, response.read().decode()


def figure(url, name):
    lines = get(url, "/metrics")[1].splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(name))


def wav_bytes(wav, rate=16_000, kind="WAV"):
    file = io.BytesIO()
    soundfile.write(file, wav, rate, format=kind)
    return file.getvalue()


def clip(data):
    audio = {"data": base64.b64encode(data).decode(), "format": "wav"}
    return {"type": "input_audio", "input_audio": audio}


def noise(seconds, rate=16_000):
    return 0.1 * np.random.default_rng(0).normal(size=int(seconds * rate))


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


def test_text_whole_and_streamed(url):
    whole = ask(url, seed=5)
    (choice,) = whole.choices
    assert whole.object == "chat.completion" and whole.model == "tiny"
    assert 12 <= len(choice.message.content) == whole.usage.completion_tokens <= 24
    # bos, user, text, six characters, eos, assistant
    assert whole.usage.prompt_tokens == 11
    assert choice.finish_reason == ("length" if whole.usage.completion_tokens == 24 else "stop")
    assert ask(url, seed=5).choices[0].message.content == choice.message.content
    assert ask(url, seed=6).choices[0].message.content != choice.message.content
    assert ask(url).choices[0].message.content != ask(url).choices[0].message.content
    chunks = list(ask(url, seed=5, stream=True, stream_options={"include_usage": True}))
    *chunks, last = chunks
    deltas = [chunk.choices[0].delta for chunk in chunks]
    assert deltas[0].role == "assistant"
    assert len([d for d in deltas if d.content]) >= 2
    assert "".join(d.content or "" for d in deltas) == choice.message.content
    assert [c.choices[0].finish_reason for c in chunks[-2:]] == [None, choice.finish_reason]
    assert last.choices == [] and last.usage == whole.usage
    assert len({chunk.id for chunk in chunks}) == 1


def test_audio_whole_and_streamed(url):
    whole = ask(url, seed=1, modalities=["audio"], audio={"format": "wav", "voice": "alloy"})
    message = whole.choices[0].message
    assert message.content is None and message.audio.transcript == ""
    pcm, rate = soundfile.read(io.BytesIO(base64.b64decode(message.audio.data)), dtype="int16")
    rows = whole.usage.completion_tokens
    assert rate == 16_000 and len(pcm) == (rows - 3) * 320 and len(set(pcm)) > 3
    assert whole.usage.completion_tokens_details.audio_tokens == rows
    raw = ask(url, seed=1, modalities=["audio"], audio={"format": "pcm16", "voice": "alloy"})
    assert base64.b64decode(raw.choices[0].message.audio.data) == pcm.tobytes()
    stream = ask(url, seed=1, modalities=["audio"], stream=True)
    audio = [chunk.choices[0].delta.to_dict().get("audio") for chunk in stream]
    audio = [part for part in audio if part]
    assert len(audio) >= 2 and audio[0]["sample_rate"] == 16_000
    assert len({part["id"] for part in audio}) == 1 and "expires_at" in audio[0]
    assert b"".join(base64.b64decode(part["data"]) for part in audio) == pcm.tobytes()


def test_two_hypotheses_of_a_caption_and_its_sound(url):
    """By the fields of the published server; each stream is its own whole."""
    fields = {"mode": "text_audio", "phase": "text", "cfg": 2.0, "audio_topk": 8}
    body = {"top_k": 20, "stop_token_ids": [3], "vllm_xargs": fields}
    whole = ask(url, n=2, seed=2, temperature=0.9, extra_body=body)
    first, second = (choice.message for choice in whole.choices)
    assert first.content != second.content and first.audio.data != second.audio.data
    assert first.audio.transcript == first.content
    parts = {0: [], 1: []}
    for chunk in ask(url, n=2, seed=2, temperature=0.9, extra_body=body, stream=True):
        parts[chunk.choices[0].index].append(chunk.choices[0])
    for index, message in enumerate([first, second]):
        text = "".join(part.delta.content or "" for part in parts[index])
        audio = [part.delta.to_dict().get("audio") for part in parts[index]]
        pcm = b"".join(base64.b64decode(part["data"]) for part in audio if part)
        assert text == message.content
        assert pcm == base64.b64decode(message.audio.data)[44:]
        assert next(part for part in audio if part)["transcript"] == text
        assert parts[index][-1].finish_reason == whole.choices[index].finish_reason


def test_sampling_fields_reach_the_engine(pipeline, url, monkeypatch):
    seen = []
    submit = pipeline.engine.submit
    monkeypatch.setattr(pipeline.engine, "submit", lambda r: seen.append(r) or submit(r))
    ask(url, temperature=0.5, top_p=0.9, seed=-1, max_tokens=5)
    fields = {
        "mode": "text_audio",
        "text_temperature": "0.25",  # vLLM's xargs may be strings
        "audio_temperature": 0.75,
        "audio_topk": 7,
        "text_topk": -1,
        "cfg": 1.5,
    }
    ask(url, temperature=0.5, extra_body={"vllm_xargs": fields, "top_k": 3})
    first, second = seen
    assert first.modalities == ("text",) and first.max_rows == 5
    assert {s.temperature for s in first.sampling.values()} == {0.5}
    assert {s.top_p for s in first.sampling.values()} == {0.9}
    assert second.modalities == ("text", "audio")
    text, audio = second.sampling["text"], second.sampling["audio"]
    assert (text.temperature, text.top_k, text.cfg) == (0.25, 0, 1.0)
    assert (audio.temperature, audio.top_k, audio.cfg) == (0.75, 7, 1.5)


def test_max_tokens_bounds_the_whole_answer(url):
    for asked in (1, 5, 14, 30):
        for modalities in (["text"], ["audio"], ["text", "audio"]):
            answer = ask(url, seed=0, max_completion_tokens=asked, modalities=modalities)
            assert 0 < answer.usage.completion_tokens <= asked
            if asked < 12:
                assert answer.choices[0].finish_reason == "length"


def test_the_plan_is_reasoning(pipeline, url):
    pipeline.tokenizer.text = "<think> a < b </think>\n yes!"
    whole = ask(url, seed=0, max_tokens=24).choices[0]
    pieces = [c.choices[0].delta for c in ask(url, seed=0, stream=True, max_tokens=24)]
    said = len(ask(url, seed=0, max_tokens=24).choices[0].message.content)
    assert whole.message.to_dict()["reasoning_content"] == "a < b"
    assert "yes!".startswith(whole.message.content) or said
    plan = "".join(d.to_dict().get("reasoning_content") or "" for d in pieces)
    assert plan == "a < b"
    assert "".join(d.content or "" for d in pieces) == whole.message.content


@given(st.lists(st.sampled_from(["<think>", "</think>", "<", "th", "</", "a", " ", "\n"])))
def test_plan_pieces_are_the_plan(parts):
    """However the text is cut, also inside a tag."""
    text = "".join(parts)
    for size in (1, 3, 8):
        stream = PlanStream()
        pieces = [stream.push(text[i : i + size]) for i in range(0, len(text), size)]
        pieces.append(stream.finish())
        joined = ["".join(part) for part in zip(*pieces, strict=True)]
        assert joined == list(split_plan(text))


def test_hearing_a_conversation(pipeline, url, monkeypatch):
    prompts = []
    request = pipeline.request
    monkeypatch.setattr(pipeline, "request", lambda m, *a: prompts.append(m) or request(m, *a))
    for kind in ("WAV", "FLAC", "OGG"):
        heard = [clip(wav_bytes(noise(1.0), kind=kind)), {"type": "text", "text": "what?"}]
        earlier = {"role": "assistant", "content": "a bell", "reasoning_content": "hm"}
        messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": heard}]
        answer = ask(url, [*messages, earlier, *SAY], max_tokens=2)
        assert answer.usage.prompt_tokens_details.audio_tokens == 13
    turns = [(m.role, m.modality) for m in prompts[0]]
    assert turns == [
        ("system", "text"), ("user", "audio"), ("user", "text"), ("assistant", "text"),
        ("user", "text"),
    ]  # fmt: skip
    assert prompts[0][3].content == "<think>\nhm\n</think>\n\na bell"


BAD_CLIPS = {
    "is not base64": b"",
    "cannot be read as audio": b"this is no recording" * 100,
    "is silent": wav_bytes(np.zeros(16_000)),
    "longer than 30 s": wav_bytes(noise(31)),
    "lasts 0.010 s": wav_bytes(noise(0.01)),
    "is empty": b"",
}


@pytest.mark.parametrize("message", BAD_CLIPS)
def test_bad_clips_are_told_in_a_line(url, message):
    part = clip(BAD_CLIPS[message])
    if message == "is not base64":
        part["input_audio"]["data"] = "&&&"
    status, body, _ = post(url, {"messages": [{"role": "user", "content": [part]}]})
    assert status == 400
    told = body["error"]["message"]
    assert message in told and "messages[0].content[0]" in told and "\n" not in told
    assert body["error"]["type"] == "invalid_request_error"


def test_ten_minutes_are_refused_without_reading_them(url):
    part = clip(wav_bytes(noise(600, 8_000), 8_000))
    began = time.monotonic()
    status, body, _ = post(url, {"messages": [{"role": "user", "content": [part]}]})
    assert status == 400 and "longer than 30 s" in body["error"]["message"]
    assert time.monotonic() - began < 10


def test_channels_that_are_not_used_cost_no_memory():
    data = wav_bytes(np.tile(noise(1.0)[:, None], 255))
    tracemalloc.start()
    try:
        wav = decode_audio(data)
        assert tracemalloc.get_traced_memory()[1] < 10e6  # all of them take 16 MB
    finally:
        tracemalloc.stop()
    assert len(wav) == 16_000


BAD_BODIES = {
    "Invalid JSON": b"{",
    "messages: Field required": {},
    "at least 1 item": {"messages": []},
    "unknown fields: vllm_xargs.pitch, stop": {"stop": "x", "vllm_xargs": {"pitch": 1}},
    "messages[0].role": {"messages": [{"role": "tool", "content": "x"}]},
    "messages[0].content[0].text: ": {
        "messages": [{"role": "user", "content": [{"type": "text"}]}]
    },
    "not kept": {"messages": [{"role": "assistant", "audio": {"id": "audio-1"}}]},
    "only the user": {"messages": [{"role": "assistant", "content": [clip(b"x")]}]},
    "no content": {"messages": [{"role": "user"}]},
    "temperature": {"temperature": -1},
    "top_p": {"top_p": 0},
    "n: ": {"n": 0},
    "the answer takes 9 sequences": {"n": 9},
    "max_tokens": {"max_tokens": 0},
    "the format pcm16": {"stream": True, "modalities": ["audio"], "audio": {"format": "wav"}},
    "differ": {"modalities": ["audio"], "vllm_xargs": {"mode": "text"}},
    "vllm_xargs.mode": {"vllm_xargs": {"mode": "song"}},
    "the prompt takes": {"messages": [{"role": "user", "content": "x" * 3_000}]},
    "the prompt is too long": {"messages": [{"role": "user", "content": "x" * 300_000}]},
    "presence_penalty": {"presence_penalty": 0.5},
}


@pytest.mark.parametrize("message", BAD_BODIES)
def test_bad_bodies_are_told_in_a_line(url, message):
    body = BAD_BODIES[message]
    if isinstance(body, dict) and not message.startswith("messages: "):
        body = {"messages": SAY} | body
    status, told, _ = post(url, body)
    assert status == 400, told
    assert message in told["error"]["message"] and "\n" not in told["error"]["message"]


def test_models_health_and_other_routes(url):
    assert [m.id for m in client(url).models.list()] == ["tiny"]
    assert client(url).models.retrieve("tiny").id == "tiny"
    assert get(url, "/health")[0] == 200
    with pytest.raises(openai.NotFoundError, match="there is no model 'other' here"):
        client(url).chat.completions.create(model="other", messages=SAY)
    assert json.loads(get(url, "/v1/none")[1])["error"]["message"] == "Not Found"
    # what neutral clients send besides
    ask(url, user="me", frequency_penalty=0, logprobs=False, max_tokens=2)


def test_a_token_is_asked_for(pipeline, caplog):
    with serving(pipeline, token="sesame") as (url, _), caplog.at_level(logging.DEBUG):
        for headers in ({}, {"Authorization": "Bearer sesam"}, {"Authorization": "Basic sesame"}):
            status, body, _ = post(url, {"messages": SAY}, headers)
            assert status == 401 and body["error"]["code"] == "invalid_api_key"
            assert get(url, "/v1/models", headers)[0] == 401
            assert get(url, "/metrics", headers)[0] == 401
        assert get(url, "/health")[0] == 200
        good = client(url, api_key="sesame").chat.completions
        assert good.create(model="tiny", messages=SAY, max_tokens=2).choices
    assert "sesame" not in caplog.text


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


def test_figures_for_prometheus(pipeline, url):
    answer = ask(url, seed=0, modalities=["audio"])
    rows = answer.usage.completion_tokens
    assert figure(url, 'bagpiper_rows_generated_total{modality="audio"}') == rows
    assert figure(url, 'bagpiper_tokens_generated_total{modality="audio"}') == 4 * rows
    assert figure(url, "bagpiper_prompt_rows_total") == answer.usage.prompt_tokens
    assert figure(url, 'bagpiper_requests_total{outcome="ok"}') == 1
    assert figure(url, "bagpiper_time_to_first_token_seconds_count") == 1
    assert figure(url, "bagpiper_request_duration_seconds_count") == 1
    assert figure(url, "bagpiper_requests_running") == 0


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
