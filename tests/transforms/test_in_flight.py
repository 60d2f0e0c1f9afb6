"""Calls that overlap with the rest of a bundle: order, errors, model updates, and cleanup."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import apache_beam as beam
import numpy as np
import pytest
import torch
from apache_beam.metrics import Metrics, MetricsFilter
from apache_beam.transforms import window

from common import RUNNER, CollectElements, no_updates, overlapping
from runinference import (
    KeyedModelHandler,
    KeyModelMapping,
    ModelHandler,
    ModelMetadata,
    RemoteModelHandler,
    RunInference,
)
from runinference.batching.measured_switch import MeasuredSwitch
from runinference.caching.model_cache import CacheLimits
from runinference.errors import ModelInputError, OutOfMemoryError
from runinference.handlers.compute_turn import CallOverlap
from runinference.pytorch_inference import PytorchModelHandlerTensor
from runinference.serving.call_thread import CallThread
from runinference.serving.registry import ProcessShared
from runinference.transforms.batch_sources import (
    BundleBatches,
    PrebatchedBatches,
    UnsplitBatches,
)
from runinference.transforms.in_flight import InFlightBatches, Work
from serving.workers import RecordingHandler, Worker, alive_models

TWO = {"min_batch_size": 2, "max_batch_size": 2}


@pytest.fixture(autouse=True)
def _overlapping():
    with overlapping():
        yield


class Squares(ModelHandler):
    """Squares numbers, and records in which thread and order it does so."""

    calls: list[tuple[str, list[int]]] = []

    def load_model(self):
        self.calls.clear()
        return object()

    def run_inference(self, batch, model, inference_args=None):
        self.calls.append((threading.current_thread().name, list(batch)))
        if -1 in batch:
            raise ValueError("negative")
        if len(batch) > 1 and 100 in batch:
            raise OutOfMemoryError("too large")
        scale = (inference_args or {}).get("scale", 1)
        return [scale * x * x for x in batch]


def worker(handler, dead_letters=True, source=BundleBatches, **options):
    step = RunInference(handler, **options)
    return Worker((step.with_exception_handling() if dead_letters else step)._config(), source)


def squares(numbers):
    return [x * x for x in numbers]


def test_batches_run_in_other_threads_in_order_and_keep_the_order_of_results():
    assert worker(Squares(**TWO)).results(*range(11)) == squares(range(11))
    names = [name for name, _ in Squares.calls]
    batches = [batch for _, batch in Squares.calls]
    assert batches == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9], [10]]
    assert sum(name.startswith("runinference") for name in names) >= 3


def test_a_single_batch_runs_in_the_thread_of_the_bundle():
    trained = worker(Squares(**TWO))
    trained.results(1, 2)
    trained.results(3)
    assert {name for name, _ in Squares.calls} == {threading.current_thread().name}


class FakeEngine:
    """Takes 10 ms of a fake time per batch, of which overlap saves a share."""

    def __init__(self, saved):
        self.session = self.models = self.clock = self
        self.decision, self.now, self.saved = MeasuredSwitch(), 0, saved

    def time_ns(self):
        return self.now

    def overlap_for(self, version):
        return self.decision

    def is_ready(self, version):
        return True

    def needs_copies(self, n_elements):
        return False

    def start(self, version, batch):
        return lambda: self.take((1 - self.saved) * 10_000_000)

    def call(self):
        return self.take(10_000_000)

    def take(self, nanoseconds):
        self.now += nanoseconds
        return []

    def make_outputs(self, version, origins, outcomes):
        return iter(outcomes)


class Version(NamedTuple):
    handler: Any


@pytest.mark.parametrize(("saved", "overlaps"), [(-0.2, False), (0, False), (0.1, True)])
def test_batches_overlap_if_and_only_if_it_saves_time(saved, overlaps):
    """The first batches, for which no result is awaited, used to be measured as if they took no time."""
    engine, version = FakeEngine(saved), Version(Squares())
    in_flight = InFlightBatches(engine)
    work = Work(version, [0], 1, [0], lambda version, batch, call: call())
    while not engine.decision.is_decided:
        assert [*in_flight.run(work)] == []
    assert engine.decision.is_on == overlaps


class Client(RemoteModelHandler):
    """Answers requests with numbers above 3 when four of them have arrived. There must be four in all."""

    def create_client(self):
        return threading.Barrier(4)

    def request(self, batch, model, inference_args=None):
        if max(batch) > 3:
            model.wait(60)
        return [x * x for x in batch]


@pytest.mark.parametrize(
    ("options", "elements"),
    [
        (TWO, range(12)),
        ({"max_batch_size": 2, "max_request_size": 2}, range(12)),
        ({"min_batch_size": 4, "max_batch_size": 4, "max_request_size": 2}, range(12)),
    ],
    ids=["a batch per request", "requests of one batch", "two requests per batch"],
)
def test_requests_of_several_batches_are_sent_at_the_same_time(options, elements):
    handler = Client(max_concurrent_requests=4, num_retries=0, **options)
    with overlapping(False):  # what measuring decides does not apply
        assert worker(handler).results(*elements) == squares(elements)


def test_requests_of_pre_batched_elements_are_sent_at_the_same_time():
    handler = Client(max_concurrent_requests=4, num_retries=0).with_no_batching()
    one = worker(handler, source=PrebatchedBatches)
    elements = [[n, n + 1] for n in range(7)]
    assert one.results(*elements) == [x * x for element in elements for x in element]


class PreBatched(Squares):
    def run_inference(self, batch, model, inference_args=None):
        return super().run_inference(list(batch), model, inference_args)


def test_pre_batched_elements_overlap():
    elements = [np.array([n, n + 1]) for n in range(8)]
    results = worker(PreBatched().with_no_batching(), source=PrebatchedBatches).results(*elements)
    assert results == [x * x for element in elements for x in element]
    assert sum(name.startswith("runinference") for name, _ in Squares.calls) >= 3


class Unsplit(Squares):
    def run_inference(self, batch, model, inference_args=None):
        self.calls.append((threading.current_thread().name, list(batch)))
        return self.results_of(batch, batch * batch, None)


def test_elements_with_one_result_for_all_rows_overlap():
    handler = Unsplit().with_no_batching(whole_results=True)
    elements = [np.array([n, n + 1]) for n in range(8)]
    results = worker(handler, source=UnsplitBatches).results(*elements)
    assert [each.inference.tolist() for each in results] == [(x * x).tolist() for x in elements]
    assert sum(name.startswith("runinference") for name, _ in Squares.calls) >= 3


def test_pre_batched_elements_that_fail_become_dead_letters_in_order():
    one = worker(PreBatched().with_no_batching(), source=PrebatchedBatches)
    results, dead = one.bundle(*(np.array([n, -1 if n == 3 else n]) for n in range(8)))
    assert results == [x * x for n in range(8) for x in ((n,) if n == 3 else (n, n))]
    assert dead == [-1]


def test_results_of_earlier_batches_are_emitted_before_the_bundle_ends():
    one = worker(Squares(**TWO))
    one.do_fn.start_bundle()
    outputs = []
    for number in range(20):
        origin = window.WindowedValue(number, 0, (window.GlobalWindow(),))
        outputs += one.do_fn.process(number, origin) or ()
    assert [each.value for each in outputs] == squares(range(16))  # two batches are in flight
    outputs += one.do_fn.finish_bundle()
    assert [each.value for each in outputs] == squares(range(20))


@pytest.mark.parametrize("bad", [{3}, {0, 9}, {1, 2, 5}, set(range(10))])
def test_exactly_the_bad_elements_fail(bad):
    elements = [-1 if n in bad else n for n in range(10)]
    results, dead = worker(Squares(**TWO)).bundle(*elements)
    assert results == squares(n for n in range(10) if n not in bad)
    assert dead == [-1] * len(bad)


def test_a_batch_that_runs_out_of_memory_is_halved():
    assert worker(Squares(**TWO)).results(1, 2, 3, 100, 5, 6, 7) == squares([1, 2, 3, 100, 5, 6, 7])


class NotConcurrent(Squares):
    """Fails if a call begins before the previous one has ended."""

    def run_inference(self, batch, model, inference_args=None):
        assert not self.__dict__.get("busy"), "calls at the same time"
        self.busy = True
        try:
            time.sleep(0.001)
            return super().run_inference(batch, model, inference_args)
        finally:
            self.busy = False


def test_calls_after_an_error_do_not_run_at_the_same_time_as_later_batches():
    elements = [-1 if n % 5 == 0 else n for n in range(20)]
    results, dead = worker(NotConcurrent(**TWO)).bundle(*elements)
    assert results == squares(n for n in range(20) if n % 5)
    assert dead == [-1] * 4


class NotConcurrentInItsTurn(NotConcurrent):
    def call_overlap(self):
        return CallOverlap(uses_turn=True)


@pytest.mark.parametrize(
    "options", [{"large_model": True}, {"large_model": True, "model_copies": 2}]
)
def test_a_shared_model_gets_one_batch_of_a_thread_at_a_time(options):
    one = worker(NotConcurrentInItsTurn(**TWO, **options))
    assert one.results(*range(20)) == squares(range(20))
    one.do_fn.teardown()


class NonOverlapping(Squares):
    """Records the threads of its calls."""

    threads: set[int] = set()

    def call_overlap(self):
        return CallOverlap(max_calls=1)

    def run_inference(self, batch, model, inference_args=None):
        self.threads.add(threading.get_ident())
        return super().run_inference(batch, model, inference_args)


def test_a_handler_can_turn_overlap_off():
    assert worker(NonOverlapping(**TWO)).results(*range(20)) == squares(range(20))
    assert NonOverlapping.threads == {threading.get_ident()}


class Hanging(Squares):
    """Hangs at -2 until the test ends."""

    may_end = threading.Event()

    def run_inference(self, batch, model, inference_args=None):
        if -2 in batch:
            self.may_end.wait()
        return super().run_inference(batch, model, inference_args)


@contextmanager
def hanging(handler, **handling):
    """Return a worker, and end the calls that hang afterwards."""
    one = Worker(RunInference(handler(**TWO)).with_exception_handling(**handling)._config())
    try:
        yield one
    finally:
        Hanging.may_end.set()
        Hanging.may_end = threading.Event()
        one.do_fn.teardown()


@pytest.mark.parametrize("place", [2, 5, 9])
def test_a_call_that_hangs_fails_its_element_only(place):
    elements = [-2 if n == place else n for n in range(10)]
    with hanging(Hanging, timeout=1) as one:
        results, dead = one.bundle(*elements)
        assert results == squares(n for n in range(10) if n != place)
        assert dead == [-2]
        assert one.results(*range(6)) == squares(range(6))


def test_an_error_in_front_of_a_call_that_hangs_fails_its_element_only():
    with hanging(Hanging, timeout=1) as one:
        results, dead = one.bundle(0, 1, -1, 3, -2, 5, 6, 7)
        assert results == squares([0, 1, 3, 5, 6, 7])
        assert dead == [-1, -2]


class CountsLoads(Hanging):
    n_loads = 0

    def load_model(self):
        type(self).n_loads += 1
        return super().load_model()


def test_a_bundle_that_fails_in_front_of_a_call_that_hangs_replaces_its_model():
    handling = {"timeout": 1, "exc_class": TimeoutError}
    with hanging(CountsLoads, **handling) as one:
        with pytest.raises(ValueError, match="negative"):
            one.bundle(0, 1, -1, 3, -2, 5, 6, 7)
        assert one.bundle(*range(6)) == (squares(range(6)), [])
        assert CountsLoads.n_loads == 2


class Kept(CountsLoads):
    """Keeps its model after a timeout."""

    n_loads = 0

    def should_garbage_collect_on_timeout(self):
        return False


def test_calls_that_wait_for_one_that_hangs_keep_a_model_that_has_to_be_kept():
    with hanging(Kept, timeout=1) as one:
        results, dead = one.bundle(0, 1, -2, 3, 4, 5, 6, 7)
        assert (results, dead) == (squares([0, 1, 3, 4, 5, 6, 7]), [-2])
        assert Kept.n_loads == 1


def test_if_no_thread_can_start_batches_run_in_the_thread_of_the_bundle(monkeypatch):
    def fail(self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(CallThread, "start", fail)
    one = worker(Squares(**TWO))
    assert one.results(*range(10)) == squares(range(10))
    assert one.results(*range(10)) == squares(range(10))


def test_after_a_failed_bundle_nothing_is_in_flight():
    one = worker(Squares(**TWO), dead_letters=False)
    with pytest.raises(ValueError, match="negative"):
        one.results(1, 2, -1, 4, 5, 6, 7, 8, 9, 10)
    assert one.results(*range(6)) == squares(range(6))


def test_no_thread_outlives_its_bundle():
    before = set(threading.enumerate())
    assert worker(Squares(**TWO)).results(*range(8)) == squares(range(8))
    assert {name for name, _ in Squares.calls} != {threading.current_thread().name}
    assert set(threading.enumerate()) <= before


def test_a_refresh_within_a_bundle_applies_to_later_elements_only_and_holds_two_models():
    RecordingHandler.max_alive = 0
    step = RunInference(RecordingHandler("first", **TWO), model_metadata_pcoll=no_updates())
    elements = [(n, ModelMetadata(f"model-{n // 6}", "")) for n in range(24)]
    results = Worker(step._config()).bundle_with_updates(elements)
    assert results == [(n, f"model-{n // 6}") for n in range(24)]
    assert RecordingHandler.max_alive <= 2
    assert len(alive_models()) <= 1


def test_models_per_key_that_do_not_fit_together_are_evicted_and_never_wait_for_each_other():
    mappings = [KeyModelMapping([key], RecordingHandler(key, **TWO)) for key in "abc"]
    handler = KeyedModelHandler(mappings, max_models_per_worker_hint=1)
    elements = [(key, n) for n in range(6) for key in "abc"]
    results = worker(handler).results(*elements)
    assert sorted(results) == sorted((key, (n, key)) for key, n in elements)


def test_a_batch_in_flight_leaves_its_model_to_others_once_it_has_computed():
    """A thread that waits for elements, or for a step that shares its memory, used to keep its model in use."""
    RecordingHandler.max_alive = 0
    mappings = [KeyModelMapping([key], RecordingHandler(key, **TWO)) for key in "ab"]
    config = RunInference(KeyedModelHandler(mappings))._config()
    models = ProcessShared(CacheLimits(max_models=1, wait_secs=3))
    config = replace(config, session=replace(config.session, models=models))
    one, other = Worker(config), Worker(config)
    assert not alive_models()
    one.do_fn.start_bundle()
    outputs = []
    for number in range(6):
        origin = window.WindowedValue(("a", number), 0, (window.GlobalWindow(),))
        outputs += one.do_fn.process(origin.value, origin) or ()
    assert other.results(("b", 1)) == [("b", (1, "b"))]
    assert len(outputs) == 2  # two batches are in flight
    outputs += one.do_fn.finish_bundle()
    assert [each.value for each in outputs] == [("a", (n, "a")) for n in range(6)]
    assert RecordingHandler.max_alive == 1


def test_new_arguments_apply_to_their_element_and_later_ones():
    one = worker(Squares(**TWO), inference_args=beam.pvalue.AsDict(no_updates()))
    one.do_fn.start_bundle()
    outputs = []
    for number in range(9):
        origin = window.WindowedValue(number, 0, (window.GlobalWindow(),))
        outputs += one.do_fn.process(number, origin, None, {"scale": 1 + number // 3}) or ()
    outputs += one.do_fn.finish_bundle()
    assert [each.value for each in outputs] == [(1 + n // 3) * n * n for n in range(9)]


@pytest.mark.parametrize(
    "options", [{"large_model": True}, {"large_model": True, "model_copies": 2}]
)
def test_a_shared_model_takes_batches_that_overlap(options):
    one = worker(Squares(**TWO, **options))
    assert one.bundle(*range(6), -1, 7) == (squares([*range(6), 7]), [-1])
    one.do_fn.teardown()


def test_a_model_in_a_subprocess_takes_batches_that_overlap():
    step = RunInference(Squares(**TWO)).with_exception_handling(use_subprocess=True)
    one = Worker(step._config())
    assert one.bundle(*range(6), -1, 7) == (squares([*range(6), 7]), [-1])
    one.do_fn.teardown()


class Doubles(torch.nn.Module):
    """Doubles tensors of one shape, and counts its calls."""

    def __init__(self):
        super().__init__()
        self.n_calls = torch.nn.Parameter(torch.zeros(()), requires_grad=False)

    def forward(self, x):
        self.n_calls += 1
        return {"doubled": 2 * x, "call": self.n_calls.expand(len(x)).clone()}


def test_pytorch_computes_in_order_and_keeps_each_result(tmp_path):
    path = str(tmp_path / "weights.pt")
    torch.save(Doubles().state_dict(), path)
    handler = PytorchModelHandlerTensor(path, Doubles, **TWO)
    results = worker(handler).results(*(torch.full((3,), float(n)) for n in range(12)))
    assert [result.inference["doubled"].tolist() for result in results] == [
        [2.0 * n] * 3 for n in range(12)
    ]
    # The handler checks once which dimension is the batch, so only the order of calls is fixed.
    calls = [int(result.inference["call"]) for result in results]
    assert calls[::2] == sorted(set(calls))


def test_a_tensor_of_another_shape_fails_alone(tmp_path):
    path = str(tmp_path / "weights.pt")
    torch.save(torch.nn.Linear(3, 1).state_dict(), path)
    handler = PytorchModelHandlerTensor(
        path, torch.nn.Linear, {"in_features": 3, "out_features": 1}, **TWO
    )
    tensors = [torch.ones(3 if n != 5 else 4) for n in range(10)]
    results, dead = worker(handler).bundle(*tensors)
    assert len(results) == 9
    assert [x.shape for x in dead] == [(4,)]
    with pytest.raises(ModelInputError):
        worker(handler, dead_letters=False).bundle(*tensors[5:6] * 2)


@pytest.mark.parametrize("windows", [window.FixedWindows(3), window.SlidingWindows(4, 2)])
def test_each_result_has_the_windows_of_its_element(windows):
    def run(transform):
        found = []
        with beam.Pipeline(runner=RUNNER) as pipeline:
            timed = [window.TimestampedValue(n, n) for n in range(12)]
            _ = (
                pipeline
                | beam.Create(timed, reshuffle=False)
                | beam.Map(lambda x: x)
                | beam.WindowInto(windows)
                | transform
                | beam.Map(lambda x, w=beam.DoFn.WindowParam: (x, w.start, w.end))
                | beam.ParDo(CollectElements(found))
            )
        return sorted(CollectElements.take(found))

    assert run(RunInference(Squares(**TWO))) == run(beam.Map(lambda x: x * x))


class Counting(Squares):
    """Counts elements in a metric."""

    def run_inference(self, batch, model, inference_args=None):
        time.sleep(0.01)  # meanwhile, the bundle goes on to the steps before and after this one
        Metrics.counter("test", "squared").inc(len(batch))
        return super().run_inference(batch, model, inference_args)


def wait_a_moment(element):
    time.sleep(0.005)
    return element


def test_metrics_of_a_handler_count_for_its_step():
    with beam.Pipeline(runner=RUNNER) as pipeline:
        _ = (
            pipeline
            | beam.Create(range(20), reshuffle=False)
            | "Before" >> beam.Map(wait_a_moment)
            | "Infer" >> RunInference(Counting(**TWO))
            | "After" >> beam.Map(wait_a_moment)
        )
    metrics = pipeline.result.metrics().query(MetricsFilter().with_name("squared"))
    [counter] = metrics["counters"]
    assert (counter.key.step.partition("/")[0], counter.committed) == ("Infer", 20)
