"""A pipeline in which a new model is named before the first element comes, with Beam's names or with ours."""

from __future__ import annotations

from typing import Any

import apache_beam as beam

from defects.packages import Package
from tiny import RUNNER, Catch


def refreshed(package: Package, handler: Any, path: str, examples: list[Any]) -> list[Any]:
    """The results of examples where a handler's model gives way to the one at a path."""
    caught: list[Any] = []
    base = package.base
    with beam.Pipeline(runner=RUNNER) as pipeline:
        new = pipeline | "new" >> beam.Create([base.ModelMetadata(path, "new")])
        rows = pipeline | beam.Create(examples, reshuffle=False)
        results = rows | base.RunInference(handler, model_metadata_pcoll=new)
        _ = results | beam.ParDo(Catch(caught))
    return Catch.take(caught)
