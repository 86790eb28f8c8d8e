"""`bagpiper convert`: checkpoints of PyTorch from one form into another, tensor by tensor."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import numpy as np
from flax import nnx
from tqdm import tqdm

from bagpiper_jax.errors import UserError
from bagpiper_jax.files import write_json
from bagpiper_jax.modeling.config import BagpiperConfig, get_config, to_dict
from bagpiper_jax.modeling.xcodec_model import XCodecConfig, XCodecModel
from bagpiper_jax.porting.espnet import (
    VOCAB_WEIGHT,
    abstract,
    check_vocab_weight,
    states,
)
from bagpiper_jax.porting.parts import assemble
from bagpiper_jax.porting.rows import BAGPIPER, CODEC, XCODEC
from bagpiper_jax.porting.sources import LazyTensor, fold_norms, open_checkpoint
from bagpiper_jax.porting.state import check, table_of
from bagpiper_jax.porting.table import Entry
from bagpiper_jax.porting.writers import write_safetensors, write_torch

TARGETS = ("espnet", "safetensors")


def convert(
    source: str,
    target: str,
    to: str,
    *,
    config: str = "bagpiper_8b",
    tower: str | None = None,
    codec: str | None = None,
    dry_run: bool = False,
    verify: bool = False,
) -> list[str]:
    """Converts a checkpoint.

    Args:
      source: an ESPnet or DeepSpeed `.pt`, or safetensors with an index; or, with `tower`, a Qwen3
        directory to start a new model from.
      target: file (espnet) or directory (safetensors) to write.
      to: "espnet" or "safetensors".
      config: preset that the source must fit.
      tower: a Qwen3-Omni directory, whose audio tower the new model takes.
      codec: an X-codec directory, whose weights the new model takes.
      dry_run: only says what would be written.
      verify: reads back what was written and compares every tensor bit by bit.

    Returns:
      lines to print.

    Raises:
      UserError: a source that is damaged or does not fit, with all problems by name; a target that
        cannot be written, or that differs from what was to be written.
    """
    if to not in TARGETS:
        raise UserError(f"cannot convert to {to!r}: choose {' or '.join(TARGETS)}")
    shapes = get_config(config)
    tensors = open_checkpoint(source)
    if tower:
        parts = (open_checkpoint(tower), _open_codec(codec) if codec else None)
        tensors = assemble(tensors, *parts, shapes)
    elif "model.embed_tokens.weight" in tensors and "stream_emb.weight" not in tensors:
        raise UserError(
            f"{source} is a language model without audio: give --tower (and --codec) to start a "
            "new Bagpiper from it"
        )
    table, tensors = fit(source, tensors, shapes)
    outputs = outputs_of(table, tensors, shapes, vocab_weight=to == "espnet")
    size = sum(output.num_bytes for output in outputs.values())
    if dry_run:
        lines = [f"{n}  {list(t.shape)}  {np.dtype(t.dtype).name}" for n, t in outputs.items()]
        return [*lines, f"{len(outputs)} tensors, {size / 1e9:.2f} GB"]
    with tqdm(total=size, unit="B", unit_scale=True, desc=f"write {to}") as bar:
        if to == "espnet":
            write_torch(target, outputs, bar.update)
        else:
            write_safetensors(target, outputs, bar.update)
            write_json(os.path.join(target, "config.json"), served_config(shapes))
    if verify:
        compare(target, outputs)
    done = f"{target}: {len(outputs)} tensors, {size / 1e9:.2f} GB"
    return [f"{done}, every bit as in {source}" if verify else done]


def fit(
    source: str, tensors: dict[str, LazyTensor], config: BagpiperConfig
) -> tuple[list[Entry], dict[str, LazyTensor]]:
    """The table that a checkpoint fills, and its tensors with weight norms folded."""
    with_codec = any(name.startswith(CODEC) for name in tensors)
    model, codec = abstract(config, XCodecConfig() if with_codec else None)
    table = table_of(BAGPIPER, states(model, codec), config.vocab.size)
    tensors = fold_norms(tensors, [entry.source for entry in table])
    check(source, table, tensors, ignored=(VOCAB_WEIGHT,))
    read = {name: t.read() for name, t in tensors.items() if name == VOCAB_WEIGHT}
    check_vocab_weight(read, config)
    return table, tensors


def outputs_of(
    table: Sequence[Entry],
    tensors: Mapping[str, LazyTensor],
    config: BagpiperConfig,
    *,
    vocab_weight: bool,
) -> dict[str, LazyTensor]:
    """What to write, in the order of the table."""
    outputs = {e.source: tensors[e.source] for e in table if e.source in tensors}
    if vocab_weight:
        weights = config.vocab.token_weights()
        outputs[VOCAB_WEIGHT] = LazyTensor(weights.shape, weights.dtype, lambda: weights)
    return outputs


def compare(target: str, outputs: Mapping[str, LazyTensor]) -> None:
    """Reads a checkpoint back and compares every tensor bit by bit.

    Raises:
      UserError: something differs; all of it is named.
    """
    written, wrong = open_checkpoint(target), []
    size = sum(output.num_bytes for output in outputs.values())
    with tqdm(total=size, unit="B", unit_scale=True, desc="verify") as bar:
        for name, output in outputs.items():
            tensor = written.pop(name, None)
            if tensor is None or tensor.shape != output.shape or tensor.dtype != output.dtype:
                wrong.append(name)
            elif not _same_bits(tensor.read(), output.read()):
                wrong.append(name)
            bar.update(output.num_bytes)
    wrong += sorted(written)
    if wrong:
        raise UserError(f"{target} differs in {len(wrong)} tensors: {', '.join(wrong)}")


def _same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    a, b = (np.ascontiguousarray(x).reshape(-1).view(np.uint8) for x in (a, b))
    return np.array_equal(a, b)


def _open_codec(path: str) -> dict[str, LazyTensor]:
    state = nnx.state(nnx.eval_shape(lambda: XCodecModel(rngs=nnx.Rngs(0))))
    return fold_norms(open_checkpoint(path), [e.source for e in table_of(XCODEC, state)])


def served_config(config: BagpiperConfig) -> dict:
    """`config.json` of a served model: the parts' shapes under their names in transformers.

    Of the vLLM fork's own file only `model_type` is known; the rest is a proposal.
    """
    decoder, encoder = (dict(to_dict(config)[part]) for part in ("decoder", "encoder"))
    rope = {"rope_type": "default", "rope_theta": decoder.pop("rope_theta")}
    return {
        "model_type": "bagpiper",
        "architectures": ["BagpiperForConditionalGeneration"],
        "torch_dtype": "bfloat16",
        "vocab_size": config.vocab.size,
        "num_stream": config.vocab.num_streams,
        "text_config": decoder | {"model_type": "qwen3", "rope_parameters": rope},
        "audio_config": encoder | {"model_type": "qwen3_omni_moe_audio_encoder"},
        "codec_config": {"codebook_size": config.vocab.codebook_size, "model_type": "xcodec"},
    }
