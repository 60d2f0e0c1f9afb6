"""With max_batch_duration_secs, batches span bundles, and results keep their windows and timestamps."""

from __future__ import annotations

import copy
import time

import apache_beam as beam
import numpy as np
import pytest
import torch
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.testing.test_stream import TestStream
from apache_beam.transforms import window
from apache_beam.utils.timestamp import Timestamp

from common import RUNNER, CollectElements, Doubler, FunctionHandler
from pipelines.buffered_driver import BufferedDriver
from runinference import (
    KeyedModelHandler,
    KeyModelMapping,
    ModelHandler,
    ModelMetadata,
    RunInference,
)


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


@beam.ptransform_fn
def count_sessions(elements):
    """Count the elements of each merged session."""
    return elements | beam.WithKeys("") | beam.GroupByKey() | beam.MapTuple(lambda _, v: len([*v]))


class InferExamples(beam.PTransform):
    """Emit the example of each result, and apply another transform."""

    def __init__(self, handler, then=None):
        super().__init__()
        self.handler, self.then = handler, then

    def expand(self, elements):
        examples = elements | RunInference(self.handler) | beam.Map(lambda result: result.example)
        return examples if self.then is None else examples | self.then


SESSIONS = [(n, t) for n, t in enumerate((0, 1, 2, 3, 4, 30, 31, 32, 40, 41, 42, 43, 44))]


def test_sessions_share_batches():
    handler = Doubler("sessions", min_batch_size=5, max_batch_size=5, max_batch_duration_secs=600)
    caught = run_stream(stream(SESSIONS), InferExamples(handler), window.Sessions(5))
    assert handler.sizes == [5, 4, 4]
    assert sorted((n, int(w.start), int(w.end)) for n, _, w in caught) == [
        (n, t, t + 5) for n, t in SESSIONS
    ]


def test_sessions_merge_after_batches_that_they_shared():
    handler = Doubler("merged", min_batch_size=5, max_batch_size=5, max_batch_duration_secs=600)
    caught = []
    with beam.Pipeline(RUNNER) as pipeline:
        numbers = pipeline | beam.Create([window.TimestampedValue(*pair) for pair in SESSIONS])
        numbers |= beam.WindowInto(window.Sessions(5))
        counts = numbers | InferExamples(handler, count_sessions())
        _ = counts | beam.ParDo(CollectElements(caught))
    CollectElements.take(caught)
    sessions = sorted((n, int(w.start), int(w.end)) for n, _, w in caught)
    assert sessions == [(3, 30, 37), (5, 0, 9), (5, 40, 49)]


@pytest.mark.parametrize("dead_letters", [False, True])
def test_the_elements_of_a_session_use_the_arguments_of_their_window(dead_letters):
    """The side input has other windows, and a session belongs to the one in which it ends."""
    good, bad = [], []
    with beam.Pipeline(RUNNER) as pipeline:

        def timed(label, values, windows):
            values = pipeline | label >> beam.Create([window.TimestampedValue(*v) for v in values])
            return values | f"{label} in windows" >> beam.WindowInto(windows)

        pairs = [(("scale", 10), 0), (("scale", 100), 10)]
        arguments = timed("arguments", pairs, window.FixedWindows(10))
        numbers = timed("numbers", [(1, 0), (2, 1), (3, 10), (0, 11)], window.Sessions(3))
        handler = Scaled(min_batch_size=4, max_batch_size=4, max_batch_duration_secs=600)
        transform = RunInference(handler, inference_args=beam.pvalue.AsDict(arguments))
        if dead_letters:
            results, letters = numbers | transform.with_exception_handling()
            _ = letters.failed_inferences | "bad" >> beam.ParDo(CollectElements(bad))
        else:
            results = numbers | beam.Filter(bool) | transform
        _ = results | "good" >> beam.ParDo(CollectElements(good))
    ends = {int(result): int(its.end) for result, _, its in good}
    assert ends == {10: 3, 20: 4, 300: 13}
    letters = [(letter[0], int(its.end)) for letter, _, its in bad]
    assert letters == [(0, 14)] * dead_letters
    CollectElements.take(good)
    CollectElements.take(bad)


class Scaled(ModelHandler):
    """Multiplies by an argument, and fails for 0."""

    def load_model(self):
        return object()

    def run_inference(self, batch, model, inference_args=None):
        if 0 in batch:
            raise ValueError("zero")
        return [number * inference_args["scale"] for number in batch]


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


class Recorder(ModelHandler):
    """Records each batch with the model and the arguments that it was called with."""

    calls: list = []

    def __init__(self, path="old", **options):
        super().__init__(**options)
        self.path = path

    def load_model(self):
        return self.path

    def update_model_path(self, model_path=None):
        self.path = model_path or self.path

    def run_inference(self, batch, model, inference_args=None):
        self.calls.append((list(batch), model, dict(inference_args or {})))
        return list(batch)


class FakeClock:
    """A clock that advances only when the test says so."""

    nanoseconds = 10**18

    def time_ns(self):
        return self.nanoseconds

    def tick(self, nanoseconds):
        self.nanoseconds += nanoseconds


class Driver:
    """A DoFn in one bundle, whose timers are fired by hand."""

    def __init__(self, keep_windows=False, clock=time, handler=None, **options):
        handler = handler or Recorder(max_batch_duration_secs=600, **options)
        self.do_fn = RunInference(handler, clock=clock)._make_dofn()
        self.do_fn.setup()
        self.do_fn.start_bundle()
        self.state = BufferedDriver(self.do_fn, handler, keep_windows)
        Recorder.calls.clear()

    def process(self, element, timestamp=0, its_window=None, **side_inputs):
        windows = (its_window or window.GlobalWindow(),)
        windowed = window.WindowedValue(element, timestamp, windows)
        return list(self.state.process(windowed, **side_inputs))

    def fire(self, timer="max_wait"):
        return list(self.state.fire(timer))


SIZE_10 = {"min_batch_size": 10, "max_batch_size": 10}


def test_the_watermark_is_held_at_the_earliest_buffered_element():
    driver = Driver(**SIZE_10)
    for element, timestamp, hold in ((1, 100, 100), (2, 5, 5), (3, 50, 5), (4, 3, 3)):
        driver.process(element, timestamp)
        assert [*driver.state.holds.values()] == [hold]


@pytest.mark.parametrize("timer", ["max_wait", "window_end"])
def test_no_timer_holds_the_watermark_after_the_elements_left(timer):
    driver = Driver(**SIZE_10)
    driver.process(1)
    assert driver.state.n_timers("max_wait") == 1
    driver.fire(timer)
    assert driver.state.n_timers("max_wait") == 0


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"a": 1}, {"a": 2}),
        ({"a": 1}, {"a": True}),
        ({"a": [1, {"b": 2}]}, {"a": [1, {"b": 3}]}),
        ({"a": 1}, None),
        (None, {"a": 1}),
    ],
)
@pytest.mark.parametrize("keep_windows", [False, True])
def test_arguments_that_change_while_a_batch_waits_end_it(first, second, keep_windows):
    driver = Driver(keep_windows, **SIZE_10)
    for element, arguments in ((1, first), (2, copy.deepcopy(first)), (3, second), (4, second)):
        driver.process(element, arguments=arguments)
    driver.fire()
    assert Recorder.calls == [([1, 2], "old", first or {}), ([3, 4], "old", second or {})]


def test_arguments_may_hold_arrays_and_tensors_and_equal_ones_share_a_batch():
    driver = Driver(**SIZE_10)
    for element, value in ((1, 1.0), (2, 1.0), (3, 2.0)):
        arguments = {"array": np.full(2, value), "tensor": torch.full((2,), value)}
        driver.process(element, arguments=arguments)
    driver.fire()
    assert [(batch, *map(float, args["tensor"])) for batch, _, args in Recorder.calls] == [
        ([1, 2], 1, 1),
        ([3], 2, 2),
    ]


@pytest.mark.parametrize("keep_windows", [False, True])
def test_a_model_refresh_while_a_batch_waits_applies_to_later_elements(keep_windows):
    driver = Driver(keep_windows, **SIZE_10)
    for element, update in (
        (1, None),
        (2, ModelMetadata("new", "n")),
        (3, ModelMetadata("new", "n")),
    ):
        driver.process(element, update=update)
    driver.fire()
    assert Recorder.calls == [([1], "old", {}), ([2, 3], "new", {})]


def test_a_timer_uses_the_model_and_the_arguments_of_its_own_window():
    driver = Driver(**SIZE_10)
    windows = [window.IntervalWindow(start, start + 10) for start in (0, 10)]
    for element in range(4):
        its_window = windows[element % 2]
        update = ModelMetadata(f"model-{element % 2}", "m")
        driver.process(
            element, its_window.start, its_window, update=update, arguments={"a": element % 2}
        )
    driver.fire("window_end")
    assert Recorder.calls == [([0, 2], "model-0", {"a": 0}), ([1, 3], "model-1", {"a": 1})]


@pytest.mark.parametrize("options", [{}, {"batch_length_fn": int, "max_padded_size": 100}], ids=str)
def test_the_queue_time_counts_from_the_first_element_of_the_batch(options):
    clock = FakeClock()
    driver = Driver(clock=clock, **SIZE_10, **options)
    engine = driver.do_fn._engine
    times = []
    engine.metrics.for_version(engine.only_version)[0].queued = times.append
    for element in (1, 2, 3):
        driver.process(element)
        clock.tick(5)
    driver.fire()
    clock.tick(100)
    driver.process(4)
    clock.tick(7)
    driver.fire()
    assert times == [15, 7]
