"""Token buckets: no minute exceeds the limit, large requests get through, and clocks may jump."""

from __future__ import annotations

import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runinference.remote.request_rate import RequestRate, TokenBucket


def start_times(bucket, amounts, now=0.0):
    """Return when requests that are waiting from the start get through."""
    times = []
    for amount in amounts:
        while wait := bucket.wait_secs(amount, now):
            now += wait
        bucket.take(amount)
        times.append(now)
    return times


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 100), max_size=60), st.integers(1_000, 2_000))
def test_no_60_seconds_contain_more_than_the_limit(amounts, per_minute):
    times = start_times(TokenBucket(per_minute), amounts)
    for first, start in enumerate(times):
        within = [
            n for n, t in zip(amounts[first:], times[first:], strict=True) if t < start + 59.9
        ]
        assert sum(within) <= per_minute + 1


def test_the_whole_limit_is_used():
    assert start_times(TokenBucket(600), [1] * 600)[-1] == pytest.approx(60, abs=0.5)


def test_a_request_larger_than_the_bucket_gets_through_alone():
    assert start_times(TokenBucket(60), [1_000, 1]) == pytest.approx([0, 1_000 / 0.9 - 5 / 0.9])
    assert start_times(TokenBucket(1), [1, 1, 1]) == pytest.approx([0, 66.67, 133.33], abs=0.01)


def test_corrections_delay_or_advance_later_requests():
    bucket = TokenBucket(600)
    bucket.take(60)
    bucket.take(90)  # the request used more than estimated
    assert bucket.wait_secs(9, 0) == pytest.approx(11)
    bucket.take(-90)
    assert bucket.wait_secs(9, 0) == pytest.approx(1)
    bucket.take(-1_000)  # never more than the bucket holds
    bucket.take(60)
    assert bucket.wait_secs(9, 0) == pytest.approx(1)


def test_a_clock_that_jumps_neither_blocks_nor_exceeds_the_limit():
    bucket = TokenBucket(600)
    assert bucket.wait_secs(60, 1_000) == 0
    bucket.take(60)
    assert bucket.wait_secs(9, 500) == pytest.approx(1)  # it went back
    assert bucket.wait_secs(9, 501) == 0
    bucket.take(9)
    assert bucket.wait_secs(60, 1e9) == 0  # it went ahead
    bucket.take(60)
    assert bucket.wait_secs(1, 1e9) > 0


def test_requests_wait_for_tokens_and_continue_when_some_are_returned():
    rate = RequestRate(None, 60_000)
    rate.acquire(6_000)
    start = time.monotonic()
    rate.acquire(90)
    assert time.monotonic() - start >= 0.099
    rate.correct(-6_000)
    rate.acquire(1_000_000)  # leaves the bucket empty for 18 minutes
    waiting = threading.Thread(target=rate.acquire, args=[1])
    waiting.start()
    rate.correct(-1_000_000)
    waiting.join(30)
    assert not waiting.is_alive()
