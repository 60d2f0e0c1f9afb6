"""Models behind an endpoint: requests run together, are tried again when that may help, and hold back.

One request is ``retry(limit(send))``, behind a throttle; a batch is one request, or as many as
``max_request_size`` asks for.
"""

from __future__ import annotations

import copy
import logging
import time
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, cast

from typing_extensions import Self, Unpack

from runinference.batching.policy import DEFAULT_MAX_BATCH_SIZE
from runinference.collate.unbatch import unbatch
from runinference.errors import OptionError, PartialBatchError, PartialResult, RateLimitExceeded
from runinference.extras import need
from runinference.handlers.call import RunsInParts
from runinference.handlers.model_handler import ExampleT, ModelHandler, ModelT, PredictionT
from runinference.handlers.options import HandlerOptions, accepts
from runinference.remote.request_pool import (
    ProcessRequestPool,
    RateLimiter,
    RequestPool,
    is_list_like,
    part_size,
    throttler,
)
from runinference.remote.retry import Backoff, at_least, retry_after, worth_retrying

__all__ = [
    "Backoff",
    "RateLimiter",
    "RemoteModelHandler",
    "RemoteOptions",
    "retry_after",
    "worth_retrying",
]


class RemoteOptions(HandlerOptions, total=False):
    """Keywords of every remote handler, but for ``max_request_size``; described at ``RemoteModelHandler``."""

    namespace: str
    num_retries: int
    throttle_delay_secs: int
    retry_filter: Callable[[Exception], bool]
    window_ms: int
    bucket_ms: int
    overload_ratio: float
    rate_limiter: RateLimiter | None
    max_concurrent_requests: int
    backoff: Backoff | None


# So many requests follow each other in each of the places that run together, before a batch ends.
_ROUNDS = 16


class RemoteModelHandler(RunsInParts, ModelHandler[ExampleT, PredictionT, ModelT]):
    """Calls a model behind an endpoint. Subclasses say how to make a client, and how to send one request.

    >>> class Doubling(RemoteModelHandler[int, int, object]):
    ...     def create_client(self):
    ...         return lambda numbers: [2 * n for n in numbers]
    ...     def request(self, batch, model, inference_args=None):
    ...         return model(batch)
    >>> Doubling(max_request_size=2).predict([1, 2, 3])
    [2, 4, 6]
    """

    # What holds in a subclass that does not call the constructor.
    num_retries = 5
    retry_filter: Callable[[Exception], bool] = staticmethod(worth_retrying)
    backoff = Backoff()
    max_request_size: int | None = None
    max_concurrent_requests = 16
    logger = logging.getLogger(__name__)
    throttler: Any
    _process_pool: ProcessRequestPool
    _rate_limiter: RateLimiter | None = None
    _sleep: Callable[[float], None] = staticmethod(time.sleep)

    def __new__(cls, *args: Any, **options: Any) -> Self:
        self = super().__new__(cls, *args, **options)
        self._process_pool = ProcessRequestPool()
        self.throttler = throttler()
        return self

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        _refuse_override(cls, "load_model", "create_client()")
        _refuse_override(cls, "run_inference", "request(batch, model, inference_args)")

    @accepts(HandlerOptions)
    def __init__(
        self,
        namespace: str = "",
        num_retries: int = 5,
        throttle_delay_secs: int = 5,
        retry_filter: Callable[[Exception], bool] = worth_retrying,
        *,
        window_ms: int = 1_000,
        bucket_ms: int = 1_000,
        overload_ratio: float = 2,
        rate_limiter: RateLimiter | None = None,
        max_request_size: int | None = None,
        max_concurrent_requests: int = 16,
        backoff: Backoff | None = None,
        **options: Unpack[HandlerOptions],
    ) -> None:
        """Says how requests are cut, tried again, and held back.

        Args:
            namespace: Of the throttling metric, by default ``"RunInference"``; and the name of the logger.
            num_retries: How often a request is tried again before its error is raised.
            throttle_delay_secs: Whole seconds to hold new requests back when many of the last ones failed.
            retry_filter: Whether another try may help against an error; see ``worth_retrying``. A request that
                the rate limiter refused is tried again in any case.
            window_ms: The milliseconds of the past that decide on holding back.
            bucket_ms: The milliseconds that are counted together; at most ``window_ms``.
            overload_ratio: Requests are held back when there are more than so many times the successful ones.
            rate_limiter: Has ``allow(hits_added=n)``; one for all threads of a process.
            max_request_size: The most examples in a request. A batch is cut into requests of so many, which run
                together; their results keep its order. Without it a batch is one request.
            max_concurrent_requests: The most requests in flight in a process, all threads together.
            backoff: How long to wait before a retry; by default ``Backoff()``.
            **options: The options of every handler, see ``HandlerOptions``. With ``max_request_size`` and no
                ``min_batch_size``, a batch is as large as it takes to keep all requests busy.

        Raises:
            OptionError: A value is out of range, or the client is to be shared across processes.
            ImportError: ``num_retries`` is not 0, and tenacity is not installed.
        """
        _refuse_sharing(options)
        at_least(0, "num_retries", num_retries)
        at_least(1, "max_concurrent_requests", max_concurrent_requests)
        if max_request_size is not None:
            at_least(1, "max_request_size", max_request_size)
            options = _filled(options, max_request_size * max_concurrent_requests * _ROUNDS)
        if num_retries:
            need("tenacity", extra="remote")
        super().__init__(**options)
        self.num_retries = num_retries
        self.retry_filter = retry_filter
        self.backoff = backoff or Backoff()
        self.max_request_size = max_request_size
        self.max_concurrent_requests = max_concurrent_requests
        self.logger = logging.getLogger(namespace or __name__)
        self.throttler = throttler(
            window_ms, bucket_ms, overload_ratio, namespace, throttle_delay_secs
        )
        self._rate_limiter = rate_limiter

    @abstractmethod
    def create_client(self) -> ModelT:
        """Makes the client that ``request`` uses; called once a process. Several threads use it at once."""

    @abstractmethod
    def request(
        self,
        batch: Sequence[ExampleT],
        model: ModelT,
        inference_args: dict[str, Any] | None = None,
    ) -> Iterable[PredictionT]:
        """Sends one request; returns one prediction for each example, in order. Raises what goes wrong.

        Args:
            batch: The examples, at most ``max_request_size``.
            model: What ``create_client`` returned.
            inference_args: Arguments for the call; a copy of this try's own.
        """

    def load_model(self) -> ModelT:
        """Makes the client; not to be overridden."""
        return self.create_client()

    def run_inference(
        self,
        batch: Sequence[ExampleT],
        model: ModelT,
        inference_args: dict[str, Any] | None = None,
    ) -> Iterable[PredictionT]:
        """The predictions for a batch, in order, by one request or by several that run together.

        Not to be overridden.

        Raises:
            Exception: What the first request of the batch that failed raised at its last try. Requests that
                are on their way are waited for; those that are not are never sent.
        """
        parts = self.run_in_parts(batch, model, inference_args)
        if any(part.error is not None for part in parts):
            error = PartialBatchError(parts).first_error
            raise error from error.__cause__
        return [result for part in parts for result in part.results or ()]

    def run_in_parts(
        self, batch: Any, model: ModelT, inference_args: dict[str, Any] | None
    ) -> list[PartialResult]:
        pool = self._process_pool.open(self._outbox)

        def send(part: Any) -> list[Any]:
            return self._answer(pool, part, model, inference_args)

        return pool.run(send, _cut(batch, self.max_request_size))

    def validate_whole_results(self) -> None:
        raise OptionError(
            f"{type(self).__name__} cuts batches into requests of max_request_size examples, and has no whole "
            "results: leave whole_results out, and it gives a result for each example."
        )

    def _answer(
        self, pool: RequestPool, part: Any, model: ModelT, args: dict[str, Any] | None
    ) -> list[PredictionT]:
        """The predictions for one request, tried as often as it takes."""
        self.throttler.throttle()
        try:
            output = self._retrying()(self._try_once, pool, part, model, args)
        except Exception as error:
            self.logger.error(
                "A request of %d examples failed for good: %r", part_size(part), error
            )
            raise
        return unbatch(output, len(part)) if is_list_like(part) else list(output)

    def _try_once(
        self, pool: RequestPool, part: Any, model: ModelT, args: dict[str, Any] | None
    ) -> Iterable[PredictionT]:
        pool.ask_leave(part_size(part))
        with pool.places:
            try:
                output = self.request(_own_list(part), model, _own(args))
                if isinstance(output, Iterator):
                    output = list(output)
            except Exception as error:
                self._tell_throttler(accepted=not worth_retrying(error))
                raise
        self._tell_throttler(accepted=True)
        return output

    def _tell_throttler(self, *, accepted: bool) -> None:
        """Counts a request; one that the server refused as it is was no burden, and counts as accepted."""
        now = time.time() * 1_000
        (self.throttler.successful_request if accepted else self.throttler.failed_request)(now)

    def _retrying(self) -> Callable[..., Any]:
        """Calls a function with its arguments, again and again while that may help."""
        if not self.num_retries:
            return _call
        tenacity = need("tenacity", extra="remote")
        return cast(
            Callable[..., Any],
            tenacity.Retrying(
                retry=tenacity.retry_if_exception(self._may_retry),
                stop=tenacity.stop_after_attempt(self.num_retries + 1),
                wait=lambda state: self.backoff.seconds(
                    state.attempt_number, state.outcome.exception()
                ),
                before_sleep=self._log_retry,
                sleep=self._sleep,
                reraise=True,
            ),
        )

    def _may_retry(self, error: BaseException) -> bool:
        if isinstance(error, RateLimitExceeded):
            return True
        if not isinstance(error, Exception) or not self.retry_filter(error):
            return False
        asked = retry_after(error)
        return asked is None or asked <= self.backoff.max_retry_after_secs

    def _log_retry(self, state: Any) -> None:
        self.logger.warning(
            "A request failed; retry %d of %d in %.2f s: %r",
            state.attempt_number,
            self.num_retries,
            state.next_action.sleep,
            state.outcome.exception(),
        )

    def _outbox(self) -> RequestPool:
        return RequestPool(self.max_concurrent_requests, self._rate_limiter)


def _cut(batch: Any, most: int | None) -> list[Any]:
    """A batch in parts of at most so many examples; whole, if it has no such parts."""
    if most is None or not is_list_like(batch) or len(batch) <= most:
        return [batch]
    return [batch[start : start + most] for start in range(0, len(batch), most)]


def _own_list(part: Any) -> Any:
    return part[:] if isinstance(part, list) else part


def _own(args: dict[str, Any] | None) -> dict[str, Any] | None:
    """A copy of the arguments that nobody else sees; what cannot be copied, such as a lock, is shared."""
    return args and {name: _copied(value) for name, value in args.items()}


def _copied(value: Any) -> Any:
    try:
        return copy.deepcopy(value)
    except Exception:
        return value


def _call(function: Callable[..., Any], *args: Any) -> Any:
    return function(*args)


def _filled(options: HandlerOptions, n_examples: int) -> HandlerOptions:
    """The options with batches of so many examples, as far as the user leaves their size open."""
    if options.get("min_batch_size") is not None:
        return options
    size = min(n_examples, options.get("max_batch_size") or DEFAULT_MAX_BATCH_SIZE)
    return {**options, "min_batch_size": size, "max_batch_size": size}


def _refuse_sharing(options: HandlerOptions) -> None:
    if options.get("large_model") or options.get("model_copies") is not None:
        raise OptionError(
            "A remote model is at its endpoint already, and its client cannot be shared across processes: "
            "leave large_model and model_copies out."
        )


def _refuse_override(cls: type, method: str, instead: str) -> None:
    if getattr(cls, method) is getattr(RemoteModelHandler, method):
        return
    raise TypeError(
        f"{cls.__name__} overrides {method}(), which RemoteModelHandler uses to retry, to hold back and to run "
        f"requests together. Implement {instead} instead."
    )
