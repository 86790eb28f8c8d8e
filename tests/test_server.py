"""The server over real HTTP, with OpenAI's own client: answers, refusals, routes, figures."""

import base64
import io
import json
import logging
import time
import tracemalloc

import numpy as np
import openai
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st
from tiny_server import SAY, ask, client, figure, get, post, serving, tiny_pipeline

from bagpiper_jax.audio import decode_audio
from bagpiper_jax.inference.replies import PlanStream, split_plan


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


def wav_bytes(wav, rate=16_000, kind="WAV"):
    file = io.BytesIO()
    soundfile.write(file, wav, rate, format=kind)
    return file.getvalue()


def clip(data):
    audio = {"data": base64.b64encode(data).decode(), "format": "wav"}
    return {"type": "input_audio", "input_audio": audio}


def noise(seconds, rate=16_000):
    return 0.1 * np.random.default_rng(0).normal(size=int(seconds * rate))


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
