"""``DriftMonitor`` emits a row for each feature and window, including late data, and counts drift."""

from __future__ import annotations

import logging
import math

import apache_beam as beam
import numpy as np
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.testing.test_stream import TestStream
from apache_beam.transforms.window import FixedWindows, TimestampedValue
from hypothesis import given, settings
from hypothesis import strategies as st

from common import RUNNER, CollectElements, Doubler, run
from runinference import PredictionResult, RunInference
from runinference.errors import OptionError, UnknownOptionError
from runinference.monitoring import DriftMonitor, ReferenceSummary
from runinference.monitoring.drift_monitor import CountBins
from runinference.monitoring.values import ValueReader

REFERENCE = [PredictionResult({"x": n % 100, "c": "ab"[n % 2]}, n % 10) for n in range(1_000)]


def test_each_feature_has_a_row():
    rows = {row.feature: row for row in run(REFERENCE[:500], DriftMonitor(REFERENCE))}
    assert list(rows) == ["x", "c", "prediction"]
    x = rows["x"]
    assert (x.n, x.missing, x.psi, x.ks, x.p_value, x.drifted) == (500, 0, x.psi, 0, 1, False)
    assert x.psi < 0.001
    assert (x.window_start, x.window_end, x.enough_data) == (None, None, True)
    assert rows["c"].ks is None is rows["c"].p_value


def run_in_windows(results, monitor):
    """Return the rows and the metrics of results with timestamps."""
    collected = []
    pipeline = beam.Pipeline(runner=RUNNER)
    (
        pipeline
        | beam.Create([TimestampedValue(*each) for each in results])
        | monitor
        | beam.ParDo(CollectElements(collected))
    )
    result = pipeline.run()
    result.wait_until_finish()
    counters = result.metrics().query()["counters"] + result.metrics().query()["gauges"]
    metrics = {
        each.key.metric.name: each.committed
        for each in counters
        if each.key.metric.namespace == "drift"
    }
    return CollectElements.take(collected), metrics


def test_windows_are_compared_separately_and_counted(caplog):
    same, drifted = REFERENCE[:300], [r._replace(example={"x": 99, "c": "a"}) for r in REFERENCE]
    results = [(each, 0) for each in same] + [(each, 60) for each in drifted[:300]]
    results += [(each, 120) for each in drifted[:100]]
    with caplog.at_level(logging.WARNING, logger="runinference"):
        rows, metrics = run_in_windows(results, DriftMonitor(REFERENCE, window=FixedWindows(60)))
    assert [(r.feature, r.window_start, r.window_end, r.n) for r in rows if r.drifted] == [
        ("x", "1970-01-01T00:01:00Z", "1970-01-01T00:02:00Z", 300),
        ("c", "1970-01-01T00:01:00Z", "1970-01-01T00:02:00Z", 300),
    ]
    small = [row for row in rows if row.window_start == "1970-01-01T00:02:00Z"]
    assert [(row.n, row.psi, row.ks, row.enough_data, row.drifted) for row in small] == [
        (100, None, None, False, False)
    ] * 3
    psi = {name: gauge.value for name, gauge in metrics.items() if name.endswith("_psi_permille")}
    assert psi.keys() == {"x_psi_permille", "c_psi_permille", "prediction_psi_permille"}
    assert metrics["drift_checks"] == 6
    assert metrics["drift_detected"] == 2
    assert metrics["drift_not_enough_data"] == 3
    assert caplog.text.count("has drifted in the window from 1970-01-01T00:01:00Z") == 2


def test_a_sink_gets_the_rows_of_a_monitoring_transform():
    reference = Doubler("reference").predict(range(100))
    caught = []

    class Sink(beam.PTransform):
        def expand(self, rows):
            assert [name for name, _ in rows.element_type._fields][:2] == [
                "feature",
                "window_start",
            ]
            return rows | beam.Reshuffle() | beam.ParDo(CollectElements(caught))

    monitor = DriftMonitor(
        reference, features=lambda n: {"n": n}, window=FixedWindows(60), min_count=50, sink=Sink()
    )
    handler = Doubler("monitored").with_postprocess_fn(lambda result: "done")
    results = run(range(50, 150), RunInference(handler, monitoring_transform=monitor))
    assert results == ["done"] * 100
    rows = [row for row, _, _ in caught]
    CollectElements.take(caught)
    assert [(row.feature, row.ks, row.drifted) for row in rows] == [
        ("n", 0.5, True),
        ("prediction", 0.5, True),
    ]


def test_late_results_emit_their_window_again():
    reference = ReferenceSummary.from_sample(REFERENCE)
    monitor = DriftMonitor(
        reference, window=FixedWindows(10), allowed_lateness=100, min_count=1, features=["x"]
    )
    stream = (
        TestStream()
        .advance_watermark_to(0)
        .add_elements([TimestampedValue(result, 5) for result in REFERENCE[:20]])
        .advance_watermark_to(50)
        .add_elements([TimestampedValue(REFERENCE[20], 6)])
        .advance_watermark_to(500)
        .add_elements([TimestampedValue(REFERENCE[21], 7)])
        .advance_watermark_to_infinity()
    )
    caught = []
    options = PipelineOptions(streaming=True, allow_unsafe_triggers=True)
    with beam.Pipeline("BundleBasedDirectRunner", options) as pipeline:
        pipeline | stream | monitor | beam.ParDo(CollectElements(caught))
    rows = CollectElements.take(caught)
    assert [row.n for row in rows if row.feature == "x"] == [20, 21]
    assert {row.window_end for row in rows} == {"1970-01-01T00:00:10Z"}


def test_a_stream_in_the_global_window_raises_an_error():
    with pytest.raises(OptionError, match="stream in the global window, which never ends"):
        beam.Pipeline() | TestStream() | DriftMonitor(REFERENCE)


def test_results_that_cannot_be_read_are_counted_and_do_not_fail_the_pipeline(caplog):
    results = [(PredictionResult("text", 1), 0), (PredictionResult({"x": 1}, 1), 0)]
    results += [(PredictionResult({"x": [1], "c": 1}, 1), 0)]
    with caplog.at_level(logging.WARNING, logger="runinference"):
        rows, metrics = run_in_windows(results, DriftMonitor(REFERENCE, min_count=1))
    assert [row.n for row in rows] == [1, 1, 1]
    assert metrics["drift_failed_results"] == 2
    assert caplog.text.count("A result can't be monitored: ElementError") == 1


def test_results_without_any_feature_of_the_reference_are_not_compared(caplog):
    summary = ReferenceSummary.from_sample(REFERENCE, prediction=lambda p: {"label": p})
    monitor = DriftMonitor(summary, features=lambda row: {"y": row["x"]}, min_count=1)
    with caplog.at_level(logging.WARNING, logger="runinference"):
        rows, metrics = run_in_windows([(REFERENCE[0], 0)], monitor)
    assert metrics["drift_failed_results"] == 1
    assert "has the values y, prediction, and none of the features" in caplog.text
    assert not any(row.drifted for row in rows)


def test_a_small_p_value_counts_only_with_a_threshold():
    shifted = [r._replace(example={**r.example, "x": r.example["x"] + 9}) for r in REFERENCE]
    monitors = [DriftMonitor(REFERENCE, psi_threshold=1, p_value_threshold=p) for p in (None, 0.01)]
    found = [{row.feature: row for row in run(shifted, monitor)} for monitor in monitors]
    assert found[0]["x"].p_value == found[1]["x"].p_value < 0.001
    assert [rows["x"].drifted for rows in found] == [False, True]
    assert not found[1]["prediction"].drifted


SUMMARY = ReferenceSummary.from_sample(REFERENCE)
VALUES = st.one_of(
    st.none(), st.integers(-200, 200), st.floats(), st.sampled_from(["a", "b", "new"])
)
RESULTS = st.lists(
    st.builds(lambda x, c, p: PredictionResult({"x": x, "c": c}, p), x=VALUES, c=VALUES, p=VALUES),
    max_size=12,
)


@settings(deadline=None, max_examples=60)
@given(st.lists(RESULTS, min_size=1, max_size=4), st.randoms())
def test_accumulators_can_be_merged_in_any_order_and_grouping(parts, random):
    combine = CountBins(SUMMARY, ValueReader(None, None), "drift")

    def accumulate(results):
        accumulator = combine.create_accumulator()
        for result in results:
            accumulator = combine.add_input(accumulator, result)
        return accumulator

    expected = accumulate(result for part in parts for result in part)
    accumulators = [accumulate(part) for part in parts]
    random.shuffle(accumulators)
    split = random.randint(0, len(accumulators))
    grouped = [accumulators[:split], accumulators[split:]]
    merged = combine.merge_accumulators(map(combine.merge_accumulators, grouped))
    assert np.array_equal(combine.extract_output(merged), expected)
    assert expected.nbytes < 10_000


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"psi_threshold": 0}, OptionError, "psi_threshold must be greater than 0"),
        ({"psi_threshold": math.nan}, OptionError, "psi_threshold must be a finite number"),
        ({"p_value_threshold": 5}, OptionError, "p_value_threshold must be from 0 to 1"),
        ({"min_count": 0}, OptionError, "min_count must be at least 1"),
        ({"window": 60}, OptionError, r"window must be a WindowFn, such as FixedWindows\(3600\)"),
        ({"allowed_lateness": 60}, OptionError, "allowed_lateness needs window"),
        ({"sink": print}, OptionError, "sink must be a PTransform"),
        ({"metrics_namespace": ""}, OptionError, "metrics_namespace must be a non-empty string"),
        ({"reference": REFERENCE[:9]}, OptionError, "has 9 results, but at least 50"),
        ({"psi_treshold": 1}, UnknownOptionError, "Did you mean 'psi_threshold'"),
        (
            {"reference": ReferenceSummary.from_sample(REFERENCE), "categorical": ["x"]},
            OptionError,
            "categorical and n_bins are for a sample",
        ),
    ],
)
def test_invalid_options_raise_an_error(options, error, message):
    with pytest.raises(error, match=message):
        DriftMonitor(**{"reference": REFERENCE, **options})
