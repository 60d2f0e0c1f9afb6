"""Fake remote models, and handlers that call them."""

from __future__ import annotations

import threading

import apache_beam as beam

from common import RUNNER
from runinference import Backoff, RemoteModelHandler, RunInference

NO_DELAY = Backoff(initial_secs=0)
TIMEOUT_SECS = 30  # until a test stops waiting for other threads


class FunctionEndpoint(RemoteModelHandler):
    """Call a function of the batch and the arguments. Pauses between retries are recorded instead of slept."""

    def __init__(self, function, **options):
        super().__init__(**options)
        self.function = function
        self.sleeps = []
        self._sleep = self.sleeps.append

    def create_client(self):
        return self.function

    def request(self, batch, model, inference_args=None):
        return model(batch, inference_args)

    def call(self, batch, **inference_args):
        return self.run_inference(batch, self.create_client(), inference_args or None)


class DoublingEndpoint(RemoteModelHandler):
    """Double the examples. Unlike ``FunctionEndpoint``, it can be pickled."""

    def create_client(self):
        return None

    def request(self, batch, model, inference_args=None):
        return double(batch)


def double(batch, args=None):
    return [2 * x for x in batch]


class ScriptedModel:
    """Return or raise the given outcomes in order, then double the examples."""

    def __init__(self, *outcomes):
        self.outcomes = list(outcomes)
        self.calls = 0
        self._lock = threading.Lock()

    def __call__(self, batch, args=None):
        with self._lock:
            self.calls += 1
            outcome = self.outcomes.pop(0) if self.outcomes else None
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome if outcome is not None else double(batch)


class BarrierModel:
    """Double the examples once n requests are in flight, and record the maximum in flight."""

    def __init__(self, n):
        self.barrier = threading.Barrier(n)
        self.in_flight = self.max_in_flight = 0
        self.sizes = []
        self._lock = threading.Lock()

    def __call__(self, batch, args=None):
        with self._lock:
            self.in_flight += 1
            self.max_in_flight = max(self.max_in_flight, self.in_flight)
            self.sizes.append(len(batch))
        self.barrier.wait(TIMEOUT_SECS)
        with self._lock:
            self.in_flight -= 1
        return double(batch)


class StatusError(Exception):
    def __init__(self, status_code, **attributes):
        super().__init__(f"status {status_code}")
        self.status_code = status_code
        vars(self).update(attributes)


def count(namespace, name, handler, n):
    """Return the value of a counter after a pipeline ran inference on n elements."""
    pipeline = beam.Pipeline(runner=RUNNER)
    _ = pipeline | beam.Create(range(n)) | RunInference(handler)
    result = pipeline.run()
    result.wait_until_finish()
    counters = result.metrics().query(beam.metrics.MetricsFilter().with_namespace(namespace))
    return {found.key.metric.name: found.committed for found in counters["counters"]}.get(name)
