"""A pipeline that replaces a handler's model before the first element, with either package's names."""

from __future__ import annotations

from typing import Any

import apache_beam as beam

from common import RUNNER, CollectElements
from defects.packages import Package


def run_with_model_update(
    package: Package, handler: Any, path: str, examples: list[Any]
) -> list[Any]:
    """Run inference on examples with the model at `path` instead of the handler's own model."""
    collected: list[Any] = []
    base = package.base
    with beam.Pipeline(runner=RUNNER) as pipeline:
        new = pipeline | "new" >> beam.Create([base.ModelMetadata(path, "new")])
        elements = pipeline | beam.Create(examples, reshuffle=False)
        results = elements | base.RunInference(handler, model_metadata_pcoll=new)
        _ = results | beam.ParDo(CollectElements(collected))
    return CollectElements.take(collected)
