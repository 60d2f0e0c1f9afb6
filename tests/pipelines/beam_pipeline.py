"""Run a random pipeline on Beam's embedded runner."""

from __future__ import annotations

from typing import Any

import apache_beam as beam
from apache_beam.metrics import MetricsFilter
from apache_beam.transforms.window import TimestampedValue

from common import RUNNER, CollectElements
from pipelines.case import WINDOW_FNS, Case, row_number
from pipelines.outcome import Outcome


def run(case: Case) -> Outcome:
    """Run a case, check the metrics, and return the outcome.

    Raises:
        Exception: The error of the first failing element, if the case has no dead letters.
    """
    results: list[Any] = []
    dead_letters: list[Any] = []
    function_failures: list[Any] = []
    pipeline = beam.Pipeline(runner=RUNNER)
    elements = (
        pipeline
        | beam.Create(case.elements, reshuffle=False)
        | beam.Map(lambda e: TimestampedValue(e.value, e.timestamp)).with_output_types(Any)
        | beam.WindowInto(WINDOW_FNS[case.window_fn])
    )
    outputs = elements | case.transform()
    if case.dead_letters:
        outputs, failed = outputs
        _ = failed.failed_inferences | "dead letters" >> beam.ParDo(CollectElements(dead_letters))
        _collect_function_failures("preprocess", failed.failed_preprocessing, function_failures)
        _collect_function_failures("postprocess", failed.failed_postprocessing, function_failures)
    _ = outputs | "results" >> beam.ParDo(CollectElements(results))
    finished = pipeline.run()
    finished.wait_until_finish()
    n_postprocess = sum(stage == "postprocess" for (stage, _), _, _ in function_failures)
    counts = {name: _read_counter(finished, name) for name in ("num_inferences", "failed_elements")}
    assert counts == {
        "num_inferences": len(results) + n_postprocess,
        "failed_elements": len(dead_letters),
    }
    return _make_outcome(case, results, dead_letters, function_failures)


def _collect_function_failures(stage: str, collections: Any, into: list[Any]) -> None:
    for number, failed in enumerate(collections):
        with_stage = failed | f"{stage} {number}" >> beam.Map(lambda x, s: (s, x), stage)
        _ = with_stage | f"collect {stage} {number}" >> beam.ParDo(CollectElements(into))


def _make_outcome(
    case: Case, results: list[Any], dead_letters: list[Any], function_failures: list[Any]
) -> Outcome:
    outcome = Outcome()
    for result in results:
        outcome.add_result(case, *result)
    for letter in dead_letters:
        outcome.add_dead_letter(case, *letter)
    for (stage, (element, _)), timestamp, window in function_failures:
        failure = (stage, row_number(element))
        outcome.failures[failure, int(timestamp), case.window_end(window)] += 1
    return outcome


def _read_counter(finished: Any, name: str) -> int:
    """Return the value of a counter, summed over the models of all keys."""
    found = finished.metrics().query(MetricsFilter().with_name(name))["counters"]
    return sum(counter.committed for counter in found)
