"""`config.json` beside safetensors: for the vLLM fork, for transformers, and for the way back."""

from __future__ import annotations

import json
import os

from bagpiper_jax.errors import UserError
from bagpiper_jax.modeling.config import BagpiperConfig, from_dict, to_dict

_OWN = "bagpiper_jax"  # key of all shapes in our own words


def served_config(config: BagpiperConfig, dtype: str = "bfloat16") -> dict:
    """`config.json` of a served model: the parts' shapes under their names in transformers.

    Of the vLLM fork's own file only `model_type` is known; the rest is a proposal. All shapes in
    our own words are in it too, so that converting back needs no other file.
    """
    encoder = to_dict(config)["encoder"]
    return {
        "model_type": "bagpiper",
        "architectures": ["BagpiperForConditionalGeneration"],
        "dtype": dtype,
        "vocab_size": config.vocab.size,
        "num_stream": config.vocab.num_streams,
        "text_config": _decoder_config(config),
        "audio_config": encoder | {"model_type": "qwen3_omni_moe_audio_encoder"},
        "codec_config": {"codebook_size": config.vocab.codebook_size, "model_type": "xcodec"},
        _OWN: to_dict(config),
    }


def qwen3_config(config: BagpiperConfig, dtype: str = "bfloat16") -> dict:
    """`config.json` of the language model alone, as transformers ≥ 5 reads it."""
    return _decoder_config(config) | {
        "architectures": ["Qwen3ForCausalLM"],
        "vocab_size": config.vocab.size,
        "dtype": dtype,
    }


def _decoder_config(config: BagpiperConfig) -> dict:
    decoder = dict(to_dict(config)["decoder"])
    rope = {"rope_type": "default", "rope_theta": decoder.pop("rope_theta")}
    return decoder | {"model_type": "qwen3", "rope_parameters": rope}


def decoder_numbers(source: str) -> dict[str, float]:
    """What the weights of a Qwen3 directory do not show: `rope_theta`, `rms_norm_eps`.

    Those that its `config.json` names; none where there is no such file.

    Raises:
      UserError: the file is damaged, or names a scaled rotation.
    """
    path = os.path.join(source, "config.json")
    if not os.path.exists(path):
        return {}
    try:
        with open(path, encoding="utf-8") as file:
            values = json.load(file)
        # transformers ≥ 5 keeps both under rope_parameters
        rotation = values.get("rope_parameters") or values.get("rope_scaling") or {}
        kind = rotation.get("rope_type", rotation.get("type", "default"))
        theta = rotation.get("rope_theta", values.get("rope_theta"))
        found = {"rope_theta": theta, "rms_norm_eps": values.get("rms_norm_eps")}
        found = {name: float(value) for name, value in found.items() if value is not None}
    except (OSError, ValueError, TypeError, AttributeError) as e:
        raise UserError(f"{path} is damaged: {e}") from e
    if kind != "default":
        raise UserError(f"{path}: rotations of the type {kind!r} are not supported, only default")
    return found


def served_shapes(directory: str) -> BagpiperConfig | None:
    """The shapes that `served_config` put into a directory; None where there are none of ours."""
    try:
        with open(os.path.join(directory, "config.json"), encoding="utf-8") as file:
            return from_dict(json.load(file)[_OWN])
    except (OSError, ValueError, KeyError, TypeError, UserError):
        return None
