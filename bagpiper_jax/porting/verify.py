"""Both sides of a conversion run on one probe: the source in PyTorch, what was written in JAX.

In float32, and layer by layer (but for the tower in PyTorch), so that a model that does not fit in
memory can be compared. Each part is given what the source's part before it made.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special
from flax import nnx
from tqdm import tqdm

from bagpiper_jax.errors import UserError
from bagpiper_jax.log_mel import MelWindows, mel_windows
from bagpiper_jax.modeling.audio_encoder import AudioEncoder, EncoderLayer
from bagpiper_jax.modeling.config import BagpiperConfig
from bagpiper_jax.modeling.qwen3 import DecoderLayer, RMSNorm, rope
from bagpiper_jax.modeling.xcodec_model import XCodecConfig, XCodecModel
from bagpiper_jax.porting.rows import AUDIO_TOWER, CODEC, EMBED, HEAD, QWEN3, TOWER, XCODEC
from bagpiper_jax.porting.sources import LazyTensor
from bagpiper_jax.porting.state import fill, table_of
from bagpiper_jax.porting.table import Row
from bagpiper_jax.trees import set_leaves

Tensors = Mapping[str, LazyTensor]
TOP = 5
# what float32 on both sides stays under by far, and a wrong tensor does not
MAX_KL, MAX_ERROR, MIN_CODES = 1e-5, 2e-4, 0.999
_HEAD_ROWS = 8192
_LOGIT_ROWS = 40
_CODEC_SAMPLES = 48_000
_LAYER = "model.layers."


class Probe(NamedTuple):
    """What both sides are given: a clip, and rows after it.

    Attributes:
      wav: float32 [S], mono at 16 kHz.
      clip: its log-mel windows.
      tokens: int [T, K]; text rows, then codec rows.
    """

    wav: np.ndarray
    clip: MelWindows
    tokens: np.ndarray


def make_probe(config: BagpiperConfig, seed: int = 0) -> Probe:
    """A gliding tone of 17 s, three blocks of the encoder; 24 text rows, 16 frames of codes."""
    rng = np.random.default_rng(seed)
    time = np.arange(17 * 16_000 + 3 * 320) / 16_000
    wav = 0.3 * np.sin(2 * np.pi * (150 + 100 * time) * time)
    wav = (wav + 0.02 * rng.standard_normal(len(time))).astype(np.float32)
    vocab = config.vocab
    text = np.zeros((24, vocab.num_streams), np.int64)
    text[:, 0] = rng.integers(vocab.text_start, vocab.codec_start, len(text))
    codes = vocab.interleave(rng.integers(0, vocab.codebook_size, (16, vocab.num_streams)))
    return Probe(wav, mel_windows(wav), np.concatenate([text, codes]))


def compare_numbers(
    source: Tensors, target: Tensors, config: BagpiperConfig, codec: XCodecConfig | None = None
) -> list[str]:
    """Compares encoder features, logits (KL divergence, top-k), codec tokens and waveforms.

    Args:
      source, target: tensors under the names of ESPnet.
      config: of the model.
      codec: of the X-codec, where there is one; that of the published model if None.

    Returns:
      lines to print.

    Raises:
      UserError: they differ by more than rounding, or PyTorch or transformers is missing.
    """
    torch = need_originals()
    probe, codec = make_probe(config), codec or XCodecConfig()
    lines, wrong = [], []
    with torch.inference_mode(), jax.default_matmul_precision("highest"):
        theirs, ours = _features(source, target, config, probe.clip)
        error = _error(ours, theirs)
        lines.append(f"encoder features within {error:.1e} of their largest")
        if error > MAX_ERROR:
            wrong.append(lines[-1])
        kl, first, top = _compare_logits(source, target, config, probe, theirs)
        lines.append(
            f"logits: KL divergence at most {kl:.1e} nats, first choice alike in {first:.2%}, "
            f"top {TOP} in {top:.2%}"
        )
        if kl > MAX_KL:
            wrong.append(lines[-1])
        if any(name.startswith(CODEC) for name in source):
            alike, error = _compare_codecs(
                source, target, codec, config, probe.wav[:_CODEC_SAMPLES]
            )
            lines.append(f"codec: {alike:.2%} of codes alike, waveform within {error:.1e}")
            if alike < MIN_CODES or error > MAX_ERROR:
                wrong.append(lines[-1])
    if wrong:
        raise UserError(f"source and target differ: {'; '.join(wrong)}")
    return lines


def need_originals() -> Any:
    """The package torch, with transformers installed.

    Raises:
      UserError: one of them is missing.
    """
    try:
        import torch
        import transformers  # noqa: F401
    except ImportError as e:
        raise UserError(
            f"verifying numbers needs: pip install 'bagpiper_jax[convert]' ({e}); or --verify bits"
        ) from e
    return torch


def _error(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def _float32(tensor: LazyTensor) -> np.ndarray:
    return np.array(tensor.read(), np.float32)  # a copy: mapped memory is not writable


def _load_torch(module: Any, tensors: Tensors, prefix: str, optional: bool = False) -> Any:
    """Gives a PyTorch module its tensors, all of them, one after the other."""
    import torch

    places = module.state_dict()  # these share their memory with the module
    names = {n.removeprefix(prefix): n for n in tensors if n.startswith(prefix)}
    strange = sorted(set(names) - set(places))
    missing = [] if optional else sorted(set(places) - set(names))
    if strange or missing:
        raise UserError(f"{prefix}: the original lacks {strange} or has besides {missing}")
    for own, name in names.items():
        places[own].copy_(torch.from_numpy(_float32(tensors[name])))
    return module.eval()


def _load_flax(
    module: nnx.Module, rows: tuple[Row, ...], tensors: Tensors, prefix: str, dtype: Any = None
) -> Any:
    """Gives an abstract module here its tensors, through its table.

    They keep the type they are stored in if `dtype` is None; most modules compute in float32 all
    the same.
    """
    state = nnx.state(module)
    whole = (slice(None),)
    arrays = fill(
        table_of(rows, state),
        lambda name: tensors[prefix + name].read() if prefix + name in tensors else None,
        state,
        lambda _, shape, cut: jnp.asarray(cut(whole * len(shape)), dtype),
    )
    set_leaves(module, arrays)
    return module


def _features(source, target, config, clip: MelWindows) -> tuple[np.ndarray, np.ndarray]:
    """Encoder features of the clip, of both sides [N, D]."""
    import torch
    from transformers.models.qwen3_omni_moe import modeling_qwen3_omni_moe as original
    from transformers.models.qwen3_omni_moe.configuration_qwen3_omni_moe import (
        Qwen3OmniMoeAudioEncoderConfig,
    )

    shapes = Qwen3OmniMoeAudioEncoderConfig(
        **dataclasses.asdict(config.encoder), attn_implementation="eager"
    )
    # not on "meta": its table of positions is made, not loaded
    tower = _load_torch(original.Qwen3OmniMoeAudioEncoder(shapes), source, TOWER)
    mel = np.concatenate([m[:f] for m, f in zip(clip.mel, clip.frames, strict=True)])
    lengths = torch.tensor([len(mel)])
    theirs = tower(torch.from_numpy(mel.T.copy()), feature_lens=lengths).last_hidden_state.numpy()
    del tower
    pad = -len(clip.mel) % config.encoder.block_windows
    windows = np.pad(clip.mel, ((0, pad), (0, 0), (0, 0)))[None]
    frames = np.pad(clip.frames, (0, pad))[None]
    ends = dataclasses.replace(config.encoder, encoder_layers=1)  # what is before and after them
    encoder = nnx.eval_shape(lambda: AudioEncoder(ends, rngs=nnx.Rngs(0)))
    _load_flax(encoder, AUDIO_TOWER, target, TOWER)
    x, mask = nnx.jit(lambda m, x, n: m.front(x, n))(encoder, windows, frames)
    make = lambda r: EncoderLayer(config.encoder, dtype=jnp.float32, rngs=r)  # noqa: E731
    rows = _layer_rows(AUDIO_TOWER, "layers.")
    run = nnx.jit(lambda layer, x: layer(x, mask))
    for layer in _layers(make, rows, target, f"{TOWER}layers.", config.encoder.encoder_layers):
        x = run(layer, x)
    ours = np.asarray(nnx.jit(lambda m, x: m.back(x))(encoder, x))
    return theirs, ours.reshape(-1, ours.shape[-1])[: clip.num_tokens]


def _layer_rows(rows: tuple[Row, ...], prefix: str) -> tuple[Row, ...]:
    """The table of one of stacked layers."""
    return tuple(
        row._replace(
            source=row.source.removeprefix(f"{prefix}#."), target=row.target.removeprefix(prefix)
        )
        for row in rows
        if row.target.startswith(prefix)
    )


def _layers(make, rows: tuple[Row, ...], tensors: Tensors, prefix: str, count: int):
    """Stacked layers, one after the other, in one module."""
    layer = nnx.eval_shape(lambda: make(nnx.Rngs(0)))
    for i in tqdm(range(count), desc="layers in JAX"):
        yield _load_flax(layer, rows, tensors, f"{prefix}{i}.")


def _embed(tensors: Tensors, tokens: np.ndarray, features: np.ndarray) -> np.ndarray:
    """Rows that enter the decoder [1, N + T, D]."""
    table = tensors[EMBED].read()
    later = np.where(tokens[:, 1:, None] == 0, 0, table[tokens[:, 1:]].astype(np.float32))
    rows = table[tokens[:, 0]].astype(np.float32) + later.sum(1)
    weight, bias = (_float32(tensors[f"adaptor.continuous_audio.{n}"]) for n in ("weight", "bias"))
    return np.concatenate([features @ weight.T + bias, rows])[None]


def _compare_logits(source, target, config, probe: Probe, features) -> tuple[float, float, float]:
    """(largest KL divergence, share of equal first choices, share of equal top choices)."""
    theirs = _original_hidden(source, config, _embed(source, probe.tokens, features))
    ours = _hidden(target, config, _embed(target, probe.tokens, features))
    theirs, ours = theirs[-_LOGIT_ROWS:], ours[-_LOGIT_ROWS:]  # those after the clip
    name = HEAD if HEAD in source else EMBED
    heads = [side[name].read() for side in (source, target)]
    vocab = config.vocab
    kl, same, alike = 0.0, [], []
    for k in range(vocab.num_streams):
        span = range(0 if k == 0 else vocab.codec_start, vocab.size)
        # the original adds the stream to the hidden state, here its product is added to the logits
        stream = _stream(source, k)
        x = _product(theirs + stream, heads[0], span)
        stream = _stream(target, k)
        y = _product(ours, heads[1], span) + _product(stream[None], heads[1], span)
        p, q = (z - scipy.special.logsumexp(z, -1, keepdims=True) for z in (x, y))
        kl = max(kl, float((np.exp(p) * (p - q)).sum(-1).max()))
        best = [np.argsort(-z, axis=-1)[:, :TOP] for z in (p, q)]
        same.append((best[0][:, 0] == best[1][:, 0]).mean())
        alike.append(np.mean([len({*i} & {*j}) / TOP for i, j in zip(*best, strict=True)]))
    return kl, float(np.mean(same)), float(np.mean(alike))


def _stream(tensors: Tensors, k: int) -> np.ndarray:
    """What stream k adds to a hidden state; stream 0 is the state itself."""
    row = _float32(tensors["stream_emb.weight"])[k]
    return row if k else np.zeros_like(row)


def _product(hidden: np.ndarray, rows: np.ndarray, span: range) -> np.ndarray:
    """Logits [T, n], double precision, of the ids in a span; few rows of the head at a time."""
    parts = []
    for start in range(span.start, span.stop, _HEAD_ROWS):
        part = np.asarray(rows[start : min(start + _HEAD_ROWS, span.stop)], np.float32)
        parts.append(hidden @ part.T)
    return np.concatenate(parts, axis=1).astype(np.float64)


def _original_hidden(tensors: Tensors, config: BagpiperConfig, x: np.ndarray) -> np.ndarray:
    """Hidden states after the final norm by the modules of transformers [T, D]."""
    import torch
    from transformers.models.qwen3 import modeling_qwen3 as original
    from transformers.models.qwen3.configuration_qwen3 import Qwen3Config

    decoder = dataclasses.asdict(config.decoder)
    rotation = {"rope_type": "default", "rope_theta": decoder.pop("rope_theta")}
    shapes = Qwen3Config(**decoder, rope_parameters=rotation, attn_implementation="eager")
    hidden, length = torch.from_numpy(x), x.shape[1]
    mask = torch.full((length, length), float("-inf")).triu(1)[None, None]
    positions = torch.arange(length)[None]
    rotary = original.Qwen3RotaryEmbedding(shapes)(hidden, positions)
    layer = original.Qwen3DecoderLayer(shapes, 0)  # each layer's turn
    for i in tqdm(range(config.decoder.num_hidden_layers), desc="layers in PyTorch"):
        _load_torch(layer, tensors, f"{_LAYER}{i}.")
        hidden = layer(
            hidden, attention_mask=mask, position_ids=positions, position_embeddings=rotary
        )
    norm = original.Qwen3RMSNorm(config.decoder.hidden_size, config.decoder.rms_norm_eps)
    return _load_torch(norm, tensors, "model.norm.")(hidden)[0].numpy()


def _hidden(tensors: Tensors, config: BagpiperConfig, x: np.ndarray) -> np.ndarray:
    """Hidden states after the final norm by the modules here [T, D]."""
    decoder = config.decoder
    rows = _layer_rows(QWEN3, _LAYER)
    positions = np.arange(x.shape[1])[None]
    segments = np.ones_like(positions)
    rotation = rope(jnp.asarray(positions), decoder.head_dim, decoder.rope_theta)
    run = nnx.jit(lambda layer, x: layer(x, rotation, segments))
    make = lambda r: DecoderLayer(decoder, dtype=jnp.float32, backend="xla", rngs=r)  # noqa: E731
    hidden = jnp.asarray(x)
    for layer in _layers(make, rows, tensors, _LAYER, decoder.num_hidden_layers):
        hidden = run(layer, hidden)
    norm = RMSNorm(decoder.hidden_size, decoder.rms_norm_eps)
    norm.weight[...] = _float32(tensors["model.norm.weight"])
    return np.asarray(norm(hidden))[0]


def _compare_codecs(source, target, codec, config, wav) -> tuple[float, float]:
    """(share of equal codes, largest error of the waveform of the same codes)."""
    import torch
    import transformers

    original = transformers.XcodecModel(original_codec_config(codec))
    _load_torch(original, source, CODEC, optional=True)
    books = config.vocab.num_streams
    theirs = original.encode(torch.from_numpy(wav)[None, None], return_dict=False)[0, :books]
    sound = original.decode(theirs[None], return_dict=False)[0, 0].numpy()
    theirs = theirs.T.numpy()
    del original
    model = nnx.eval_shape(lambda: XCodecModel(codec, rngs=nnx.Rngs(0)))
    _load_flax(model, XCODEC, target, CODEC, jnp.float32)
    encode = nnx.jit(lambda m, x, n: m.encode(x, n, books))
    ours = np.asarray(encode(model, wav[None], np.array([len(wav)])))[0]
    decode = nnx.jit(lambda m, x, n: m.decode(x, n))
    heard = np.asarray(decode(model, theirs[None].astype(np.int32), np.array([len(theirs)])))[0]
    return float((ours == theirs).mean()), _error(heard, sound)


def original_codec_config(codec: XCodecConfig) -> Any:
    """Its shapes as `XcodecConfig` of transformers, with bandwidths for 1, 2, 4 and all books."""
    from transformers import DacConfig, HubertConfig, XcodecConfig

    acoustic = DacConfig(
        encoder_hidden_size=codec.encoder_hidden_size,
        downsampling_ratios=list(codec.downsampling_ratios),
        decoder_hidden_size=codec.decoder_hidden_size,
        upsampling_ratios=list(codec.upsampling_ratios),
        hidden_size=codec.acoustic_hidden_size,
    )
    kilobits = np.log2(codec.codebook_size) * codec.sample_rate / codec.hop / 1000
    return XcodecConfig(
        acoustic_model_config=acoustic,
        semantic_model_config=HubertConfig(**dataclasses.asdict(codec.semantic)),
        codebook_size=codec.codebook_size,
        target_bandwidths=[float(kilobits * n) for n in (1, 2, 4, codec.num_quantizers)],
        sample_rate=codec.sample_rate,
    )
