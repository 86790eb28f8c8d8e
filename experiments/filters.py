"""What of a manifest is left out, and why: `bagpiper data filter --config …`."""

import ml_collections

from bagpiper_jax.preparation.filters.run import default_config


def get_config() -> ml_collections.ConfigDict:
    """All filters in their order, with their thresholds."""
    return default_config()
