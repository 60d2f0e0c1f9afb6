"""Runs a random pipeline on Beam's embedded runner."""

from __future__ import annotations

from typing import Any

import apache_beam as beam
from apache_beam.metrics import MetricsFilter
from apache_beam.transforms.window import TimestampedValue

from common import RUNNER, CollectElements
from pipelines.by_hand import add
from pipelines.case import WINDOWS, Case, Outcome, number_of


def run(case: Case) -> Outcome:
    """What comes out; also checks that as much is counted.

    Raises:
        Exception: What the pipeline raises, where errors are not set aside.
    """
    good: list[Any] = []
    bad: list[Any] = []
    functions: list[Any] = []
    pipeline = beam.Pipeline(runner=RUNNER)
    elements = (
        pipeline
        | beam.Create(case.all, reshuffle=False)
        | beam.Map(lambda timed: TimestampedValue(timed.value, timed.at)).with_output_types(Any)
        | beam.WindowInto(WINDOWS[case.windows])
    )
    results = elements | case.transform()
    if case.aside:
        results, letters = results
        _ = letters.failed_inferences | "bad" >> beam.ParDo(CollectElements(bad))
        for where, each in (
            ("before", letters.failed_preprocessing),
            ("after", letters.failed_postprocessing),
        ):
            for number, failed in enumerate(each):
                tagged = failed | f"{where} {number}" >> beam.Map(lambda x, w: (w, x), where)
                _ = tagged | f"caught {where} {number}" >> beam.ParDo(CollectElements(functions))
    _ = results | "good" >> beam.ParDo(CollectElements(good))
    running = pipeline.run()
    running.wait_until_finish()
    outcome = Outcome()
    for caught, failed in ((good, False), (bad, True)):
        for value, timestamp, span in caught:
            add(case, outcome, failed, value, timestamp, span)
    for (where, (element, _)), timestamp, span in functions:
        ends = None if case.windows == "sessions" else span.end.micros
        outcome.bad[(where, number_of(element)), int(timestamp), ends] += 1
    n_after = sum(where == "after" for (where, _), _, _ in functions)
    counted = {name: _counter(running, name) for name in ("num_inferences", "failed_elements")}
    assert counted == {"num_inferences": len(good) + n_after, "failed_elements": len(bad)}
    return outcome


def _counter(running: Any, name: str) -> int:
    """The count of a metric: of all models together, where there is one for each key."""
    found = running.metrics().query(MetricsFilter().with_name(name))["counters"]
    return sum(counter.committed for counter in found)
