"""A handler for servers that take tensors as JSON: KServe, Triton, TorchServe, TensorFlow Serving."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

from typing_extensions import Unpack

from runinference.collate.named_inputs import InputSpec
from runinference.collate.unbatch import unbatch
from runinference.errors import EndpointRefusedError, UnusableAnswerError
from runinference.handlers.options import accepts
from runinference.remote.endpoint import EndpointModelHandler, EndpointOptions
from runinference.remote.http_client import Client
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
    """Sends arrays, or dictionaries of arrays by name, to a server, and gives what it answers as arrays.

    An element is one example, without a dimension for the batch; so is its result. Where the server tells the
    types and shapes of its inputs, numbers are converted if that keeps their kind, such as float64 to float32.

    >>> from runinference import samples
    >>> from runinference.samples import servers
    >>> images, _ = samples.held_out_digits()
    >>> with servers.digits() as base_url:
    ...     handler = HTTPModelHandler(base_url, KServeV2("digits"))
    ...     print([int(result.inference) for result in handler.predict(images[:3])])
    [1, 4, 0]
    """

    @accepts(EndpointOptions)
    def __init__(
        self,
        base_url: str,
        protocol: TensorProtocol,
        api_key_env: str | None = None,
        *,
        max_request_size: int | None = None,
        **options: Unpack[EndpointOptions],
    ) -> None:
        """Names the server, and says how it is spoken to.

        Args:
            base_url: The address of the server, such as ``http://localhost:8080``.
            protocol: ``KServeV2``, ``TFServing``, ``TFServingColumns`` or ``TorchServe``, with its model's name;
                or an object of your own with the methods of ``TensorProtocol``.
            api_key_env: The environment variable of the workers that holds the key, sent as a bearer token; None
                for a server that asks for none.
            max_request_size: The most examples in a request; by default 32, and 1 for TorchServe.
            **options: The options of every remote handler; ``timeout``, ``headers`` and ``key_over_http``, see
                ``EndpointModelHandler``.

        Raises:
            OptionError: A value is out of range, the address holds a secret, or the key would travel unencrypted.
            ImportError: httpx or tenacity is not installed.
        """
        size = protocol.request_size if max_request_size is None else max_request_size
        super().__init__(base_url, api_key_env, max_request_size=size, **options)
        self._protocol = protocol

    def create_client(self) -> Any:
        return _Described(super().create_client(), self._protocol)

    def request(
        self, batch: Sequence[Any], model: Any, inference_args: dict[str, Any] | None = None
    ) -> list[PredictionResult]:
        """One ``PredictionResult`` for each example.

        Args:
            batch: Arrays of one shape, or dictionaries of such by name.
            model: The client.
            inference_args: Further fields of the request; of KServe's ``parameters``.

        Raises:
            BatchShapeError: An example has another shape than the others, or than the model takes.
            ElementError: An input is missing, unknown, or of a type that the model does not take.
            EndpointError: The server was not reached, refused, failed, or did not answer as the protocol has it.
            ResultMismatchError: It answered for more or fewer examples than it was asked about.
        """
        protocol = self._protocol
        body = protocol.body(batch, model.inputs(), inference_args or {})
        rows = model.client.post(
            protocol.path, body, lambda answer: unbatch(protocol.output(answer, batch), len(batch))
        )
        return [PredictionResult(x, y, protocol.model_id) for x, y in zip(batch, rows, strict=True)]

    def update_model_path(self, model_path: str | None = None) -> None:
        """Says that another model is asked from now on: ``"name"``, or ``"name/version"``."""
        if model_path:
            self._protocol = self._protocol.renamed(model_path)

    def get_metrics_namespace(self) -> str:
        return "BeamML_HTTP"


class _Described:
    """A client, and the inputs that its server tells, asked for once."""

    def __init__(self, client: Client, protocol: Any) -> None:
        self.client = client
        self._protocol = protocol
        self._inputs: list[InputSpec] | None = None
        self._lock = threading.Lock()

    def inputs(self) -> list[InputSpec]:
        """What the model takes; empty if the server does not tell."""
        if self._protocol.description_path is None:
            return []
        with self._lock:
            if self._inputs is None:
                self._inputs = self._told()
            return self._inputs

    def _told(self) -> list[InputSpec]:
        try:
            description = self.client.get(self._protocol.description_path)
        except EndpointRefusedError as error:
            if error.status_code in (
                404,
                405,
            ):  # the request itself will tell whether there is a model
                return []
            raise
        try:
            inputs: list[InputSpec] = self._protocol.inputs(description)
        except (UnusableAnswerError, KeyError, TypeError, AttributeError):
            return []
        return inputs
