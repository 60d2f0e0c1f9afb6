"""JSON protocols of model servers for tensors, without network access."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol
from urllib.parse import quote

from typing_extensions import Self

from runinference.checks import check_bool, check_names, check_text
from runinference.collate.named_inputs import InputSpec, bind_inputs
from runinference.errors import OptionError, UnusableAnswerError
from runinference.remote.json_tensors import (
    decode_tensor,
    describe_json,
    encode_tensor,
    get_field,
    to_arrays,
    to_json,
)
from runinference.remote.json_text import MAX_DEPTH
from runinference.remote.raw_tensors import DTYPES


class TensorProtocol(Protocol):
    """The requests and responses of a kind of model server. Implement it to support another protocol."""

    @property
    def path(self) -> str:
        """Path of requests, relative to the base URL."""

    @property
    def description_path(self) -> str | None:
        """Path of the model's metadata, or None if the protocol doesn't use any."""

    @property
    def model_id(self) -> str:
        """The ``model_id`` of results."""

    @property
    def request_size(self) -> int:
        """Default maximum number of examples in a request."""

    def renamed(self, model_id: str) -> Self:
        """Return a copy for another model.

        Args:
            model_id: ``"name"`` or ``"name/version"``.
        """

    def body(
        self, batch: Sequence[Any], inputs: Sequence[InputSpec], fields: Mapping[str, Any]
    ) -> Any:
        """Return the JSON body of a request.

        Args:
            batch: The examples: arrays, or dictionaries of arrays by input name.
            inputs: The inputs of the model, from its metadata. Empty if the server doesn't provide any.
            fields: Additional fields, from ``inference_args``.
        """

    def output(self, answer: Any, batch: Sequence[Any]) -> Any:
        """Return the output of the model for a batch, whose first dimension is the batch size.

        Args:
            answer: The JSON response of the server.
            batch: The examples of the request.
        """


@dataclass(frozen=True)
class _NamedModel:
    """A model with a name and an optional version."""

    model_name: str
    version: str | None = None

    def __post_init__(self) -> None:
        check_text("model_name", self.model_name)
        if isinstance(self.version, bool) or not isinstance(self.version, (int, type(None))):
            check_text("version", self.version)
        if "/" in f"{self.model_name}{self.version or ''}":
            raise OptionError(
                f"model_name is {self.model_name!r}, which is empty or has a slash. Set the version "
                "separately, for example version='2'."
            )
        if not {self.model_name, self.version}.isdisjoint((".", "..")):
            raise OptionError(
                f"model_name or version is a dot, which a URL can't contain: {self.model_id!r}."
            )

    @property
    def model_id(self) -> str:
        return self.model_name if self.version is None else f"{self.model_name}/{self.version}"

    @property
    def description_path(self) -> str | None:
        return None

    def _get_path(self, prefix: str, infix: str) -> str:
        """Return a path with the name and the version, in which special characters are escaped."""
        version = "" if self.version is None else f"{infix}{quote(str(self.version), safe='')}"
        return f"{prefix}{quote(self.model_name, safe='')}{version}"

    def renamed(self, model_id: str) -> Self:
        name, _, version = model_id.partition("/")
        return replace(self, model_name=name, version=version or None)


@dataclass(frozen=True)
class KServeV2(_NamedModel):
    """The Open Inference Protocol, version 2: KServe, Triton, MLServer, TorchServe, OpenVINO.

    Names and dtypes of inputs come from the model's metadata. If the server provides none, an array is sent as
    ``input-0``, and the keys of a dictionary are the names of the inputs.

    >>> from runinference.http_inference import KServeV2
    >>> digits = KServeV2("digits", version="3")
    >>> digits.path
    '/v2/models/digits/versions/3/infer'
    >>> digits.body([{"pixels": np.array([1.0, 2.0])}], [], {})
    {'inputs': [{'name': 'pixels', 'shape': [1, 2], 'datatype': 'FP64', 'data': [1.0, 2.0]}]}

    Attributes:
        model_name: Name of the model on the server.
        version: Version of the model. None to let the server choose.
        outputs: Names of the outputs to request. None for all. With one output, results are arrays. With several
            outputs, results are dictionaries of arrays by name.
        binary: Whether to send tensors as binary data instead of JSON, and to request outputs as such. This
            extension of the protocol is much faster, and can represent NaN and bytes that aren't UTF-8. Outputs
            of the datatype ``BYTES`` are then arrays of ``bytes``. Triton and KServe support it.
    """

    outputs: tuple[str, ...] | None = None
    binary: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_bool("binary", self.binary)
        if self.outputs is not None:
            check_names("outputs", self.outputs)
            if not self.outputs:
                raise OptionError("outputs is empty. To fix this, name an output, or leave it out.")

    request_size = 32

    @property
    def description_path(self) -> str:
        return self._get_path("/v2/models/", "/versions/")

    @property
    def path(self) -> str:
        return f"{self.description_path}/infer"

    def body(
        self, batch: Sequence[Any], inputs: Sequence[InputSpec], fields: Mapping[str, Any]
    ) -> Any:
        arrays = bind_inputs(batch, inputs or _infer_inputs(batch[0]), {})
        tensors = [encode_tensor(name, array, self.binary) for name, array in arrays.items()]
        body: dict[str, Any] = {"inputs": tensors}
        if self.binary:
            fields = {"binary_data_output": True, **fields}
        if fields:
            body["parameters"] = dict(fields)
        if self.outputs is not None:
            body["outputs"] = [{"name": name} for name in self.outputs]
        return body

    def output(self, answer: Any, batch: Sequence[Any]) -> Any:
        arrays: dict[str, Any] = {}
        for one in get_field(answer, "outputs", list):
            if not isinstance(one, Mapping):
                raise UnusableAnswerError(f"An output is {describe_json(one)}, not a tensor.")
            name = str(one.get("name"))
            if name in arrays:
                raise UnusableAnswerError(f"The response has two outputs {name[:80]!r}.")
            arrays[name] = decode_tensor(one)
        if not arrays:
            raise UnusableAnswerError("The response has no outputs.")
        if self.outputs is not None:
            arrays = self._select(arrays, self.outputs)
        return arrays if len(arrays) > 1 else next(iter(arrays.values()))

    @staticmethod
    def _select(arrays: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
        for name in names:
            if name not in arrays:
                raise UnusableAnswerError(
                    f"The response has no output {name!r}. Its outputs are {describe_json(arrays)}."
                )
        return {name: arrays[name] for name in names}

    @staticmethod
    def inputs(description: Any) -> list[InputSpec]:
        """Return the inputs of a model from its metadata.

        Args:
            description: The JSON response of the server to a request for the metadata.
        """
        tensors = get_field(description, "inputs", list) if "inputs" in description else []
        return [
            InputSpec(
                one["name"],
                DTYPES.get(one.get("datatype"), bytes if one.get("datatype") == "BYTES" else None),
                tuple(size if size > 0 else None for size in one.get("shape") or ()),
            )
            for one in tensors
        ]


@dataclass(frozen=True)
class TFServing(_NamedModel):
    """TensorFlow Serving's ``:predict`` API in row format (``instances``, ``predictions``), and KServe V1.

    >>> TFServing("digits").body([np.array([1, 2]), np.array([3, 4])], [], {})
    {'instances': [[1, 2], [3, 4]]}

    Attributes:
        model_name: Name of the model on the server.
        version: Version of the model. None to let the server choose.
        signature_name: Name of the signature to call. None for ``serving_default``.
    """

    signature_name: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.signature_name is not None:
            check_text("signature_name", self.signature_name)

    request_size = 32

    @property
    def path(self) -> str:
        return f"{self._get_path('/v1/models/', '/versions/')}:predict"

    def body(
        self, batch: Sequence[Any], inputs: Sequence[InputSpec], fields: Mapping[str, Any]
    ) -> Any:
        signature = {} if self.signature_name is None else {"signature_name": self.signature_name}
        return {**signature, **fields, **self._encode(batch)}

    def output(self, answer: Any, batch: Sequence[Any]) -> Any:
        return [to_arrays(_decode_bytes(one)) for one in get_field(answer, "predictions", list)]

    def _encode(self, batch: Sequence[Any]) -> dict[str, Any]:
        return {"instances": [to_json(example) for example in batch]}


@dataclass(frozen=True)
class TFServingColumns(TFServing):
    """TensorFlow Serving's ``:predict`` API in columnar format (``inputs``, ``outputs``).

    An input or output is a tensor, or a dictionary of tensors by name.

    >>> TFServingColumns("digits").body([{"a": 1, "b": 2}, {"a": 3, "b": 4}], [], {})
    {'inputs': {'a': [1, 3], 'b': [2, 4]}}
    """

    def output(self, answer: Any, batch: Sequence[Any]) -> Any:
        return to_arrays(_decode_bytes(get_field(answer, "outputs", (list, dict))))

    def _encode(self, batch: Sequence[Any]) -> dict[str, Any]:
        by_name = isinstance(batch[0], Mapping)
        arrays = bind_inputs(batch, _infer_inputs(batch[0]), {})
        return {"inputs": to_json(arrays if by_name else next(iter(arrays.values())))}


@dataclass(frozen=True)
class TorchServe(_NamedModel):
    """TorchServe's ``/predictions`` API: one example per request.

    TorchServe batches concurrent requests itself.

    >>> TorchServe("digits").body([np.array([1, 2])], [], {})
    [1, 2]

    Attributes:
        model_name: Name of the model on the server.
        version: Version of the model. None to let the server choose.
    """

    request_size = 1

    @property
    def path(self) -> str:
        return self._get_path("/predictions/", "/")

    def body(
        self, batch: Sequence[Any], inputs: Sequence[InputSpec], fields: Mapping[str, Any]
    ) -> Any:
        self.check_request(len(batch), fields)
        return to_json(batch[0])

    @staticmethod
    def check_request(n_examples: int, fields: Mapping[str, Any]) -> None:
        """Raise ``OptionError`` if a request would have several examples, or additional fields.

        Args:
            n_examples: Number of examples in the request.
            fields: Additional fields, from ``inference_args``.
        """
        if n_examples != 1 or fields:
            raise OptionError(
                "A TorchServe request contains one example only. Remove inference_args and max_request_size."
            )

    def output(self, answer: Any, batch: Sequence[Any]) -> Any:
        return [to_arrays(answer)]


def _decode_bytes(value: Any, depth: int = 0) -> Any:
    """Convert ``{"b64": …}``, which is how TensorFlow Serving writes bytes, back to bytes."""
    if depth > MAX_DEPTH:
        raise UnusableAnswerError("The response is nested too deeply.")
    if isinstance(value, Mapping):
        if value.keys() == {"b64"} and isinstance(value["b64"], str):
            try:
                return base64.b64decode(value["b64"], validate=True)
            except ValueError as error:
                raise UnusableAnswerError(f"The response has invalid base64: {error}.") from None
        return {name: _decode_bytes(item, depth + 1) for name, item in value.items()}
    if isinstance(value, list) and value and isinstance(value[0], (Mapping, list)):
        return [_decode_bytes(item, depth + 1) for item in value]
    return value


def _infer_inputs(example: Any) -> list[InputSpec]:
    """Return one input per key of a dictionary, or a single one for other examples."""
    names = example if isinstance(example, Mapping) else ["input-0"]
    return [InputSpec(name, None, ()) for name in names]
