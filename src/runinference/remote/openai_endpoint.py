"""The base class of the handlers for OpenAI-compatible endpoints."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from apache_beam.metrics import Metrics
from typing_extensions import Self, Unpack

from runinference.checks import check_mapping, check_text
from runinference.errors import NotCalledError, OptionError
from runinference.handlers.options import accepts
from runinference.remote.endpoint import EndpointModelHandler, EndpointOptions, check_json_fields
from runinference.remote.local_server import LocalServer
from runinference.remote.openai_protocol import Generation, get_usage
from runinference.remote.prefix_order import get_prefix, order_by_prefix
from runinference.remote.shared_rate import RateStore
from runinference.remote.spending import Reservation, SpendingLimits
from runinference.remote.token_usage import Prices, TokenUsage, count_bytes, read_usage, to_count
from runinference.results import PredictionResult


class OpenAIOptions(EndpointOptions, total=False):
    """Keywords of every handler for OpenAI-compatible endpoints; see ``OpenAIEndpointModelHandler``."""

    parameters: Mapping[str, Any] | None
    max_request_size: int | None
    prices: Prices | None
    max_tokens_total: int | None
    max_cost: float | None
    max_requests_per_minute: int | None
    max_tokens_per_minute: int | None
    rate_limit_store: str | None
    rate_limit_password_env: str | None


class OpenAIEndpointModelHandler(EndpointModelHandler):
    """The base class of the handlers for chat, completions and embeddings."""

    _metrics_namespace = "BeamML_OpenAI"
    _keeps_examples = True
    _path = ""
    _input = ""
    _default_request_size = 1
    _has_output_tokens = True
    _without_effect = frozenset({"_limits", "_on_usage"})
    _limits = SpendingLimits()
    _on_usage: Callable[[TokenUsage], None] | None = None

    @accepts(EndpointModelHandler.__init__)
    def __init__(
        self,
        base_url: str | LocalServer,
        model: str,
        api_key_env: str | None = "OPENAI_API_KEY",
        *,
        parameters: Mapping[str, Any] | None = None,
        max_request_size: int | None = None,
        prices: Prices | None = None,
        max_tokens_total: int | None = None,
        max_cost: float | None = None,
        max_requests_per_minute: int | None = None,
        max_tokens_per_minute: int | None = None,
        rate_limit_store: str | None = None,
        rate_limit_password_env: str | None = None,
        **options: Unpack[EndpointOptions],
    ) -> None:
        """Configure the server and its model. This sends nothing and reads no key.

        Args:
            base_url: URL of the server's API, which usually ends in ``/v1``, or a ``LocalServer``.
            model: Name of the model on that server.
            api_key_env: Name of the environment variable that contains the API key on the workers. The handler
                doesn't store the key. None if the server needs no key. The default isn't read if ``auth`` is set
                or the server is a ``LocalServer``.
            parameters: Fields of each request, such as ``{"temperature": 0, "max_tokens": 50}``. The
                ``inference_args`` of a call override them.
            max_request_size: Maximum number of examples in a request. By default a number that every server
                accepts.
            prices: Prices of the model's tokens, for ``max_cost``, the metric ``cost_micros`` and ``estimate``.
            max_tokens_total: Maximum number of tokens that this handler and its copies use in a worker process. At
                the limit, elements aren't sent, and fail with ``NotCalledError``. None for no limit.
            max_cost: Maximum cost of these tokens, in the currency of ``prices``. At the limit, elements aren't
                sent, and fail with ``NotCalledError``. None for no limit.
            max_requests_per_minute: Maximum number of requests per minute in a worker process. Requests that
                would exceed it wait. None for no limit.
            max_tokens_per_minute: Maximum number of tokens per minute in a worker process. Tokens are estimated
                before a request, and corrected when the server reports them. None for no limit.
            rate_limit_store: URL of a Redis server, such as ``redis://host:6379/0``. All workers with the same
                ``base_url``, ``model`` and ``api_key_env`` then share the limits per minute. By default, each
                worker process has separate limits.
            rate_limit_password_env: Name of the environment variable that contains the password of the Redis
                server on the workers. None if the server needs no password.
            **options: The options of every remote handler, see ``RemoteModelHandler``, and ``timeout``,
                ``headers``, ``key_over_http``, ``max_response_bytes``, ``query`` and ``auth``, see
                ``EndpointModelHandler``.

        Raises:
            OptionError: A value is invalid, the URL contains a secret, the key would be sent unencrypted,
                or ``parameters`` has a reserved field.
            ImportError: httpx or tenacity isn't installed, or redis for ``rate_limit_store``.
        """
        size = self._resolve_request_size(max_request_size)
        super().__init__(base_url, api_key_env, max_request_size=size, **options)
        url = self._endpoint.base_url
        if isinstance(url, str) and url.endswith(self._path):
            raise OptionError(
                f"base_url ends in {self._path}, which is appended to it. To fix this, set "
                f"base_url={url.removesuffix(self._path)!r}."
            )
        check_text("model", model)
        if parameters is not None:
            check_mapping("parameters", parameters)
        self._model = model
        self._parameters = dict(parameters or {})
        self._check_fields("parameters", self._parameters)
        store = None
        if rate_limit_store is not None:
            name = f"{url} {model} {api_key_env}"
            store = RateStore(rate_limit_store, rate_limit_password_env, name)
        elif rate_limit_password_env is not None:
            raise OptionError(
                "rate_limit_password_env has no effect without rate_limit_store. To fix this, leave it out."
            )
        limits = SpendingLimits(
            prices,
            max_tokens_total,
            max_cost,
            max_requests_per_minute,
            max_tokens_per_minute,
            store,
        )
        if not limits.is_empty:
            self._limits = limits

    def request(
        self, batch: Sequence[Any], model: Any, inference_args: dict[str, Any] | None = None
    ) -> list[PredictionResult]:
        """Send one request, and return one ``PredictionResult`` per example.

        Args:
            batch: The examples.
            model: The client that ``create_client`` returned.
            inference_args: Fields of the request, or None. They override ``parameters``.

        Raises:
            ElementError: An example has the wrong type.
            EndpointError: The server is unreachable, or its response is an error or invalid.
            NotCalledError: The request would exceed ``max_tokens_total`` or ``max_cost``.
            ResultMismatchError: The server returned the wrong number of results.
        """
        body, fields = self._build_body(batch, inference_args)
        reservation = self._reserve(body, len(batch))
        return self._read_results(
            batch, fields, reservation, lambda parse: model.post(self._path, body, parse)
        )

    def _build_body(
        self, batch: Sequence[Any], inference_args: Mapping[str, Any] | None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the body of a request, and its fields that don't depend on the examples."""
        fields = {**self._parameters, **(inference_args or {})}
        return {"model": self._model, **fields, self._input: self._build_input(batch)}, fields

    def _read_results(
        self,
        batch: Sequence[Any],
        fields: Mapping[str, Any],
        reservation: Reservation | None,
        get: Callable[[Callable[[Any], list[Any]]], list[Any]],
        *,
        count: bool = True,
    ) -> list[PredictionResult]:
        """Return the results of a request, and count what it used.

        Args:
            batch: The examples.
            fields: Other fields of the request.
            reservation: The reservation of its tokens, if there is one.
            get: Gets the response, and returns the result of a function of it.
            count: Whether to count the tokens. They are counted once for examples that share a response.
        """

        def settle(usage: TokenUsage | None, response: Any) -> None:
            if usage is not None and self._on_usage is not None:
                self._on_usage(usage)
            if reservation is not None:
                self._count("cost_micros", reservation.settle(usage, response))

        def parse(response: Any) -> list[Any]:
            usage = read_usage(response)
            if count:
                self._count_tokens(response)
                if usage is not None:  # the provider also charges for invalid responses
                    settle(usage, response)
            results = self._parse_results(response, len(batch), fields)
            if count and usage is None:
                settle(None, response)
            return results

        try:
            results = get(parse)
        except BaseException as error:
            if count:
                response = {"usage": getattr(error, "usage", None)}
                if (usage := read_usage(response)) is not None:
                    self._count_tokens(response)
                    settle(usage, response)
                if reservation is not None:
                    self._count("cost_micros", reservation.fail(error))
            raise
        return [PredictionResult(x, y, self._model) for x, y in zip(batch, results, strict=True)]

    @abstractmethod
    def _build_input(self, batch: Sequence[Any]) -> Any:
        """Return the value of the request's input field."""

    @abstractmethod
    def _parse_results(self, response: Any, n: int, fields: Mapping[str, Any]) -> list[Any]:
        """Return one result for each of n examples."""

    def validate_inference_args(self, inference_args: dict[str, Any] | None) -> None:
        """Check the fields of requests.

        Raises:
            OptionError: A field is reserved, or can't be written as JSON.
        """
        self._check_fields("inference_args", inference_args or {})

    @property
    def prices(self) -> Prices | None:
        """The prices of the model's tokens, or None."""
        return self._limits.prices

    def with_usage_callback(self, function: Callable[[TokenUsage], None]) -> Self:
        """Return a copy for measurements: without limits on the total, and with a function that gets all usage."""
        return self._replace(_on_usage=function, _limits=self._limits.without_maximum())

    def get_result_types(self) -> Sequence[type | str]:
        return [Generation]

    def may_modify_examples(self) -> bool:
        is_ours = type(self).request is OpenAIEndpointModelHandler.request
        return not is_ours or super().may_modify_examples()

    def update_model_path(self, model_path: str | None = None) -> None:
        """Set the name of the model to call.

        Args:
            model_path: The name. If None or empty, the model stays the same.
        """
        self._model = model_path or self._model

    def _resolve_request_size(self, max_request_size: int | None) -> int:
        return self._default_request_size if max_request_size is None else max_request_size

    def _order_requests(self, parts: Sequence[Any]) -> Sequence[int] | None:
        """Send requests with the same prefix one after the other, because many servers cache prefixes."""
        if not self._has_output_tokens or len(parts) < 3:
            return None
        return order_by_prefix([get_prefix(part[0]) for part in parts])

    def _check_fields(self, option: str, fields: Mapping[str, Any]) -> None:
        hints = {
            "model": "Pass model to the handler's constructor instead.",
            "stream": "Remove it. Streaming is not supported.",
            self._input: "Remove it. Its value is the batch of elements.",
        }
        for name in fields:
            if name in hints:
                raise OptionError(f"{option} has {name!r}. {hints[name]}")
        check_json_fields(option, fields)

    def _reserve(
        self, body: Mapping[str, Any], n_examples: int, *, batch: bool = False
    ) -> Reservation | None:
        """Return the reservation of a request's tokens; None if there are no limits and no prices.

        Raises:
            NotCalledError: The request would exceed a limit.
        """
        ledger = self._limits.get_ledger()
        if ledger is None:
            return None
        limits = [to_count(body.get(name)) for name in ("max_completion_tokens", "max_tokens")]
        max_output = next((limit for limit in limits if limit is not None), None)
        n_outputs = n_examples * (to_count(body.get("n")) or 1) if self._has_output_tokens else 0
        try:
            return ledger.reserve(
                count_bytes(body[self._input]), n_outputs, max_output, batch=batch
            )
        except NotCalledError:
            self._count("not_called", n_examples)
            raise

    def _count_tokens(self, response: Any) -> None:
        usage = get_usage(response) or {}
        for name in ("prompt_tokens", "completion_tokens", "total_tokens"):
            self._count(name, to_count(usage.get(name)) or 0)
        self._count("cached_tokens", int(getattr(read_usage(response), "cached", 0)))

    def _count(self, metric: str, n: int) -> None:
        if n:
            Metrics.counter(self.get_metrics_namespace(), metric).inc(n)
