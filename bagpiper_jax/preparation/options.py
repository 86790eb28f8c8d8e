"""What a preparation can be told, and the tokenizer and codec that it uses; JAX is not needed."""

from __future__ import annotations

import dataclasses
import json
import os
from typing import Any, NamedTuple

from bagpiper_jax import fingerprints as fingerprints_lib
from bagpiper_jax.errors import UserError
from bagpiper_jax.fingerprints import CODECS, TOKENIZERS, find_file
from bagpiper_jax.modeling.codec import Codec
from bagpiper_jax.modeling.config import BagpiperConfig, from_dict
from bagpiper_jax.modeling.mel_codec import MelCodec
from bagpiper_jax.tokenizer import Qwen3Tokenizer, SentencePieceTokenizer, Tokenizer

KEEP = ("audio", "mel", "both", "neither")
# the small model that comes with the package
_MINI = os.path.join(os.path.dirname(os.path.dirname(__file__)), "checkpoints", "mini")


@dataclasses.dataclass(frozen=True)
class Options:
    """Settings of a preparation; all but the last two decide what its shards hold.

    Attributes:
      model: directory with `model.json`, a tokenizer and a codec, for codes and sizes.
      codec: a `.npz` of `MelCodec` instead of the model's; empty: the model's.
      codes: compute codec codes; without them nothing can be spoken.
      keep: what is kept of audio that is listened to: "audio" (FLAC), "mel" (windows in float16),
        "both" or "neither".
      captioned_pieces: of a captioned recording that is cut, keep the pieces, without the caption,
        which tells of the whole; else it is quarantined.
      deduplicate: leave out records with the audio and text of an earlier one.
      max_hours: longest recording that is cut.
      shards: how many; 0: as many as the sources have parts, 1,024 at most.
      timeout: seconds without progress after which a file, or the rest of a source's part, is given
        up.
      memory_gb: that one file may take.
    """

    model: str = _MINI
    codec: str = ""
    codes: bool = True
    keep: str = "audio"
    captioned_pieces: bool = False
    deduplicate: bool = True
    max_hours: float = 4.0
    shards: int = 0
    timeout: float = 60.0
    memory_gb: float = 1.0

    def __post_init__(self):
        if self.keep not in KEEP:
            raise UserError(f"keep {self.keep!r} is none of {', '.join(KEEP)}")
        for name in ("max_hours", "timeout", "memory_gb"):
            if not getattr(self, name) > 0:
                raise UserError(f"{name} must be over 0, not {getattr(self, name)}")
        if self.shards < 0:
            raise UserError(f"shards must be 0 or more, not {self.shards}")

    def decisive(self) -> dict[str, Any]:
        """What the shards depend on, without paths, which `fingerprints` stands for."""
        without = ("model", "codec", "shards", "timeout", "memory_gb")
        return {k: v for k, v in dataclasses.asdict(self).items() if k not in without}


class Tools(NamedTuple):
    """What turns audio and text into codes and sizes."""

    config: BagpiperConfig
    tokenizer: Tokenizer
    codec: Codec | None


def load_tools(options: Options) -> Tools:
    """Shapes, tokenizer and codec; X-codec alone imports JAX.

    Raises:
      UserError: a file is missing or damaged, or sizes disagree.
    """
    path = os.path.join(options.model, "model.json")
    try:
        with open(path, encoding="utf-8") as f:
            config = from_dict(json.load(f))
    except OSError as e:
        raise UserError(f"{options.model} is no model directory: cannot read model.json") from e
    except (ValueError, TypeError) as e:
        raise UserError(f"{path} is damaged: {e}") from e
    tokenizer_path = find_file(options.model, TOKENIZERS)
    kind = Qwen3Tokenizer if tokenizer_path.endswith(".json") else SentencePieceTokenizer.load
    codec = _load_codec(options, config) if options.codes else None
    streams, size = config.vocab.num_streams, config.vocab.codebook_size
    if codec is not None and tuple(codec.codebook_sizes) != (size,) * streams:
        raise UserError(
            f"the codec has books of {codec.codebook_sizes} codes, the model {streams} streams of "
            f"{size}: name the codec that the model was made for"
        )
    return Tools(config, kind(tokenizer_path), codec)


def _codec_file(options: Options) -> str:
    return options.codec or find_file(options.model, CODECS)


def _load_codec(options: Options, config: BagpiperConfig) -> Codec:
    path = _codec_file(options)
    if os.path.basename(path) != "xcodec.json":
        return MelCodec.load(path)
    from bagpiper_jax.release import load_xcodec

    return load_xcodec(os.path.dirname(path), config.vocab.num_streams)


def fingerprints(options: Options) -> dict[str, Any]:
    """Of the tokenizer and codec that a preparation uses; see `bagpiper_jax.fingerprints`.

    Raises:
      UserError: a file is missing or damaged.
    """
    config = load_tools(dataclasses.replace(options, codes=False)).config
    codec = _codec_file(options) if options.codes else None
    return fingerprints_lib.fingerprints(config, find_file(options.model, TOKENIZERS), codec)
