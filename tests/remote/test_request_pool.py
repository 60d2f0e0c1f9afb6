"""Concurrent requests, and the limits that all copies of a handler share in a process."""

from __future__ import annotations

import copy
import os
import pickle
import random
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from apache_beam.metrics import Metrics

from remote.fakes import (
    TIMEOUT_SECS,
    BarrierModel,
    DoublingEndpoint,
    FunctionEndpoint,
    ScriptedModel,
    StatusError,
    count,
    double,
)
from runinference import RemoteModelHandler
from runinference.errors import RateLimitExceeded


def test_runs_requests_concurrently_and_returns_results_in_order():
    model = BarrierModel(16)
    handler = FunctionEndpoint(model, max_request_size=8)
    assert handler.call(list(range(128))) == double(range(128))
    assert model.max_in_flight == 16
    assert set(model.sizes) == {8}


def test_limits_requests_in_flight_across_threads():
    model = BarrierModel(3)
    handler = FunctionEndpoint(model, max_request_size=2, max_concurrent_requests=3)
    single = FunctionEndpoint(model, max_concurrent_requests=3)
    single._process_pool = handler._process_pool
    with ThreadPoolExecutor(3) as threads:
        futures = [threads.submit(h.call, list(range(14))) for h in (handler, single, single)]
        assert [f.result() for f in futures] == [double(range(14))] * 3
    assert model.max_in_flight == 3


@pytest.mark.parametrize("size", [1, None], ids=["pool thread", "calling thread"])
def test_a_request_holds_a_slot_only_while_in_flight(size):
    def respond(batch, args):
        free.append(pool.slots.acquire(blocking=False))
        if len(free) == 1:
            raise ConnectionError
        return double(batch)

    handler = FunctionEndpoint(respond, max_request_size=size, max_concurrent_requests=1)
    pool = handler._process_pool.get(handler._create_pool)
    free, free_during_pauses = [], []

    def pause(seconds):
        free_during_pauses.append(pool.slots.acquire(blocking=False))
        pool.slots.release()

    handler._sleep = pause
    assert handler.call([1, 2]) == [2, 4]
    assert set(free) == {False}
    assert free_during_pauses == [True]


def test_copies_of_a_handler_share_a_pool():
    handler = DoublingEndpoint(max_request_size=1)
    pool = handler._process_pool.get(handler._create_pool)
    copies = [
        pickle.loads(pickle.dumps(handler)),
        copy.deepcopy(handler),
        handler.with_no_batching(),
    ]
    for other_copy in copies:
        assert other_copy._process_pool.get(other_copy._create_pool) is pool
    other = DoublingEndpoint(max_request_size=1)
    assert other._process_pool.get(other._create_pool) is not pool


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_forked_process_gets_its_own_threads():
    program = """
import os, signal
from runinference import RemoteModelHandler

class EchoEndpoint(RemoteModelHandler):
    def create_client(self):
        return None
    def request(self, batch, model, inference_args=None):
        return list(batch)

handler = EchoEndpoint(max_request_size=1, max_concurrent_requests=1)
assert handler.predict([1, 2]) == [1, 2]
child = os.fork()
if not child:
    signal.alarm(60)
    os._exit(handler.predict([1, 2]) != [1, 2])
raise SystemExit(os.waitpid(child, 0)[1])
"""
    assert subprocess.run([sys.executable, "-c", program], timeout=120).returncode == 0


# --- failures


def test_a_failing_request_does_not_stop_requests_in_flight():
    completed = []
    others_completed = threading.Event()

    def respond(batch, args):
        if batch == [0]:
            others_completed.wait(TIMEOUT_SECS)
            raise StatusError(400)
        completed.append(batch[0])
        if len(completed) == 3:
            others_completed.set()
        return double(batch)

    with pytest.raises(StatusError, match="400"):
        FunctionEndpoint(respond, max_request_size=1, max_concurrent_requests=4).call([0, 1, 2, 3])
    assert sorted(completed) == [1, 2, 3]


def test_raises_the_error_of_the_first_failed_request():
    barrier = threading.Barrier(3)

    def respond(batch, args):
        barrier.wait(TIMEOUT_SECS)
        raise ValueError(f"example {batch[0]}")

    for _ in range(20):
        with pytest.raises(ValueError, match="example 0"):
            FunctionEndpoint(respond, max_request_size=1, num_retries=0).call([0, 1, 2])


def test_cancels_the_remaining_requests_after_a_failure():
    model = ScriptedModel(StatusError(400))
    with pytest.raises(StatusError):
        FunctionEndpoint(model, max_request_size=1, max_concurrent_requests=1).call(
            list(range(1000))
        )
    assert model.calls < 1000


def test_the_next_batch_succeeds_after_a_failure():
    handler = FunctionEndpoint(
        ScriptedModel(StatusError(400)), max_request_size=1, max_concurrent_requests=2
    )
    with pytest.raises(StatusError):
        handler.call([1, 2, 3, 4])
    assert handler.call([1, 2, 3, 4]) == [2, 4, 6, 8]


def test_returns_all_results_with_many_threads_and_failures():
    def flaky(batch, args):
        if random.random() < 0.3:
            raise ConnectionError
        return double(batch)

    handler = FunctionEndpoint(flaky, max_request_size=3, max_concurrent_requests=5, num_retries=50)
    handler.throttler.throttle = lambda: None
    batches = [list(range(start, start + 40)) for start in range(0, 1200, 40)]
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(handler.call, batches)) == [double(batch) for batch in batches]


# --- rate limit


class ScriptedLimiter:
    """Allow or reject requests as given, then allow all, and record the number of examples of each."""

    def __init__(self, *decisions):
        self.decisions = list(decisions)
        self.hits = []

    def allow(self, *, hits_added):
        self.hits.append(hits_added)
        return self.decisions.pop(0) if self.decisions else True


def test_retries_a_rate_limited_request_regardless_of_the_filter():
    limiter = ScriptedLimiter(False, False)
    model = ScriptedModel()
    handler = FunctionEndpoint(model, rate_limiter=limiter, retry_filter=lambda error: False)
    assert handler.call([1, 2, 3]) == [2, 4, 6]
    assert limiter.hits == [3, 3, 3]
    assert model.calls == 1


def test_a_persistent_rate_limit_is_an_error_with_a_hint():
    handler = FunctionEndpoint(double, rate_limiter=ScriptedLimiter(*[False] * 9), num_retries=2)
    with pytest.raises(RateLimitExceeded, match="raise its limit, lower max_concurrent_requests"):
        handler.call([1])


def test_the_rate_limiter_counts_examples():
    limiter = ScriptedLimiter()
    FunctionEndpoint(double, rate_limiter=limiter, max_request_size=4).call(list(range(10)))
    assert sorted(limiter.hits) == [2, 4, 4]


def test_copies_of_a_handler_share_a_rate_limiter():
    handler = DoublingEndpoint(rate_limiter=ScriptedLimiter())
    copies = [pickle.loads(pickle.dumps(handler)) for _ in range(2)]
    for other_copy in copies:
        assert other_copy.run_inference([1], None) == [2]
    pools = [each._process_pool.get(each._create_pool) for each in copies]
    assert len({id(pool._rate_limiter) for pool in pools}) == 1


# --- metrics


class CountingEndpoint(RemoteModelHandler):
    def create_client(self):
        return Metrics.counter("counting", "requests")

    def request(self, batch, model, inference_args=None):
        model.inc()
        return double(batch)


def test_request_threads_update_metrics_of_the_step():
    assert count("counting", "requests", CountingEndpoint(max_request_size=1), 100) == 100
