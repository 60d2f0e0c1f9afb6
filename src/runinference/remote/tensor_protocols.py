"""How servers of models take tensors as JSON, and give them back: functions of values, no network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from typing_extensions import Self

from runinference.collate.named_inputs import InputSpec, bind_inputs
from runinference.errors import OptionError, UnusableAnswerError
from runinference.remote.json_tensors import TYPES, array_of, as_arrays, field, listed, tensor


class TensorProtocol(Protocol):
    """What a kind of server expects, and how it answers."""

    @property
    def path(self) -> str:
        """Where requests go, below the address of the server."""

    @property
    def description_path(self) -> str | None:
        """Where the server describes the model's inputs; None if the protocol needs no description."""

    @property
    def model_id(self) -> str:
        """Which model results are of."""

    @property
    def request_size(self) -> int:
        """How many examples share a request, unless the user says otherwise."""

    def renamed(self, model_id: str) -> Any:
        """The same for another model."""

    def body(
        self, batch: Sequence[Any], inputs: Sequence[InputSpec], fields: Mapping[str, Any]
    ) -> Any:
        """What a request says."""

    def output(self, answer: Any, batch: Sequence[Any]) -> Any:
        """What the answer says of the batch, to be split along its first dimension."""


@dataclass(frozen=True)
class _Named:
    """A model by its name, and its version if it is not the server's choice."""

    model_name: str
    version: str | None = None

    def __post_init__(self) -> None:
        if not self.model_name or "/" in f"{self.model_name}{self.version or ''}":
            raise OptionError(
                f"model_name must be a name without slashes, and is {self.model_name!r}. Give the version on its "
                "own: version='2'."
            )

    @property
    def model_id(self) -> str:
        return self.model_name if self.version is None else f"{self.model_name}/{self.version}"

    @property
    def description_path(self) -> str | None:
        return None

    def renamed(self, model_id: str) -> Self:
        name, _, version = model_id.partition("/")
        return replace(self, model_name=name, version=version or None)


@dataclass(frozen=True)
class KServeV2(_Named):
    """The Open Inference Protocol, version 2: KServe, Triton, MLServer, TorchServe, OpenVINO.

    The names and types of the inputs are those that the server tells. Where it tells none, as servers do that
    do not care, an array goes as ``input-0``, and dictionaries name the inputs.

    >>> digits = KServeV2("digits", version="3")
    >>> digits.path
    '/v2/models/digits/versions/3/infer'
    >>> digits.body([np.array([1.0, 2.0])], [InputSpec("pixels", np.float32, ())], {})
    {'inputs': [{'name': 'pixels', 'shape': [1, 2], 'datatype': 'FP32', 'data': [1.0, 2.0]}]}

    Attributes:
        model_name: The model's name on the server.
        version: Which version; None for the one that the server chooses.
        outputs: The names of the outputs to ask for; None for all. One output gives arrays, several give
            dictionaries of arrays by name.
    """

    outputs: tuple[str, ...] | None = None
    request_size = 32

    @property
    def description_path(self) -> str:
        version = "" if self.version is None else f"/versions/{self.version}"
        return f"/v2/models/{self.model_name}{version}"

    @property
    def path(self) -> str:
        return f"{self.description_path}/infer"

    def body(
        self, batch: Sequence[Any], inputs: Sequence[InputSpec], fields: Mapping[str, Any]
    ) -> Any:
        arrays = bind_inputs(batch, inputs or _inputs_named_in(batch[0]), {})
        body: dict[str, Any] = {"inputs": [tensor(name, array) for name, array in arrays.items()]}
        if fields:
            body["parameters"] = dict(fields)
        if self.outputs is not None:
            body["outputs"] = [{"name": name} for name in self.outputs]
        return body

    def output(self, answer: Any, batch: Sequence[Any]) -> Any:
        arrays = {
            str(one.get("name")): array_of(one)
            for one in field(answer, "outputs", list)
            if isinstance(one, Mapping)
        }
        if not arrays:
            raise UnusableAnswerError("It gave no outputs.")
        return arrays if len(arrays) > 1 else next(iter(arrays.values()))

    @staticmethod
    def inputs(description: Any) -> list[InputSpec]:
        """The inputs of a model, from what the server tells of it."""
        found = field(description, "inputs", list) if "inputs" in description else []
        return [
            InputSpec(
                one["name"],
                TYPES.get(one.get("datatype")),
                tuple(size if size > 0 else None for size in one.get("shape") or ()),
            )
            for one in found
        ]


@dataclass(frozen=True)
class TFServing(_Named):
    """TensorFlow Serving's ``:predict``, by rows: ``instances`` in, ``predictions`` out. So is KServe's version 1.

    >>> TFServing("digits").body([np.array([1, 2]), np.array([3, 4])], [], {})
    {'instances': [[1, 2], [3, 4]]}

    Attributes:
        model_name: The model's name on the server.
        version: Which version; None for the one that the server chooses.
        signature_name: Which signature; None for ``serving_default``.
    """

    signature_name: str | None = None
    request_size = 32

    @property
    def path(self) -> str:
        version = "" if self.version is None else f"/versions/{self.version}"
        return f"/v1/models/{self.model_name}{version}:predict"

    def body(
        self, batch: Sequence[Any], inputs: Sequence[InputSpec], fields: Mapping[str, Any]
    ) -> Any:
        signature = {} if self.signature_name is None else {"signature_name": self.signature_name}
        return {**signature, **fields, **self._examples(batch)}

    def output(self, answer: Any, batch: Sequence[Any]) -> Any:
        return [as_arrays(one) for one in field(answer, "predictions", list)]

    def _examples(self, batch: Sequence[Any]) -> dict[str, Any]:
        return {"instances": [listed(example) for example in batch]}


@dataclass(frozen=True)
class TFServingColumns(TFServing):
    """TensorFlow Serving's ``:predict``, by columns: ``inputs`` in, ``outputs`` out; a tensor, or several by name.

    >>> TFServingColumns("digits").body([{"a": 1, "b": 2}, {"a": 3, "b": 4}], [], {})
    {'inputs': {'a': [1, 3], 'b': [2, 4]}}
    """

    def output(self, answer: Any, batch: Sequence[Any]) -> Any:
        return as_arrays(field(answer, "outputs", (list, dict)))

    def _examples(self, batch: Sequence[Any]) -> dict[str, Any]:
        by_name = isinstance(batch[0], Mapping)
        arrays = bind_inputs(batch, _inputs_named_in(batch[0]), {})
        return {"inputs": listed(arrays if by_name else next(iter(arrays.values())))}


@dataclass(frozen=True)
class TorchServe(_Named):
    """TorchServe's ``/predictions``: the example alone is the request, and the answer is its result.

    TorchServe makes the batches itself, so a request holds one example; many run together.

    >>> TorchServe("digits").body([np.array([1, 2])], [], {})
    [1, 2]

    Attributes:
        model_name: The model's name on the server.
        version: Which version; None for the one that the server chooses.
    """

    request_size = 1

    @property
    def path(self) -> str:
        return f"/predictions/{self.model_id}"

    def body(
        self, batch: Sequence[Any], inputs: Sequence[InputSpec], fields: Mapping[str, Any]
    ) -> Any:
        if len(batch) != 1 or fields:
            raise OptionError(
                "A request to TorchServe holds one example and nothing else: leave inference_args out, and "
                "max_request_size too."
            )
        return listed(batch[0])

    def output(self, answer: Any, batch: Sequence[Any]) -> Any:
        return [as_arrays(answer)]


def _inputs_named_in(example: Any) -> list[InputSpec]:
    """The inputs that an example names; one, if it names none."""
    names = example if isinstance(example, Mapping) else ["input-0"]
    return [InputSpec(name, None, ()) for name in names]
