"""Handlers may define their methods with ``async def``: results, errors, retries and metrics are the same."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import apache_beam as beam
import pytest
from apache_beam.ml.inference import base as beam_base

from common import RUNNER, run
from runinference import (
    Backoff,
    KeyedModelHandler,
    KeyModelMapping,
    ModelHandler,
    RemoteModelHandler,
    RunInference,
)
from runinference.errors import InferenceTimeoutError

TIMEOUT_SECS = 30


class AsyncDoubler(ModelHandler):
    def load_model(self):
        return print  # Beam keeps a weak reference to the model

    async def run_inference(self, batch, model, inference_args=None):
        await asyncio.sleep(0)
        if "bad" in batch:
            raise ValueError("a bad element")
        if "endless" in batch:
            await asyncio.Event().wait()
        return [2 * x for x in batch]


class GeneratingDoubler(AsyncDoubler):
    async def run_inference(self, batch, model, inference_args=None):
        for x in batch:
            yield 2 * x


class AsyncEndpoint(RemoteModelHandler):
    """An endpoint whose client works in one event loop only, like most asynchronous clients."""

    failures = 0

    async def create_client(self):
        return asyncio.get_running_loop()

    async def request(self, batch, model, inference_args=None):
        assert asyncio.get_running_loop() is model
        beam.metrics.Metrics.counter("async", "sent").inc(len(batch))
        if type(self).failures > 0:
            type(self).failures -= 1
            raise ConnectionError("try again")
        if "bad" in batch:
            raise ValueError("a bad element")
        return [2 * x for x in batch]


def keyed(handler):
    return KeyedModelHandler(handler)


def per_key(handler):
    return KeyedModelHandler([KeyModelMapping(["k"], handler)])


HANDLERS = [
    AsyncDoubler(),
    GeneratingDoubler(),
    AsyncEndpoint(max_request_size=2),
    AsyncEndpoint(),
]


@pytest.mark.parametrize("handler", HANDLERS, ids=lambda handler: type(handler).__name__)
def test_predicts_with_async_methods(handler):
    assert handler.predict([1, 2, 3]) == [2, 4, 6]
    assert handler.with_no_batching().predict([[1, 2], [3]]) == [2, 4, 6]
    for wrap in (keyed, per_key):
        assert wrap(handler).predict([("k", 1), ("k", 2)]) == [("k", 2), ("k", 4)]


def test_returns_unsplit_results():
    handler = AsyncDoubler().with_no_batching(whole_results=True)
    assert handler.predict([[1, 2]]) == [[2, 4]]


@pytest.mark.parametrize("handler", HANDLERS[:3], ids=lambda handler: type(handler).__name__)
def test_works_in_a_pipeline(handler):
    assert sorted(run([1, 2, 3], RunInference(handler))) == [2, 4, 6]


class WaitsForBase(AsyncDoubler):
    async def run_inference(self, batch, model, inference_args=None):
        return await super().run_inference(batch, model, inference_args)


class GeneratesFromBase(GeneratingDoubler):
    async def run_inference(self, batch, model, inference_args=None):
        async for result in super().run_inference(batch, model, inference_args):
            yield result


@pytest.mark.parametrize("kind", [AsyncDoubler, GeneratingDoubler, WaitsForBase, GeneratesFromBase])
def test_works_in_transforms_and_handlers_of_beam(kind):
    handler = kind()
    keyed = beam_base.KeyedModelHandler(handler)
    mapped = beam_base.KeyedModelHandler([beam_base.KeyModelMapping(["k"], kind())])
    assert sorted(run([1, 2, 3], beam_base.RunInference(handler))) == [2, 4, 6]
    for transform in (beam_base.RunInference(keyed), RunInference(keyed)):
        assert sorted(run([("k", 1), ("k", 2)], transform)) == [("k", 2), ("k", 4)]
    for outer in (keyed, mapped):
        outer.override_metrics("test")
        model = outer.load_model()
        assert [*outer.run_inference([("k", 1), ("k", 2)], model)] == [("k", 2), ("k", 4)]
    assert handler.predict([1]) == [2]


def test_what_an_async_method_returns_is_a_coroutine():
    assert asyncio.run(AsyncDoubler().run_inference([1], "model")) == [2]
    AsyncDoubler().run_inference([1], "model").close()


def test_works_inside_a_running_event_loop():
    async def predict():
        return AsyncDoubler().predict([1])

    assert asyncio.run(predict()) == [2]


def test_a_coroutine_may_call_predict_of_another_async_handler():
    class Nested(AsyncDoubler):
        async def run_inference(self, batch, model, inference_args=None):
            return AsyncDoubler().predict(batch)

    assert Nested().predict([1]) == [2]


def test_a_coroutine_that_blocks_does_not_stop_others():
    entered, released = threading.Event(), threading.Event()

    class Blocking(AsyncDoubler):
        async def run_inference(self, batch, model, inference_args=None):
            entered.set()
            assert released.wait(TIMEOUT_SECS)
            return batch

    thread = threading.Thread(target=lambda: Blocking().predict([1]))
    thread.start()
    assert entered.wait(TIMEOUT_SECS)
    assert AsyncDoubler().predict([1]) == [2]
    released.set()
    thread.join()


def test_requests_run_concurrently():
    class Meeting(AsyncEndpoint):
        async def create_client(self):
            return asyncio.Barrier(8) if hasattr(asyncio, "Barrier") else _Barrier(8)

        async def request(self, batch, model, inference_args=None):
            await asyncio.wait_for(model.wait(), TIMEOUT_SECS)
            return batch

    assert Meeting(max_request_size=1).predict(range(8)) == [*range(8)]


def test_clients_of_all_handlers_and_threads_of_a_process_share_an_event_loop():
    class ReturnsItsLoop(AsyncEndpoint):
        async def request(self, batch, model, inference_args=None):
            assert asyncio.get_running_loop() is model
            return [id(model)] * len(batch)

    found = []

    def call_two_handlers():
        for _ in range(2):
            found.extend(ReturnsItsLoop(max_request_size=1).predict(range(3)))

    threads = [threading.Thread(target=call_two_handlers) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 24
    assert len(set(found)) == 1
    with ThreadPoolExecutor(1) as other:
        assert other.submit(ReturnsItsLoop().predict, [0]).result() == found[:1]


class _Barrier:
    """A minimum of ``asyncio.Barrier``, which Python 3.10 doesn't have."""

    def __init__(self, n):
        self._n = n
        self._event = asyncio.Event()

    async def wait(self):
        self._n -= 1
        if self._n == 0:
            self._event.set()
        await self._event.wait()


def letters(handler, elements, **handling):
    """Return the results and the dead letters of a pipeline."""
    with beam.Pipeline(runner=RUNNER) as pipeline:
        good, bad = (
            pipeline
            | beam.Create(elements, reshuffle=False)
            | RunInference(handler).with_exception_handling(**handling)
        )
        good | "good" >> beam.ParDo(_Keep("good"))
        bad.failed_inferences | "bad" >> beam.ParDo(_Keep("bad"))
    results, failed = _Keep.kept.pop("good", []), _Keep.kept.pop("bad", [])
    return sorted(results), [(element, kind) for element, (kind, _, _) in failed]


class _Keep(beam.DoFn):
    kept = {}

    def __init__(self, name):
        self._name = name

    def process(self, element):
        self.kept.setdefault(self._name, []).append(element)


@pytest.mark.parametrize(
    ("handler", "handling"),
    [
        (AsyncDoubler(), {}),
        (AsyncDoubler(large_model=True), {}),
        (AsyncEndpoint(max_request_size=2, num_retries=0), {"timeout": TIMEOUT_SECS}),
    ],
    ids=["in the process", "shared", "endpoint"],
)
def test_a_bad_element_is_a_dead_letter(handler, handling):
    results, failed = letters(handler, [1, "bad", 3], **handling)
    assert (results, failed) == ([2, 6], [("bad", ValueError)])


def test_a_coroutine_that_hangs_times_out():
    results, failed = letters(AsyncDoubler(max_batch_size=1), ["endless", 3], timeout=1)
    assert (results, failed) == ([6], [("endless", InferenceTimeoutError)])


def test_a_request_that_fails_is_retried_and_metrics_count_for_its_step():
    class Flaky(AsyncEndpoint):
        failures = 1

    pipeline = beam.Pipeline(runner=RUNNER)
    handler = Flaky(max_request_size=2, backoff=Backoff(initial_secs=0), throttle_delay_secs=0)
    _ = pipeline | beam.Create([1, 2], reshuffle=False) | RunInference(handler)
    result = pipeline.run()
    result.wait_until_finish()
    found = result.metrics().query(beam.metrics.MetricsFilter().with_namespace("async"))
    assert [counter.committed for counter in found["counters"]] == [4]


def test_a_remote_handler_written_for_beam_may_be_async_and_is_retried(monkeypatch):
    class BeamEndpoint(beam_base.RemoteModelHandler):
        failures = 1

        def create_client(self):
            return None

        async def request(self, batch, model, inference_args=None):
            await asyncio.sleep(0)
            if type(self).failures > 0:
                type(self).failures -= 1
                raise ConnectionError("try again")
            return [2 * x for x in batch]

    monkeypatch.setattr("time.sleep", lambda seconds: None)  # Beam waits for seconds
    handler = BeamEndpoint("test", num_retries=1, retry_filter=lambda error: True)
    assert run([1, 2], RunInference(handler)) == [2, 4]
