"""The command on bad input: one clear line, exit code 2, no traceback, nothing half-written."""

import os
import sys

import numpy as np
import pytest
import soundfile
from flax import nnx

from bagpiper_jax.cli import main
from bagpiper_jax.input_pipeline.scenes import Corpus, train_captions
from bagpiper_jax.modeling.bagpiper import Bagpiper
from bagpiper_jax.modeling.config import get_config
from bagpiper_jax.modeling.mel_codec import MelCodec
from bagpiper_jax.release import Assets, save_release
from bagpiper_jax.tokenizer import SentencePieceTokenizer

CORPUS = os.path.join(os.path.dirname(__file__), "..", "data", "mini")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A release of a tiny random model."""
    config = get_config("tiny")
    captions = train_captions(Corpus.load(CORPUS), 0, 500)
    tokenizer = SentencePieceTokenizer.train(captions, config.vocab.text_size)
    rng = np.random.default_rng(0)
    noise = [rng.normal(size=32_000).astype(np.float32) * 0.1]
    sizes = dict(num_books=config.vocab.num_streams, codebook_size=config.vocab.codebook_size)
    codec = MelCodec.fit(noise, **sizes)
    model = Bagpiper(config, rngs=nnx.Rngs(0))
    directory = str(tmp_path_factory.mktemp("release"))
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    save_release(directory, params, Assets(config, tokenizer, codec))
    settings = (
        '{"text": {"max_rows": 24}, "audio": {"max_rows": 48, "min_rows": 16, "temperature": 1.0}}'
    )
    with open(os.path.join(directory, "sampling.json"), "w", encoding="utf-8") as f:
        f.write(settings)
    return directory


def write(path, wav, rate=16_000, **options):
    soundfile.write(path, wav, rate, **options)
    return str(path)


def noise(seconds, rate=16_000, channels=None):
    size = (int(seconds * rate), channels) if channels else int(seconds * rate)
    return 0.1 * np.random.default_rng(0).normal(size=size)


def fails(capsys, *argv) -> str:
    """The one line that a failing command prints."""
    assert main(list(argv)) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("bagpiper: "), captured.err
    return lines[0]


def test_missing_empty_and_corrupt_files(capsys, tmp_path):
    assert "no audio file" in fails(capsys, "describe", str(tmp_path / "none.wav"))
    empty = tmp_path / "empty.wav"
    empty.write_bytes(b"")
    assert "empty.wav is empty" in fails(capsys, "describe", str(empty))
    corrupt = tmp_path / "corrupt.flac"
    corrupt.write_bytes(b"fLaC" + bytes(range(256)) * 8)
    assert "corrupt.flac cannot be read" in fails(capsys, "describe", str(corrupt))
    text = tmp_path / "text.wav"
    text.write_text("this is no recording")
    assert "text.wav cannot be read" in fails(capsys, "describe", str(text))
    assert "no audio file" in fails(capsys, "describe", str(tmp_path))  # a directory


def test_silent_short_long_and_not_finite_clips(capsys, tmp_path):
    silent = write(tmp_path / "silent.wav", np.zeros(16_000))
    assert "silent" in fails(capsys, "describe", silent)
    short = write(tmp_path / "short.wav", noise(0.01))
    assert "lasts 0.010 s" in fails(capsys, "describe", short)
    long = write(tmp_path / "long.flac", noise(600, 8_000), 8_000)
    assert "longer than 30 s" in fails(capsys, "describe", long)
    wav = noise(1.0)
    wav[5] = np.nan
    broken = write(tmp_path / "nan.wav", wav, subtype="FLOAT")
    assert "not finite" in fails(capsys, "describe", broken)


def test_any_rate_and_channel_count_goes_in(capsys, tmp_path, checkpoint):
    eight = write(tmp_path / "eight.wav", noise(0.6, 44_100, channels=8), 44_100)
    assert main(["describe", eight, "--checkpoint", checkpoint]) == 0
    slow = write(tmp_path / "slow.wav", noise(0.5, 6_000), 6_000)
    assert main(["describe", slow, "--checkpoint", checkpoint]) == 0
    captured = capsys.readouterr()
    assert captured.out and not captured.err
    first_silent = noise(1.0, channels=2)
    first_silent[:, 0] = 0
    wav = write(tmp_path / "left.wav", first_silent)
    assert "first channel" in fails(capsys, "describe", wav, "--checkpoint", checkpoint)


def test_render_writes_a_file_of_whole_frames(capsys, tmp_path, checkpoint):
    out = str(tmp_path / "out.wav")
    assert main(["render", "a bell", "-o", out, "--checkpoint", checkpoint, "--cfg", "1.5"]) == 0
    wav, rate = soundfile.read(out)
    assert rate == 16_000 and len(wav) % 320 == 0 and len(wav) >= (16 - 3) * 320
    assert os.listdir(tmp_path) == ["out.wav"]


def test_render_refuses_what_it_cannot_do(capsys, tmp_path, checkpoint):
    model = ["--checkpoint", checkpoint]
    out = str(tmp_path / "out.wav")
    assert "no caption" in fails(capsys, "render", "  ", "-o", out, *model)
    text = "a bell and " * 3_000
    assert "the context holds" in fails(capsys, "render", text, "-o", out, *model)
    assert "ending" in fails(capsys, "render", "a bell", "-o", str(tmp_path / "out.xyz"), *model)
    nowhere = str(tmp_path / "none" / "out.wav")
    assert "no directory" in fails(capsys, "render", "a bell", "-o", nowhere, *model)
    assert "temperature" in fails(
        capsys, "render", "a bell", "-o", out, *model, "--temperature", "-1"
    )
    assert os.listdir(tmp_path) == []


def test_checkpoints_that_are_none(capsys, tmp_path, checkpoint):
    clip = write(tmp_path / "clip.wav", noise(0.5))
    missing = str(tmp_path / "nothing")
    assert "not a model directory" in fails(capsys, "describe", clip, "--checkpoint", missing)
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for name in os.listdir(checkpoint):
        data = (tmp_path.__class__(checkpoint) / name).read_bytes()
        (damaged / name).write_bytes(data[: len(data) // 2] if name == "codec.npz" else data)
    assert "codec.npz" in fails(capsys, "describe", clip, "--checkpoint", str(damaged))
    (damaged / "model.json").write_text('{"vocab": {"text_size": 3, "hue": 1}}')
    assert "config" in fails(capsys, "describe", clip, "--checkpoint", str(damaged))


def test_train_names_a_wrong_key_and_a_wrong_workdir(capsys, tmp_path):
    config = os.path.join(os.path.dirname(__file__), "..", "experiments", "mini.py")
    argv = ["train", "--config", config, "--workdir", str(tmp_path / "run")]
    assert "peak" in fails(capsys, *argv, "--config.optimizer.peak=1.0")
    occupied = tmp_path / "file"
    occupied.write_text("not a directory")
    argv[-1] = str(occupied)
    assert "cannot make the directory" in fails(capsys, *argv)


@pytest.mark.parametrize(
    "alone",
    [["--num-processes", "2"], ["--process-id", "0"], ["--coordinator", "", "--process-id=1"]],
)
def test_one_of_several_processes_needs_the_address_of_the_first(capsys, tmp_path, alone):
    argv = ["train", "--config", "none.py", "--workdir", str(tmp_path / "run"), *alone]
    assert "need --coordinator HOST:PORT" in fails(capsys, *argv)


def test_the_page_names_its_extra_where_gradio_is_missing(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "bagpiper_jax.serving.page", raising=False)
    assert "bagpiper_jax[page]" in fails(capsys, "demo")


def test_report_is_the_demonstration_of_make_demo(monkeypatch):
    demo = pytest.importorskip("bagpiper_jax.evaluation.demo")
    where = []
    monkeypatch.setattr(demo, "run_demo", where.append)
    assert main(["report"]) == 0 and main(["report", "--out", "elsewhere"]) == 0
    assert where == ["runs/demo", "elsewhere"]
