"""A new Bagpiper from published parts: Qwen3, the audio tower of Qwen3-Omni, X-codec.

As in the reference: text rows of the tables are copied, new rows start from N(0, 0.02), the stream
embedding from zero. The adaptor starts as PyTorch's Linear does.
"""

from __future__ import annotations

import math

import numpy as np

from bagpiper_jax.errors import UserError
from bagpiper_jax.modeling.config import BagpiperConfig
from bagpiper_jax.porting.rows import CODEC, EMBED, HEAD, TOWER
from bagpiper_jax.porting.sources import LazyTensor

# where a tower lies in the checkpoints of Qwen3-Omni and of its encoder alone
_TOWER_PREFIXES = ("thinker.audio_tower.", "audio_tower.", "")


def assemble(
    qwen3: dict[str, LazyTensor],
    tower: dict[str, LazyTensor],
    codec: dict[str, LazyTensor] | None,
    config: BagpiperConfig,
    *,
    seed: int = 0,
) -> dict[str, LazyTensor]:
    """The tensors of a new checkpoint under the names of ESPnet; nothing is read yet.

    Args:
      qwen3: of a Qwen3 language model, tied or not.
      tower: of Qwen3-Omni, or of its audio encoder alone; other parts of it are left out.
      codec: of X-codec; None leaves it out.
      config: of the new model.
      seed: of the new rows and the adaptor.

    Raises:
      UserError: the language model has no tables, or the second source no audio tower.
    """
    if EMBED not in qwen3:
        raise UserError(f"the language model has no {EMBED}: give a Qwen3 directory")
    if "stream_emb.weight" in qwen3:
        raise UserError("the language model is a whole Bagpiper already: leave out --tower")
    found = dict(qwen3)
    embed = found.pop(EMBED)
    head = found.pop(HEAD, embed)
    dtype = embed.dtype
    found[EMBED] = _table(embed, config, (seed, 0))
    if not config.decoder.tie_word_embeddings:
        found[HEAD] = _table(head, config, (seed, 1))
    for prefix in _TOWER_PREFIXES:
        mine = {n: t for n, t in tower.items() if n.startswith(f"{prefix}conv2d1.")}
        if mine:
            break
    else:
        raise UserError("there is no audio tower in the second source: give a Qwen3-Omni directory")
    for name, tensor in tower.items():
        if name.startswith(prefix):
            found[TOWER + name.removeprefix(prefix)] = tensor
    for name, tensor in (codec or {}).items():
        found[CODEC + name] = tensor
    inputs, outputs = config.encoder.output_dim, config.decoder.hidden_size
    bound = 1 / math.sqrt(inputs)
    for number, (name, shape) in enumerate(
        {"weight": (outputs, inputs), "bias": (outputs,)}.items(), 2
    ):
        found[f"adaptor.continuous_audio.{name}"] = LazyTensor(
            shape,
            dtype,
            lambda n=number, s=shape: (
                np.random.default_rng((seed, n)).uniform(-bound, bound, s).astype(dtype)
            ),
        )
    streams = (config.vocab.num_streams, outputs)
    found["stream_emb.weight"] = LazyTensor(streams, dtype, lambda: np.zeros(streams, dtype))
    return found


def _table(text: LazyTensor, config: BagpiperConfig, key: tuple[int, int]) -> LazyTensor:
    """A table with the text rows in their place and new rows around them."""
    vocab = config.vocab
    shape = (vocab.size, config.decoder.hidden_size)
    rows = min(vocab.text_size, text.shape[0])
    if text.shape[1] != shape[1]:
        raise UserError(
            f"the language model's hidden size is {text.shape[1]}, the config says {shape[1]}"
        )

    def read() -> np.ndarray:
        rng = np.random.default_rng(key)
        table = np.empty(shape, text.dtype)
        for start in range(0, shape[0], 4096):  # normal numbers come in doubles
            stop = min(start + 4096, shape[0])
            table[start:stop] = 0.02 * rng.standard_normal((stop - start, shape[1]), np.float32)
        table[vocab.text_start : vocab.text_start + rows] = text.read()[:rows]
        return table

    return LazyTensor(shape, text.dtype, read)
