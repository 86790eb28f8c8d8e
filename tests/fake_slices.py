"""Devices of TPU slices that nothing can run on: enough to make meshes of them."""

import dataclasses

import numpy as np


class _Client:
    def process_index(self):
        return 0


@dataclasses.dataclass(frozen=True)
class _Device:
    id: int
    slice_index: int
    coords: tuple[int, int, int]
    platform: str = "tpu"
    device_kind: str = "TPU v5 lite"
    core_on_chip: int = 0
    process_index: int = 0
    client: _Client = _Client()


def fake_slices(shape, slices=1):
    """Devices of so many slices of this shape, like (16, 16) or (4, 4, 4)."""
    places = [(*place, 0, 0)[:3] for place in np.ndindex(*shape)]
    return [
        _Device(number * len(places) + i, number, place)
        for number in range(slices)
        for i, place in enumerate(places)
    ]
