"""Runs of the client and of whole stages against the local endpoint."""

import argparse
import asyncio
import json
import logging
import os

import numpy as np
import soundfile
from misbehaving_endpoint import KEY, USAGE

from bagpiper_jax.json_lines import write_rows
from bagpiper_jax.simulation import commands
from bagpiper_jax.simulation.answers import Answers
from bagpiper_jax.simulation.client import Client
from bagpiper_jax.simulation.config import default_config, settings_from
from bagpiper_jax.simulation.endpoints import Query
from bagpiper_jax.simulation.rich_caption import RichCaption, parse_caption

QUERY = Query(
    "You describe.",
    "Listen to the whole clip",
    RichCaption.model_json_schema(),
    audio=b"RIFF a wav \xff\xfe",
    audio_seconds=1.0,
)
PRICE = {"text": 1.0, "audio": 2.0, "output": 10.0}
USD = (USAGE["text"] + 2 * USAGE["audio"] + 10 * USAGE["output"]) / 1e6


CONFIG = """
from bagpiper_jax.simulation.config import default_config

def get_config():
    c = default_config()
    for model in (c.captioner, c.writer, c.judge_model):
        model.api = {api!r}
        model.name = "hearing"
        model.base_url = {url!r}
        model.key_env = "HEARING_KEY"
        model.price = {{"text": 1.0, "audio": 2.0, "output": 10.0}}
        model.max_tokens = 1000
    c.cache = {cache!r}
    c.retry.first_s = 0.01
    c.retry.max_s = 0.02
    return c
"""


def set_environment(monkeypatch):
    """The key, and no proxy in the way of the local server."""
    monkeypatch.setenv("HEARING_KEY", KEY)
    monkeypatch.setattr(logging, "_logRecordFactory", logging.getLogRecordFactory())
    for name in [n for n in os.environ if n.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)


def make_settings(server, api, tmp_path, **changes):
    config = default_config()
    for model in (config.captioner, config.writer, config.judge_model):
        model.api = api
        model.name = "hearing"
        model.base_url = server.url + ("/v1" if api == "openai" else "")
        model.key_env = "HEARING_KEY"
        model.timeout_s = 10.0
        model.max_tokens = 1000
        model.price = PRICE
    config.cache = str(tmp_path / "answers.sqlite")
    config.retry.first_s = 0.01
    config.retry.max_s = 0.05
    for name, value in changes.items():
        config.update_from_flattened_dict({name.replace("__", "."): value})
    return settings_from(config)


def check(text):
    return parse_caption(text, 1.0)


def ask(settings, queries=(QUERY,), **options):
    """Asks all at once; returns the client and what came of each, exceptions included."""

    async def go():
        with Answers(settings.cache) as answers:
            budget = settings.budget_usd
            client = Client(
                settings.captioner, settings.retry, answers, budget_usd=budget, **options
            )
            async with client:
                tasks = (client.ask(query, check) for query in queries)
                return client, await asyncio.gather(*tasks, return_exceptions=True)

    return asyncio.run(go())


def make_clips(tmp_path):
    """A manifest of three good clips (mono and stereo, two rates) in a directory of its own."""
    folder = tmp_path / "clips"
    folder.mkdir()
    rng = np.random.default_rng(0)
    rows = []
    for i, (rate, channels) in enumerate([(16_000, 1), (44_100, 2), (8_000, 1)]):
        name = f"{i}.flac"
        soundfile.write(folder / name, 0.1 * rng.standard_normal((rate, channels)), rate)
        rows.append({"id": f"clip{i}", "audio": name, "domain": "speech"})
    write_rows(folder / "clips.jsonl", rows)
    return folder


def run(stage, source, target, server, tmp_path, *rest, api="openai", **flags):
    config = tmp_path / "config.py"
    url = server.url + ("/v1" if api == "openai" else "")
    config.write_text(CONFIG.format(api=api, url=url, cache=str(tmp_path / "cache.sqlite")))
    parser = argparse.ArgumentParser()
    commands.add_simulate_parser(parser.add_subparsers())
    argv = ["simulate", stage, "--in", str(source), "--out", str(target), "--quiet"]
    args = parser.parse_args([*argv, "--config", str(config), *flags.get("options", ())])
    args.rest = rest
    commands.run(args)
    return json.loads(target.with_suffix("").with_suffix(".summary.json").read_text())


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]
