"""Weights to and from PyTorch: one table of names per part, read in both directions."""

from bagpiper_jax.porting.espnet import from_espnet, to_espnet

__all__ = ["from_espnet", "to_espnet"]
