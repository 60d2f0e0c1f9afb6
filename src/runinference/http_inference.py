"""A handler for servers that accept tensors as JSON: KServe, Triton, TorchServe and TensorFlow Serving."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

from typing_extensions import Unpack

from runinference.collate.named_inputs import InputSpec
from runinference.collate.unbatch import unbatch
from runinference.errors import EndpointRefusedError, OptionError, UnusableAnswerError
from runinference.handlers.options import accepts
from runinference.remote.endpoint import EndpointModelHandler, EndpointOptions
from runinference.remote.http_client import HttpClient
from runinference.remote.tensor_protocols import (
    KServeV2,
    TensorProtocol,
    TFServing,
    TFServingColumns,
    TorchServe,
)
from runinference.results import PredictionResult

__all__ = [
    "HTTPModelHandler",
    "KServeV2",
    "TFServing",
    "TFServingColumns",
    "TensorProtocol",
    "TorchServe",
]


class HTTPModelHandler(EndpointModelHandler):
    """A handler for model servers whose inputs and outputs are arrays, or dictionaries of arrays by name.

    An element is one example, without a batch dimension, and so is its result. If the server provides the dtypes
    and shapes of its inputs, numbers are converted within their kind, such as float64 to float32.

    >>> from runinference import samples
    >>> from runinference.samples import servers
    >>> images, _ = samples.held_out_digits()
    >>> with servers.digits() as base_url:
    ...     handler = HTTPModelHandler(base_url, KServeV2("digits"))
    ...     print([int(result.inference) for result in handler.predict(images[:3])])
    [1, 4, 0]
    """

    _metrics_namespace = "BeamML_HTTP"

    @accepts(EndpointModelHandler.__init__)
    def __init__(
        self,
        base_url: str,
        protocol: TensorProtocol,
        api_key_env: str | None = None,
        *,
        max_request_size: int | None = None,
        **options: Unpack[EndpointOptions],
    ) -> None:
        """Configure the server and its protocol. This sends nothing and reads no key.

        Args:
            base_url: URL of the server, such as ``http://localhost:8080``.
            protocol: ``KServeV2``, ``TFServing``, ``TFServingColumns`` or ``TorchServe`` with the name of the
                model, or your own object with the methods of ``TensorProtocol``.
            api_key_env: Environment variable of the workers that holds the key, which is sent as a bearer token.
                None if the server needs no key.
            max_request_size: Maximum number of examples in a request. By default 32, and 1 for TorchServe.
            **options: The options of every remote handler, see ``RemoteModelHandler``, and ``timeout``,
                ``headers`` and ``key_over_http``, see ``EndpointModelHandler``.

        Raises:
            OptionError: A value is out of range, the URL contains a secret, or the key would be sent unencrypted.
            ImportError: httpx or tenacity isn't installed.
        """
        if isinstance(protocol, type) or not all(
            hasattr(protocol, name) for name in ("path", "request_size", "body", "output")
        ):
            raise OptionError(
                f"protocol must be an object such as KServeV2('name'), but is {protocol!r}."
            )
        size = protocol.request_size if max_request_size is None else max_request_size
        super().__init__(base_url, api_key_env, max_request_size=size, **options)
        self._protocol = protocol

    def create_client(self) -> Any:
        return _ModelClient(super().create_client(), self._protocol)

    def request(
        self, batch: Sequence[Any], model: Any, inference_args: dict[str, Any] | None = None
    ) -> list[PredictionResult]:
        """Send one request, and return one ``PredictionResult`` per example.

        Args:
            batch: Arrays of the same shape, or dictionaries of such arrays by input name.
            model: The client that ``create_client`` returned.
            inference_args: Additional fields of the request. For KServe, fields of ``parameters``.

        Raises:
            BatchShapeError: The shape of an example differs from the others, or from the model's input.
            ElementError: An input is missing or unknown, or the model doesn't accept its dtype.
            EndpointError: The server is unreachable, or its response is an error or invalid.
            ResultMismatchError: The server returned the wrong number of results.
        """
        protocol = self._protocol
        body = protocol.body(batch, model.inputs(), inference_args or {})
        rows = model.client.post(
            protocol.path, body, lambda answer: unbatch(protocol.output(answer, batch), len(batch))
        )
        return [PredictionResult(x, y, protocol.model_id) for x, y in zip(batch, rows, strict=True)]

    def update_model_path(self, model_path: str | None = None) -> None:
        """Set the model to call: ``"name"`` or ``"name/version"``."""
        if model_path:
            self._protocol = self._protocol.renamed(model_path)


class _ModelClient:
    """A client that requests the model's metadata once."""

    def __init__(self, client: HttpClient, protocol: Any) -> None:
        self.client = client
        self._protocol = protocol
        self._inputs: list[InputSpec] | None = None
        self._lock = threading.Lock()

    def inputs(self) -> list[InputSpec]:
        """Return the inputs of the model. Empty if the server doesn't provide them."""
        if self._protocol.description_path is None:
            return []
        with self._lock:
            if self._inputs is None:
                self._inputs = self._fetch_inputs()
            return self._inputs

    def _fetch_inputs(self) -> list[InputSpec]:
        try:
            description = self.client.get(self._protocol.description_path)
        except EndpointRefusedError as error:
            if error.status_code not in (404, 405):
                raise
            return []  # if there is no such model, the request itself fails
        try:
            return list(self._protocol.inputs(description))
        except (UnusableAnswerError, KeyError, TypeError, AttributeError):
            return []
