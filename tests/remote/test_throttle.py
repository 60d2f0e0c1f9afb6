"""New requests are delayed while many recent ones fail."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest
from apache_beam.io.components import adaptive_throttler

from remote.fakes import BarrierModel, FunctionEndpoint, ScriptedModel, StatusError, count, double
from runinference import RemoteModelHandler
from runinference.remote.throttle import Throttle


def throttle_in_beam(monkeypatch, n):
    """Return whether Beam's throttler delays each of n requests in flight."""
    chance = SimpleNamespace(uniform=lambda low, high: 0.49)
    monkeypatch.setattr(adaptive_throttler, "random", SimpleNamespace(Random=lambda: chance))
    throttler = adaptive_throttler.AdaptiveThrottler(1000, 1000, 2)
    return [throttler.throttle_request(1e12) for _ in range(n)]


class FakeTime:
    def __init__(self):
        self.now = 1e9
        self.sleeps = []

    def time(self):
        return self.now

    def sleep(self, seconds):
        self.sleeps.append(seconds)
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    """Time that only sleeping advances. Requests are delayed if that is at least as likely as not."""
    fake = FakeTime()
    monkeypatch.setattr("runinference.remote.handler.time", fake)
    monkeypatch.setattr("runinference.remote.throttle.time", fake)
    monkeypatch.setattr("runinference.remote.throttle.random", SimpleNamespace(random=lambda: 0.49))
    return fake


def test_delays_new_requests_after_failures(clock):
    model = ScriptedModel(StatusError(503), StatusError(503))
    handler = FunctionEndpoint(model, num_retries=0, throttle_delay_secs=7)
    for _ in range(2):
        with pytest.raises(StatusError):
            handler.call([1])
    assert clock.sleeps == []
    assert handler.call([1]) == [2]
    assert clock.sleeps == [7]


def test_a_single_failure_does_not_delay_requests_unlike_in_beam(clock, monkeypatch):
    handler = FunctionEndpoint(ScriptedModel(StatusError(503)), num_retries=0)
    with pytest.raises(StatusError):
        handler.call([1])
    assert handler.call([1]) == [2]
    assert clock.sleeps == []
    assert throttle_in_beam(monkeypatch, 2) == [False, True]


def test_does_not_delay_retries(clock):
    handler = FunctionEndpoint(ScriptedModel(*[StatusError(503) for _ in range(5)]))
    assert handler.call([1]) == [2]
    assert clock.sleeps == []


def test_rejected_requests_do_not_delay_requests(clock):
    handler = FunctionEndpoint(ScriptedModel(*[StatusError(400) for _ in range(20)]))
    for _ in range(20):
        with pytest.raises(StatusError):
            handler.call([1])
    assert clock.sleeps == []


def test_requests_in_flight_do_not_delay_requests_unlike_in_beam(clock, monkeypatch):
    model = BarrierModel(16)
    assert FunctionEndpoint(model, max_request_size=1).call(list(range(16))) == double(range(16))
    assert clock.sleeps == []
    assert throttle_in_beam(monkeypatch, 3) == [False, True, True]


class OverloadedEndpoint(RemoteModelHandler):
    """Starts with a history of many failed requests."""

    def create_client(self):
        now = time.time() * 1000
        for _ in range(1000):
            self.throttler.failed_request(now)

    def request(self, batch, model, inference_args=None):
        return double(batch)


def test_counts_throttled_seconds_under_beams_metric_name():
    handler = OverloadedEndpoint("overloaded", throttle_delay_secs=1, max_request_size=5)
    seconds = count("overloaded", "cumulativeThrottlingSeconds", handler, 10)
    assert seconds is not None
    assert seconds >= 1


def test_probability_follows_the_formula_of_the_sre_book(monkeypatch):
    probabilities = [0.0, 0.2, 0.4, 0.6, 0.8]
    for n_accepted in range(6):
        expected = max(0, (10 - 2 * n_accepted) / 11)
        for draw in probabilities:
            monkeypatch.setattr(
                "runinference.remote.throttle.random",
                SimpleNamespace(random=lambda: draw),  # noqa: B023
            )
            throttle = Throttle(window_ms=1_000, bucket_ms=100, overload_ratio=2)
            for n in range(10):
                report = throttle.successful_request if n < n_accepted else throttle.failed_request
                report(1e12)
            assert throttle.throttle_request(1e12) is (draw < expected)


def test_forgets_requests_before_the_window(monkeypatch):
    monkeypatch.setattr("runinference.remote.throttle.random", SimpleNamespace(random=lambda: 0))
    throttle = Throttle(window_ms=1_000, bucket_ms=100)
    for _ in range(10):
        throttle.failed_request(1e12)
    assert throttle.throttle_request(1e12 + 500) is True
    assert throttle.throttle_request(1e12 + 2_500) is False
