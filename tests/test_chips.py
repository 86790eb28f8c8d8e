import pytest

from bagpiper_jax.errors import UserError
from bagpiper_jax.training.chips import CHIPS, chip_of, chip_of_topology


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("TPU v4", "v4"),
        ("TPU v5 lite", "v5e"),
        ("TPU v5e", "v5e"),
        ("TPU v5", "v5p"),
        ("TPU v5p", "v5p"),
        ("TPU v6 lite", "v6e"),
        ("TPU v6e", "v6e"),
        ("TPU7x", "tpu7x"),
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H200", "H200"),
    ],
)
def test_chip_by_device_kind(kind, name):
    assert chip_of(kind) is CHIPS[name]


@pytest.mark.parametrize(
    "kind",
    [
        "cpu",
        "",
        "TPU v3",
        "TPU v4 lite",
        "TPU v5 lite pod",
        "NVIDIA H100 PCIe",
        "NVIDIA A100-SXM4-40GB",
    ],
)
def test_other_chips_are_unknown(kind):
    assert chip_of(kind) is None


@pytest.mark.parametrize(
    "topology", ["v4:2x2x1", "v5e:16x16", "v5p:4x4x8", "v6e:2x4", "tpu7x:4x4x4"]
)
def test_chip_by_topology(topology):
    assert chip_of_topology(topology).name == topology.split(":")[0]


@pytest.mark.parametrize(
    "topology", ["v5e", "v5e:", "v5e:16", "v5e:4x", "v7x:4x4x4", "H100:8x8", "16x16"]
)
def test_unknown_topology(topology):
    with pytest.raises(UserError, match="v4, v5e, v5p, v6e, tpu7x"):
        chip_of_topology(topology)


def test_numbers_hang_together():
    for chip in CHIPS.values():
        # every chip needs more FLOPs per byte the farther the byte comes from
        assert chip.dcn_bandwidth < chip.ici_bandwidth < chip.hbm_bandwidth
        assert 100 < chip.bf16_flops / chip.hbm_bandwidth < 600
        assert 16 <= chip.hbm_bytes / 2**30 <= 192
    assert {name for name, chip in CHIPS.items() if chip.devices_per_chip > 1} == {"tpu7x"}
