"""Checkpoints of a run: onto other devices, without the optimizer, of another tree, unwritten."""

import os
import resource
import shutil
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from bagpiper_jax.errors import UserError
from bagpiper_jax.store import Checkpoints, restore_weights

SHAPES = {"model": {"table": (64, 3), "norm": (8,)}, "head": (16, 5)}


def trees(seed=0):
    """Weights and optimizer of a run, on the host."""
    rng = np.random.default_rng(seed)
    is_shape = lambda x: isinstance(x, tuple)  # noqa: E731
    make = lambda: jax.tree.map(  # noqa: E731
        lambda shape: rng.standard_normal(shape, np.float32), SHAPES, is_leaf=is_shape
    )
    return make(), {"step": np.int32(3), "state": {"mu": make()}}


def split(devices):
    mesh = Mesh(np.array(jax.devices()[:devices]), ("fsdp",))
    return lambda x: NamedSharding(mesh, PartitionSpec(*["fsdp"][: np.ndim(x)]))


def save(workdir, devices):
    where = split(devices)
    placed = jax.tree.map(lambda x: jax.device_put(x, where(x)), trees())
    with Checkpoints(workdir, keep=1) as checkpoints:
        checkpoints.save(3, *placed, {"batches": 3})


@pytest.mark.parametrize("before,after", [(8, 1), (1, 8), (4, 8), (8, 4)])
def test_onto_other_devices(before, after, tmp_path):
    save(str(tmp_path), before)
    where = split(after)
    wanted = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where(x)), trees()
    )
    with Checkpoints(str(tmp_path), keep=1) as checkpoints:
        *found, position = checkpoints.restore(*wanted)
    assert position == {"batches": 3}
    jax.tree.map(np.testing.assert_array_equal, tuple(found), trees())
    assert {len(x.sharding.device_set) for x in jax.tree.leaves(found)} == {after}


def test_where_its_devices_are_not(tmp_path):
    """Saved from eight, read by a process that has one, with the optimizer and without."""
    save(str(tmp_path), 8)
    code = (
        "import sys, jax, numpy as np, test_store\n"
        "from bagpiper_jax.store import Checkpoints, restore_weights\n"
        "assert jax.device_count() == 1\n"
        "with Checkpoints(sys.argv[1], keep=1) as checkpoints:\n"
        "    *found, _ = checkpoints.restore(*test_store.trees(1))\n"
        "found.append(restore_weights(sys.argv[1], test_store.trees(1)[0]))\n"
        "wanted = (*test_store.trees(), test_store.trees()[0])\n"
        "jax.tree.map(np.testing.assert_array_equal, tuple(found), wanted)"
    )
    here = os.path.dirname(__file__)
    env = os.environ | {"PYTHONPATH": os.pathsep.join([os.path.dirname(here), here])}
    env["XLA_FLAGS"] = ""
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], env=env, check=True, timeout=120)


def test_weights_need_no_optimizer(tmp_path):
    save(str(tmp_path), 8)
    shutil.rmtree(tmp_path / "checkpoints" / "3" / "optimizer")
    found = restore_weights(str(tmp_path), trees(1)[0])
    jax.tree.map(np.testing.assert_array_equal, found, trees()[0])


@pytest.mark.parametrize(
    "change,message",
    [
        (lambda w: w["model"].pop("norm"), "model.norm is unexpected"),
        (lambda w: w.update(bias=np.ones(3, np.float32)), "bias is missing"),
        (lambda w: w.update(head=np.ones((16, 6), np.float32)), r"head has shape \[16, 5\], not"),
    ],
)
def test_another_tree_is_never_filled_in_part(change, message, tmp_path):
    save(str(tmp_path), 8)
    weights, optimizer = trees(1)
    change(weights)
    with pytest.raises(UserError, match=message):
        restore_weights(str(tmp_path), weights)
    with Checkpoints(str(tmp_path), keep=1) as checkpoints, pytest.raises(UserError, match=message):
        checkpoints.restore(weights, optimizer)


def test_a_write_that_fails_behind_is_told_when_asked(tmp_path):
    """A limit on the size of files stands for a full disk; nothing is saved after it."""
    big = {"a": np.random.default_rng(0).standard_normal((1024, 1024))}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Checkpoints(str(tmp_path), keep=1) as checkpoints:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
        try:
            checkpoints.save(1, big, {"step": np.int32(1)}, {"batches": 1})
            with pytest.raises(UserError, match="cannot write the checkpoint .*free some space"):
                for _ in range(600):
                    checkpoints.check()
                    time.sleep(0.1)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert os.listdir(tmp_path / "checkpoints") == []
