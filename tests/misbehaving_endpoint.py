"""A local server that speaks chat completions and Gemini's API, and misbehaves when told to."""

import base64
import json
import re
import socket
import struct
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from bagpiper_jax.simulation.dimensions import NAMES

KEY = "sk-test-SECRET/0123+456789=abcdef"
SPAN = {"start": 0.1, "end": 0.9}
CAPTION = {
    "scene": "A woman greets a friend in a small quiet room; " * 4 + "then a door falls shut.",
    "language": "en",
    "speakers": [
        {
            "name": "S1",
            "gender": "female",
            "age": "30 to 40",
            "voice": "low and warm",
            "accent": "General American",
            "pace": "140 words per minute",
            "spans": [SPAN],
        }
    ],
    "events": [{"name": "door", **SPAN, "description": "A wooden door falls shut, near."}],
    "emotions": [{"emotion": "friendly", **SPAN}],
    "speech_activity": [SPAN],
    "transcript": [{"speaker": "S1", **SPAN, "text": "Hello there, old friend!"}],
    "music": "",
    "room": "small and dry",
    "noise": "faint hiss",
    "recording_quality": "clear, close",
    "uncertain": [],
    "absent": ["music"],
}
PERSONA = {"who": "A teacher of 40.", "goal": "A play for school.", "tone": "friendly, brief"}
REQUEST = {
    "request": "I need a short recording for our school play: a woman with a warm low voice greets "
    "somebody in a quiet room, close to the microphone. She says “Hello there, old friend!” and "
    "right after that a wooden door falls shut nearby."
}
QUESTION = {"request": "Could you tell me how the woman in this recording feels about her guest?"}
PART = "The user wants a warm greeting by a woman in a small quiet room."
PLAN = dict.fromkeys(("user_intent", "inferred_details", "audio_quality", "generation_plan"), PART)
ANSWER = dict.fromkeys(("user_intent", "inferred_details", "audio_quality", "answer_plan"), PART)
ANSWER["answer"] = "She sounds glad: her voice is warm and friendly as she greets him."
VERDICT = {name: {"reason": "It is good.", "score": 4} for name in NAMES}
USAGE = {"text": 100, "audio": 32, "output": 50}


def good_answer(prompt: str) -> dict:
    """What a sensible model says to each of our prompts."""
    for mark, answer in (
        ("Listen to the whole clip", CAPTION),
        ("Invent one person", PERSONA),
        ("this person asks for a recording", REQUEST),
        ("this person sends along", QUESTION),
        ("A user asks for a recording", PLAN),
        ("A user asks about a recording", ANSWER),
        ("Judge the dialogue", VERDICT),
    ):
        if mark in prompt:
            return answer
    raise AssertionError(f"an unknown prompt: {prompt[:200]}")


class Misbehaving:
    """The server. A context manager.

    `script` holds what happens to the next requests, first come first served; afterwards all is
    well. An entry is one of: a dict or text to answer with, a function from the prompt to one,
    "ok", "slow", "reset", "truncated", "garbage", "cut off", "refusal", or (status, headers, body).
    """

    def __init__(self, script=(), always=None, delay=0.0):
        self.script, self.always, self.delay = list(script), always, delay
        self.requests = []  # (time, path, headers, body) of each
        self.under_way = self.most_at_once = 0
        self._lock = threading.Lock()
        self._stop = threading.Event()
        handler = type("Handler", (_Handler,), {"owner": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))

    @property
    def url(self):
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def next_step(self):
        with self._lock:
            return self.script.pop(0) if self.script else self.always or "ok"


class _Handler(BaseHTTPRequestHandler):
    owner: Misbehaving
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        owner = self.owner
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with owner._lock:
            owner.requests.append((time.monotonic(), self.path, dict(self.headers), body))
            owner.under_way += 1
            owner.most_at_once = max(owner.most_at_once, owner.under_way)
        try:
            self._answer(body, owner.next_step())
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        finally:
            with owner._lock:
                owner.under_way -= 1

    def _answer(self, body, step):
        self.owner._stop.wait(self.owner.delay)
        if step == "slow":
            self.owner._stop.wait(30)
        if step == "reset":
            linger = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.connection.close()
            self.close_connection = True
            return
        if isinstance(step, tuple):
            status, headers, content = step
            return self._send(status, json.dumps(content).encode(), headers)
        gemini = "generateContent" in self.path
        if gemini:
            prompt = "".join(p.get("text", "") for p in body["contents"][0]["parts"])
        else:
            prompt = "".join(p.get("text", "") for p in body["messages"][-1]["content"])
        if callable(step):
            step = step(prompt)
        text = step if isinstance(step, str) else json.dumps(step)
        if step in ("ok", "slow", "truncated", "cut off", "refusal"):
            text = json.dumps(good_answer(prompt))
        whole = json.dumps((_gemini if gemini else _openai)(text, step)).encode()
        if step == "truncated":
            whole = whole[: len(whole) // 2]
        elif step == "garbage":
            whole = b"<html>Bad gateway</html>"
        self._send(200, whole, {})

    def _send(self, status, data, headers):
        self.send_response(status)
        headers = {"Content-Type": "application/json", "Content-Length": str(len(data))} | headers
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


def _openai(text, step):
    message = {"role": "assistant", "content": text}
    if step == "refusal":
        message |= {"content": None, "refusal": "I cannot help with that."}
    return {
        "id": "1",
        "object": "chat.completion",
        "created": 1,
        "model": "hearing",
        "choices": [
            {
                "index": 0,
                "finish_reason": "length" if step == "cut off" else "stop",
                "message": message,
            }
        ],
        "usage": {
            "prompt_tokens": USAGE["text"] + USAGE["audio"],
            "completion_tokens": USAGE["output"],
            "total_tokens": sum(USAGE.values()),
            "prompt_tokens_details": {"audio_tokens": USAGE["audio"]},
        },
    }


def _gemini(text, step):
    reason = {"cut off": "MAX_TOKENS", "refusal": "SAFETY"}.get(str(step), "STOP")
    return {
        "candidates": [
            {
                "content": {
                    "role": "model",
                    "parts": [{"text": "I think.", "thought": True}, {"text": text}],
                },
                "finishReason": reason,
                "index": 0,
            }
        ],
        "usageMetadata": {
            "promptTokenCount": USAGE["text"] + USAGE["audio"],
            "candidatesTokenCount": USAGE["output"] - 20,
            "thoughtsTokenCount": 20,
            "totalTokenCount": sum(USAGE.values()),
            "promptTokensDetails": [
                {"modality": "TEXT", "tokenCount": USAGE["text"]},
                {"modality": "AUDIO", "tokenCount": USAGE["audio"]},
            ],
        },
    }


def heard(body) -> bytes:
    """The recording that came with a request."""
    if "contents" in body:
        part = next(p for p in body["contents"][0]["parts"] if "inlineData" in p)
        return base64.b64decode(re.sub("_", "/", re.sub("-", "+", part["inlineData"]["data"])))
    part = next(p for p in body["messages"][1]["content"] if p["type"] == "input_audio")
    return base64.b64decode(part["input_audio"]["data"])
