"""Shapes of the model: frozen dataclasses with named presets. No JAX here, data workers read it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any

from bagpiper_jax.errors import UserError
from bagpiper_jax.log_mel import WINDOW_FRAMES
from bagpiper_jax.vocab import Vocabulary


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """Qwen3 decoder; names follow `Qwen3Config` of transformers.

    `max_position_embeddings` bounds prompt and answer together; no table has its size.
    """

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int = 32_768
    rope_theta: float = 1_000_000.0
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = False

    def __post_init__(self):
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError("num_attention_heads must be a multiple of num_key_value_heads")


@dataclasses.dataclass(frozen=True)
class AudioEncoderConfig:
    """Audio tower of Qwen3-Omni; names follow `Qwen3OmniMoeAudioEncoderConfig` of transformers."""

    d_model: int
    encoder_layers: int
    encoder_attention_heads: int
    encoder_ffn_dim: int
    output_dim: int
    downsample_hidden_size: int = 480
    num_mel_bins: int = 128
    n_window: int = 50
    n_window_infer: int = 800

    def __post_init__(self):
        if self.n_window * 2 != WINDOW_FRAMES or self.n_window_infer % WINDOW_FRAMES:
            raise ValueError(
                f"windows must be of {WINDOW_FRAMES} frames and n_window_infer a multiple of it"
            )

    @property
    def block_windows(self) -> int:
        """Windows that attend to each other."""
        return self.n_window_infer // WINDOW_FRAMES


@dataclasses.dataclass(frozen=True)
class BagpiperConfig:
    """The whole model: audio encoder → adaptor → decoder → fused head over text and codec ids.

    Attributes:
      vocab: id ranges.
      decoder: the language model.
      encoder: the audio tower.
      z_loss: weight of the squared log-sum-exp in the loss.
      head_chunk: rows of hidden states whose logits exist at one time in the loss.
      scan_unroll: layers of the decoder and encoder scans that are unrolled into one step.
    """

    vocab: Vocabulary
    decoder: DecoderConfig
    encoder: AudioEncoderConfig
    z_loss: float = 0.0
    head_chunk: int = 512
    scan_unroll: int = 1


# The published Qwen3 models. The small ones share one table for input and output.
QWEN3 = {
    "0.6b": DecoderConfig(1024, 3072, 28, 16, 8, 128, tie_word_embeddings=True),
    "1.7b": DecoderConfig(2048, 6144, 28, 16, 8, 128, tie_word_embeddings=True),
    "4b": DecoderConfig(2560, 9728, 36, 32, 8, 128, tie_word_embeddings=True),
    "8b": DecoderConfig(4096, 12288, 36, 32, 8, 128),
}


def _bagpiper(size: str) -> BagpiperConfig:
    """The published parts around a Qwen3; 8b is the published model, its quirk included."""
    return BagpiperConfig(
        vocab=Vocabulary(zero_text_id_is_pad=size == "8b"),
        decoder=QWEN3[size],
        encoder=AudioEncoderConfig(
            d_model=1280,
            encoder_layers=32,
            encoder_attention_heads=20,
            encoder_ffn_dim=5120,
            output_dim=2048,
        ),
        z_loss=1e-5,
    )


def _mini() -> BagpiperConfig:
    return BagpiperConfig(
        vocab=Vocabulary(
            text_size=1024,
            codebook_size=256,
            # the first books carry what is said, the last ones mostly noise
            codec_weight=(0.6, 0.2, 0.1, 0.04, 0.02, 0.02, 0.01, 0.01),
        ),
        decoder=DecoderConfig(
            hidden_size=256,
            intermediate_size=640,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=64,
            # scenes span hundreds of rows, not tens of thousands
            max_position_embeddings=1024,
            rope_theta=10_000.0,
            tie_word_embeddings=True,
        ),
        encoder=AudioEncoderConfig(
            d_model=192,
            encoder_layers=3,
            encoder_attention_heads=3,
            encoder_ffn_dim=512,
            output_dim=256,
            downsample_hidden_size=24,
            n_window_infer=400,
        ),
        z_loss=1e-5,
        scan_unroll=4,
    )


def _tiny() -> BagpiperConfig:
    """For tests: every part of the graph, nothing large."""
    return BagpiperConfig(
        vocab=Vocabulary(text_size=320, num_streams=4, codebook_size=16),
        decoder=DecoderConfig(
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            max_position_embeddings=2048,
            rope_theta=10_000.0,
        ),
        encoder=AudioEncoderConfig(
            d_model=16,
            encoder_layers=2,
            encoder_attention_heads=2,
            encoder_ffn_dim=32,
            output_dim=24,
            downsample_hidden_size=4,
            n_window_infer=200,
        ),
        head_chunk=64,
    )


PRESETS = {f"bagpiper_{size}": partial(_bagpiper, size) for size in QWEN3}
PRESETS |= {"mini": _mini, "tiny": _tiny}


def get_config(name: str) -> BagpiperConfig:
    """A named preset.

    Raises:
      UserError: there is no preset of that name.
    """
    if name not in PRESETS:
        raise UserError(f"there is no model preset {name!r}: choose one of {', '.join(PRESETS)}")
    return PRESETS[name]()


def changed(config: BagpiperConfig, changes: Mapping[str, Any]) -> BagpiperConfig:
    """A config with other values: {"vocab": {"stream_delay": 0}, "z_loss": 0.0}.

    Raises:
      UserError: an unknown name, a value of another type, or values that do not go together.
    """
    return _changed(config, changes, "")


def _changed(config, changes: Mapping[str, Any], where: str):
    known = {field.name: field.type for field in dataclasses.fields(config)}
    values = {}
    for name, value in changes.items():
        if name not in known:
            raise UserError(f"the model has no setting {where}{name}: choose of {sorted(known)}")
        old = getattr(config, name)
        if dataclasses.is_dataclass(old):
            if not isinstance(value, Mapping):
                raise UserError(f"{where}{name} of the model is a section of settings")
            value = _changed(old, value, f"{where}{name}.")
        elif (
            "tuple" in known[name] and isinstance(value, list | tuple) and all(map(_number, value))
        ):
            value = tuple(map(float, value))
        elif "float" in known[name] and _number(value):
            value = float(value)
        elif type(value) is not type(old):
            raise UserError(f"{where}{name} of the model is like {old!r}, not {value!r}")
        values[name] = value
    try:
        return dataclasses.replace(config, **values)
    except ValueError as e:
        raise UserError(f"the model's settings do not go together: {e}") from e


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def same_weights(one: BagpiperConfig, other: BagpiperConfig) -> bool:
    """Whether the weights of one config are of the other's shapes and meaning."""
    return _lasting(one) == _lasting(other)


def _lasting(config: BagpiperConfig) -> tuple:
    """All but how the weights are trained and computed with."""
    vocab = dataclasses.replace(config.vocab, codec_weight=0.125, stream_delay=1)
    return vocab, config.decoder, config.encoder


def to_dict(config: BagpiperConfig) -> dict:
    """A plain, JSON-ready form of a config; `from_dict` inverts it."""
    return dataclasses.asdict(config)


def from_dict(values: dict) -> BagpiperConfig:
    """Config from its plain form.

    Raises:
      UserError: a key is missing or unknown.
    """
    parts = {"vocab": Vocabulary, "decoder": DecoderConfig, "encoder": AudioEncoderConfig}
    values = dict(values)
    try:
        for name, part in parts.items():
            fields = dict(values[name])
            if isinstance(fields.get("codec_weight"), list):
                fields["codec_weight"] = tuple(fields["codec_weight"])
            values[name] = part(**fields)
        return BagpiperConfig(**values)
    except KeyError as e:
        raise UserError(f"the model config lacks the key {e.args[0]!r}") from e
    except TypeError as e:
        raise UserError(f"the model config does not fit: {e}") from e
