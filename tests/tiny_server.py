"""A server of a tiny random model and a codec of a line, and its clients."""

import contextlib
import http.client
import json
import socket
import threading
import time
import urllib.parse

import numpy as np
import openai

from bagpiper_jax.inference.pipeline import Pipeline
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


def tiny_pipeline(make_model):
    return Pipeline(
        make_model(get_config("tiny"), seed=3),
        Characters(),
        Steps(),
        text=Sampling(1.0, 0, 1.0, min_rows=12, max_rows=24),
        audio=Sampling(1.0, 0, 1.0, min_rows=12, max_rows=24),
        max_sequences=4,
    )


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
