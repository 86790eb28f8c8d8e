"""Samples of a running training: on its mesh, where no device holds the whole model."""

import dataclasses

import jax
import pytest
from tiny_run import settings

from bagpiper_jax import samples
from bagpiper_jax.inference.pipeline import Pipeline
from bagpiper_jax.release import load_assets, load_weights, weight_shapes
from bagpiper_jax.sharding import make_mesh, parameter_shardings
from bagpiper_jax.training.step import make_model
from bagpiper_jax.trees import dotted, nested


class Log:
    def __init__(self):
        self.said = {}

    def text(self, name, text, step):
        self.said[name, step] = text

    def audio(self, name, wav, rate, step):
        self.said[name, step] = len(wav)


@pytest.mark.slow
def test_samples_are_made_where_the_weights_lie(finished, monkeypatch):
    for name in ("_TEXT", "_AUDIO"):
        short = dataclasses.replace(getattr(samples, name), min_rows=1, max_rows=6)
        monkeypatch.setattr(samples, name, short)
    meshes, made = [], Pipeline.__init__

    def init(self, *args, mesh=None, **kwargs):
        meshes.append(mesh)
        made(self, *args, mesh=mesh, **kwargs)

    monkeypatch.setattr(Pipeline, "__init__", init)
    assets = load_assets(finished[0])
    weights = dotted(load_weights(finished[0], weight_shapes(assets.config)))
    run = settings()
    model = make_model(run, assets.config)

    def sampled(sizes, count):
        mesh = make_mesh(sizes, jax.devices()[:count])
        places = parameter_shardings(mesh, {path: x.shape for path, x in weights.items()})
        params = nested({path: jax.device_put(x, places[path]) for path, x in weights.items()})
        log, sample = Log(), samples.SceneSamples(run)
        for step in (1, 2):  # the second replaces the weights of the first
            sample(model, params, assets, log, step)
        held = jax.tree.leaves(sample._pipeline.engine._batch._params["layers"])
        here = sum(x.addressable_shards[0].data.nbytes for x in held)
        return log.said, here / sum(x.nbytes for x in held), mesh

    alone, share, _ = sampled({"fsdp": 1}, 1)
    spread, part, mesh = sampled({"fsdp": 2, "tensor": 2}, 4)
    split = sampled({"tensor": 4}, 4)[0]  # it has two key/value heads
    assert len(alone) >= 6 and alone == spread == split
    assert meshes[0] is None and meshes[1] == mesh and meshes[2] is None
    assert share == 1 and part < 0.5
