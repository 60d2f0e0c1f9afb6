"""Client-side throttling: delay new requests while many recent ones fail."""

from __future__ import annotations

import logging
import random
import threading
import time

from apache_beam.io.components.util import MovingSum
from apache_beam.metrics import Metrics

from runinference.checks import check_number, check_positive, check_seconds
from runinference.errors import OptionError

#: The most parts of the history of requests, each of which is a counter.
_MAX_BUCKETS = 100_000


class Throttle:
    """Adaptive throttling as in Google's SRE book, with the options and the metric of Beam's throttler.

    A new request is delayed with probability ``max(0, (requests - K * accepted) / (requests + 1))``, where ``K``
    is ``overload_ratio``. Unlike in Beam, requests in flight don't count as failed, and a single failure delays
    nothing. See https://sre.google/sre-book/handling-overload/.
    """

    # Shared by all instances, because a handler that holds a lock can't be pickled.
    _lock = threading.Lock()

    def __init__(
        self,
        window_ms: int = 1_000,
        bucket_ms: int = 1_000,
        overload_ratio: float = 2,
        namespace: str = "",
        throttle_delay_secs: int = 5,
    ) -> None:
        """Set the options that ``RemoteModelHandler`` describes."""
        for name, milliseconds in (("window_ms", window_ms), ("bucket_ms", bucket_ms)):
            check_positive(name, milliseconds)
        if not 0 < bucket_ms <= window_ms:
            raise OptionError(
                f"bucket_ms ({bucket_ms}) must be greater than 0 and at most window_ms ({window_ms})."
            )
        if window_ms / bucket_ms > _MAX_BUCKETS:
            raise OptionError(
                f"bucket_ms ({bucket_ms}) divides window_ms ({window_ms}) into more than {_MAX_BUCKETS:,} parts. "
                "To fix this, raise bucket_ms."
            )
        check_number("overload_ratio", overload_ratio)
        check_seconds("throttle_delay_secs", throttle_delay_secs, may_be_0=True)
        if throttle_delay_secs != int(throttle_delay_secs):
            raise OptionError(
                f"throttle_delay_secs must be a whole number of seconds, but is {throttle_delay_secs!r}."
            )
        namespace = namespace or "RunInference"
        self.throttle_delay_secs = int(throttle_delay_secs)
        self.logger = logging.getLogger(namespace)
        self._overload_ratio = overload_ratio
        self._requests = MovingSum(window_ms, bucket_ms)
        self._accepted = MovingSum(window_ms, bucket_ms)
        self._throttled_secs = Metrics.counter(namespace, "cumulativeThrottlingSeconds")

    def throttle(self) -> None:
        """Wait until a new request may be sent."""
        delay = self.throttle_delay_secs
        while self.throttle_request(time.time() * 1_000):
            self.logger.info("Delaying request for %d seconds due to previous failures", delay)
            time.sleep(delay)
            self._throttled_secs.inc(delay)

    def throttle_request(self, now: float) -> bool:
        """Return whether to delay a new request at a time in milliseconds since the epoch."""
        with self._lock:
            requests, accepted = self._requests.sum(now), self._accepted.sum(now)
            overload = (requests - self._overload_ratio * accepted) / (requests + 1)
            delay = requests - accepted > 1 and random.random() < overload
            if delay:
                self._requests.add(now, 1)
            return bool(delay)

    def successful_request(self, now: float) -> None:
        """Count a request that the server accepted, at a time in milliseconds since the epoch."""
        with self._lock:
            self._requests.add(now, 1)
            self._accepted.add(now, 1)

    def failed_request(self, now: float) -> None:
        """Count a request that failed, at a time in milliseconds since the epoch."""
        with self._lock:
            self._requests.add(now, 1)
