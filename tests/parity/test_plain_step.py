"""The plain PyTorch model that steps are timed against computes the loss of the model here."""

import dataclasses
import importlib.util
from pathlib import Path

import jax
import pytest
from flax import nnx

pytestmark = pytest.mark.slow

PATH = Path(__file__).parents[2] / "benchmarks" / "large" / "train_step.py"


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("large_train_step", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def config(tiny_config):
    tied = dataclasses.replace(tiny_config.decoder, tie_word_embeddings=True)
    return dataclasses.replace(tiny_config, decoder=tied)


def test_losses_agree_with_weights_that_are_all_random(benchmark, config, make_model):
    import torch

    model = make_model(config, seed=3)
    batch = benchmark.make_batch(config, batch=2, length=64, windows=4)
    segments = batch.segment_ids.copy()
    segments[:, 40:] = 2
    batch = batch._replace(segment_ids=segments)
    plain = benchmark.PlainBagpiper(config)
    benchmark.copy_weights(plain, nnx.to_pure_dict(nnx.state(model, nnx.Param)))
    with torch.no_grad():
        theirs = plain(*benchmark.torch_batch(batch)).item()
    ours = float(jax.jit(model.loss)(batch)[0])
    assert ours == pytest.approx(theirs, rel=benchmark.AGREEMENT)
