"""Keys come from the environment and stay in memory; settings that cannot be are told."""

import dataclasses
import json
import logging
import sqlite3

import pytest
from misbehaving_endpoint import CAPTION, KEY, Misbehaving
from simulation_runs import (
    QUERY,
    ask,
    make_settings,
    set_environment,
)

from bagpiper_jax.errors import UserError
from bagpiper_jax.simulation.config import APIS


@pytest.fixture(autouse=True)
def key(monkeypatch):
    set_environment(monkeypatch)


@pytest.mark.parametrize("api", APIS)
def test_the_key_appears_nowhere(api, tmp_path, caplog, capfd):
    """Endpoints that echo the key in errors, headers and answers, with every log switched on."""
    caplog.set_level(logging.DEBUG)
    echo = json.dumps(CAPTION | {"noise": f"somebody reads {KEY} aloud"})
    script = [
        (500, {"X-Echo": KEY}, {"error": {"message": f"Incorrect API key provided: {KEY}"}}),
        (429, {"Retry-After": "0"}, KEY),
        f"no JSON but {KEY}",
        echo,
    ]
    with Misbehaving(script) as server:
        settings = make_settings(server, api, tmp_path)
        client, [accepted] = ask(settings)
        _, [failure] = ask(
            dataclasses.replace(settings, cache=str(tmp_path / "other.sqlite")),
            [dataclasses.replace(QUERY, prompt="Listen to the whole clip 2")],
        )
        assert accepted.value.noise == "somebody reads [key] aloud"
        assert any(KEY in str(headers) for _, _, headers, _ in server.requests)  # it was sent
    texts = [repr(accepted), repr(settings), repr(client.__dict__), str(failure), repr(failure)]
    texts += [caplog.text, *capfd.readouterr()]
    texts += [repr(record.__dict__) for record in caplog.records]
    assert not [text for text in texts if KEY in text]
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files and not [path for path in files if KEY.encode() in path.read_bytes()]
    rows = sqlite3.connect(settings.cache).execute("select count(*) from answers").fetchone()
    assert rows == (2,)


def test_a_missing_key_names_its_variable(tmp_path, monkeypatch):
    monkeypatch.delenv("HEARING_KEY")
    with Misbehaving() as server:
        settings = make_settings(server, "openai", tmp_path)
        with pytest.raises(UserError, match="environment variable HEARING_KEY"):
            ask(settings)


@pytest.mark.parametrize(
    "change",
    [
        {"captioner__key_env": KEY},
        {"captioner__base_url": f"https://user:{KEY.replace('/', '')}@example.org/v1"},
        {"captioner__base_url": f"https://example.org/v1?key={KEY}"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_key_in_the_config_is_refused_and_not_repeated(change, tmp_path):
    with Misbehaving() as server, pytest.raises(UserError) as told:
        make_settings(server, "openai", tmp_path, **change)
    assert "environment variable" in str(told.value) and "SECRET" not in str(told.value)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"captioner__api": "telepathy"}, "captioner.api must be one of"),
        ({"captioner__concurrency": 0}, "captioner.concurrency must be at least 1"),
        ({"requests__levels": ("realistic", "dull")}, "requests.levels must be of"),
        ({"captioner__base_url": "localhost:8000/v1"}, "captioner.base_url must be an address"),
        ({"budget_usd": -1.0, "captioner__price": None}, "captioner.price"),
    ],
)
def test_settings_that_cannot_be(change, match, tmp_path):
    with Misbehaving() as server, pytest.raises(UserError, match=match):
        make_settings(server, "openai", tmp_path, **change)
