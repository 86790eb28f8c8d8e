"""What each `compute.remat` keeps of the layers, what it computes again, and where it lies."""

import math
import os
import types

import jax
import pytest
from flax import nnx
from tiny_run import CONFIG

from bagpiper_jax.modeling.layers import REMAT
from bagpiper_jax.training import aot
from bagpiper_jax.training.config import load_config
from bagpiper_jax.training.step import make_model

CONFIG_8B = os.path.join(os.path.dirname(CONFIG), "pretrain_8b.py:chips8")
SMALL = ["--config.model=tiny", "--config.data.length=256", "--config.data.windows=4"]
SMALL += ["--config.data.batch_tokens=512", "--config.compute.accumulation=1"]


def planned(remat):
    """Bytes kept for the backward pass, and the gradient's text for TPUs: nothing runs."""
    run = load_config(["--config", CONFIG_8B, *SMALL, f"--config.compute.remat={remat}"])
    graph, state = nnx.split(make_model(run, run.shapes), nnx.Param)
    one = lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype)  # noqa: E731
    batch = jax.tree.map(one, aot.abstract_batch(run, None))

    def loss(state, batch):
        return nnx.merge(graph, state).loss_sums(batch)[0]

    kept = jax.eval_shape(lambda s, b: jax.vjp(lambda s: loss(s, b), s)[1], state, batch)
    lowered = jax.jit(jax.grad(loss)).trace(state, batch).lower(lowering_platforms=("tpu",))
    text = lowered.as_text()
    return types.SimpleNamespace(
        bytes=sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(kept)),
        products=text.count("stablehlo.dot_general"),
        in_host=text.count("pinned_host"),
    )


@pytest.fixture(scope="module")
def plans():
    return {remat: planned(remat) for remat in REMAT}


def test_less_is_kept_the_more_is_computed_again(plans):
    none, dots, full = (plans[remat] for remat in ("none", "dots", "full"))
    assert none.bytes > 2 * dots.bytes and dots.bytes > 1.1 * full.bytes
    # products with weights, of an encoder layer 6 and of a decoder layer 7; the last of each
    # nobody needs again
    assert full.products - dots.products == 5 + 6
    assert dots.products > none.products  # those of the attention


def test_offload_keeps_what_full_keeps_in_the_memory_of_the_host(plans):
    offload, full = plans["offload"], plans["full"]
    assert (offload.bytes, offload.products) == (full.bytes, full.products)
    assert {remat: plan.in_host for remat, plan in plans.items()} == {
        "none": 0,
        "dots": 0,
        "full": 0,
        "offload": 2,  # the input of an encoder layer, that of a decoder layer
    }
