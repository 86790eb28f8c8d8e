"""Accelerators: what their makers say they can do.

Sources: [C] Google Cloud's pages on each TPU (docs.cloud.google.com/tpu/docs/v4, v5e, v5p, v6e,
tpu7x); [B] "How to Scale Your Model" (jax-ml.github.io/scaling-book, part 2); [N] NVIDIA's data
sheets of the SXM modules and its DGX systems. FLOPs are dense, without sparsity. No program reaches
these numbers: they are what utilisation is measured against, and bounds of times from below.
"""

from __future__ import annotations

import dataclasses
import re

from bagpiper_jax.errors import UserError

_GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One chip; what a device of JAX has is this divided by `devices_per_chip`.

    Attributes:
      name: as in the names of topologies.
      bf16_flops: FLOPs per second of products in bfloat16.
      hbm_bytes: memory, as it is sold.
      hbm_bandwidth: bytes per second.
      ici_bandwidth: bytes per second that the chip can send to others of its slice (TPU) or node
        (GPU) over all its links together, one way; it receives as many at the same time. A ring
        along one axis of a TPU's torus uses the two links of that axis: half of them all on v5e
        and v6e, a third on v4, v5p and tpu7x, and half of that again where the axis does not wrap
        around.
      dcn_bandwidth: bytes per second that the chip can send to other slices or nodes: its share of
        its host's network cards.
      devices_per_chip: devices that JAX shows.
    """

    name: str
    bf16_flops: float
    hbm_bytes: int
    hbm_bandwidth: float
    ici_bandwidth: float
    dcn_bandwidth: float
    devices_per_chip: int = 1
    program_bytes: float = 0.0  # memory that XLA (libtpu 0.0.42) grants a program; 0: not known


CHIPS = {
    chip.name: chip
    for chip in (
        # [C], but the links of [B]: 6 of 45 GB/s, which agrees with the all-reduce bandwidth of a
        # pod in [C], 1.1 PB/s over 4,096 chips; [B]: 25 GB/s of DCN a host, which has 4 chips.
        # JAX shows one device where its two cores work as one, the usual way; a topology needs
        # `chip_config_name="megacore"` for that.
        Chip("v4", 275e12, 32 * _GIB, 1.2e12, 2.7e11, 6.25e9, program_bytes=30.75 * _GIB),
        # [C]: 400 GB/s both ways; 6.4 Tb/s of DCN for 256 chips
        Chip("v5e", 197e12, 16 * _GIB, 8.19e11, 2e11, 3.125e9, program_bytes=15.75 * _GIB),
        # [C]: 1,200 GB/s both ways; 50 Gb/s of DCN
        Chip("v5p", 459e12, 95 * _GIB, 2.765e12, 6e11, 6.25e9, program_bytes=95.74 * _GIB),
        # [C]: 800 GB/s both ways; 100 Gb/s of DCN
        Chip("v6e", 918e12, 32 * _GIB, 1.638e12, 4e11, 1.25e10, program_bytes=31.25 * _GIB),
        # [C]: 1,200 GB/s both ways; 100 Gb/s of DCN; two devices
        Chip("tpu7x", 2307e12, 192 * _GIB, 7.38e12, 6e11, 1.25e10, 2, 2 * 94.75 * _GIB),
        # [N], whose GB of memory are nearly GiB; NVLink, half of the 600 GB/s (A100) or 900 GB/s
        # of both ways; a network card per GPU, of 200 Gb/s (DGX A100) or 400 Gb/s (DGX H100, H200)
        Chip("A100", 312e12, 80 * _GIB, 2.039e12, 3e11, 2.5e10),
        Chip("H100", 989e12, 80 * _GIB, 3.35e12, 4.5e11, 5e10),
        Chip("H200", 989e12, 141 * _GIB, 4.8e12, 4.5e11, 5e10),
    )
}

_TPUS = ("v4", "v5e", "v5p", "v6e", "tpu7x")

# `device_kind` of JAX → chip. PCIe cards and the A100 of 40 GB are other chips.
_KINDS = tuple(
    (re.compile(pattern), CHIPS[name])
    for pattern, name in (
        (r"TPU v4", "v4"),
        (r"TPU v5 lite|TPU v5e", "v5e"),
        (r"TPU v5p?", "v5p"),
        (r"TPU v6 lite|TPU v6e", "v6e"),
        (r"TPU7x", "tpu7x"),
        (r"NVIDIA A100-SXM4-80GB", "A100"),
        (r"NVIDIA H100 80GB HBM3", "H100"),
        (r"NVIDIA H200", "H200"),
    )
)


def chip_of(device_kind: str) -> Chip | None:
    """The chip of a device, by its `device_kind`; None if the table has no such chip."""
    return next((chip for pattern, chip in _KINDS if pattern.fullmatch(device_kind)), None)


def chip_of_topology(topology: str) -> Chip:
    """The chip of a TPU topology, "v5e:16x16".

    Raises:
      UserError: the name is of another form, or the table has no such TPU.
    """
    name, _, shape = topology.partition(":")
    if name not in _TPUS or not re.fullmatch(r"\d+(x\d+)+", shape):
        raise UserError(
            f"there is no topology {topology!r}: name a TPU ({', '.join(_TPUS)}), a colon and the "
            "chips along each axis, as in v5e:16x16"
        )
    return CHIPS[name]
