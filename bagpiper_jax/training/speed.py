"""Model FLOPs of a step and the devices' peak: what MFU is made of.

Model FLOPs utilisation (MFU) = FLOPs that the model needs for a step, recomputation not counted,
/ (time of a step · peak of all devices). Of devices that `chips` knows, the peak is the maker's for
bfloat16, whatever the run computes in; of others, a CPU among them, what one large float32 matmul
reaches.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from bagpiper_jax.modeling.config import BagpiperConfig
from bagpiper_jax.modeling.flops import StepFlops, step_flops
from bagpiper_jax.training.chips import chip_of
from bagpiper_jax.training.config import RunConfig

_SIDE = 1024  # of the matmul that tells the peak of a device without a data sheet


@dataclasses.dataclass(frozen=True)
class Speed:
    """What steps are measured against.

    Attributes:
      step_flops: model FLOPs of a step.
      peak_flops: of all devices together, FLOPs per second.
    """

    step_flops: float
    peak_flops: float

    @classmethod
    def of(cls, run: RunConfig, config: BagpiperConfig, device: jax.Device, devices: int) -> Speed:
        """The run's, on `devices` devices like this one."""
        flops = run_flops(run, config, run.frozen)
        chip = chip_of(device.device_kind)
        if chip is not None:
            peak = devices * chip.bf16_flops / chip.devices_per_chip
        elif device.platform == "cpu":  # its devices, forced ones among them, share the cores
            peak = _measured_peak(device) * jax.process_count()
        else:
            peak = devices * _measured_peak(device)
        return cls(flops.total, peak)

    def utilisation(self, seconds_per_step: float) -> float:
        """MFU."""
        return self.step_flops / (seconds_per_step * self.peak_flops)


def run_flops(run: RunConfig, config: BagpiperConfig, frozen: Sequence[str]) -> StepFlops:
    """Model FLOPs of a step of the run, of a model of these shapes with these frozen parts."""
    data = run.data
    sizes = {"rows": data.rows, "length": data.length, "windows": data.windows}
    return step_flops(config, **sizes, frozen=frozen)


def _measured_peak(device: jax.Device) -> float:
    a = jax.device_put(jnp.ones((_SIDE, _SIDE)), device)
    product = jax.jit(jnp.matmul)
    jax.block_until_ready(product(a, a))
    times = []
    for _ in range(5):
        start = time.perf_counter()
        jax.block_until_ready(product(a, a))
        times.append(time.perf_counter() - start)
    return 2 * _SIDE**3 / statistics.median(times)
