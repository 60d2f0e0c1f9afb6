"""The option of the handlers for OpenAI-compatible endpoints that sends requests with the batch API."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from typing_extensions import Self, Unpack

from runinference.errors import (
    EndpointError,
    ModelUnavailableError,
    NotCalledError,
    OptionError,
    PartialResult,
)
from runinference.handlers.call import OnPart
from runinference.handlers.options import accepts
from runinference.remote.batch_api import BatchApi, BatchRunner
from runinference.remote.batch_lines import Outcome, describe_error
from runinference.remote.local_server import LocalServer
from runinference.remote.openai_endpoint import OpenAIEndpointModelHandler, OpenAIOptions
from runinference.remote.request_batch import split_batch
from runinference.remote.request_pool import RequestPool
from runinference.remote.retry import RetryPolicy
from runinference.remote.spending import Reservation
from runinference.remote.token_usage import TokenUsage
from runinference.results import PredictionResult

_Args = dict[str, Any] | None
ReadFirst = Callable[[], list[PredictionResult]]


class OpenAIBatchOptions(OpenAIOptions, total=False):
    """Keywords of the handlers for OpenAI-compatible endpoints; see ``OpenAIBatchModelHandler``."""

    batch_api: BatchApi | None


class _Request:
    """A request of a batch. Examples with equal requests share it.

    Attributes:
        id: Its ID.
        fields: The fields of its body that don't depend on the example.
        reservation: The reservation of its tokens.
    """

    def __init__(
        self, request_id: str, fields: dict[str, Any], reservation: Reservation | None
    ) -> None:
        self.id = request_id
        self.fields = fields
        self.reservation = reservation
        self._lock = threading.Lock()

    def is_first_reader(self) -> bool:
        """Return whether this is the first call, whose caller counts the tokens."""
        return self._lock.acquire(blocking=False)

    def end(self) -> None:
        """Cancel the reservation of a request that was not processed."""
        if self.reservation is not None:
            self.reservation.cancel()


class OpenAIBatchModelHandler(OpenAIEndpointModelHandler):
    """An endpoint whose requests can be sent with the batch API."""

    _without_effect = frozenset({"_batch_api"})
    _batch_api: BatchApi | None = None

    @accepts(OpenAIEndpointModelHandler.__init__)
    def __init__(
        self,
        base_url: str | LocalServer,
        model: str,
        api_key_env: str | None = "OPENAI_API_KEY",
        *,
        batch_api: BatchApi | None = None,
        **options: Unpack[OpenAIOptions],
    ) -> None:
        """Configure the server and its model. This sends nothing and reads no key.

        Args:
            base_url: URL of the server's API, which usually ends in ``/v1``, or a ``LocalServer``.
            model: Name of the model on that server.
            api_key_env: Name of the environment variable that contains the API key on the workers. The handler
                doesn't store the key. None if the server needs no key.
            batch_api: Options of the provider's batch API, to send requests with it. Each request then contains
                one example. None to send requests directly.
            **options: Other options, see ``OpenAIEndpointModelHandler``.

        Raises:
            OptionError: A value is invalid, the URL contains a secret, the key would be sent unencrypted,
                or ``parameters`` has a reserved field.
            ImportError: httpx or tenacity isn't installed.
        """
        if batch_api is not None:
            if isinstance(base_url, LocalServer):
                raise OptionError(
                    "batch_api needs the URL of a provider, but base_url is a LocalServer. To fix this, remove "
                    "one of them."
                )
            _check_batch_api(batch_api, options)
            size = options.get("max_batch_size") or batch_api.max_requests
            options.setdefault("max_batch_bytes", batch_api.max_file_bytes)
            if options.get("min_batch_size") is None and options.get("max_padded_size") is None:
                options |= {"min_batch_size": size, "max_batch_size": size}
            options["max_request_size"] = 1
        super().__init__(base_url, model, api_key_env, **options)
        self._batch_api = batch_api
        if batch_api is not None and self._limits.has_maximum and self._has_output_tokens:
            _check_max_tokens(self._parameters)

    @property
    def batch_api(self) -> BatchApi | None:
        """The options of the batch API. None if requests are sent directly."""
        return self._batch_api

    def with_usage_callback(self, function: Callable[[TokenUsage], None]) -> Self:
        return super().with_usage_callback(function)._replace(_batch_api=None)

    def run_in_parts(
        self, batch: Any, model: Any, inference_args: _Args, on_part: OnPart | None = None
    ) -> list[PartialResult]:
        if self._batch_api is None:
            return super().run_in_parts(batch, model, inference_args, on_part)
        parts = split_batch(batch, 1)
        pool = self._process_pool.get(self._create_pool)
        runner = self._create_runner(self._batch_api, model)
        requests, lines = self._plan_requests(runner, parts, inference_args)
        try:
            outcomes = runner.run(lines)
        except BaseException as error:
            for request in requests:
                if isinstance(request, _Request):
                    request.end()
            if not isinstance(error, Exception):
                raise
            return [
                PartialResult(1, None, each if isinstance(each, Exception) else error)
                for each in requests
            ]
        live = _LiveCalls(lambda part: self._send(pool, part, model, inference_args))

        def report(index: int, results: list[PredictionResult]) -> PartialResult:
            part = PartialResult(1, results, None)
            if on_part is not None:
                on_part(index, part)
            return part

        def finish(index: int) -> list[PartialResult]:
            part, request = parts[index], requests[index]
            if isinstance(request, Exception):
                return [PartialResult(1, None, request)]
            outcome = outcomes[request.id]
            try:
                if outcome.may_run_live:
                    request.end()
                    return [report(index, live.send(part))]
                if outcome.response is None:
                    return [PartialResult(1, None, self._get_error(request, outcome, model))]
                results = self._finish(
                    pool,
                    part,
                    model,
                    inference_args,
                    lambda: self._read_outcome(part, request, outcome, model),
                )
            except Exception as error:
                return [PartialResult(1, None, error)]
            return [report(index, results)]

        finished = pool.run(finish, range(len(parts)))
        return [outcome for each in finished for outcome in each.results or ()]

    def _create_runner(self, options: BatchApi, model: Any) -> BatchRunner:
        retry = RetryPolicy(
            self.num_retries, self.retry_filter, self.backoff, self.logger, self._sleep
        )
        return BatchRunner(
            options, model, self._path, str(self._endpoint.base_url), retry.call, self._sleep
        )

    def _plan_requests(
        self, runner: BatchRunner, parts: Sequence[Any], args: _Args
    ) -> tuple[list[_Request | Exception], dict[str, bytes]]:
        """Return the request of each example, or its error if it has none, and the lines to send by ID."""
        planned: dict[str, _Request | Exception] = {}
        requests: dict[int, _Request | Exception] = {}
        lines: dict[str, bytes] = {}
        for index in self._order_requests(parts) or range(len(parts)):
            try:
                body, fields = self._build_first_body(parts[index], args)
                request_id, line = runner.plan(body)
            except Exception as error:
                requests[index] = error
                continue
            if request_id not in planned:
                try:
                    reservation = self._reserve(body, 1, batch=True)
                    planned[request_id] = _Request(request_id, fields, reservation)
                    lines[request_id] = line
                except NotCalledError as error:
                    planned[request_id] = error
            elif isinstance(planned[request_id], NotCalledError):
                self._count("not_called", 1)
            requests[index] = planned[request_id]
        return [requests[index] for index in range(len(parts))], lines

    def _build_first_body(
        self, part: Sequence[Any], args: _Args
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the body and the fields of the request for an example, as ``_build_body`` does."""
        return self._build_body(part, args)

    def _finish(
        self, pool: RequestPool, part: Any, model: Any, args: _Args, read_first: ReadFirst
    ) -> list[PredictionResult]:
        """Return the result of an example from the response to its first request."""
        return read_first()

    def _read_outcome(
        self, part: Any, request: _Request, outcome: Outcome, model: Any
    ) -> list[PredictionResult]:
        return self._read_results(
            part,
            request.fields,
            request.reservation,
            lambda parse: model.parse_response(self._path, outcome.response, parse),
            count=request.is_first_reader(),
        )

    def _get_error(self, request: _Request, outcome: Outcome, model: Any) -> Exception:
        """Return the error of a request without a response."""
        if isinstance(outcome.error, Exception):
            if request.reservation is not None:
                self._count("cost_micros", request.reservation.fail(outcome.error))
            return outcome.error
        request.end()
        if outcome.status is not None:
            error: Exception = model.status_error(self._path, outcome.status, outcome.error)
            return error
        message = model.redact_key(describe_error(outcome.error))
        return EndpointError(f"The batch API has no result for this request: {message}")


class _LiveCalls:
    """Sends requests until the server is unavailable. The others then fail with the same error."""

    def __init__(self, send: Callable[[Any], list[PredictionResult]]) -> None:
        self._send = send
        self._unavailable: Exception | None = None

    def send(self, part: Any) -> list[PredictionResult]:
        if self._unavailable is not None:
            raise self._unavailable
        try:
            return self._send(part)
        except NotCalledError:
            raise
        except ModelUnavailableError as error:
            self._unavailable = error
            raise


def _check_max_tokens(parameters: Mapping[str, Any]) -> None:
    """Raise ``OptionError`` if the cost of a batch has no bound before it is submitted."""
    if not {"max_tokens", "max_completion_tokens"} & parameters.keys():
        raise OptionError(
            "With batch_api, max_tokens_total and max_cost need a maximum for the output of a request, because a "
            "batch is submitted as a whole. To fix this, add max_tokens or max_completion_tokens to parameters."
        )


def _check_batch_api(batch_api: Any, options: Mapping[str, Any]) -> None:
    if not isinstance(batch_api, BatchApi):
        raise OptionError(f"batch_api must be a BatchApi(folder=...), but is {batch_api!r}.")
    if options.get("max_request_size") not in (None, 1):
        raise OptionError(
            "With batch_api, a request contains one example. To fix this, remove max_request_size."
        )
