"""Remote handlers: results, options, subclasses, real servers and pipelines."""

from __future__ import annotations

import inspect
import json
import pickle
import urllib.error
import urllib.request

import apache_beam as beam
import httpx
import numpy as np
import pytest
from apache_beam.ml.inference import base as beam_base

from common import RUNNER, CollectElements, run
from remote.fakes import (
    NO_DELAY,
    TIMEOUT_SECS,
    BarrierModel,
    DoublingEndpoint,
    FunctionEndpoint,
    ScriptedModel,
    double,
)
from runinference import Backoff, KeyedModelHandler, ModelHandler, RemoteModelHandler, RunInference
from runinference.errors import OptionError, ResultMismatchError, UnknownOptionError
from scripted_server import DropConnection, Reply, scripted_server


def test_sends_a_batch_as_one_request_by_default():
    model = ScriptedModel()
    assert FunctionEndpoint(model).call(list(range(100))) == double(range(100))
    assert model.calls == 1


@pytest.mark.parametrize(
    ("options", "sizes"),
    [
        ({}, (2048, 2048)),
        ({"max_batch_size": 100}, (100, 100)),
        ({"min_batch_size": 10}, (10, None)),
        ({"max_concurrent_requests": 2}, (256, 256)),
        ({"max_request_size": 10_000}, (10_000, 10_000)),
        ({"max_request_size": None}, (None, None)),
    ],
)
def test_default_batch_size_keeps_all_requests_busy(options, sizes):
    kwargs = FunctionEndpoint(double, **{"max_request_size": 8, **options}).batch_elements_kwargs()
    assert (kwargs.get("min_batch_size"), kwargs.get("max_batch_size")) == sizes


def test_accepts_all_batching_options():
    handler = FunctionEndpoint(
        double,
        max_batch_weight=10,
        element_size_fn=len,
        batch_length_fn=len,
        max_batch_duration_secs=1.5,
        max_batch_bytes=1000,
    )
    assert handler.predict(["a", "bb" * 4, "c"]) == ["aa", "bb" * 8, "cc"]


def test_unbatches_structured_output():
    def respond(batch, args):
        return {"label": np.array(batch) % 2, "score": [x / 10 for x in batch]}

    [first, second, third] = FunctionEndpoint(respond, max_request_size=2).call([1, 2, 3])
    assert first == {"label": 1, "score": 0.1}
    assert second == {"label": 0, "score": 0.2}
    assert third == {"label": 1, "score": 0.3}


def test_does_not_retry_the_wrong_number_of_results():
    model = ScriptedModel([2])
    with pytest.raises(ResultMismatchError, match="1 result for a batch of 3"):
        FunctionEndpoint(model).call([1, 2, 3])
    assert model.calls == 1


# --- options and subclasses


def test_constructor_takes_beams_arguments_in_the_same_order():
    def never(error):
        return False

    handler = DoublingEndpoint("space", 3, 9, never, window_ms=10, bucket_ms=5, overload_ratio=1.5)
    ours, in_beam = (
        list(inspect.signature(kind.__init__).parameters)
        for kind in (RemoteModelHandler, beam_base.RemoteModelHandler)
    )
    assert ours[: len(in_beam)] == in_beam
    assert handler.num_retries == 3
    assert handler.retry_filter is never
    assert handler.logger.name == "space"
    assert handler.throttler.throttle_delay_secs == 9


def test_needs_no_namespace_unlike_in_beam():
    assert DoublingEndpoint().predict([1]) == [2]

    class InBeam(beam_base.RemoteModelHandler):
        create_client = request = None

    with pytest.raises(ValueError, match="namespace must be non-empty"):
        InBeam()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_retries": -1}, "num_retries must be at least 0, but is -1"),
        ({"max_request_size": 0}, "max_request_size must be at least 1"),
        ({"max_concurrent_requests": 0}, "max_concurrent_requests must be at least 1"),
        ({"window_ms": 10, "bucket_ms": 20}, r"bucket_ms \(20\) must be .* at most window_ms"),
        ({"throttle_delay_secs": 0.5}, "whole number of seconds"),
        ({"large_model": True}, "remove large_model and model_copies"),
        ({"model_copies": 2}, "remove large_model and model_copies"),
        ({"min_batch_size": 9, "max_batch_size": 3}, "min_batch_size"),
    ],
)
def test_rejects_invalid_and_conflicting_options(options, message):
    with pytest.raises(OptionError, match=message):
        DoublingEndpoint(**options)


def test_suggests_the_closest_option_for_a_misspelled_one():
    with pytest.raises(UnknownOptionError, match="Did you mean 'num_retries'"):
        DoublingEndpoint(num_retry=3)
    with pytest.raises(UnknownOptionError, match="Did you mean 'max_request_size'"):
        FunctionEndpoint(double, max_requests_size=3)


@pytest.mark.parametrize(
    ("method", "hint"),
    [("load_model", "Implement create_client"), ("run_inference", "Implement request")],
)
def test_rejects_a_subclass_that_overrides_a_reserved_method(method, hint):
    with pytest.raises(TypeError, match=hint):
        type("Endpoint", (RemoteModelHandler,), {method: lambda self: None})


def test_rejects_a_subclass_without_the_required_methods():
    with pytest.raises(TypeError, match="request"):
        type("Endpoint", (RemoteModelHandler,), {"create_client": lambda self: None})()


def test_a_subclass_need_not_call_the_base_constructor():
    class WithoutSuper(DoublingEndpoint):
        def __init__(self):
            self.max_request_size = 2

    assert WithoutSuper().predict([1, 2, 3]) == [2, 4, 6]
    assert pickle.loads(pickle.dumps(DoublingEndpoint())).predict([1]) == [2]


def test_a_used_handler_can_be_pickled_and_is_small():
    handler = DoublingEndpoint(max_request_size=1)
    assert handler.predict(range(50)) == double(range(50))
    pickled = pickle.dumps(handler)
    assert len(pickled) < 10_000
    assert pickle.loads(pickled).predict([1, 2]) == [2, 4]


# --- real servers


class HttpxEndpoint(RemoteModelHandler):
    def __init__(self, url, **options):
        super().__init__(**{"backoff": NO_DELAY, **options})
        self.url = url

    def create_client(self):
        return httpx.Client(timeout=TIMEOUT_SECS, limits=httpx.Limits(max_connections=None))

    def request(self, batch, model, inference_args=None):
        return model.post(self.url, json=list(batch)).raise_for_status().json()


class UrllibEndpoint(HttpxEndpoint):
    def create_client(self):
        return None

    def request(self, batch, model, inference_args=None):
        request = urllib.request.Request(self.url, json.dumps(batch).encode())
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECS) as response:
            return json.load(response)


CLIENTS = pytest.mark.parametrize("client", [HttpxEndpoint, UrllibEndpoint])
INVALID_JSON = Reply(200, '[{"half": ')


@CLIENTS
@pytest.mark.parametrize(
    "script",
    [
        [Reply(500), Reply(500)],
        [
            Reply(503, "", {"Retry-After": "0"}),
            Reply(429, "", {"Retry-After": "Fri, 07 Aug 2026 08:00:00 GMT"}),
        ],
        [DropConnection(), DropConnection()],
        [INVALID_JSON, INVALID_JSON],
        [DropConnection(), INVALID_JSON, Reply(502), Reply(429, "", {"Retry-After": "whenever"})],
    ],
    ids=["500", "retry-after", "dropped connection", "invalid JSON", "all"],
)
def test_retries_until_a_real_server_answers(client, script):
    with scripted_server(*script, default=double) as server:
        handler = client(server.url)
        assert handler.predict([1]) == [2]
        assert len(server.requests) == len(script) + 1


@CLIENTS
def test_waits_for_retry_after_of_a_real_server(client):
    with scripted_server(Reply(429, "", {"Retry-After": "3"}), default=double) as server:
        handler = client(server.url, backoff=Backoff(jitter=0))
        sleeps = []
        handler._sleep = sleeps.append
        assert handler.predict([1, 2]) == [2, 4]
    assert sleeps == [3]


@CLIENTS
def test_does_not_retry_a_request_that_a_real_server_rejects(client):
    with scripted_server(Reply(422)) as server:
        with pytest.raises((httpx.HTTPStatusError, urllib.error.HTTPError), match="422"):
            client(server.url).predict([1])
        assert len(server.requests) == 1


@CLIENTS
def test_raises_the_clients_error_if_the_server_is_unreachable(client):
    with scripted_server() as server:
        url = server.url
    with pytest.raises((httpx.ConnectError, urllib.error.URLError)):
        client(url, num_retries=1).predict([1])


def test_sends_sixteen_concurrent_requests_to_a_real_server():
    with scripted_server(default=BarrierModel(16)) as server:
        assert HttpxEndpoint(server.url, max_request_size=8).predict(range(256)) == double(
            range(256)
        )
        assert {len(rows) for rows in server.requests} == {8}
        assert len(server.requests) == 32


# --- pipelines


TRANSFORMS = pytest.mark.parametrize(
    "transform", [RunInference, beam_base.RunInference], ids=["ours", "beam"]
)


@TRANSFORMS
def test_runs_requests_concurrently_in_a_pipeline(transform):
    with scripted_server(default=BarrierModel(4)) as server:
        handler = HttpxEndpoint(server.url, max_request_size=5, max_concurrent_requests=4)
        assert sorted(run(range(40), transform(handler))) == double(range(40))
        assert {len(rows) for rows in server.requests} == {5}


@TRANSFORMS
def test_a_pipeline_survives_transient_server_errors(transform):
    script = [Reply(503), DropConnection(), INVALID_JSON, Reply(500)]
    with scripted_server(*script, default=double) as server:
        handler = HttpxEndpoint(
            server.url, max_request_size=2, max_concurrent_requests=2, throttle_delay_secs=1
        )
        assert sorted(run(range(20), transform(handler))) == double(range(20))


def test_works_with_keys():
    with scripted_server(default=double) as server:
        handler = KeyedModelHandler(HttpxEndpoint(server.url, max_request_size=3))
        results = run([(str(n), n) for n in range(10)], RunInference(handler))
        assert sorted(results) == sorted((str(n), 2 * n) for n in range(10))


class BeamEndpoint(beam_base.RemoteModelHandler):
    double = BarrierModel(1)

    def create_client(self):
        return None

    def request(self, batch, model, inference_args=None):
        return self.double(batch)

    def batch_elements_kwargs(self):
        return {"min_batch_size": 2, "max_batch_size": 2}


def test_in_beam_the_requests_of_a_bundle_run_sequentially():
    results = run(range(20), beam_base.RunInference(BeamEndpoint("beam")))
    assert sorted(results) == double(range(20))
    assert BeamEndpoint.double.max_in_flight == 1
    assert len(BeamEndpoint.double.sizes) == 10


def test_a_rejected_request_fails_the_pipeline_with_the_clients_error():
    with scripted_server(Reply(422)) as server, pytest.raises(Exception, match="422 Unprocessable"):
        run([1], RunInference(HttpxEndpoint(server.url)))


class DeduplicatingHandler(ModelHandler):
    """Call another handler with the distinct elements, sorted, and assign its results to the batch."""

    def __init__(self, inner, **options):
        super().__init__(**options)
        self.inner = inner

    def load_model(self):
        return self.inner.load_model()

    def run_inference(self, batch, model, inference_args=None):
        unique = sorted(set(batch))
        results = self.inner.run_inference(unique, model, inference_args)
        found = dict(zip(unique, results, strict=True))
        return [(word, found[word]) for word in batch]


class UppercaseEndpoint(RemoteModelHandler):
    def create_client(self):
        return str.upper

    def request(self, batch, model, inference_args=None):
        if "bad" in batch:
            raise TypeError("a bad word")
        return [model(word) for word in batch]


def test_metrics_include_successful_requests_of_a_failed_batch():
    words = [f"{n:04}" for n in range(9)]
    pipeline = beam.Pipeline(runner=RUNNER)
    handler = UppercaseEndpoint(num_retries=0, max_request_size=2, min_batch_size=10)
    transform = RunInference(handler).with_exception_handling()
    _ = pipeline | beam.Create([*words, "bad"], reshuffle=False) | transform
    result = pipeline.run()
    result.wait_until_finish()

    def total(name):
        [found] = result.metrics().query(beam.metrics.MetricsFilter().with_name(name))[
            "distributions"
        ]
        return found.committed.sum

    assert total("inference_request_batch_size") == len(words)
    assert total("inference_request_batch_byte_size") == handler.get_num_bytes(words)


def test_ignores_partial_results_of_a_handler_that_got_a_different_batch():
    handler = DeduplicatingHandler(
        UppercaseEndpoint(max_request_size=1, num_retries=0), min_batch_size=6
    )
    words = ["z", "bad", "c", "a", "a", "y"]
    good, bad = [], []
    with beam.Pipeline(runner=RUNNER) as pipeline:
        elements = pipeline | beam.Create(words, reshuffle=False)
        results, dead_letters = elements | RunInference(handler).with_exception_handling()
        _ = results | "good" >> beam.ParDo(CollectElements(good))
        _ = dead_letters.failed_inferences | "bad" >> beam.ParDo(CollectElements(bad))
    assert CollectElements.take(good) == [(word, word.upper()) for word in words if word != "bad"]
    assert [word for word, _ in CollectElements.take(bad)] == ["bad"]


LIMITS = {
    "padded size": {"max_padded_size": 20, "batch_length_fn": len},
    "weight": {"max_batch_weight": 20, "element_size_fn": len},
    "bytes": {"max_batch_bytes": 200},
    "sizes": {"min_batch_size": 2, "max_batch_size": 3},
    "buckets": {"batch_length_fn": len, "batch_bucket_boundaries": [3, 6]},
    "duration": {"max_batch_duration_secs": 1},
}


@pytest.mark.parametrize("limits", LIMITS.values(), ids=LIMITS)
def test_every_limit_of_a_batch_can_be_combined_with_the_size_of_requests(limits):
    batches = []

    def respond(batch, args):
        batches.append([len(text) for text in batch])
        return [len(text) for text in batch]

    handler = FunctionEndpoint(respond, max_request_size=4, max_concurrent_requests=2, **limits)
    texts = ["x" * (n % 9 + 1) for n in range(40)]
    assert handler.predict(texts) == [len(text) for text in texts]
    assert max(map(len, batches)) <= min(4, limits.get("max_batch_size", 4))
    if "max_padded_size" in limits:
        assert all(max(lengths) * len(lengths) <= 20 for lengths in batches)
    if "max_batch_weight" in limits:
        assert all(sum(lengths) <= 20 for lengths in batches)
