"""With max_batch_duration_secs, batches span bundles, and results keep their windows and timestamps."""

from __future__ import annotations

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.testing.test_stream import TestStream
from apache_beam.transforms import window
from apache_beam.utils.timestamp import Timestamp

from common import RUNNER, CollectElements, Doubler, FunctionHandler
from runinference import KeyedModelHandler, KeyModelMapping, RunInference


def stream(elements, per_bundle=1):
    """Return a stream with ``per_bundle`` elements in each bundle, whose watermark follows the elements."""
    events = TestStream()
    for start in range(0, len(elements), per_bundle):
        bundle = elements[start : start + per_bundle]
        events = events.add_elements([window.TimestampedValue(e, t) for e, t in bundle])
        events = events.advance_watermark_to(bundle[-1][1])
    return events.advance_watermark_to_infinity()


def run_stream(events, transform, windows=None):
    caught = []
    with beam.Pipeline("BundleBasedDirectRunner", PipelineOptions(streaming=True)) as pipeline:
        elements = pipeline | events
        if windows is not None:
            elements |= beam.WindowInto(windows)
        _ = elements | transform | beam.ParDo(CollectElements(caught))
    CollectElements.take(caught)
    return caught


def test_batches_span_bundles():
    handler = Doubler("waiting", min_batch_size=5, max_batch_size=5, max_batch_duration_secs=600)
    caught = run_stream(stream([(n, n) for n in range(10)]), RunInference(handler))
    assert sorted(result.example for result, _, _ in caught) == list(range(10))
    assert handler.sizes == [5, 5]


def test_without_a_duration_batches_end_with_the_bundle():
    handler = Doubler("hurried", min_batch_size=5, max_batch_size=5)
    run_stream(stream([(n, n) for n in range(10)]), RunInference(handler))
    assert handler.sizes == [1] * 10


def test_results_keep_their_timestamps_and_windows():
    handler = Doubler("kept", min_batch_size=4, max_batch_size=4, max_batch_duration_secs=600)
    caught = run_stream(
        stream([(n, n) for n in range(20)], per_bundle=3),
        RunInference(handler),
        window.FixedWindows(10),
    )
    assert len(caught) == 20
    for result, timestamp, its_window in caught:
        assert timestamp == Timestamp(result.example)
        assert its_window.start == result.example // 10 * 10


def test_the_end_of_a_window_flushes_its_elements():
    handler = Doubler(
        "ends", min_batch_size=100, max_batch_size=100, max_batch_duration_secs=10_000
    )
    caught = run_stream(
        stream([(n, n) for n in range(20)]), RunInference(handler), window.FixedWindows(10)
    )
    assert sorted(handler.sizes) == [10, 10]
    assert len(caught) == 20


def test_the_duration_is_measured_in_processing_time():
    handler = Doubler("due", min_batch_size=100, max_batch_size=100, max_batch_duration_secs=5)
    events = (
        TestStream()
        .add_elements([window.TimestampedValue(1, 1)])
        .advance_processing_time(3)
        .add_elements([window.TimestampedValue(2, 2)])
        .advance_processing_time(1e10)
        .add_elements([window.TimestampedValue(3, 3)])
        .advance_watermark_to_infinity()
    )
    caught = run_stream(events, RunInference(handler))
    assert sorted(result.example for result, _, _ in caught) == [1, 2, 3]
    assert handler.batches["due"] == [[1, 2], [3]]


def test_limits_on_weight_and_length_apply_across_bundles():
    handler = Doubler(
        "weights",
        min_batch_size=100,
        max_batch_size=100,
        max_batch_weight=10,
        element_size_fn=int,
        batch_length_fn=int,
        batch_bucket_boundaries=[4],
        max_batch_duration_secs=600,
    )
    numbers = [1, 6, 3, 5, 2, 4, 1, 9, 3, 2]
    run_stream(stream([(n, i) for i, n in enumerate(numbers)]), RunInference(handler))
    batches = handler.batches["weights"]
    assert sorted(n for batch in batches for n in batch) == sorted(numbers)
    for batch in batches:
        assert sum(batch) <= 10
        assert len({n >= 4 for n in batch}) == 1


def test_a_batch_pipeline_flushes_all_elements():
    handler = Doubler("bounded", min_batch_size=7, max_batch_size=7, max_batch_duration_secs=600)
    caught = []
    with beam.Pipeline(runner=RUNNER) as pipeline:
        numbers = pipeline | beam.Create(range(100))
        _ = numbers | RunInference(handler) | beam.ParDo(CollectElements(caught))
    assert sorted(result.example for result in CollectElements.take(caught)) == list(range(100))
    assert max(handler.sizes) == 7


def test_models_per_key_have_separate_buffers():
    mappings = [
        KeyModelMapping(
            [name], Doubler(name, min_batch_size=3, max_batch_size=3, max_batch_duration_secs=600)
        )
        for name in ("one", "two")
    ]
    elements = [((("one", "two")[n % 2], n), n) for n in range(12)]
    caught = run_stream(stream(elements), RunInference(KeyedModelHandler(mappings)))
    assert len(caught) == 12
    assert Doubler.batches["one"] == [[0, 2, 4], [6, 8, 10]]
    assert Doubler.batches["two"] == [[1, 3, 5], [7, 9, 11]]


@pytest.mark.parametrize("bad", [2, "not a number"])
def test_an_element_that_fails_does_not_affect_the_buffered_ones(bad):
    def fail(batch):
        if 2 in batch:
            raise ValueError("two")
        return batch

    handler = FunctionHandler(
        fail,
        min_batch_size=4,
        max_batch_size=4,
        max_batch_weight=1000,
        element_size_fn=int,
        max_batch_duration_secs=600,
    )
    good, failed = [], []
    with beam.Pipeline("BundleBasedDirectRunner", PipelineOptions(streaming=True)) as pipeline:
        elements = pipeline | stream([(e, t) for t, e in enumerate([1, bad, 3, 4, 5])])
        results, letters = elements | RunInference(handler).with_exception_handling()
        results | "good" >> beam.ParDo(CollectElements(good))
        letters.failed_inferences | "failed" >> beam.ParDo(CollectElements(failed))
    assert sorted(CollectElements.take(good)) == [1, 3, 4, 5]
    assert [letter[0] for letter in CollectElements.take(failed)] == [bad]


def test_an_element_whose_length_fails_becomes_a_dead_letter_and_the_others_are_kept():
    """The length used to be measured when the batch was formed, and all buffered elements were lost."""
    handler = Doubler("lengths", batch_length_fn=_length, max_batch_duration_secs=600)
    good, bad = [], []
    with beam.Pipeline("BundleBasedDirectRunner", PipelineOptions(streaming=True)) as pipeline:
        elements = pipeline | stream([(1, 1), (13, 2), (2, 3)])
        results, letters = elements | RunInference(handler).with_exception_handling()
        _ = results | "good" >> beam.ParDo(CollectElements(good))
        _ = letters.failed_inferences | "bad" >> beam.ParDo(CollectElements(bad))
    assert sorted(result.example for result in CollectElements.take(good)) == [1, 2]
    assert [element for element, _ in CollectElements.take(bad)] == [13]


def _length(number: int) -> int:
    if number == 13:
        raise ValueError("13 has no length")
    return 1
