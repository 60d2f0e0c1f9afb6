"""The base class of the handlers for OpenAI-compatible endpoints."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from apache_beam.metrics import Metrics
from typing_extensions import Unpack

from runinference.checks import check_mapping, check_text
from runinference.errors import OptionError
from runinference.handlers.options import accepts
from runinference.remote.endpoint import EndpointModelHandler, EndpointOptions, check_json_fields
from runinference.remote.openai_protocol import Generation, get_usage
from runinference.results import PredictionResult


class OpenAIOptions(EndpointOptions, total=False):
    """Keywords of every handler for OpenAI-compatible endpoints; see ``OpenAIEndpointModelHandler``."""

    parameters: Mapping[str, Any] | None
    max_request_size: int | None


class OpenAIEndpointModelHandler(EndpointModelHandler):
    """The base class of the handlers for chat, completions and embeddings."""

    _metrics_namespace = "BeamML_OpenAI"
    _keeps_examples = True
    _path = ""
    _input = ""
    _default_request_size = 1

    @accepts(EndpointModelHandler.__init__)
    def __init__(
        self,
        base_url: str,
        model: str,
        api_key_env: str | None = "OPENAI_API_KEY",
        *,
        parameters: Mapping[str, Any] | None = None,
        max_request_size: int | None = None,
        **options: Unpack[EndpointOptions],
    ) -> None:
        """Configure the server and its model. This sends nothing and reads no key.

        Args:
            base_url: URL of the server's API, which usually ends in ``/v1``.
            model: Name of the model on that server.
            api_key_env: Name of the environment variable that contains the API key on the workers. The handler
                doesn't store the key. None if the server needs no key.
            parameters: Fields of each request, such as ``{"temperature": 0, "max_tokens": 50}``. The
                ``inference_args`` of a call override them.
            max_request_size: Maximum number of examples in a request. By default a number that every server
                accepts.
            **options: The options of every remote handler, see ``RemoteModelHandler``, and ``timeout``,
                ``headers``, ``key_over_http`` and ``max_response_bytes``, see ``EndpointModelHandler``.

        Raises:
            OptionError: A value is invalid, the URL contains a secret, the key would be sent unencrypted,
                or ``parameters`` has a reserved field.
            ImportError: httpx or tenacity isn't installed.
        """
        size = self._resolve_request_size(max_request_size)
        super().__init__(base_url, api_key_env, max_request_size=size, **options)
        url = self._endpoint.base_url
        if url.endswith(self._path):
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
            ResultMismatchError: The server returned the wrong number of results.
        """
        fields = {**self._parameters, **(inference_args or {})}
        body = {"model": self._model, **fields, self._input: self._build_input(batch)}

        def parse(response: Any) -> list[Any]:
            self._count_tokens(response)
            return self._parse_results(response, len(batch), fields)

        results = model.post(self._path, body, parse)
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

    def _count_tokens(self, response: Any) -> None:
        usage = get_usage(response) or {}
        for name in ("prompt_tokens", "completion_tokens", "total_tokens"):
            if isinstance(n := usage.get(name), int):
                Metrics.counter(self.get_metrics_namespace(), name).inc(n)
