"""The audio codec protocol: what the data pipeline, the model and the command line ask of a codec.

`mel_codec.MelCodec` (embedded, no download) and X-codec both satisfy it.
"""

from typing import Protocol, runtime_checkable

import numpy as np


@runtime_checkable
class Codec(Protocol):
    """Maps mono audio to K parallel streams of codes and back.

    Both directions are pure functions of their input: a result depends neither on the batch nor on
    padding. `encode` runs in data workers, so an implementation must not need an accelerator there.
    """

    sample_rate: int
    """Hz."""
    hop: int
    """Samples per frame."""
    frame_rate: float
    """Frames per second, `sample_rate / hop`."""
    codebook_sizes: tuple[int, ...]
    """Number of codes of each of the K streams."""

    def encode(self, wav: np.ndarray) -> np.ndarray:
        """float [S] at `sample_rate` → int32 [T, K], T = ceil(S / hop), [t, k] in [0, sizes[k])."""
        ...

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """int [T, K] → float32 [T * hop] in [-1, 1]."""
        ...
