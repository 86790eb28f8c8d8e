"""A model as a directory: what `describe` and `render` read, after training or from a release.

`model.json` (shapes), `tokenizer.model` or Qwen3's `tokenizer.json`, `codec.npz` or X-codec's
`xcodec.json`, and the weights: `model.safetensors` in a release, Orbax checkpoints in a run's
workdir and where a checkpoint of PyTorch was converted. X-codec's are an item of what was
converted, and `xcodec.safetensors` in a workdir, whose checkpoints come and go.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from flax import nnx

from bagpiper_jax.errors import UserError
from bagpiper_jax.files import make_directory, write_whole
from bagpiper_jax.modeling.bagpiper import Bagpiper
from bagpiper_jax.modeling.codec import Codec
from bagpiper_jax.modeling.config import BagpiperConfig, from_dict, to_dict
from bagpiper_jax.modeling.hubert import HubertConfig
from bagpiper_jax.modeling.mel_codec import MelCodec
from bagpiper_jax.modeling.xcodec import XCodec
from bagpiper_jax.modeling.xcodec_model import XCodecConfig, XCodecModel
from bagpiper_jax.store import SlicedArray, open_sliced, restore_weights
from bagpiper_jax.tokenizer import Qwen3Tokenizer, SentencePieceTokenizer, Tokenizer
from bagpiper_jax.trees import dotted, mismatches, path_name, set_leaves

MODEL_FILE, TOKENIZER_FILE, CODEC_FILE = "model.json", "tokenizer.model", "codec.npz"
QWEN3_TOKENIZER_FILE, XCODEC_FILE = "tokenizer.json", "xcodec.json"
WEIGHTS_FILE, XCODEC_WEIGHTS_FILE = "model.safetensors", "xcodec.safetensors"
SAMPLING_FILE = "sampling.json"  # settings chosen for the weights on development data
# the small model that comes with the package
MINI = os.path.join(os.path.dirname(os.path.abspath(__file__)), "checkpoints", "mini")


class Assets(NamedTuple):
    """What turns conversations into rows and back."""

    config: BagpiperConfig
    tokenizer: Tokenizer
    codec: Codec


def load_assets(directory: str) -> Assets:
    """Shapes, tokenizer and codec of a model directory.

    Raises:
      UserError: the directory or a file is missing or damaged, or sizes disagree.
    """
    config = read_config(directory)
    if os.path.exists(os.path.join(directory, QWEN3_TOKENIZER_FILE)):
        tokenizer = Qwen3Tokenizer(directory)
    else:
        tokenizer = SentencePieceTokenizer.load(os.path.join(directory, TOKENIZER_FILE))
    if os.path.exists(os.path.join(directory, XCODEC_FILE)):
        codec = load_xcodec(directory, config.vocab.num_streams)
    else:
        codec = MelCodec.load(os.path.join(directory, CODEC_FILE))
    if tokenizer.vocab_size > config.vocab.text_size:
        raise UserError(
            f"the tokenizer in {directory} has {tokenizer.vocab_size} ids, the model holds "
            f"{config.vocab.text_size}"
        )
    if codec.codebook_sizes != (config.vocab.codebook_size,) * config.vocab.num_streams:
        raise UserError(f"the codec in {directory} does not fit the model's streams")
    return Assets(config, tokenizer, codec)


def read_config(directory: str) -> BagpiperConfig:
    """Shapes of a model directory.

    Raises:
      UserError: there are none, or they are damaged.
    """
    values = _read_json(directory, MODEL_FILE)
    try:
        return from_dict(values)
    except (KeyError, TypeError, ValueError) as e:
        raise UserError(f"{os.path.join(directory, MODEL_FILE)} is damaged: {e}") from e


def read_xcodec_config(directory: str) -> XCodecConfig:
    """Shapes of a model directory's X-codec.

    Raises:
      UserError: there are none, or they are damaged.
    """
    values = _read_json(directory, XCODEC_FILE)
    try:
        plain = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        semantic = plain.pop("semantic")
        hubert = {k: tuple(v) if isinstance(v, list) else v for k, v in semantic.items()}
        return XCodecConfig(**plain, semantic=HubertConfig(**hubert))
    except (AttributeError, KeyError, TypeError, ValueError) as e:
        raise UserError(f"{os.path.join(directory, XCODEC_FILE)} is damaged: {e}") from e


def _read_json(directory: str, name: str) -> dict:
    path = os.path.join(directory, name)
    try:
        with open(path, encoding="utf-8") as f:
            return json.load(f)
    except OSError as e:
        raise UserError(f"{directory} is not a model directory: cannot read {name}") from e
    except ValueError as e:
        raise UserError(f"{path} is damaged: {e}") from e


def load_xcodec(directory: str, num_books: int) -> XCodec:
    """The X-codec of a converted checkpoint.

    Raises:
      UserError: it is missing, damaged or of another shape.
    """
    config = read_xcodec_config(directory)
    try:
        model = nnx.eval_shape(lambda: XCodecModel(config, rngs=nnx.Rngs(0)))
    except (TypeError, ValueError) as e:
        raise UserError(f"{os.path.join(directory, XCODEC_FILE)} is damaged: {e}") from e
    if num_books > config.num_quantizers:
        raise UserError(
            f"the codec in {directory} has {config.num_quantizers} books, the model {num_books} "
            "streams"
        )
    wanted, found = dotted(nnx.state(model)), xcodec_arrays(directory)
    wrong = mismatches(wanted, found)
    if wrong:
        raise UserError(f"the codec in {directory} does not fit: {'; '.join(wrong)}")
    set_leaves(
        model,
        {path: jnp.asarray(_whole(array), wanted[path].dtype) for path, array in found.items()},
    )
    return XCodec(model, num_books=num_books)


def xcodec_arrays(directory: str) -> dict[str, SlicedArray]:
    """The weights of a model directory's X-codec by dotted path.

    Raises:
      UserError: there are none, or they are damaged.
    """
    path = os.path.join(directory, XCODEC_WEIGHTS_FILE)
    if not os.path.exists(path):
        return open_sliced(directory, "codec")
    tensors = _load_tensors(path)
    return {name: SlicedArray(t.shape, t.dtype, t.__getitem__) for name, t in tensors.items()}


def _whole(array: SlicedArray) -> np.ndarray:
    return array.cut((slice(None),) * array.ndim)


def copy_xcodec(source: str, target: str) -> None:
    """Puts the X-codec of one model directory into another; `xcodec.json` comes last.

    Raises:
      UserError: it is missing or damaged, or cannot be written.
    """
    tensors = {n: np.ascontiguousarray(_whole(a)) for n, a in xcodec_arrays(source).items()}
    write_whole(os.path.join(target, XCODEC_WEIGHTS_FILE), lambda p: _save_tensors(p, tensors))
    copy_notes(source, target, (XCODEC_FILE,))


def xcodec_fingerprint(directory: str) -> str:
    """SHA-256 of the shapes and weights of a model directory's X-codec, however they are stored.

    Raises:
      UserError: it is missing or damaged.
    """
    digest = hashlib.sha256(repr(read_xcodec_config(directory)).encode())
    for name, array in sorted(xcodec_arrays(directory).items()):
        digest.update(f"{name} {np.dtype(array.dtype)} {tuple(array.shape)}".encode())
        digest.update(np.ascontiguousarray(_whole(array)).view(np.uint8))
    return digest.hexdigest()


def weight_shapes(config: BagpiperConfig) -> Any:
    """Shapes of a model's weights as a nested dict; no memory is taken."""
    return nnx.to_pure_dict(nnx.state(Bagpiper.abstract(config), nnx.Param))


def load_weights(directory: str, params: Any, step: int | None = None) -> Any:
    """Weights of a release, or of a run's checkpoint, as float32.

    Args:
      directory: a release or a workdir.
      params: a tree of arrays or shapes that the weights must fit.
      step: of a run's checkpoint; None: its latest.

    Raises:
      UserError: no weights, or none of that step, a truncated file, or missing, unexpected or
        misshapen tensors.
    """
    path = os.path.join(directory, WEIGHTS_FILE)
    if not os.path.exists(path):
        return restore_weights(directory, params, step)
    if step is not None:
        raise UserError(f"{directory} is a release: it has no checkpoint of step {step}")
    tensors = _load_tensors(path)
    wrong = mismatches(dotted(params), tensors)
    if wrong:
        raise UserError(f"{path} does not fit the model: {'; '.join(wrong)}")
    return jax.tree_util.tree_map_with_path(
        lambda keys, _: jnp.asarray(tensors[path_name(keys)], jnp.float32), params
    )


def save_release(directory: str, params: Any, assets: Assets, dtype=jnp.bfloat16) -> None:
    """Writes a model directory with weights in `dtype`; files appear only when they are whole.

    Raises:
      UserError: it cannot be written, or its codec is X-codec: then it is `bagpiper convert`'s.
    """
    if not isinstance(assets.codec, MelCodec):
        raise UserError("a model with X-codec is written by bagpiper convert")
    make_directory(directory)
    tensors = {k: np.asarray(jnp.asarray(v, dtype)) for k, v in dotted(params).items()}
    writers = {
        WEIGHTS_FILE: lambda p: _save_tensors(p, tensors),
        TOKENIZER_FILE: assets.tokenizer.save,
        CODEC_FILE: assets.codec.save,
        MODEL_FILE: lambda p: write_config(p, assets.config),
    }
    for name, write in writers.items():
        write_whole(os.path.join(directory, name), write)


def _load_tensors(path: str) -> dict[str, np.ndarray]:
    try:
        return safetensors.numpy.load_file(path)
    except (OSError, safetensors.SafetensorError) as e:
        raise UserError(f"{path} is damaged or truncated: copy it again ({e})") from e


def _save_tensors(path: str, tensors: dict[str, np.ndarray]) -> None:
    try:
        safetensors.numpy.save_file(tensors, path)
    except safetensors.SafetensorError as e:
        raise UserError(f"cannot write {path}: {e}") from e
    os.chmod(path, 0o644)  # the library makes files that only their owner reads


def copy_notes(source: str, target: str, names: Sequence[str]) -> None:
    """Copies what lies beside a model, where it is there: chosen sampling, curve, figures.

    Raises:
      UserError: one cannot be copied.
    """
    for name in names:
        path = os.path.join(source, name)
        if os.path.exists(path):
            write_whole(os.path.join(target, name), lambda p, path=path: shutil.copyfile(path, p))


def weights_digest(directory: str) -> str:
    """SHA-256 of a release's weights, which figures name; empty for a run's workdir."""
    path = os.path.join(directory, WEIGHTS_FILE)
    if not os.path.exists(path):
        return ""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_config(path: str, config: BagpiperConfig) -> None:
    """Writes `model.json`."""
    with open(path, "w", encoding="utf-8") as f:
        json.dump(to_dict(config), f, indent=2)
