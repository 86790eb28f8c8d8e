"""Rich captions and dialogues by language models: `bagpiper simulate STAGE --config …`.

Keys come from the environment (what `key_env` of a model names). Prices are to be checked against
the provider's list.
"""

import ml_collections

from bagpiper_jax.simulation.config import default_config


def get_config() -> ml_collections.ConfigDict:
    """All settings with their defaults."""
    return default_config()
