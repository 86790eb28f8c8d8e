"""Preparation as an Apache Beam pipeline; its elements are shards, made by the same function."""

from __future__ import annotations

from collections.abc import Iterator

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions

from bagpiper_jax.preparation.isolated import Isolated
from bagpiper_jax.preparation.shards import Plan, make_shard, read_notes


class MakeShard(beam.DoFn):
    """Shard number → the number, once the shard is made in the plan's directory."""

    def __init__(self, plan: Plan):
        self._plan = plan
        self._isolated = Isolated(plan.options)
        self._found = beam.metrics.Metrics.counter("bagpiper", "audio_seconds")

    def __getstate__(self):
        return {"plan": self._plan}

    def __setstate__(self, state):
        self.__init__(state["plan"])

    def process(self, shard: int) -> Iterator[int]:
        """Makes a shard, unless it is there."""
        make_shard(self._plan, shard, self._isolated, self._count)
        yield shard

    def _count(self, seconds: float, parts: int) -> None:
        self._found.inc(round(seconds))

    def teardown(self) -> None:
        """Ends the process that decodes."""
        self._isolated.close()


def make_by_beam(plan: Plan, options: list[str]) -> None:
    """Makes the shards that are missing on any runner.

    Args:
      plan: of the set; its directory must be reachable by all workers under the same path.
      options: of the pipeline, as on Beam's command line.
    """
    numbers = range(len(plan.shards))
    missing = [shard for shard in numbers if read_notes(plan, shard) is None]
    with beam.Pipeline(options=PipelineOptions(options)) as pipeline:
        shards = pipeline | beam.Create(missing) | beam.Reshuffle()
        _ = shards | beam.ParDo(MakeShard(plan))
