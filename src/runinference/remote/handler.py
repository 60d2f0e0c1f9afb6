"""Concurrent requests, retries and throttling for models behind an endpoint."""

from __future__ import annotations

import inspect
import logging
import time
from abc import abstractmethod
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from itertools import accumulate
from math import ceil
from typing import Any

from typing_extensions import Self, Unpack

from runinference.batching.policy import DEFAULT_MAX_BATCH_SIZE, resolve_policy
from runinference.checks import check_callable, check_int
from runinference.collate.unbatch import unbatch_results
from runinference.errors import NotCalledError, OptionError, PartialBatchError, PartialResult
from runinference.extras import need
from runinference.handlers.call import OnPart, RunsInParts, may_modify_examples
from runinference.handlers.compute_turn import CallOverlap
from runinference.handlers.event_loop import resolve
from runinference.handlers.model_handler import ExampleT, ModelHandler, ModelT, PredictionT
from runinference.handlers.options import HandlerOptions, accepts
from runinference.handlers.repeatable_batch import RepeatableBatch, SingleBatch
from runinference.handlers.tunable import Tunable, TunableOption
from runinference.remote.request_batch import (
    copy_arguments,
    copy_list,
    count_examples,
    is_sequence,
    split_batch,
)
from runinference.remote.request_pool import ProcessRequestPool, RateLimiter, RequestPool
from runinference.remote.retry import (
    Backoff,
    RetryPolicy,
    describe_error,
    worth_retrying,
)
from runinference.remote.throttle import Throttle


class RemoteOptions(HandlerOptions, total=False):
    """Keywords of every remote handler except ``max_request_size``; see ``RemoteModelHandler``."""

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


# A full batch holds this many requests for each of the requests that run concurrently.
_REQUESTS_PER_SLOT = 16
_Args = dict[str, Any] | None


class RemoteModelHandler(RunsInParts, Tunable, ModelHandler[ExampleT, PredictionT, ModelT]):
    """The base class of handlers for models behind an endpoint.

    A subclass defines ``create_client`` and ``request``, which sends one request. This class splits batches into
    requests, sends them concurrently, and handles retries and throttling.

    Both methods may be coroutine functions (``async def``), which must not block. All coroutines of a process run
    in one event loop, so that they can share an asynchronous client.

    >>> class Doubling(RemoteModelHandler[int, int, object]):
    ...     def create_client(self):
    ...         return lambda numbers: [2 * n for n in numbers]
    ...     def request(self, batch, model, inference_args=None):
    ...         return model(batch)
    >>> Doubling(max_request_size=2).predict([1, 2, 3])
    [2, 4, 6]
    """

    # Defaults for subclasses that don't call the constructor.
    num_retries = 5
    retry_filter: Callable[[Exception], bool] = staticmethod(worth_retrying)
    backoff = Backoff()
    max_request_size: int | None = None
    max_concurrent_requests = 16
    logger = logging.getLogger(__name__)
    throttler: Throttle
    _without_effect = frozenset(
        {
            "_process_pool",
            "_rate_limiter",
            "_sleep",
            "backoff",
            "logger",
            "max_concurrent_requests",
            "max_request_size",
            "num_retries",
            "retry_filter",
            "throttler",
        }
    )
    _process_pool: ProcessRequestPool
    _rate_limiter: RateLimiter | None = None
    _sleep: Callable[[float], None] = staticmethod(time.sleep)

    def __new__(cls, *args: Any, **options: Any) -> Self:
        self = super().__new__(cls, *args, **options)
        self._process_pool = ProcessRequestPool()
        self.throttler = Throttle()
        return self

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        _raise_if_overridden(cls, "load_model", "create_client()")
        _raise_if_overridden(cls, "run_inference", "request(batch, model, inference_args)")

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
        """Configure how requests are split, retried and throttled.

        Args:
            namespace: Namespace of the throttling metric, and name of the logger. By default, the namespace is
                ``"RunInference"``.
            num_retries: Maximum number of retries before a request's error is raised.
            throttle_delay_secs: Delay of new requests when many recent ones failed, in whole seconds.
            retry_filter: Returns whether to retry a request after an error, by default ``worth_retrying``. A
                request that the rate limiter rejects is always retried.
            window_ms: Length in milliseconds of the history of requests that throttling is based on.
            bucket_ms: Resolution of that history in milliseconds, at most ``window_ms``.
            overload_ratio: New requests are throttled when the number of recent requests exceeds this multiple of
                the number of successful ones.
            rate_limiter: Object with ``allow(hits_added=n)``, which all threads of a process share. None for no
                limit.
            max_request_size: Maximum number of examples in a request. Larger batches are split into several
                requests, which are sent concurrently. Results keep the order of the batch. By default, a batch is
                one request.
            max_concurrent_requests: Maximum number of requests in flight in a process, across all threads.
            backoff: How long to wait before each retry, by default ``Backoff()``.
            **options: The options of every handler, see ``HandlerOptions``. With ``max_request_size`` and no
                ``min_batch_size``, batches are large enough to keep all concurrent requests busy.

        Raises:
            OptionError: A value is out of range, or ``large_model`` or ``model_copies`` is set. A client can't be
                shared across processes.
            ImportError: ``num_retries`` isn't 0, and tenacity isn't installed.
        """
        if options.get("large_model") or options.get("model_copies") is not None:
            raise OptionError(
                "The client of a remote model can't be shared across processes. To fix this, remove large_model "
                "and model_copies."
            )
        check_int("num_retries", num_retries, 0)
        check_int("max_concurrent_requests", max_concurrent_requests)
        _check_retry_filter(retry_filter)
        if not isinstance(namespace, str):
            raise OptionError(f"namespace must be a string, but is {namespace!r}.")
        if not isinstance(backoff, (Backoff, type(None))):
            raise OptionError(f"backoff must be a Backoff, but is {backoff!r}.")
        if backoff is not None and num_retries == 0:
            raise OptionError(
                "backoff has no effect with num_retries=0. To fix this, leave it out."
            )
        if rate_limiter is not None and not _is_rate_limiter(rate_limiter):
            raise OptionError(
                f"rate_limiter must be an object with allow(hits_added=n), but is {rate_limiter!r}."
            )
        if max_request_size is not None:
            check_int("max_request_size", max_request_size)
            # With max_padded_size, the number of elements follows from their lengths.
            if options.get("min_batch_size") is None and options.get("max_padded_size") is None:
                limit = options.get("max_batch_size")
                if limit is not None:
                    check_int("max_batch_size", limit)
                size = max_request_size * max_concurrent_requests * _REQUESTS_PER_SLOT
                size = min(size, limit or DEFAULT_MAX_BATCH_SIZE)
                options = {**options, "min_batch_size": size, "max_batch_size": size}
        if num_retries:
            need("tenacity", extra="remote")
        super().__init__(**options)
        self.num_retries = num_retries
        self.retry_filter = retry_filter
        self.backoff = backoff or Backoff()
        self.max_request_size = max_request_size
        self.max_concurrent_requests = max_concurrent_requests
        self.logger = logging.getLogger(namespace or __name__)
        self.throttler = Throttle(
            window_ms, bucket_ms, overload_ratio, namespace, throttle_delay_secs
        )
        self._rate_limiter = rate_limiter

    @abstractmethod
    def create_client(self) -> ModelT | Awaitable[ModelT]:
        """Create the client for ``request``. Called once per process. All threads share the client."""

    @abstractmethod
    def request(
        self, batch: Sequence[ExampleT], model: ModelT, inference_args: dict[str, Any] | None = None
    ) -> Iterable[PredictionT] | Awaitable[Iterable[PredictionT]]:
        """Send one request, and return one prediction per example, in order.

        Args:
            batch: At most ``max_request_size`` examples.
            model: The client that ``create_client`` returned.
            inference_args: Arguments for the request, or None. Each attempt gets its own copy.

        Raises:
            Exception: Any error. The request is retried if ``retry_filter`` returns True for the error.
        """

    def load_model(self) -> ModelT:
        """Create the client. Don't override this method."""
        client: ModelT = resolve(self.create_client())
        return client

    def run_inference(
        self, batch: Sequence[ExampleT], model: ModelT, inference_args: dict[str, Any] | None = None
    ) -> Iterable[PredictionT]:
        """Return one prediction per example, in order. Don't override this method.

        Args:
            batch: The examples. They are split into requests of at most ``max_request_size``.
            model: The client that ``create_client`` returned.
            inference_args: Arguments for each request, or None.

        Raises:
            Exception: The error of the last attempt of the first request that failed. Requests in flight are
                completed, and the remaining ones are not sent.
        """
        parts = self.run_in_parts(batch, model, inference_args)
        if any(part.error is not None for part in parts):
            raise PartialBatchError(parts).first_error
        return [result for part in parts for result in part.results or ()]

    def run_in_parts(
        self, batch: Any, model: ModelT, inference_args: _Args, on_part: OnPart | None = None
    ) -> list[PartialResult]:
        pool = self._process_pool.get(self._create_pool)
        parts = split_batch(batch, self.max_request_size)
        order = self._order_requests(parts)
        if on_part is None:
            return pool.run(
                lambda part: self._send(pool, part, model, inference_args), parts, order
            )
        starts = accumulate(map(count_examples, parts), initial=0)
        indices = {id(part): start for part, start in zip(parts, starts, strict=False)}

        def send(part: Any) -> list[PredictionT]:
            results = self._send(pool, part, model, inference_args)
            on_part(indices[id(part)], PartialResult(len(results), results, None))
            return results

        return pool.run(send, parts, order)

    def _order_requests(self, parts: Sequence[Any]) -> Sequence[int] | None:
        """Return the indices of requests in the order to send them; None to keep their order."""
        return None

    def get_model_files(self) -> Sequence[str]:
        return ()  # the endpoint and the name of the model are options

    def tunable_options(self) -> Sequence[TunableOption]:
        default = RemoteModelHandler.max_concurrent_requests
        return [TunableOption("max_concurrent_requests", [1, 2, 4, 8, 16, 32, 64, 128], default)]

    def with_option(self, name: str, value: Any) -> Self:
        return self._replace(**{name: value}, _process_pool=ProcessRequestPool())

    def call_overlap(self) -> CallOverlap:
        size = resolve_policy(self).max_batch_size
        n_requests = ceil(size / self.max_request_size) if self.max_request_size else 1
        max_calls = max(2, self.max_concurrent_requests // n_requests)
        return CallOverlap(max_calls, uses_turn=True, is_measured=False)

    def validate_whole_results(self) -> None:
        raise OptionError(
            f"{type(self).__name__} splits batches into requests of max_request_size examples, and doesn't "
            "support whole_results=True. To fix this, leave whole_results out. Each example then gets a result."
        )

    def _send(self, pool: RequestPool, part: Any, model: ModelT, args: _Args) -> list[PredictionT]:
        """Return the predictions of one request, sent with throttling and retries."""
        self.throttler.throttle()
        repeatable = (RepeatableBatch if is_sequence(part) else SingleBatch)(
            part, self.num_retries > 0
        )

        def may_retry(error: Exception) -> bool:
            return not repeatable.unrepeatable_error(error) and self.retry_filter(error)

        retry = RetryPolicy(self.num_retries, may_retry, self.backoff, self.logger, self._sleep)
        try:
            output = retry.call(self._send_once, pool, repeatable, model, args)
        except NotCalledError:  # logged once for all elements
            raise
        except Exception as error:
            message = "A request of %d examples failed and won't be retried: %s"
            self.logger.error(message, count_examples(part), describe_error(error))
            raise
        if not is_sequence(part):
            return list(output)
        return unbatch_results(output, len(part), self._list_output)

    def _send_once(
        self, pool: RequestPool, batch: RepeatableBatch, model: ModelT, args: _Args
    ) -> Any:
        pool.check_rate_limit(len(batch))
        with pool.slots:
            try:
                examples = batch.take(may_modify_examples(self, batch.elements))
                output = resolve(self.request(copy_list(examples), model, copy_arguments(args)))
                if isinstance(output, Iterator):
                    output = list(output)
            except Exception as error:
                # A server that rejects a request is not overloaded.
                self._count_request(accepted=not worth_retrying(error))
                raise
        self._count_request(accepted=True)
        return output

    def _count_request(self, *, accepted: bool) -> None:
        count = self.throttler.successful_request if accepted else self.throttler.failed_request
        count(time.time() * 1_000)

    def _create_pool(self) -> RequestPool:
        return RequestPool(self.max_concurrent_requests, self._rate_limiter)


def _check_retry_filter(retry_filter: Any) -> None:
    """Raise `OptionError` for what is not a function, or is one whose result would always count as true."""
    check_callable("retry_filter", retry_filter)
    if isinstance(retry_filter, type) and issubclass(retry_filter, BaseException):
        name = retry_filter.__name__
        raise OptionError(
            f"retry_filter must be a function of an error, but is the class {name}. To fix this, use "
            f"lambda error: isinstance(error, {name})."
        )
    if inspect.iscoroutinefunction(retry_filter):
        raise OptionError(
            f"retry_filter must return True or False, but {retry_filter.__name__} is a coroutine function. To fix "
            "this, define it with def instead of async def."
        )


def _is_rate_limiter(value: Any) -> bool:
    allow = getattr(value, "allow", None)
    if isinstance(value, type) or not callable(allow):
        return False
    try:
        inspect.signature(allow).bind(hits_added=1)
    except TypeError:
        return False
    except ValueError:  # a function written in C
        pass
    return True


def _raise_if_overridden(cls: type, method: str, hook: str) -> None:
    if getattr(cls, method) is not getattr(RemoteModelHandler, method):
        raise TypeError(
            f"{cls.__name__} overrides {method}(), which RemoteModelHandler uses for retries, throttling and "
            f"concurrent requests. Implement {hook} instead."
        )
