"""What the requests of one process have in common: threads, places in flight, a rate limit, a throttle."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from typing import Any, Protocol

from apache_beam.io.components.adaptive_throttler import ReactiveThrottler
from apache_beam.runners.worker.statesampler import get_current_tracker, set_current_tracker
from apache_beam.utils.shared import Shared

from runinference.errors import OptionError, PartialResult, RateLimitExceeded
from runinference.remote.retry import at_least


class RateLimiter(Protocol):
    """What limits the rate of requests; Beam's ``EnvoyRateLimiter`` is one. Called from several threads."""

    def allow(self, *, hits_added: int) -> bool:
        """Whether so many examples may be sent now; may wait until they may."""


class RequestPool:
    """What all copies of a handler have in common in one process: threads, places in flight, the limiter."""

    def __init__(self, n_places: int, rate_limiter: RateLimiter | None) -> None:
        self.places = threading.BoundedSemaphore(n_places)
        self._pool = ThreadPoolExecutor(n_places, thread_name_prefix="runinference-request")
        self._rate_limiter = rate_limiter

    def ask_leave(self, n_examples: int) -> None:
        """Asks the rate limiter, if there is one.

        Raises:
            RateLimitExceeded: It refuses.
        """
        limiter = self._rate_limiter
        if limiter is not None and not limiter.allow(hits_added=n_examples):
            raise RateLimitExceeded(
                f"The rate limiter refused a request of {n_examples} examples. If it goes on doing so, raise its "
                "limit, lower max_concurrent_requests, or wait longer: num_retries, backoff."
            )

    def run(self, send: Callable[[Any], list[Any]], parts: Sequence[Any]) -> list[PartialResult]:
        """Send the parts of a batch, several at a time, and return the outcome of each in order.

        After the first failure, requests in flight are awaited, and no others are sent.
        """
        if len(parts) == 1:
            return [_run(send, parts[0])]
        in_step = _InStepOfThisThread(send)
        futures = [self._pool.submit(in_step, part) for part in parts]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
        finally:
            for future in futures:
                future.cancel()
        wait(futures)
        return [_outcome(part, future) for part, future in zip(parts, futures, strict=True)]


def _run(send: Callable[[Any], list[Any]], part: Any) -> PartialResult:
    """Send one part in this thread."""
    try:
        return PartialResult(part_size(part), send(part), None)
    except Exception as error:
        return PartialResult(part_size(part), None, error)


def _outcome(part: Any, future: Future[Any]) -> PartialResult:
    size = part_size(part)
    if future.cancelled():
        return PartialResult(size, None, None)
    error = future.exception()
    if isinstance(error, Exception):
        return PartialResult(size, None, error)
    return PartialResult(size, future.result(), None)


def part_size(part: Any) -> int:
    """Return the number of examples in a part of a batch; 1 for a structure such as a mapping."""
    return len(part) if is_list_like(part) else 1


def is_list_like(batch: Any) -> bool:
    """Return whether a batch is a sequence of examples."""
    return hasattr(batch, "__len__") and not isinstance(batch, Mapping)


class _InStepOfThisThread:
    """A function whose metrics count for the step that this thread works for, whichever thread calls it."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self._function = function
        self._tracker = get_current_tracker()

    def __call__(self, argument: Any) -> Any:
        set_current_tracker(self._tracker)
        try:
            return self._function(argument)
        finally:
            set_current_tracker(None)


class ProcessRequestPool:
    """Finds the pool of a handler in whatever process asks: all copies of the handler find the same one."""

    def __init__(self) -> None:
        self._shared = Shared()
        self._found: tuple[int, RequestPool] | None = None

    def open(self, make: Callable[[], RequestPool]) -> RequestPool:
        """The pool, made by the first that asks; it lives as long as a handler that asked."""
        process = os.getpid()  # threads do not live on in a fork
        if self._found is None or self._found[0] != process:
            self._found = process, self._shared.acquire(make, tag=process)
        return self._found[1]

    def __getstate__(self) -> dict[str, Any]:
        return {"_shared": self._shared, "_found": None}


class _Throttler(ReactiveThrottler):  # type: ignore[misc]
    """Beam's throttler, for requests that run together.

    One that is on its way has not failed yet; and a single failure is no overload.
    """

    # One for all, because a lock of a handler's own could not be pickled; nobody holds it for long.
    _lock = threading.Lock()

    def throttle_request(self, now: float) -> bool:
        with self._lock:
            failed = self._all_requests.sum(now) - self._successful_requests.sum(now)
            chance = self._throttling_probability(now) if failed > 1 else 0
            hold_back = bool(self._random.uniform(0, 1) < chance)
            if hold_back:
                self._all_requests.add(now, 1)
            return hold_back

    def successful_request(self, now: float) -> None:
        with self._lock:
            self._all_requests.add(now, 1)
            super().successful_request(now)

    def failed_request(self, now: float) -> None:
        with self._lock:
            self._all_requests.add(now, 1)


def throttler(
    window_ms: int = 1_000,
    bucket_ms: int = 1_000,
    overload_ratio: float = 2,
    namespace: str = "",
    throttle_delay_secs: int = 5,
) -> _Throttler:
    """What holds new requests back while many of the last ones failed; see ``RemoteModelHandler``.

    Raises:
        OptionError: A value is out of range.
    """
    if not 0 < bucket_ms <= window_ms:
        raise OptionError(
            f"bucket_ms ({bucket_ms}) must be greater than 0 and at most window_ms ({window_ms})."
        )
    at_least(0, "overload_ratio", overload_ratio)
    at_least(0, "throttle_delay_secs", throttle_delay_secs)
    if throttle_delay_secs != int(throttle_delay_secs):
        raise OptionError(
            f"throttle_delay_secs must be whole seconds, as its metric is, and is {throttle_delay_secs!r}."
        )
    return _Throttler(
        window_ms=window_ms,
        bucket_ms=bucket_ms,
        overload_ratio=overload_ratio,
        namespace=namespace or "RunInference",
        throttle_delay_secs=int(throttle_delay_secs),
    )
