"""Captions and renderings of development scenes while a training runs."""

from __future__ import annotations

import jax
from flax import nnx
from jax.sharding import Mesh

from bagpiper_jax.inference.pipeline import Pipeline
from bagpiper_jax.inference.sampling import Sampling
from bagpiper_jax.input_pipeline.packed_scenes import load_corpus
from bagpiper_jax.input_pipeline.scenes import plan_scene, render_scene
from bagpiper_jax.modeling.bagpiper import Bagpiper
from bagpiper_jax.release import Assets
from bagpiper_jax.training.config import RunConfig
from bagpiper_jax.training.metrics import MetricsLog

_TEXT = Sampling(temperature=0.0, top_k=1, cfg=1.0, min_rows=1, max_rows=128)
# at temperature 0 a scene loses most of its events: docs/mini-model.md
_AUDIO = Sampling(temperature=0.6, top_k=20, cfg=1.5, min_rows=30, max_rows=400)


class SceneSamples:
    """Callable for `train`: writes samples of three development scenes to the log."""

    def __init__(self, run: RunConfig):
        corpus = load_corpus(run.data.corpus)
        self._scenes = [plan_scene(corpus, run.seed, i, "dev", run.data.profile) for i in range(3)]
        self._wavs = [render_scene(corpus, scene) for scene in self._scenes]
        self._pipeline: Pipeline | None = None

    def __call__(self, model: Bagpiper, params, assets: Assets, log: MetricsLog, step: int) -> None:
        mesh = _mesh(model, params)
        # the training step donates its buffers: generation must read a copy
        copies = jax.tree.map(lambda x: x.copy(), params)
        if mesh is None:
            copies = jax.device_put(copies, jax.local_devices()[0])
        if self._pipeline is None:
            graph, state = nnx.split(model)  # of shapes alone
            nnx.replace_by_pure_dict(state, copies)
            whole = nnx.merge(graph, state)
            self._pipeline = Pipeline(whole, assets.tokenizer, assets.codec, mesh=mesh)
        else:
            self._pipeline.replace_weights(copies)
        captions = self._pipeline.describe_batch(self._wavs, sampling=_TEXT)
        for i, (scene, caption) in enumerate(zip(self._scenes, captions, strict=True)):
            log.text(f"caption/{i}", f"{caption}  (truth: {scene.caption})", step)
        wav = self._pipeline.render_batch([self._scenes[0].caption], sampling=_AUDIO)[0]
        if len(wav):
            log.audio("rendered/0", wav, assets.codec.sample_rate, step)


def _mesh(model: Bagpiper, params) -> Mesh | None:
    """The training's mesh, for a large model may fit on no device alone; None: one device.

    Heads that `tensor` does not divide cannot be dealt out: only small models have so few.
    """
    mesh = jax.tree.leaves(params)[0].sharding.mesh
    heads = model.config.decoder.num_key_value_heads
    return None if mesh.size == 1 or heads % mesh.shape["tensor"] else mesh
