"""Decoding while codes still come: the samples of the whole, whatever the pushes; no clicks."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
from flax import nnx
from tiny_xcodec import CONFIG

from bagpiper_jax.errors import UserError
from bagpiper_jax.modeling.mel_codec import MelCodec
from bagpiper_jax.modeling.xcodec import XCodec, decoder_reach
from bagpiper_jax.modeling.xcodec_model import XCodecModel
from bagpiper_jax.release import MINI

AUDIO = Path(__file__).parents[1] / "data" / "mini" / "audio"
HOP = 320


@pytest.fixture(scope="module")
def mel_codec():
    return MelCodec.load(Path(MINI) / "codec.npz")


@pytest.fixture(scope="module")
def xcodec():
    model = XCodecModel(CONFIG, rngs=nnx.Rngs(0))
    x = np.random.default_rng(0).standard_normal(model.quantizer.embed.shape)
    model.quantizer.embed[...] = 0.3 * x.astype(np.float32)
    return XCodec(model, num_books=3)


@pytest.fixture(params=["mel_codec", "xcodec"])
def codec(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def speech():
    paths = sorted(AUDIO.glob("allison-phrase-*.ogg"))
    return [soundfile.read(path, dtype="float32")[0] for path in paths[20::60]]


def random_codes(codec, frames: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(0, codec.codebook_sizes[0], (frames, len(codec.codebook_sizes)))


def streamed(codec, pieces) -> np.ndarray:
    stream = codec.stream()
    parts = [stream.push(piece) for piece in pieces]
    return np.concatenate([*parts, stream.finish()])


def random_cuts(codes: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
    cuts = np.sort(rng.integers(0, len(codes) + 1, rng.integers(0, 12)))
    return np.split(codes, cuts)  # some pieces are empty


@pytest.mark.parametrize("frames", [1, 2, 3, 4, 7, 13, 19, 20, 64, 101])
def test_the_samples_do_not_depend_on_the_pushes(codec, frames):
    codes = random_codes(codec, frames, seed=frames)
    rng = np.random.default_rng(frames)
    once = streamed(codec, [codes])
    assert once.shape == (frames * HOP,) and once.dtype == np.float32
    assert np.isfinite(once).all() and np.abs(once).max() <= 1.0
    for pieces in (np.split(codes, frames), *(random_cuts(codes, rng) for _ in range(4))):
        np.testing.assert_array_equal(streamed(codec, pieces), once)


def test_speech_streams_as_the_whole_decodes(mel_codec, speech):
    rng = np.random.default_rng(5)
    for wav in speech:
        codes = mel_codec.encode(wav)
        pieces = random_cuts(codes, rng)
        np.testing.assert_array_equal(streamed(mel_codec, pieces), mel_codec.decode(codes))


def test_streams_side_by_side_do_not_meet(mel_codec):
    first, second = (random_codes(mel_codec, 24, seed) for seed in (1, 2))
    streams = [mel_codec.stream(), mel_codec.stream()]
    parts = [[], []]
    for t in range(24):
        for stream, codes, out in zip(streams, (first, second), parts):
            out.append(stream.push(codes[t : t + 1]))
    for stream, codes, out in zip(streams, (first, second), parts):
        joined = np.concatenate([*out, stream.finish()])
        np.testing.assert_array_equal(joined, mel_codec.decode(codes))


def test_xcodec_streams_what_it_decodes(xcodec):
    for frames in (1, 8, 31, 170):
        codes = random_codes(xcodec, frames, seed=frames)
        whole = xcodec.decode(codes)
        atol = 1e-5 * np.abs(whole).max()
        np.testing.assert_allclose(streamed(xcodec, [codes]), whole, atol=atol)


def frames_to_first_sound(codec) -> int:
    stream = codec.stream()
    codes = random_codes(codec, 40)
    return next(t + 1 for t in range(40) if len(stream.push(codes[t : t + 1])))


def test_sound_comes_early(mel_codec, xcodec):
    assert frames_to_first_sound(mel_codec) == 10
    assert frames_to_first_sound(xcodec) == 8 + decoder_reach(CONFIG) == 19


def test_a_sample_waits_for_13_frames_at_most(mel_codec):
    stream = mel_codec.stream()
    codes, samples = random_codes(mel_codec, 80), 0
    for t in range(80):
        samples += len(stream.push(codes[t : t + 1]))
        assert samples >= (t + 1 - 13) * HOP


def test_no_frames_are_no_samples(codec):
    assert codec.stream().finish().shape == (0,)
    stream = codec.stream()
    none = stream.push(random_codes(codec, 0))
    assert none.shape == (0,) and none.dtype == np.float32
    assert stream.finish().shape == (0,)


def test_samples_given_out_are_final(mel_codec, speech):
    """What is heard does not depend on frames that come later."""
    codes = mel_codec.encode(speech[0])
    other = codes.copy()
    other[50:] = random_codes(mel_codec, len(codes) - 50)
    known = mel_codec.stream().push(codes[:50])
    assert len(known) >= 37 * HOP
    for frames in (codes, other, codes[:50]):
        np.testing.assert_array_equal(mel_codec.decode(frames)[: len(known)], known)


def test_blocks_meet_without_clicks(mel_codec, speech):
    """Bends of the wave where blocks meet are those of everywhere else."""
    border, elsewhere = [], []
    for wav in speech:
        stream, codes = mel_codec.stream(), mel_codec.encode(wav)
        parts = [stream.push(codes[t : t + 1]) for t in range(len(codes))]
        meet = np.unique(np.cumsum([len(part) for part in parts]))[1:]
        bend = np.abs(np.diff(np.concatenate([*parts, stream.finish()]), 2))
        # bend[i] is that of samples i to i + 2; a step before sample s bends s - 2 and s - 1
        near = np.isin(np.arange(len(bend)), [meet - 2, meet - 1])
        border.append(bend[near])
        elsewhere.append(bend[~near])
    border, elsewhere = np.concatenate(border), np.concatenate(elsewhere)
    assert len(border) > 100 and border.max() <= elsewhere.max()
    assert np.sqrt(np.mean(border**2)) < 1.3 * np.sqrt(np.mean(elsewhere**2))


@pytest.mark.parametrize(
    "codes, words",
    [
        (np.full((2, 8), 10_000), "must lie in"),
        (np.full((2, 8), -1), "must lie in"),
        (np.zeros((2, 9), int), "shape"),
        (np.zeros(8, int), "shape"),
        (np.zeros((2, 8)), "integers"),
        (np.zeros((2, 1), int), "push the same streams"),
    ],
)
def test_codes_that_do_not_fit_are_told_and_change_nothing(mel_codec, codes, words):
    good = random_codes(mel_codec, 20)
    stream = mel_codec.stream()
    parts = [stream.push(good[:15])]
    with pytest.raises(UserError, match=words):
        stream.push(codes)
    parts += [stream.push(good[15:]), stream.finish()]
    np.testing.assert_array_equal(np.concatenate(parts), mel_codec.decode(good))


def test_a_finished_stream_takes_no_more(codec):
    stream = codec.stream()
    stream.finish()
    with pytest.raises(RuntimeError, match="finished"):
        stream.push(random_codes(codec, 1))
    with pytest.raises(RuntimeError, match="finished"):
        stream.finish()
