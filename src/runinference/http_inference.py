"""A handler for servers that accept tensors over HTTP: KServe, Triton, TorchServe and TensorFlow Serving."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

from typing_extensions import Unpack

from runinference.collate.named_inputs import InputSpec
from runinference.collate.unbatch import unbatch
from runinference.errors import (
    BatchShapeError,
    ElementError,
    EndpointError,
    EndpointRefusedError,
    OptionError,
    UnusableAnswerError,
)
from runinference.handlers.options import accepts
from runinference.remote.auth import AwsSigV4
from runinference.remote.binary_messages import BinaryCodec
from runinference.remote.endpoint import EndpointModelHandler, EndpointOptions
from runinference.remote.http_client import HttpClient
from runinference.remote.local_server import LocalServer
from runinference.remote.retry import worth_retrying
from runinference.remote.tensor_protocols import (
    KServeV2,
    TensorProtocol,
    TFServing,
    TFServingColumns,
    TorchServe,
)
from runinference.results import PredictionResult

__all__ = [
    "AwsSigV4",
    "HTTPModelHandler",
    "KServeV2",
    "LocalServer",
    "TFServing",
    "TFServingColumns",
    "TensorProtocol",
    "TorchServe",
]


class HTTPModelHandler(EndpointModelHandler):
    """A handler for model servers whose inputs and outputs are arrays, or dictionaries of arrays by name.

    An element is one example, without a batch dimension. Its result has no batch dimension either. If the server
    provides the dtypes and shapes of its inputs, numbers are converted to another dtype of the same kind, for
    example from float64 to float32.

    >>> from runinference import samples
    >>> from runinference.samples import servers
    >>> images, _ = samples.held_out_digits()
    >>> with servers.digits() as base_url:
    ...     handler = HTTPModelHandler(base_url, KServeV2("digits"))
    ...     print([int(result.inference) for result in handler.predict(images[:3])])
    [1, 4, 0]
    """

    _metrics_namespace = "BeamML_HTTP"
    _keeps_examples = True

    @accepts(EndpointModelHandler.__init__)
    def __init__(
        self,
        base_url: str | LocalServer,
        protocol: TensorProtocol,
        api_key_env: str | None = None,
        *,
        max_request_size: int | None = None,
        **options: Unpack[EndpointOptions],
    ) -> None:
        """Configure the server and its protocol. This sends nothing and reads no key.

        Args:
            base_url: URL of the server, such as ``http://localhost:8080``, or a ``LocalServer``.
            protocol: ``KServeV2``, ``TFServing``, ``TFServingColumns`` or ``TorchServe`` with the name of the
                model, or your own object with the methods of ``TensorProtocol``.
            api_key_env: Name of the environment variable that contains the API key on the workers. The key is sent
                as a bearer token. None if the server needs no key.
            max_request_size: Maximum number of examples in a request. By default 32, and 1 for TorchServe.
            **options: The options of every remote handler, see ``RemoteModelHandler``, and ``timeout``,
                ``headers``, ``key_over_http``, ``max_response_bytes``, ``query`` and ``auth``, see
                ``EndpointModelHandler``.

        Raises:
            OptionError: A value is invalid, the URL contains a secret, or the key would be sent unencrypted.
            ImportError: httpx or tenacity isn't installed.
        """
        if isinstance(protocol, type) or not all(
            hasattr(protocol, name) for name in ("path", "request_size", "body", "output")
        ):
            raise OptionError(
                f"protocol must be an object such as KServeV2('name'), but is {protocol!r}."
            )
        size = protocol.request_size if max_request_size is None else max_request_size
        if isinstance(protocol, TorchServe):
            protocol.check_request(size, {})
        super().__init__(base_url, api_key_env, max_request_size=size, **options)
        self._protocol = protocol

    _keeps_examples = True

    def create_client(self) -> Any:
        return _ModelClient(super().create_client())

    def request(
        self, batch: Sequence[Any], model: Any, inference_args: dict[str, Any] | None = None
    ) -> list[PredictionResult]:
        """Send one request, and return one ``PredictionResult`` per example.

        Args:
            batch: Arrays of the same shape, or dictionaries of such arrays by input name.
            model: The client that ``create_client`` returned.
            inference_args: Additional fields of the request, or None. For KServe, fields of ``parameters``.

        Raises:
            BatchShapeError: The shape of an example differs from the others, or from the model's input.
            ElementError: An input is missing or unknown, or the model doesn't accept its dtype.
            EndpointError: The server is unreachable, or its response is an error or invalid.
            ResultMismatchError: The server returned the wrong number of results.
        """
        protocol, fields = self._protocol, inference_args or {}
        codec = BinaryCodec() if isinstance(protocol, KServeV2) and protocol.binary else None

        def send(inputs: Sequence[InputSpec]) -> Any:
            body = protocol.body(batch, inputs, fields)
            return model.client.post(
                protocol.path,
                body,
                lambda answer: unbatch(protocol.output(answer, batch), len(batch), "per_element"),
                codec,
            )

        rows = model.send(protocol, send)
        return [PredictionResult(x, y, protocol.model_id) for x, y in zip(batch, rows, strict=True)]

    def validate_inference_args(self, inference_args: dict[str, Any] | None) -> None:
        """Check that all arguments can be fields of a request.

        Args:
            inference_args: Additional fields of a request, or None.

        Raises:
            OptionError: An argument can't be written as JSON, or the protocol has no fields for arguments.
        """
        super().validate_inference_args(inference_args)
        if isinstance(self._protocol, TorchServe):
            self._protocol.check_request(1, inference_args or {})

    def may_modify_examples(self) -> bool:
        is_ours = type(self).request is HTTPModelHandler.request and isinstance(
            self._protocol, (KServeV2, TFServing, TorchServe)
        )
        return not is_ours or super().may_modify_examples()

    def update_model_path(self, model_path: str | None = None) -> None:
        """Set the name of the model to call.

        Args:
            model_path: ``"name"`` or ``"name/version"``. If None or empty, the model stays the same.
        """
        if model_path:
            self._protocol = self._protocol.renamed(model_path)


class _ModelClient:
    """A client that requests a model's metadata before the first request, and after each error.

    A server that is still loading the model has no metadata yet, and one that restarts may have other metadata.
    """

    def __init__(self, client: HttpClient) -> None:
        self.client = client
        self._inputs: dict[str, list[InputSpec]] = {}
        self._fetching: dict[str, Future[list[InputSpec]]] = {}
        self._lock = threading.Lock()

    def send(self, protocol: Any, send: Callable[[Sequence[InputSpec]], Any]) -> Any:
        """Return ``send(inputs)`` for the inputs of the model, which are empty if the server doesn't provide them.

        If the server rejects the request and has new metadata, the request is sent again.
        """
        path = protocol.description_path
        if path is None:
            return send([])
        known = self._inputs.get(path)
        inputs = self._fetch(path, protocol) if known is None else known
        try:
            output = send(inputs)
        except (EndpointError, ElementError, BatchShapeError) as error:
            if known is None or getattr(error, "status_code", None) == 429:
                raise
            if worth_retrying(error):  # the server may be restarting: the retry gets the metadata
                self._inputs.pop(path, None)
                raise
            inputs = self._fetch(path, protocol)
            if inputs == known:
                raise
            output = send(inputs)
        # Only a request that succeeds shows that a server without metadata has none, and is not just starting.
        self._inputs[path] = inputs
        return output

    def _fetch(self, path: str, protocol: Any) -> list[InputSpec]:
        """Request the metadata. Threads that need them at the same time share a request and its error."""
        with self._lock:
            future = self._fetching.get(path)
            is_first = future is None
            if future is None:
                future = self._fetching[path] = Future()
        if not is_first:
            try:
                return future.result()
            except Exception as error:
                raise copy.copy(error) from None  # threads must not raise the same object
        try:
            inputs = self._request(path, protocol)
        except BaseException as error:
            future.set_exception(error)
            raise
        else:
            if inputs:
                self._inputs[path] = inputs
            future.set_result(inputs)
            return inputs
        finally:
            del self._fetching[path]

    def _request(self, path: str, protocol: Any) -> list[InputSpec]:
        try:
            description = self.client.get(path)
        except EndpointRefusedError as error:
            if error.status_code not in (404, 405):
                raise
            return []  # if there is no such model, the request itself fails
        try:
            return list(protocol.inputs(description))
        except (UnusableAnswerError, KeyError, TypeError, AttributeError):
            return []
