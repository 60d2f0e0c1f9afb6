"""Limits on concurrent requests and on their rate, shared by all threads and handler copies of a process."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from functools import partial
from typing import Any, Protocol

from apache_beam.runners.worker.statesampler import get_current_tracker, set_current_tracker
from apache_beam.utils.shared import Shared

from runinference.errors import NotCalledError, PartialResult, RateLimitExceeded
from runinference.remote.request_batch import count_examples


class RateLimiter(Protocol):
    """A limit on the rate of requests, such as Beam's ``EnvoyRateLimiter``. It must be thread-safe."""

    def allow(self, *, hits_added: int) -> bool:
        """Return whether a request may be sent now. May block until the limit allows it.

        Args:
            hits_added: Number of examples in the request.
        """


class RequestPool:
    """Threads that send requests, slots for requests in flight, and a rate limiter."""

    def __init__(self, n_slots: int, rate_limiter: RateLimiter | None) -> None:
        self.slots = threading.BoundedSemaphore(n_slots)
        self._threads = ThreadPoolExecutor(n_slots, thread_name_prefix="runinference-request")
        self._rate_limiter = rate_limiter

    def check_rate_limit(self, n_examples: int) -> None:
        """Raise ``RateLimitExceeded`` if the rate limiter rejects a request."""
        limiter = self._rate_limiter
        if limiter is not None and not limiter.allow(hits_added=n_examples):
            size = "1 example" if n_examples == 1 else f"{n_examples} examples"
            raise RateLimitExceeded(
                f"The rate limiter rejected a request of {size}. If this keeps happening, raise "
                "its limit, lower max_concurrent_requests, or wait longer (num_retries, backoff)."
            )

    def run(
        self,
        send: Callable[[Any], list[Any]],
        parts: Sequence[Any],
        order: Sequence[int] | None = None,
    ) -> list[PartialResult]:
        """Send the parts of a batch, concurrently, and return the outcome of each in order.

        After the first failure, requests in flight are awaited, and no others are sent. A request that a limit
        prevents (``NotCalledError``) doesn't affect the others.

        Args:
            send: Returns the results of a part.
            parts: The parts.
            order: The indices of all parts in the order to send them. By default, their order doesn't change.
        """
        if len(parts) == 1:
            return [_get_outcome(parts[0], lambda: _try_to_send(send, parts[0]))]
        send_part = _with_metrics_of_caller(partial(_try_to_send, send))
        sent = {i: self._threads.submit(send_part, parts[i]) for i in order or range(len(parts))}
        futures = [sent[index] for index in range(len(parts))]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
        finally:
            for future in futures:
                future.cancel()
        wait(futures)
        return [
            _get_outcome(part, (lambda: (None, None)) if future.cancelled() else future.result)
            for part, future in zip(parts, futures, strict=True)
        ]


_Outcome = tuple[list[Any] | None, Exception | None]


def _try_to_send(send: Callable[[Any], list[Any]], part: Any) -> _Outcome:
    try:
        return send(part), None
    except NotCalledError as error:
        return None, error


def _get_outcome(part: Any, get: Callable[[], _Outcome]) -> PartialResult:
    try:
        return PartialResult(count_examples(part), *get())
    except Exception as error:
        return PartialResult(count_examples(part), None, error)


def _with_metrics_of_caller(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Bind a function to the metrics of the calling thread's step."""
    tracker = get_current_tracker()

    def call(argument: Any) -> Any:
        set_current_tracker(tracker)
        try:
            return function(argument)
        finally:
            set_current_tracker(None)

    return call


class ProcessRequestPool:
    """A reference to the ``RequestPool`` of a process. All copies of a handler get the same pool."""

    def __init__(self) -> None:
        self._shared = Shared()
        self._pool: tuple[int, RequestPool] | None = None

    def get(self, create: Callable[[], RequestPool]) -> RequestPool:
        """Return the pool, and create it on first use. It lives as long as a handler that uses it."""
        process = os.getpid()  # the threads of a pool don't survive a fork
        if self._pool is None or self._pool[0] != process:
            self._pool = process, self._shared.acquire(create, tag=process)
        return self._pool[1]

    def __getstate__(self) -> dict[str, Any]:
        return {"_shared": self._shared, "_pool": None}
