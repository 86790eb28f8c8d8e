"""What is told of a training: means over steps, kinds of targets, speed, what a log holds."""

import dataclasses
import json
import os
import types

import jax
import numpy as np
import pytest
from tiny_run import settings

from bagpiper_jax.input_pipeline.batch import Batch
from bagpiper_jax.modeling.bagpiper import KINDS, next_rows
from bagpiper_jax.modeling.flops import step_flops
from bagpiper_jax.training import metrics, speed
from bagpiper_jax.training.metrics import MetricsLog, summarize
from bagpiper_jax.training.speed import Speed
from bagpiper_jax.vocab import BOS, EOS, MODALITIES, ROLES


def step(loss, targets, kinds, *, skipped=0.0, tokens=100.0, ce=1.0, accuracy=0.5):
    """Metrics of a step of two streams; `ce` and `accuracy` are those of all targets."""
    values = {}
    for prefix, counts in (("", targets), ("kind_", kinds)):
        counts = np.array(counts, np.float32)
        values[f"{prefix}targets"] = counts
        for name, value in (("ce", ce), ("accuracy", accuracy)):
            values[prefix + name] = np.full_like(counts, value)
    rates = {"grad_norm": np.float32(2 * loss), "learning_rate": np.float32(0.1 * loss)}
    totals = {"loss": np.float32(loss), "skipped": skipped, "tokens": tokens}
    return {**values, **rates, **totals}


FIRST = step(2.0, (30, 10), (20, 0, 10), ce=4.0, accuracy=0.1)
SECOND = step(4.0, (10, 30), (0, 5, 5), ce=2.0, accuracy=0.5)
SKIPPED = step(np.nan, (99, 99), (99, 99, 99), skipped=1.0, ce=np.nan)


def test_means_weigh_by_targets_and_leave_out_what_was_skipped():
    found = summarize([FIRST, SKIPPED, SECOND])
    wanted = {
        **{"loss": 3.0, "grad_norm": 6.0, "learning_rate": 0.3, "skipped": 1.0},
        **{"targets/stream0": 40.0, "targets/stream1": 40.0},
        **{"ce/stream0": 3.5, "ce/stream1": 2.5},
        **{"accuracy/stream0": 0.2, "accuracy/stream1": 0.4},
        **{"targets/text": 20.0, "targets/caption": 5.0, "targets/audio": 15.0},
        **{"ce/text": 4.0, "ce/caption": 2.0, "ce/audio": 10 / 3},
        **{"accuracy/text": 0.1, "accuracy/caption": 0.5, "accuracy/audio": 0.7 / 3},
    }
    assert found == pytest.approx(wanted, rel=1e-6)


def test_of_steps_that_were_all_skipped_the_loss_is_told():
    found = summarize([SKIPPED, SKIPPED])
    assert found["skipped"] == 2 and np.isnan(found["loss"])
    assert found["targets/stream0"] == 198


def test_kinds_of_which_there_was_nothing_are_zero():
    found = summarize([step(1.0, (3, 0), (3, 0, 0))])
    assert found["ce/stream1"] == found["ce/audio"] == found["accuracy/caption"] == 0.0


@pytest.fixture(scope="module")
def row(tiny_config):
    """Three examples in a row: text, text after audio, audio that text asked for and text again."""
    vocab = tiny_config.vocab
    text, code = vocab.text_start + 5, vocab.stream_pads + 3
    marker = (ROLES["assistant"], MODALITIES["text"])
    examples = [  # (token of stream 0, is a target)
        [(BOS, 0), *((m, 1) for m in marker), *[(text, 1)] * 3, (text, 0), (EOS, 1)],
        [(BOS, 0), (ROLES["user"], 0), (MODALITIES["audio"], 0), *[("heard", 0)] * 2, (EOS, 0)]
        + [*((m, 1) for m in marker), *[(text, 1)] * 2, (EOS, 1)],
        [(BOS, 0), (text, 0), (ROLES["assistant"], 1), *[("code", 1)] * 4, (EOS, 1), (text, 1)],
    ]
    flat = [pair for example in examples for pair in example]
    length = len(flat) + 3  # padding
    tokens = np.zeros((1, length, vocab.num_streams), np.int32)
    mask = np.zeros(tokens.shape, bool)
    index = np.full((1, length), -1, np.int32)
    for at, (token, wanted) in enumerate(flat):
        if token == "code":
            tokens[0, at], mask[0, at] = code, True
        elif token == "heard":
            index[0, at] = at % 2
        else:
            tokens[0, at, 0], mask[0, at, 0] = token, wanted
    sizes = [len(example) for example in examples]
    pad = lambda parts: np.pad(np.concatenate(parts), (0, 3))[None].astype(np.int32)  # noqa: E731
    windows = tiny_config.encoder.block_windows
    return Batch(
        tokens=tokens,
        loss_mask=mask,
        segment_ids=pad([np.full(size, n + 1) for n, size in enumerate(sizes)]),
        positions=pad([np.arange(size) for size in sizes]),
        mel=np.random.default_rng(0).standard_normal((1, windows, 100, 128), np.float32),
        mel_frames=np.full((1, windows), 100, np.int32),
        audio_index=index,
    )


def test_targets_are_counted_by_what_they_are_and_after_what(row, tiny_model):
    """Markers are of no kind; audio that was heard does not reach the next example."""
    found = jax.device_get(jax.jit(tiny_model.loss)(row)[1])
    assert dict(zip(KINDS, found["kind_targets"])) == {"text": 4, "caption": 2, "audio": 4}
    assert found["targets"].tolist() == [18, 4, 4, 4]

    @jax.jit
    def each():
        features = tiny_model.encode_audio(row.mel, row.mel_frames)
        x = tiny_model.embed(row.tokens, row.audio_index, features)
        logits, _ = tiny_model.logits(tiny_model.decode(x, row.positions, row.segment_ids))
        return -jax.nn.log_softmax(logits)[0]

    targets, mask = (x[0, :, 0] for x in next_rows(row))
    own = np.take_along_axis(np.asarray(each()), np.asarray(targets)[:, None], 1)[:, 0]
    at = np.arange(len(targets))
    text = np.asarray(mask & (targets == tiny_model.config.vocab.text_start + 5))
    codes = np.asarray(mask & (targets >= tiny_model.config.vocab.codec_start))
    heard = text & (at > 8) & (at < 19)
    means = [own[which].mean() for which in (text & ~heard, heard, codes)]
    np.testing.assert_allclose(found["kind_ce"], means, rtol=1e-5)


DEVICES = {"TPU v5 lite": 197e12, "TPU7x": 2307e12 / 2, "NVIDIA H100 80GB HBM3": 989e12}


@pytest.mark.parametrize("kind,peak", DEVICES.items())
def test_the_peak_of_known_devices_is_the_makers(kind, peak):
    device = types.SimpleNamespace(device_kind=kind, platform="tpu")
    run = settings()
    found = Speed.of(run, run.shapes, device, 16)
    assert found.peak_flops == 16 * peak
    sizes = {"rows": 2, "length": 768, "windows": run.data.windows}
    assert found.step_flops == step_flops(run.shapes, **sizes).total
    frozen = dataclasses.replace(run, frozen=("model.layers",))
    assert Speed.of(frozen, run.shapes, device, 16).step_flops < found.step_flops


@pytest.mark.parametrize("platform,peak", [("cpu", 3e9), ("gpu", 8e9)])
def test_the_peak_of_others_is_measured(monkeypatch, platform, peak):
    """Devices of a CPU share its cores: their number does not count, that of processes does."""
    monkeypatch.setattr(speed, "_measured_peak", lambda device: 1e9)
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    device = types.SimpleNamespace(device_kind="unknown", platform=platform)
    assert Speed.of(settings(), settings().shapes, device, 8).peak_flops == peak


def test_a_product_is_measured_in_flops():
    peak = speed._measured_peak(jax.devices()[0])
    assert 1e8 < peak < 1e14


def test_utilisation_is_flops_over_time_and_peak():
    assert Speed(6e12, 4e12).utilisation(3.0) == 0.5


@pytest.mark.parametrize("stats,memory", [(None, None), ({"peak_bytes_in_use": 7 << 30}, 7 << 30)])
def test_a_log_tells_rates_of_the_time_since_the_last(tmp_path, monkeypatch, stats, memory):
    clock = iter([0.0, 8.0, 8.0, 10.0, 10.0])  # at the start, and twice a log
    monkeypatch.setattr(metrics, "time", types.SimpleNamespace(monotonic=lambda: next(clock)))
    device = types.SimpleNamespace(memory_stats=lambda: stats)
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    with MetricsLog(str(tmp_path), start=4, steps=9, speed=Speed(6e12, 4e12)) as log:
        for part, waited in ((FIRST, 1.0), (SKIPPED, 2.0), (SECOND, 1.0), (FIRST, 0.0)):
            log.add(part, waited)
        assert log.write(8) == [6]
        log.add(SECOND | {"tokens": 60.0}, 0.5)
        assert log.write(9) == [] == log.write(9)
    lines = [json.loads(x) for x in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [8, 9]
    rates = ("tokens_per_second", "model_flops_per_second", "mfu", "input_wait")
    assert [lines[0][name] for name in rates] == [50.0, 3e12, 0.75, 0.5]
    assert [lines[1][name] for name in rates] == [30.0, 3e12, 0.75, 0.25]
    assert [line.get("memory_bytes") for line in lines] == [memory, memory]


def test_a_finished_log_holds_what_the_page_names(finished):
    """docs/training.md, "What is watched"; no memory on CPUs."""
    workdir, _ = finished
    with open(os.path.join(workdir, "metrics.jsonl"), encoding="utf-8") as f:
        lines = [json.loads(line) for line in f]
    run = settings()
    of = [*KINDS, *(f"stream{k}" for k in range(run.shapes.vocab.num_streams))]
    names = {f"{name}/{x}" for name in ("ce", "accuracy", "targets") for x in of}
    names |= {"step", "loss", "grad_norm", "learning_rate", "skipped", "input_wait", "mfu"}
    names |= {"tokens_per_second", "model_flops_per_second"}
    assert [set(line) for line in lines] == [names] * 6
    flops = step_flops(run.shapes, rows=2, length=768, windows=run.data.windows).total
    peak = lines[0]["model_flops_per_second"] / lines[0]["mfu"]
    for line in lines:
        seconds = flops / line["model_flops_per_second"]
        assert 0 < line["tokens_per_second"] * seconds <= run.data.batch_tokens
        assert line["mfu"] == pytest.approx(flops / (seconds * peak))
        assert 0 <= line["input_wait"] <= 1
