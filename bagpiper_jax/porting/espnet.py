"""Bagpiper's own checkpoints: the names of ESPnet SpeechLM, which the vLLM fork serves too."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from bagpiper_jax.errors import UserError
from bagpiper_jax.modeling.bagpiper import Bagpiper
from bagpiper_jax.modeling.config import BagpiperConfig
from bagpiper_jax.modeling.xcodec_model import XCodecConfig, XCodecModel
from bagpiper_jax.porting.rows import BAGPIPER, CODEC, EMBED, HEAD, OWN_CODEC
from bagpiper_jax.porting.sources import LazyTensor, fold_norms
from bagpiper_jax.porting.state import check, fill, table_of, tensors_of
from bagpiper_jax.porting.table import Entry
from bagpiper_jax.trees import dotted, set_leaves

VOCAB_WEIGHT = "vocab_weight"  # a buffer: the weight of each id in the loss


def abstract(config: BagpiperConfig, codec: XCodecConfig | None) -> tuple[Any, Any]:
    """Model and codec without memory; the codec is None where there is none."""
    model = Bagpiper.abstract(config)
    if codec is None:
        return model, None
    return model, nnx.eval_shape(lambda: XCodecModel(codec, rngs=nnx.Rngs(0)))


@functools.cache
def shapes_of(config: BagpiperConfig, codec: XCodecConfig | None) -> Mapping[str, Any]:
    """Dotted path → what has a shape, of a model and its codec; no memory is taken."""
    return states(*abstract(config, codec))


def to_espnet(
    model: Bagpiper, codec: XCodecModel | None = None, *, dtype: Any = jnp.bfloat16
) -> dict[str, Any]:
    """A model's tensors under the names of ESPnet, less the padding of the tables.

    Args:
      model: with weights, or abstract (of `nnx.eval_shape`): then the tensors are shapes.
      codec: its X-codec, whose weights such a checkpoint holds.
      dtype: of all tensors but `vocab_weight`; None keeps the parameters'.

    Returns:
      name → array, or name → `jax.ShapeDtypeStruct`.
    """
    vocab = model.config.vocab
    state = states(model, codec)
    table = table_of(BAGPIPER, state, vocab.size)
    if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in _leaves(state)):
        shapes = {e.source: jax.ShapeDtypeStruct(e.shape, dtype or jnp.float32) for e in table}
        return shapes | {VOCAB_WEIGHT: jax.ShapeDtypeStruct((vocab.size,), jnp.float32)}
    arrays = {path: leaf[...] for path, leaf in dotted(state).items()}
    tensors = dict(tensors_of(table, arrays, dtype))
    return tensors | {VOCAB_WEIGHT: vocab.token_weights()}


def from_espnet(
    tensors: Mapping[str, Any],
    config: BagpiperConfig,
    codec: XCodecConfig | None = None,
    *,
    dtype: Any = jnp.float32,
) -> tuple[Bagpiper, XCodecModel | None]:
    """A model from a checkpoint's tensors.

    Args:
      tensors: name → array; `vocab_weight` may be missing, as from the vLLM fork's files.
      config: the shapes that they must have.
      codec: of the X-codec; without it there must be no tensors of one.
      dtype: of the parameters.

    Returns:
      (model, codec or None).

    Raises:
      UserError: tensors are missing, unexpected, or of another shape or type; all are named.
    """
    model, codec_model = abstract(config, codec)
    state = states(model, codec_model)
    table = table_of(BAGPIPER, state, config.vocab.size)
    check("the checkpoint", table, tensors, ignored=(VOCAB_WEIGHT,))
    check_vocab_weight(tensors, config)
    arrays = fill(
        table,
        lambda name: np.asarray(tensors[name]) if name in tensors else None,
        state,
        lambda _, shape, cut: jnp.asarray(cut((slice(None),) * len(shape)), dtype),
    )
    update(model, codec_model, arrays)
    return model, codec_model


def fit(
    source: str,
    tensors: dict[str, LazyTensor],
    config: BagpiperConfig,
    codec: XCodecConfig | None = None,
) -> tuple[list[Entry], dict[str, LazyTensor]]:
    """The table that an opened checkpoint fills, and its tensors with weight norms folded.

    Args:
      source: its name, for messages.
      tensors: of the checkpoint; those of an X-codec are all there, or none is.
      config: of the model.
      codec: of the X-codec, where there is one; that of the published model if None.

    Raises:
      UserError: as `from_espnet`; nothing is read but `vocab_weight` and a tied head.
    """
    with_codec = any(name.startswith(CODEC) for name in tensors)
    state = shapes_of(config, (codec or XCodecConfig()) if with_codec else None)
    table = table_of(BAGPIPER, state, config.vocab.size)
    tensors = _without_tied_head(fold_norms(tensors, [e.source for e in table]), config)
    check(source, table, tensors, ignored=(VOCAB_WEIGHT,))
    read = {name: t.read() for name, t in tensors.items() if name == VOCAB_WEIGHT}
    check_vocab_weight(read, config)
    return table, tensors


def _without_tied_head(
    tensors: dict[str, LazyTensor], config: BagpiperConfig
) -> dict[str, LazyTensor]:
    """PyTorch saves the one table of a tied model under both its names."""
    head, embed = tensors.get(HEAD), tensors.get(EMBED)
    if not config.decoder.tie_word_embeddings or head is None or embed is None:
        return tensors
    if head.shape != embed.shape or not np.array_equal(head.read(), embed.read()):
        raise UserError(f"{HEAD} differs from {EMBED}, but the config ties them: choose another")
    return {name: tensor for name, tensor in tensors.items() if name != HEAD}


def check_vocab_weight(tensors: Mapping[str, Any], config: BagpiperConfig) -> None:
    """Raises UserError where a checkpoint weighs its ids otherwise than the config does."""
    if VOCAB_WEIGHT not in tensors:
        return
    theirs, ours = np.asarray(tensors[VOCAB_WEIGHT], np.float32), config.vocab.token_weights()
    if theirs.shape != ours.shape:
        raise UserError(f"{VOCAB_WEIGHT} has {theirs.size} ids, the model {ours.size}")
    if not np.array_equal(theirs, ours):
        first = int(np.flatnonzero(theirs != ours)[0])
        raise UserError(
            f"{VOCAB_WEIGHT}[{first}] is {theirs[first]:g}, the config says {ours[first]:g}: "
            "give a config whose vocab.codec_weight is the checkpoint's"
        )


def update(model: Bagpiper, codec: XCodecModel | None, arrays: Mapping[str, Any]) -> None:
    """Puts arrays, by dotted path, into a model and its codec."""
    set_leaves(model, arrays)
    if codec is not None:
        set_leaves(codec, arrays, OWN_CODEC)


def states(model: Bagpiper, codec: XCodecModel | None) -> Any:
    """One flat view of both, the codec under "codec."."""
    state = dotted(nnx.state(model))
    if codec is not None:
        state |= {OWN_CODEC + path: leaf for path, leaf in dotted(nnx.state(codec)).items()}
    return state


def _leaves(state: Mapping[str, Any]):
    return (leaf.get_value() if isinstance(leaf, nnx.Variable) else leaf for leaf in state.values())
