"""Products whose rounding changes features and codes: never in the bf16 or tf32 of accelerators."""

import re

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from tiny_xcodec import CONFIG

from bagpiper_jax.modeling.xcodec_model import XCodecModel
from bagpiper_jax.ops.log_mel import log_mel


def products(function, *inputs):
    """Lines of the lowered program that multiply matrices or convolve."""
    text = jax.jit(function).lower(*inputs).as_text()
    return re.findall(r".*stablehlo\.(?:dot_general|convolution).*", text)


@pytest.fixture(scope="module")
def codec():
    model = nnx.eval_shape(lambda: XCodecModel(CONFIG, rngs=nnx.Rngs(0)))
    graph, state = nnx.split(model)
    return (
        lambda method: lambda state, *inputs: getattr(nnx.merge(graph, state), method)(*inputs),
        state,
    )


def test_log_mel():
    wav, lengths = jax.ShapeDtypeStruct((2, 4_000), jnp.float32), jnp.array([4_000, 3_000])
    found = products(log_mel, wav, lengths)
    assert found and all("HIGHEST" in line for line in found)


def test_codec(codec):
    """The search of the nearest codes among them."""
    call, state = codec
    wav, codes = (
        jax.ShapeDtypeStruct(*s) for s in (((1, 3_200), "float32"), ((1, 10, 4), "int32"))
    )
    encode = lambda state, wav, n: call("encode")(state, wav, n, 4)  # noqa: E731
    for function, inputs in ((encode, wav), (call("decode"), codes)):
        found = products(function, state, inputs, jnp.array([10]))
        assert found and all("HIGHEST" in line for line in found)
