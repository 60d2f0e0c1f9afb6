"""The metrics of a step are those of its elements, in whatever form they are."""

from __future__ import annotations

import apache_beam as beam
import numpy as np
import pytest

from common import RUNNER
from row_models import sum_handler
from runinference import KeyedModelHandler, RunInference

VALUES = [[float(n % 7), float(n)] for n in range(100)]
NOT_A_NUMBER = [float("nan"), 1.0]  # the model raises an error
TOO_SHORT = [1.0]
COLUMNS = ["a", "b"]


def to_row(values):
    return dict(zip(COLUMNS, values, strict=False))


def measure(elements, transform):
    """Return the counters and the distribution of batch sizes of a step with dead letters."""
    pipeline = beam.Pipeline(runner=RUNNER)
    _ = pipeline | beam.Create(elements, reshuffle=False) | transform.with_exception_handling()
    outcome = pipeline.run()
    outcome.wait_until_finish()
    found = outcome.metrics().query(beam.metrics.MetricsFilter().with_namespace("step"))
    metrics = {each.key.metric.name: each.committed for each in found["counters"]}
    for each in found["distributions"]:
        if each.key.metric.name == "inference_request_batch_size":
            sizes = each.committed
            metrics["sizes"] = (sizes.sum, sizes.count, sizes.min, sizes.max)
    return metrics


@pytest.mark.parametrize("is_keyed", [False, True])
@pytest.mark.parametrize("options", [{}, {"max_batch_duration_secs": 60}])
def test_rows_have_the_metrics_of_the_same_elements_without_columns(is_keyed, options, tmp_path):
    handler = sum_handler(tmp_path, min_batch_size=16, max_batch_size=16, **options)
    elements = [*VALUES[:40], NOT_A_NUMBER, *VALUES[40:], TOO_SHORT]
    rows, arrays = list(map(to_row, elements)), list(map(np.array, elements))
    if is_keyed:
        handler = KeyedModelHandler(handler)
        rows, arrays = list(enumerate(rows)), list(enumerate(arrays))
    expected = measure(arrays, RunInference(handler, metrics_namespace="step"))
    assert expected["num_inferences"] == 100
    assert expected["failed_elements"] == 2
    transform = RunInference(handler, columns=COLUMNS, output="y", metrics_namespace="step")
    assert measure(rows, transform) == expected
