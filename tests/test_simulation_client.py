"""The client against an endpoint that misbehaves: retries, budget and cache."""

import dataclasses
import json
import time
import traceback

import pytest
from misbehaving_endpoint import CAPTION, KEY, USAGE, Misbehaving, heard
from simulation_runs import (
    QUERY,
    USD,
    ask,
    make_settings,
    set_environment,
)

from bagpiper_jax.errors import UserError
from bagpiper_jax.simulation.answers import Answers, answer_key
from bagpiper_jax.simulation.client import BudgetSpent, Unanswered, Unusable
from bagpiper_jax.simulation.config import APIS
from bagpiper_jax.simulation.endpoints import retry_after
from bagpiper_jax.simulation.rich_caption import RichCaption, parse


@pytest.fixture(autouse=True)
def key(monkeypatch):
    set_environment(monkeypatch)


@pytest.mark.parametrize("api", APIS)
def test_a_good_answer(api, tmp_path):
    with Misbehaving() as server:
        settings = make_settings(server, api, tmp_path, captioner__seed=7)
        client, [accepted] = ask(settings)
        [(_, path, headers, body)] = server.requests
    assert accepted.value == parse(RichCaption, json.dumps(CAPTION))
    assert heard(body) == QUERY.audio
    told = accepted.account()
    assert [told[f"{kind}_tokens"] for kind in ("text", "audio", "output")] == [100, 32, 50]
    assert told["usd"] == pytest.approx(USD) and client.paid.usd == pytest.approx(USD)
    assert not told["cached"] and told["answers"] == 1
    sent = {name.lower(): value for name, value in headers.items()}
    if api == "openai":
        assert path == "/v1/chat/completions" and sent["authorization"] == f"Bearer {KEY}"
        assert body["messages"][0] == {"role": "system", "content": QUERY.system}
        assert body["response_format"]["json_schema"]["schema"] == QUERY.schema
        assert (body["max_completion_tokens"], body["seed"]) == (1000, 7)
    else:
        assert path == "/v1beta/models/hearing:generateContent" and sent["x-goog-api-key"] == KEY
        config = body["generationConfig"]
        assert config["responseJsonSchema"]["required"] == QUERY.schema["required"]
        assert (config["maxOutputTokens"], config["seed"]) == (1000, 7)


@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize(
    "step",
    [
        "reset",
        "truncated",
        "garbage",
        (429, {}, {"error": {"message": "busy"}}),
        (500, {}, {"error": {"message": "broken"}}),
        (503, {}, "down"),
    ],
    ids=str,
)
def test_faults_that_pass_are_tried_again(api, step, tmp_path):
    with Misbehaving([step, step]) as server:
        client, [accepted] = ask(make_settings(server, api, tmp_path))
        assert accepted.value.language == "en"
        assert (len(server.requests), client.retries) == (3, 2)
        assert client.paid.requests == 1


@pytest.mark.parametrize("api", APIS)
def test_a_slow_endpoint_is_left_at_the_time_out(api, tmp_path):
    with Misbehaving(["slow"]) as server:
        started = time.monotonic()
        client, [accepted] = ask(make_settings(server, api, tmp_path, captioner__timeout_s=0.5))
    assert accepted.value and client.retries == 1
    assert 0.4 < time.monotonic() - started < 10


@pytest.mark.parametrize("api", APIS)
def test_retry_after_is_honoured_by_all_requests(api, tmp_path):
    busy = (429, {"Retry-After": "1"}, {"error": {"message": "slow down"}})
    with Misbehaving([busy]) as server:
        queries = [dataclasses.replace(QUERY, prompt=QUERY.prompt + str(i)) for i in range(3)]
        settings = make_settings(server, api, tmp_path, captioner__concurrency=1)
        _, answers = ask(settings, queries)
        assert all(a.value for a in answers)
        times = [when for when, *_ in server.requests]
    assert len(times) == 4
    assert times[1] - times[0] >= 1.0  # nobody else slipped in before


def test_geminis_retry_delay_counts_too(tmp_path):
    info = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "0.7s"}
    body = {"error": {"code": 429, "message": "quota", "details": [info]}}
    with Misbehaving([(429, {}, body)]) as server:
        ask(make_settings(server, "gemini", tmp_path))
        (first, *_), (second, *_) = server.requests
    assert second - first >= 0.7


def test_forms_of_retry_after():
    assert retry_after({"retry-after": "2.5"}) == 2.5
    assert retry_after({"retry-after-ms": "250", "retry-after": "9"}) == 0.25
    later = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 30))
    assert 25 < retry_after({"retry-after": later}) <= 31
    assert retry_after({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 0
    assert retry_after({"retry-after": "soon"}) is None and retry_after({}) is None


@pytest.mark.parametrize("api", APIS)
def test_too_long_a_wait_is_not_waited_for(api, tmp_path):
    busy = (429, {"Retry-After": "86400"}, {"error": {"message": "come back tomorrow"}})
    with Misbehaving([busy]) as server:
        _, [failure] = ask(make_settings(server, api, tmp_path))
    assert isinstance(failure, Unanswered) and "86400" in str(failure)


@pytest.mark.parametrize("api", APIS)
def test_an_endpoint_that_stays_down(api, tmp_path):
    down = (500, {}, {"error": {"message": f"broken near {KEY}"}})
    with Misbehaving(always=down) as server:
        _, [failure] = ask(make_settings(server, api, tmp_path, retry__attempts=3))
        assert len(server.requests) == 3
    assert isinstance(failure, Unanswered) and "HTTP 500" in str(failure)
    assert KEY not in str(failure)


@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize("status", (401, 403, 404))
def test_what_no_request_can_mend_is_an_error_at_once(api, status, tmp_path):
    wrong = (status, {}, {"error": {"message": f"no such key: {KEY}"}})
    with Misbehaving(always=wrong) as server:
        _, [failure] = ask(make_settings(server, api, tmp_path))
        assert len(server.requests) == 1
    assert isinstance(failure, UserError) and "HEARING_KEY" in str(failure)
    assert KEY not in "".join(traceback.format_exception(failure))


def test_a_spent_quota_is_not_waited_for(tmp_path):
    body = {"error": {"message": "exceeded", "code": "insufficient_quota"}}
    with Misbehaving(always=(429, {}, body)) as server:
        _, [failure] = ask(make_settings(server, "openai", tmp_path))
        assert len(server.requests) == 1
    assert isinstance(failure, UserError) and "quota" in str(failure)


@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize(
    ("step", "kind"),
    [("refusal", Unusable), ((400, {}, {"error": {"message": "bad"}}), Unanswered)],
    ids=("by the model", "by the endpoint"),
)
def test_refusals_are_not_repeated(api, step, kind, tmp_path):
    with Misbehaving([step]) as server:
        _, [failure] = ask(make_settings(server, api, tmp_path))
        assert len(server.requests) == 1
    assert isinstance(failure, kind)


WRONG = {
    "half": json.dumps(CAPTION)[:200],
    "no JSON": "Here is the caption you wanted.",
    "a missing key": {k: v for k, v in CAPTION.items() if k != "events"},
    "a key too many": CAPTION | {"mood": "good"},
    "a wrong type": CAPTION | {"speakers": "one"},
    "times beyond the end": CAPTION | {"speech_activity": [{"start": 0.1, "end": 9.0}]},
    "a start at the end": CAPTION | {"speech_activity": [{"start": 1.1, "end": 1.3}]},
    "an unknown speaker": CAPTION
    | {"transcript": [{"speaker": "S9", "start": 0.1, "end": 0.9, "text": "Hello"}]},
    "speech without words": CAPTION | {"transcript": []},
    "a scene in a word": CAPTION | {"scene": "Talk."},
    "not a number": json.dumps(CAPTION).replace("0.9", "NaN"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_bad_answer_is_asked_for_again_and_told_why(wrong, tmp_path):
    with Misbehaving([WRONG[wrong]]) as server:
        _, [accepted] = ask(make_settings(server, "openai", tmp_path))
        second = server.requests[1][3]["messages"][1]["content"][0]["text"]
    assert accepted.value.scene and len(accepted.answers) == 2
    assert accepted.account()["usd"] == pytest.approx(2 * USD)
    assert "An earlier answer was refused: " in second


@pytest.mark.parametrize("api", APIS)
def test_bad_answers_end_in_quarantine_with_all_reasons(api, tmp_path):
    script = [WRONG["no JSON"], "cut off", WRONG["a missing key"], "ok"]
    with Misbehaving(script) as server:
        settings = make_settings(server, api, tmp_path)
        client, [failure] = ask(settings)
        assert isinstance(failure, Unusable) and client.paid.requests == 3
        for reason in ("Invalid JSON", "cut off", "events: Field required"):
            assert reason in str(failure)
        # a resumed run pays nothing for the same end; one that asks again may fare better
        client, [again] = ask(settings)
        assert str(again) == str(failure) and client.paid.requests == 0
        client, [accepted] = ask(settings, ask_again=True)
        assert accepted.value and client.paid.requests == 1


def test_fences_around_json_are_no_fault():
    assert parse(RichCaption, f"```json\n{json.dumps(CAPTION)}\n```").language == "en"


@pytest.mark.parametrize("api", APIS)
def test_the_cache_answers_for_nothing(api, tmp_path):
    with Misbehaving() as server:
        settings = make_settings(server, api, tmp_path)
        ask(settings)
        client, [accepted] = ask(settings)
        assert len(server.requests) == 1
        assert accepted.cached and client.paid.requests == 0
        assert accepted.account()["usd"] == pytest.approx(USD)  # what it cost then


def test_cache_keys_tell_apart_what_changes_an_answer(tmp_path):
    with Misbehaving() as server:
        model = make_settings(server, "openai", tmp_path).captioner
    change = dataclasses.replace
    queries = [
        QUERY,
        change(QUERY, prompt="Other"),
        change(QUERY, system="Other"),
        change(QUERY, audio=b"other"),
        change(QUERY, audio=None),
        change(QUERY, sample=1),
        change(QUERY, attempt=1),
        change(QUERY, schema={}),
    ]
    models = [
        change(model, name="other"),
        change(model, temperature=0.1),
        change(model, seed=3),
        change(model, base_url="http://127.0.0.1:1/v1"),
    ]
    keys = [answer_key(model, q) for q in queries] + [answer_key(m, QUERY) for m in models]
    assert len(set(keys)) == len(keys)
    patient = change(model, timeout_s=1.0, concurrency=1, price=None)
    assert answer_key(patient, QUERY) == keys[0]


def test_concurrency_is_used_and_kept_to(tmp_path):
    with Misbehaving(delay=0.1) as server:
        queries = [dataclasses.replace(QUERY, prompt=QUERY.prompt + str(i)) for i in range(12)]
        ask(make_settings(server, "openai", tmp_path, captioner__concurrency=4), queries)
        assert server.most_at_once == 4


def test_requests_per_minute_are_kept_to(tmp_path):
    with Misbehaving() as server:
        queries = [dataclasses.replace(QUERY, prompt=QUERY.prompt + str(i)) for i in range(4)]
        settings = make_settings(server, "openai", tmp_path, captioner__requests_per_minute=300)
        ask(settings, queries)
        times = [when for when, *_ in server.requests]
    assert times[-1] - times[0] >= 0.5


def test_a_budget_is_never_overspent(tmp_path):
    with Misbehaving(delay=0.02) as server:
        queries = [dataclasses.replace(QUERY, prompt=QUERY.prompt + str(i)) for i in range(40)]
        settings = make_settings(server, "openai", tmp_path, budget_usd=0.02)
        client, results = ask(settings, queries)
        stopped = [r for r in results if isinstance(r, BudgetSpent)]
        assert stopped and len(stopped) + client.paid.requests == 40
        # an estimate is on the safe side: what is left would not have held one more
        assert 0.02 - 0.0125 < client.paid.usd <= 0.02
        # it holds over runs
        again, results = ask(settings, [dataclasses.replace(QUERY, prompt="another")])
        assert isinstance(results[0], BudgetSpent) and again.paid.requests == 0


def test_tokens_count_where_no_price_is_known(tmp_path):
    with Misbehaving() as server:
        settings = make_settings(server, "openai", tmp_path)
        bare = dataclasses.replace(settings.captioner, price=None)
        client, [accepted] = ask(dataclasses.replace(settings, captioner=bare))
    assert accepted.account()["usd"] is None and client.paid.output == USAGE["output"]


def test_a_damaged_cache_is_told_in_one_line(tmp_path):
    path = tmp_path / "answers.sqlite"
    path.write_bytes(b"no database at all" * 100)
    with pytest.raises(UserError, match="answers.sqlite cannot be used"):
        Answers(path)
