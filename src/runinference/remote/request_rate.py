"""Limits on requests and tokens per minute, shared by all threads of a process."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

#: The share of a minute's amount that may be sent at once after a pause. The rest is spread over the minute, so
#: that no 60 seconds contain more than the limit.
_BURST = 0.1


class TokenBucket:
    """A token bucket: an amount per minute, of which a tenth may be taken at once.

    An amount that is larger than the bucket is taken when the bucket is full. The next one then waits longer. The
    class has no clock and no lock.

    Attributes:
        capacity: The amount that may be taken at once.
        per_second: The amount that is added to the bucket per second.

    >>> bucket = TokenBucket(per_minute=600)
    >>> bucket.wait_secs(60, now=0)
    0.0
    >>> bucket.take(60)
    >>> bucket.wait_secs(9, now=0)
    1.0
    """

    def __init__(self, per_minute: float) -> None:
        self.capacity = per_minute * _BURST
        self.per_second = per_minute * (1 - _BURST) / 60
        self._level = self.capacity
        self._updated: float | None = None

    def wait_secs(self, amount: float, now: float) -> float:
        """Return how many seconds to wait until an amount may be taken; 0 if it may be taken now.

        Args:
            amount: The amount.
            now: The time in seconds, of any clock. If it is before the last one, no time has passed.
        """
        elapsed = 0 if self._updated is None else max(0.0, now - self._updated)
        self._updated = now
        self._level = min(self.capacity, self._level + elapsed * self.per_second)
        missing = min(amount, self.capacity) - self._level
        # Ignore differences that are due to rounding.
        return missing / self.per_second if missing > 1e-9 * self.capacity else 0.0

    def take(self, amount: float) -> None:
        """Take an amount; a negative one is returned to the bucket."""
        self._level = min(self.capacity, self._level - amount)


class RequestRate:
    """A limit on requests per minute, on tokens per minute, or on both. Requests get their turn in order."""

    def __init__(
        self,
        max_requests: float | None,
        max_tokens: float | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._requests = None if max_requests is None else TokenBucket(max_requests)
        self._tokens = None if max_tokens is None else TokenBucket(max_tokens)
        self._clock = clock
        self._turn = threading.Lock()
        self._changed = threading.Condition()

    def acquire(self, n_tokens: float) -> None:
        """Wait until a request of an estimated number of tokens may be sent."""
        buckets = [
            (bucket, amount)
            for bucket, amount in ((self._requests, 1.0), (self._tokens, n_tokens))
            if bucket is not None
        ]
        if not buckets:
            return
        with self._turn, self._changed:
            while True:
                now = self._clock()
                wait = max(bucket.wait_secs(amount, now) for bucket, amount in buckets)
                if not wait:
                    break
                self._changed.wait(wait)
            for bucket, amount in buckets:
                bucket.take(amount)

    def correct(self, n_tokens: float) -> None:
        """Take more tokens for a request that was sent, or return some if the number is negative."""
        if self._tokens is not None and n_tokens:
            with self._changed:
                self._tokens.take(n_tokens)
                self._changed.notify_all()
