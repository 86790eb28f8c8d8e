"""The embedded codec: k-means, files, purity of both directions, quality on real clips."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from bagpiper_jax.errors import UserError
from bagpiper_jax.modeling import mel_codec, vocoder
from bagpiper_jax.modeling.codec import Codec
from bagpiper_jax.modeling.mel_codec import MelCodec, kmeans, log_mel

AUDIO = Path(__file__).parents[1] / "data" / "mini" / "audio"
SECOND = mel_codec.SAMPLE_RATE


def _read(pattern: str, count: int) -> list[np.ndarray]:
    paths = sorted(AUDIO.glob(pattern))
    chosen = [paths[i] for i in np.linspace(0, len(paths) - 1, count).astype(int)]
    return [soundfile.read(path, dtype="float32")[0] for path in chosen]


@pytest.fixture(scope="module")
def fitting_clips():
    return _read("allison-phrase-*[a-r].ogg", 120)


@pytest.fixture(scope="module")
def held_out():
    return _read("allison-phrase-*[s-z].ogg", 8)


@pytest.fixture(scope="module")
def codec(fitting_clips):
    return MelCodec.fit(fitting_clips, num_books=8, codebook_size=64)


def test_codec_satisfies_the_protocol(codec):
    assert isinstance(codec, Codec)
    assert codec.codebook_sizes == (64,) * 8
    assert codec.frame_rate == 50 and codec.sample_rate == 16_000 and codec.hop == 320


def test_kmeans_recovers_separated_clusters():
    rng = np.random.default_rng(3)
    truth = rng.normal(size=(12, 5)).astype(np.float32) * 10
    points = truth[rng.integers(12, size=3_000)] + 0.1 * rng.normal(size=(3_000, 5))
    centers = kmeans(points.astype(np.float32), 12, np.random.default_rng(0))
    distance = np.linalg.norm(truth[:, None] - centers, axis=-1).min(1)
    assert distance.max() < 0.05


def test_kmeans_uses_every_code_when_points_repeat():
    points = np.repeat(np.arange(8, dtype=np.float32)[:, None], 50, axis=0)
    centers = kmeans(points, 8, np.random.default_rng(1))
    np.testing.assert_allclose(np.sort(centers[:, 0]), np.arange(8))


@pytest.mark.parametrize("samples", [1, 319, 320, 321, 10 * SECOND])
def test_shapes(codec, samples):
    wav = np.random.default_rng(samples).normal(size=samples).astype(np.float32) * 0.1
    codes = codec.encode(wav)
    frames = -(-samples // 320)
    assert codes.shape == (frames, 8) and codes.dtype == np.int32
    assert codes.min() >= 0 and codes.max() < 64
    decoded = codec.decode(codes)
    assert decoded.shape == (frames * 320,) and decoded.dtype == np.float32
    assert np.isfinite(decoded).all() and np.abs(decoded).max() <= 1.0


def test_no_frames_decode_to_no_samples(codec):
    assert codec.decode(np.zeros((0, 8), np.int32)).shape == (0,)


def test_encode_does_not_depend_on_what_follows(codec, held_out):
    wav = held_out[0]
    codes = codec.encode(wav)
    np.testing.assert_array_equal(codec.encode(wav), codes)
    padded = codec.encode(np.concatenate([wav, np.zeros(SECOND, np.float32)]))
    np.testing.assert_array_equal(padded[: len(codes)], codes)


def test_decoding_again_gives_the_same(codec, held_out):
    codes = codec.encode(held_out[0])[:60]
    np.testing.assert_array_equal(codec.decode(codes), codec.decode(codes))


def _decibels(wav: np.ndarray, reference: np.ndarray) -> float:
    return 10 * np.log10(np.square(wav).sum() / np.square(reference).sum())


def _synthesize(mel: np.ndarray) -> np.ndarray:
    synthesis = vocoder.Synthesis(mel_codec.mel_filters(), n_fft=mel_codec.N_FFT, hop=mel_codec.HOP)
    ends = len(mel) + vocoder.LOOK_AHEAD + 2
    blocks = [mel[t : t + vocoder.BLOCK] for t in range(0, ends, vocoder.BLOCK)]
    return np.concatenate([synthesis.push(block) for block in blocks])


def test_vocoder_keeps_level_and_spectrum(held_out):
    for wav in held_out:
        target = log_mel(wav)
        mel = np.exp(target) - mel_codec.FLOOR
        rebuilt = _synthesize(mel)[: len(mel) * mel_codec.HOP]
        assert abs(_decibels(rebuilt, wav)) < 0.5
        assert np.abs(log_mel(rebuilt[: len(wav)]) - target).mean() < 0.12


def test_reconstruction_of_unseen_phrases(codec, held_out):
    decoded = [codec.decode(codec.encode(wav))[: len(wav)] for wav in held_out]
    errors = [np.abs(log_mel(d) - log_mel(w)).mean() for d, w in zip(decoded, held_out)]
    assert np.mean(errors) < 0.36  # nepers; 0.33 measured
    gains = [_decibels(d, w) for d, w in zip(decoded, held_out)]
    assert abs(np.mean(gains)) < 1.0 and np.abs(gains).max() < 2.0


def test_more_books_come_closer(codec, held_out):
    target = log_mel(held_out[0])
    codes = codec.encode(held_out[0])
    errors = [np.square(codec.dequantize(codes[:, :k]) - target).mean() for k in range(1, 9)]
    assert errors == sorted(errors, reverse=True) and errors[-1] < 0.4 * errors[0]


def test_the_filter_brings_unseen_frames_closer(codec, held_out):
    bare = MelCodec(codec.books, codec.mean, codec.scale, codec.floor)
    errors = [
        np.mean([np.square(c.dequantize(c.encode(w)) - log_mel(w)).mean() for w in held_out])
        for c in (codec, bare)
    ]
    assert errors[0] < 0.97 * errors[1]
    np.testing.assert_array_equal(codec.encode(held_out[0]), bare.encode(held_out[0]))


def test_files_of_the_form_without_a_filter_load(codec, held_out, tmp_path):
    path = tmp_path / "codec.npz"
    arrays = {name: getattr(codec, name) for name in ("books", "mean", "scale", "floor")}
    np.savez(path, format="bagpiper-mel-rvq-2", **arrays)
    loaded = MelCodec.load(path)
    assert loaded.filter is None
    np.testing.assert_array_equal(loaded.encode(held_out[1]), codec.encode(held_out[1]))


def test_louder_input_decodes_louder(codec, held_out):
    steps = []
    for wav in held_out:  # both gains lie inside the 6 dB either way that the fit hears
        soft, loud = (codec.decode(codec.encode(gain * wav)) for gain in (0.7, 1.4))
        steps.append(_decibels(loud, soft))
    assert np.mean(steps) == pytest.approx(6.02, abs=1.0)
    assert np.min(steps) > 3.0


def test_fit_is_reproducible_and_reports_progress(fitting_clips):
    seen = []
    first = MelCodec.fit(
        fitting_clips[:6], num_books=2, codebook_size=16, seed=4, progress=lambda *a: seen.append(a)
    )
    second = MelCodec.fit(fitting_clips[:6], num_books=2, codebook_size=16, seed=4)
    np.testing.assert_array_equal(first.books, second.books)
    np.testing.assert_array_equal(first.filter, second.filter)
    assert seen == [(1, 2), (2, 2)]


def test_files_round_trip_exactly(codec, held_out, tmp_path):
    path = tmp_path / "codec.npz"
    codec.save(path)
    loaded = MelCodec.load(path)
    for name in ("books", "mean", "scale", "filter"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(codec, name))
    np.testing.assert_array_equal(loaded.encode(held_out[1]), codec.encode(held_out[1]))


def test_a_full_size_file_stays_under_a_megabyte(tmp_path):
    books = np.random.default_rng(0).normal(size=(8, 256, 128)).astype(np.float16)
    filter = 0.01 * books[:5, :128]
    MelCodec(books, np.zeros(128), np.ones(128), filter=filter).save(tmp_path / "codec.npz")
    assert (tmp_path / "codec.npz").stat().st_size < 1_000_000


@pytest.mark.parametrize(
    "damage", ["truncated", "flipped", "text", "empty", "single array", "other", "format", "nan"]
)
def test_damaged_files_are_named_in_one_line(codec, tmp_path, damage):
    path = tmp_path / "codec.npz"
    codec.save(path)
    content = path.read_bytes()
    if damage == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "flipped":
        middle = len(content) // 2
        path.write_bytes(content[:middle] + bytes(64) + content[middle + 64 :])
    elif damage == "single array":
        with open(path, "wb") as file:
            np.save(file, codec.books)
    elif damage == "text":
        path.write_text("not a codec")
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "other":
        np.savez(path, weights=np.zeros(3))
    else:
        arrays = dict(np.load(path))
        arrays |= {"format": "other-2"} if damage == "format" else {"mean": np.full(128, np.nan)}
        np.savez(path, **arrays)
    with pytest.raises(UserError) as caught:
        MelCodec.load(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match="no such codec file"):
        MelCodec.load(tmp_path / "none.npz")


@pytest.mark.parametrize(
    "wav",
    [
        np.zeros(0, np.float32),
        np.zeros((2, 400), np.float32),
        np.zeros(400, np.int16),
        np.array([0.0, np.nan] * 200, np.float32),
        np.array([0.0, np.inf] * 200, np.float32),
    ],
    ids=["empty", "stereo", "integers", "nan", "inf"],
)
def test_bad_clips_are_refused(codec, wav):
    with pytest.raises(UserError):
        codec.encode(wav)
    with pytest.raises(UserError):
        MelCodec.fit([wav], num_books=1, codebook_size=1)


@pytest.mark.parametrize(
    "codes",
    [
        np.full((4, 8), 64),
        np.full((4, 8), -1),
        np.zeros((4, 9), np.int32),
        np.zeros(4, np.int32),
        np.zeros((4, 8), np.float32),
    ],
    ids=["too large", "negative", "too many streams", "one dimension", "floats"],
)
def test_bad_codes_are_refused(codec, codes):
    with pytest.raises(UserError):
        codec.decode(codes)


def test_too_little_audio_is_refused(held_out):
    with pytest.raises(UserError, match="too few"):
        MelCodec.fit([held_out[0][:3_200]], codebook_size=256)
