"""What an evaluator works with, and what it returns."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bagpiper_jax.errors import UserError
from bagpiper_jax.evaluation import asr
from bagpiper_jax.evaluation.remembering import RememberingEngine
from bagpiper_jax.evaluation.sampling_choice import scene_sampling
from bagpiper_jax.inference.pipeline import Pipeline
from bagpiper_jax.inference.sampling import Sampling
from bagpiper_jax.input_pipeline.packed_scenes import load_corpus
from bagpiper_jax.input_pipeline.scenes import Corpus
from bagpiper_jax.json_lines import Journal
from bagpiper_jax.modeling.codec import Codec
from bagpiper_jax.release import load_assets
from bagpiper_jax.sharding import make_mesh


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What an evaluator found.

    Attributes:
      figures: nested by name; its leaves are `text_metrics.Interval` or plain numbers. What stands
        under "control" is what chance, or another scene's audio, gives: nested as what is beside
        it.
      items: one object per scene or clip, for the page and for reading.
      clips: audio to keep, float32 [S] at 16 kHz, by name; an item shows one that its "clip" names.
    """

    figures: Any
    items: Sequence[Mapping[str, Any]] = ()
    clips: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)


class Scenes:
    """What scenes are made and heard again with; each part is loaded when it is asked for.

    Attributes:
      checkpoint, corpus_dir: directories.
    """

    def __init__(self, checkpoint: str, corpus_dir: str):
        self.checkpoint = checkpoint
        self.corpus_dir = corpus_dir

    @functools.cached_property
    def corpus(self) -> Corpus:
        """The mini corpus, decoded."""
        return load_corpus(self.corpus_dir)

    @functools.cached_property
    def codec(self) -> Codec:
        """The model's codec; the model itself is not loaded for it."""
        return load_assets(self.checkpoint).codec


class Context(Scenes):
    """Model, corpus and judges of an evaluation; each is loaded when it is asked for.

    All that the pipeline generates by `describe`, `render` and `chat`, one by one or in batches, is
    kept in the workdir (see `RememberingEngine`).

    Attributes:
      seed: of scenes, sampling and intervals.
      audio: settings of the audio's sampling in place of the checkpoint's.
      dtype: of parameters and computation.
      mesh: size by axis, where the model lies; all 1, or none: the first device.
    """

    def __init__(
        self,
        checkpoint: str,
        corpus_dir: str,
        seed: int,
        outputs: Journal,
        weights: str,
        audio: Mapping[str, Any] | None = None,
        dtype: str = "float32",
        mesh: Mapping[str, int] | None = None,
    ):
        """`outputs`: where generated messages are kept; `weights`: digest of the weights."""
        super().__init__(checkpoint, corpus_dir)
        self.seed = seed
        self.audio = dict(audio or {})
        self.dtype = dtype
        self.mesh = dict(mesh or {})
        self._outputs = outputs
        self._weights = weights

    @functools.cached_property
    def pipeline(self) -> Pipeline:
        """The model.

        Raises:
          UserError: it does not load, or the mesh does not fit the devices or the model.
        """
        placed = self._placed()
        pipeline = Pipeline.load(self.checkpoint, **placed)
        # what was kept before there was a choice is of float32
        weights = self._weights + (f" {self.dtype}" if "dtype" in placed else "")
        pipeline.engine = RememberingEngine(pipeline.engine, self._outputs, weights)
        chosen = pipeline.sampling["audio"]
        pipeline.sampling["audio"] = dataclasses.replace(chosen, **self.audio)
        self.codec = pipeline.codec
        return pipeline

    def _placed(self) -> dict[str, Any]:
        """What `Pipeline.load` is told beside the checkpoint: where it differs from the default."""
        placed: dict[str, Any] = {} if self.dtype == "float32" else {"dtype": self.dtype}
        if set(self.mesh.values()) <= {1}:
            return placed
        try:
            return {**placed, "mesh": make_mesh(self.mesh)}
        except UserError as e:
            raise UserError(f"config key mesh: {e}: their product must be all devices") from e

    @property
    def sampling(self) -> dict[str, Sampling]:
        """Settings for scenes by modality: the model's own, text greedy, no longer than scenes."""
        return scene_sampling(self.pipeline.sampling["text"], self.pipeline.sampling["audio"])

    @functools.cached_property
    def whisper(self) -> asr.Whisper:
        """Whisper tiny.en."""
        return asr.Whisper()
