"""Bagpiper in JAX: an audio foundation model that understands and generates through rich captions.

Names are resolved when first used, so that importing the package is quick and the modules that data
workers use do not load JAX.
"""

import importlib

__version__ = "0.1.0"

_EXPORTS = {
    "Bagpiper": "bagpiper_jax.modeling.bagpiper",
    "BagpiperConfig": "bagpiper_jax.modeling.config",
    "Batch": "bagpiper_jax.input_pipeline.batch",
    "Message": "bagpiper_jax.conversation",
    "Pipeline": "bagpiper_jax.inference.pipeline",
    "UserError": "bagpiper_jax.errors",
    "Vocabulary": "bagpiper_jax.vocab",
    "build_batch": "bagpiper_jax.input_pipeline.batch",
    "get_config": "bagpiper_jax.modeling.config",
    "load": "bagpiper_jax.loading",
    "mel_windows": "bagpiper_jax.log_mel",
}

__all__ = sorted([*_EXPORTS, "porting"])


def __getattr__(name):
    if name == "porting":
        return importlib.import_module("bagpiper_jax.porting")
    if name not in _EXPORTS:
        raise AttributeError(f"module 'bagpiper_jax' has no attribute {name!r}")
    return getattr(importlib.import_module(_EXPORTS[name]), name)


def __dir__():
    return __all__
