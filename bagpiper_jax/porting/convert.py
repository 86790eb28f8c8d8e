"""`bagpiper convert`: checkpoints from one form into another, tensor by tensor."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence

import ml_dtypes
import numpy as np
from flax import nnx
from tqdm import tqdm

from bagpiper_jax.errors import UserError
from bagpiper_jax.files import check_vacant, write_directory, write_json
from bagpiper_jax.modeling.config import BagpiperConfig, get_config
from bagpiper_jax.modeling.xcodec_model import XCodecConfig, XCodecModel
from bagpiper_jax.porting.copies import BLOCK_BYTES, contiguous
from bagpiper_jax.porting.espnet import VOCAB_WEIGHT, fit
from bagpiper_jax.porting.parts import assemble
from bagpiper_jax.porting.rows import CODEC, EMBED, HEAD, XCODEC
from bagpiper_jax.porting.runs import codec_of, is_run, open_run, write_run
from bagpiper_jax.porting.served import decoder_numbers, qwen3_config, served_config, served_shapes
from bagpiper_jax.porting.sources import LazyTensor, fold_norms, open_checkpoint
from bagpiper_jax.porting.state import FLOATS, table_of
from bagpiper_jax.porting.table import Entry
from bagpiper_jax.porting.verify import compare_numbers, need_originals
from bagpiper_jax.porting.writers import write_safetensors, write_torch
from bagpiper_jax.release import (
    CODEC_FILE,
    QWEN3_TOKENIZER_FILE,
    SAMPLING_FILE,
    TOKENIZER_FILE,
    read_config,
)

TARGETS = ("espnet", "safetensors", "orbax", "qwen3")
CASTS = {"bfloat16": np.dtype(ml_dtypes.bfloat16), "float32": np.dtype(np.float32)}
_LANGUAGE_MODEL = ("model.", "lm_head.")
_SMALL_FILES = (TOKENIZER_FILE, QWEN3_TOKENIZER_FILE, CODEC_FILE, SAMPLING_FILE)


def convert(
    source: str,
    target: str,
    to: str,
    *,
    config: str | None = None,
    tower: str | None = None,
    codec: str | None = None,
    tokenizer: str | None = None,
    dtype: str | None = None,
    dry_run: bool = False,
    verify: str | None = None,
) -> list[str]:
    """Converts a checkpoint.

    Args:
      source: an ESPnet or DeepSpeed `.pt`, safetensors with an index, or a model directory of this
        project; or, with `tower`, a Qwen3 directory to start a new model from.
      target: file (espnet) or directory to write.
      to: "espnet"; "safetensors", for the vLLM fork; "orbax", for this project; "qwen3", the
        language model alone, for transformers.
      config: preset that a source without shapes of its own must fit; bagpiper_8b if None.
      tower: a Qwen3-Omni directory, whose audio tower the new model takes.
      codec: an X-codec directory, whose weights the new model takes.
      tokenizer: Qwen3's `tokenizer.json`, to lie beside an Orbax checkpoint.
      dtype: "bfloat16" or "float32"; None keeps that of each tensor.
      dry_run: only says what would be written.
      verify: "bits" reads back what was written and compares every tensor; "numbers" then runs both
        sides too, the source in PyTorch; see `verify.compare_numbers`.

    Returns:
      lines to print.

    Raises:
      UserError: a source that is damaged or does not fit, with all problems by name; a target that
        cannot be written, or that differs from what was to be written.
    """
    if to not in TARGETS:
        raise UserError(f"cannot convert to {to!r}: choose one of {', '.join(TARGETS)}")
    if dtype not in (None, *CASTS) or verify not in (None, "bits", "numbers"):
        raise UserError(f"dtype {dtype} or verify {verify} is none of those there are")
    if tokenizer and to != "orbax":
        raise UserError("--tokenizer is for --to orbax: other forms hold none")
    if tokenizer and not os.path.isfile(tokenizer):
        raise UserError(f"there is no tokenizer {tokenizer}")
    if to != "espnet" and not dry_run:
        check_vacant(target)
    if verify == "numbers" and not dry_run:
        if to == "qwen3":
            raise UserError("of a language model alone only bits are verified: --verify bits")
        need_originals()
    kind = CASTS[dtype] if dtype else None
    shapes, tensors, codec_shapes = _open(source, config, tower, codec, kind)
    if to in ("espnet", "safetensors") and shapes.vocab.stream_delay != 1:
        raise UserError(
            f"{source} has a stream_delay of {shapes.vocab.stream_delay}: programs that read {to} "
            "know a delay of 1 alone"
        )
    table, tensors = fit(source, tensors, shapes, codec_shapes)
    outputs = outputs_of(table, tensors, shapes, to)
    size = sum(output.num_bytes for output in outputs.values())
    if dry_run:
        places = {e.source: e for e in table}
        lines = [_described(n, t, places.get(n)) for n, t in outputs.items()]
        return [*lines, f"{len(outputs)} tensors, {size / 1e9:.2f} GB"]
    with tqdm(total=size, unit="B", unit_scale=True, desc=f"write {to}") as bar:
        if to == "espnet":
            write_torch(target, outputs, bar.update)
        elif to == "orbax":
            beside = _beside(source, tokenizer)
            write_run(
                target,
                table,
                outputs,
                shapes,
                codec=codec_shapes,
                beside=beside,
                progress=bar.update,
            )
        else:
            write_directory(
                target, lambda p: _write_directory(p, outputs, shapes, to, bar.update), size
            )
    lines = [f"{target}: {len(outputs)} tensors, {size / 1e9:.2f} GB"]
    if not any(name.startswith(CODEC) for name in outputs) and to != "qwen3":
        lines.append("without an X-codec: the source has none")
    if verify:
        if to == "orbax":  # there, what the source may lack is zero
            written = {n: t for n, t in open_run(target, shapes).items() if n in outputs}
        else:
            written = open_checkpoint(target)
        compare(target, outputs, written)
        lines.append(f"every bit as in {source}" + (f", cast to {dtype}" if dtype else ""))
    if verify == "numbers":
        lines += compare_numbers(outputs, written, shapes, codec_shapes)
    return lines


def _open(
    source: str, config: str | None, tower: str | None, codec: str | None, dtype: np.dtype | None
) -> tuple[BagpiperConfig, dict[str, LazyTensor], XCodecConfig | None]:
    """Shapes of the model, tensors of the source, shapes of its X-codec; none is read yet."""
    if codec and not tower:
        raise UserError("--codec is for a new model: give --tower too")
    if is_run(source):
        if tower or config:
            raise UserError(
                f"{source} is a whole model with shapes of its own: leave out --tower and --config"
            )
        shapes = read_config(source)
        return shapes, open_run(source, shapes, dtype), codec_of(source)
    shapes, tensors = get_config(config or "bagpiper_8b"), open_checkpoint(source)
    if tower:
        parts = (open_checkpoint(tower), _open_codec(codec) if codec else None)
        # the quirk of the published weights is theirs alone
        vocab = dataclasses.replace(shapes.vocab, zero_text_id_is_pad=False)
        decoder = dataclasses.replace(shapes.decoder, **decoder_numbers(source))
        shapes = dataclasses.replace(shapes, vocab=vocab, decoder=decoder)
        tensors = assemble(tensors, *parts, shapes)
    elif EMBED in tensors and "stream_emb.weight" not in tensors:
        raise UserError(
            f"{source} is a language model without audio: give --tower (and --codec) to start a "
            "new Bagpiper from it"
        )
    elif not config:
        shapes = served_shapes(source) or shapes
    if dtype is not None:
        tensors = {name: _cast(t, dtype) for name, t in tensors.items()}
    return shapes, tensors, None


def _cast(tensor: LazyTensor, dtype: np.dtype) -> LazyTensor:
    if tensor.dtype == dtype or tensor.dtype not in FLOATS:
        return tensor
    return LazyTensor(tensor.shape, dtype, lambda: np.asarray(tensor.read(), dtype))


def _beside(source: str, tokenizer: str | None) -> dict[str, str]:
    """Small files of the source's directory that an Orbax one has too, by name."""
    found = {name: os.path.join(source, name) for name in _SMALL_FILES}
    found = {name: path for name, path in found.items() if os.path.isfile(path)}
    return found | ({QWEN3_TOKENIZER_FILE: tokenizer} if tokenizer else {})


def _described(name: str, tensor: LazyTensor, entry: Entry | None) -> str:
    """A line of the table: tensor ↔ parameter."""
    line = f"{name}  {list(tensor.shape)}  {np.dtype(tensor.dtype).name}"
    if entry is None:
        return line
    place = entry.target if entry.layer is None else f"{entry.target}[{entry.layer}]"
    return f"{line}  ↔  {place}"


def _write_directory(directory, outputs, shapes, to, progress) -> None:
    write_safetensors(directory, outputs, progress)
    kinds = {np.dtype(tensor.dtype).name for tensor in outputs.values()}
    dtype = kinds.pop() if len(kinds) == 1 else "float32"
    described = served_config(shapes, dtype) if to == "safetensors" else qwen3_config(shapes, dtype)
    write_json(os.path.join(directory, "config.json"), described)


def outputs_of(
    table: Sequence[Entry], tensors: Mapping[str, LazyTensor], config: BagpiperConfig, to: str
) -> dict[str, LazyTensor]:
    """What to write, in the order of the table."""
    outputs = {e.source: tensors[e.source] for e in table if e.source in tensors}
    if to == "qwen3":
        return {n: t for n, t in outputs.items() if n.startswith(_LANGUAGE_MODEL)}
    if to == "espnet":
        if config.decoder.tie_word_embeddings:  # PyTorch has the table under both its names
            outputs[HEAD] = outputs[EMBED]
        weights = config.vocab.token_weights()
        outputs[VOCAB_WEIGHT] = LazyTensor(weights.shape, weights.dtype, lambda: weights)
    return outputs


def compare(
    target: str, outputs: Mapping[str, LazyTensor], written: Mapping[str, LazyTensor]
) -> None:
    """Compares every tensor that was written, and read back, bit by bit.

    Raises:
      UserError: something differs; all of it is named.
    """
    wrong = sorted(set(written) - set(outputs))
    size = sum(output.num_bytes for output in outputs.values())
    with tqdm(total=size, unit="B", unit_scale=True, desc="verify") as bar:
        for name, output in outputs.items():
            tensor = written.get(name)
            if tensor is None or tensor.shape != output.shape or tensor.dtype != output.dtype:
                wrong.append(name)
            elif not _same_bits(tensor.read(), output.read()):
                wrong.append(name)
            bar.update(output.num_bytes)
    if wrong:
        raise UserError(f"{target} differs in {len(wrong)} tensors: {', '.join(wrong)}")


def _same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    a, b = (contiguous(x).reshape(-1).view(np.uint8) for x in (a, b))
    blocks = range(0, len(a), BLOCK_BYTES)
    return all(np.array_equal(a[i : i + BLOCK_BYTES], b[i : i + BLOCK_BYTES]) for i in blocks)


def _open_codec(path: str) -> dict[str, LazyTensor]:
    state = nnx.state(nnx.eval_shape(lambda: XCodecModel(rngs=nnx.Rngs(0))))
    return fold_norms(open_checkpoint(path), [e.source for e in table_of(XCODEC, state)])
