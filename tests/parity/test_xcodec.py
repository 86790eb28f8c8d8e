"""X-codec against `XcodecModel` of transformers, with random weights."""

import glob
import os

import numpy as np
import pytest
from flax import nnx
from tiny_xcodec import CONFIG

from bagpiper_jax.modeling.xcodec_model import XCodecModel
from bagpiper_jax.porting.espnet import update
from bagpiper_jax.porting.rows import XCODEC
from bagpiper_jax.porting.state import check, fill, table_of, tensors_of
from bagpiper_jax.porting.verify import original_codec_config
from bagpiper_jax.trees import dotted

pytestmark = pytest.mark.slow

# bandwidths for 1, 2, 4 and 8 books of 6 bits at 50 frames a second
BANDWIDTHS = {1: 0.3, 2: 0.6, 4: 1.2, 8: 2.4}
LENGTHS = (80, 320, 3_200, 5_555, 16_000, 16_001, 16_080, 16_100, 16_311, 16_312, 16_319)


@pytest.fixture(scope="module", params=[0, 1])
def pair(request):
    import torch
    from transformers import XcodecModel

    torch.manual_seed(request.param)
    original = XcodecModel(original_codec_config(CONFIG)).eval()
    assert np.allclose(original.config.target_bandwidths, list(BANDWIDTHS.values()))
    with torch.no_grad():
        for parameter in original.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        for quantizer in original.quantizer.quantizers:
            for name in ("embed", "embed_avg", "cluster_size"):
                getattr(quantizer.codebook, name).normal_()
    tensors = {name: value.numpy() for name, value in original.state_dict().items()}
    model = XCodecModel(CONFIG, rngs=nnx.Rngs(0))
    state = nnx.state(model)
    table = table_of(XCODEC, state)
    check("the original", table, tensors)
    whole = (slice(None),)
    arrays = fill(table, tensors.get, state, lambda _, shape, cut: cut(whole * len(shape)))
    update(model, None, arrays)
    return original, model, tensors


def clip(samples, seed=0):
    rng = np.random.default_rng(seed)
    return 0.3 * rng.standard_normal((1, samples), dtype=np.float32)


@nnx.jit(static_argnums=3)
def encode(model, wav, lengths, books):
    return model.encode(wav, lengths, books)


@nnx.jit
def decode(model, codes, lengths):
    return model.decode(codes, lengths)


@pytest.mark.parametrize("samples", LENGTHS)
def test_codes_and_waveforms(pair, samples):
    import torch

    original, model, _ = pair
    wav = clip(samples)
    for books, bandwidth in BANDWIDTHS.items():
        with torch.no_grad():
            want = original.encode(torch.tensor(wav)[:, None], bandwidth, return_dict=False)
            sound = original.decode(want, return_dict=False)[0, 0].numpy()
        want = want[0].T.numpy()
        got = np.asarray(encode(model, wav, np.array([samples]), books))[0]
        assert got.shape == want.shape == (model.semantic_length(samples), books)
        assert (got == want).mean() >= 0.999
        ours = np.asarray(decode(model, want[None], np.array([len(want)])))[0]
        np.testing.assert_allclose(ours, sound, atol=1e-4 * np.abs(sound).max())


CORPUS = os.path.join(os.path.dirname(__file__), "..", "..", "data", "mini", "audio")


def test_real_audio(pair):
    """Speech, sounds and music: at least 99.9 % of all codes alike, and the same waveforms."""
    import soundfile
    import torch

    original, model, _ = pair
    files = sorted(glob.glob(os.path.join(CORPUS, "*.ogg")))
    total = alike = 0
    room = 48_000
    for file in files[:: len(files) // 24]:
        wav = soundfile.read(file, dtype="float32", frames=room)[0]
        padded = np.pad(wav, (0, room - len(wav)))[None]
        with torch.no_grad():
            want = original.encode(torch.tensor(wav)[None, None], BANDWIDTHS[8], return_dict=False)
            sound = original.decode(want, return_dict=False)[0, 0].numpy()
        want = want[0].T.numpy()
        got = np.asarray(encode(model, padded, np.array([len(wav)]), 8))[0, : len(want)]
        total, alike = total + want.size, alike + int((got == want).sum())
        codes = np.pad(want, ((0, 150 - len(want)), (0, 0)))[None]
        ours = np.asarray(decode(model, codes, np.array([len(want)])))[0, : len(sound)]
        np.testing.assert_allclose(ours, sound, atol=1e-4 * np.abs(sound).max())
    assert total > 8_000 and alike / total >= 0.999, (alike, total)


def test_codes_and_waveforms_do_not_depend_on_company(pair):
    _, model, _ = pair
    room = 20_000
    batch = np.concatenate([clip(room, seed) for seed in range(4)])
    lengths = np.array([5_555, 16_100, 16_312, room])
    together = np.asarray(encode(model, batch, lengths, 8))
    frames = [model.semantic_length(n) for n in lengths]
    sound = np.asarray(decode(model, together, np.array(frames)))
    for i, (length, count) in enumerate(zip(lengths, frames, strict=True)):
        alone = np.asarray(encode(model, batch[i : i + 1, :length], lengths[i : i + 1], 8))[0]
        np.testing.assert_array_equal(together[i, :count], alone)
        wav = np.asarray(decode(model, alone[None], np.array([count])))[0]
        np.testing.assert_allclose(sound[i, : len(wav)], wav, atol=1e-5 * np.abs(wav).max())
        assert not sound[i, len(wav) :].any()


def test_export_is_exact(pair):
    _, model, tensors = pair
    state = nnx.state(model)
    arrays = {path: leaf[...] for path, leaf in dotted(state).items()}
    exported = dict(tensors_of(table_of(XCODEC, state), arrays))
    assert set(exported) == set(tensors)
    for name, value in tensors.items():
        np.testing.assert_array_equal(exported[name], value, err_msg=name)
