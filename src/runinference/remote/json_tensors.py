"""Conversion between arrays and JSON."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

import numpy as np

from runinference.errors import ElementError, UnusableAnswerError

#: NumPy dtypes by their names in the Open Inference Protocol. Strings and bytes are its "BYTES".
DTYPES = {
    "BOOL": np.dtype("bool"),
    **{f"INT{bits}": np.dtype(f"int{bits}") for bits in (8, 16, 32, 64)},
    **{f"UINT{bits}": np.dtype(f"uint{bits}") for bits in (8, 16, 32, 64)},
    **{f"FP{bits}": np.dtype(f"float{bits}") for bits in (16, 32, 64)},
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def to_json(value: Any) -> Any:
    """Convert arrays to lists, and bytes to ``{"b64": …}`` as TensorFlow Serving expects."""
    if isinstance(value, Mapping):
        return {name: to_json(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(item) for item in value]
    if isinstance(value, bytes):
        return {"b64": base64.b64encode(value).decode()}
    if value is None or isinstance(value, (str, int, float)):
        return value
    array = np.asarray(value)
    if array.dtype.kind not in "biufSUO" or (array.dtype.kind == "O" and array.ndim == 0):
        raise ElementError(
            f"An element contains a {type(value).__name__}, which can't be written as JSON. Convert it to numbers "
            "or strings with with_preprocess_fn."
        )
    return array.tolist() if array.dtype.kind in "biufU" else to_json(array.tolist())


def to_arrays(value: Any) -> Any:
    """Convert nested lists of numbers to arrays, and leave other values unchanged."""
    if isinstance(value, Mapping):
        return {name: to_arrays(item) for name, item in value.items()}
    if not isinstance(value, list):
        return value
    try:
        array = np.asarray(value)
    except ValueError:  # rows of different lengths
        return [to_arrays(item) for item in value]
    return array if array.dtype.kind in "biuf" else [to_arrays(item) for item in value]


def get_field(response: Any, name: str, kind: type | tuple[type, ...]) -> Any:
    """Return a field of a response, or raise ``UnusableAnswerError`` if it is missing or has another type."""
    value = response.get(name) if isinstance(response, Mapping) else None
    if isinstance(value, kind):
        return value
    raise UnusableAnswerError(
        f"The response has no valid {name!r}: it is {describe_json(response)}. Is this the right protocol?"
    )


def describe_json(value: Any) -> str:
    """Return the keys and the error message of a dictionary, or the start of another value."""
    if not isinstance(value, Mapping):
        return f"{repr(value)[:80]} ({type(value).__name__})"
    error = f", error {str(value['error'])[:200]!r}" if value.get("error") else ""
    return f"{{{', '.join(map(repr, value))}}}{error}"


def encode_tensor(name: str, array: Any) -> dict[str, Any]:
    """Convert an array to a tensor of the Open Inference Protocol."""
    kind = array.dtype.kind
    datatype = "BYTES" if kind in "SUO" else _NAMES.get(array.dtype)
    if datatype is None:
        raise ElementError(
            f"The protocol doesn't support {array.dtype} (input {name!r}). Convert it with with_preprocess_fn."
        )
    data = array.ravel().tolist()
    if datatype == "BYTES":
        data = [_decode_bytes(name, item) for item in data]
    return {"name": name, "shape": list(array.shape), "datatype": datatype, "data": data}


def _decode_bytes(name: str, value: Any) -> Any:
    if not isinstance(value, bytes):
        return value
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise ElementError(
            f"The input {name!r} contains bytes that are not UTF-8, which JSON can't represent ({error}). Encode "
            "them with with_preprocess_fn, for example with base64.b64encode, in a format that the model accepts."
        ) from None


def decode_tensor(tensor: Mapping[str, Any]) -> Any:
    """Convert a tensor of the Open Inference Protocol to an array."""
    name, shape, datatype = (tensor.get(key) for key in ("name", "shape", "datatype"))
    dtype = DTYPES.get(str(datatype), np.dtype(object) if datatype == "BYTES" else None)
    try:
        return np.asarray(tensor["data"], dtype).reshape(shape)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise UnusableAnswerError(
            f"The output {name!r} is not a tensor of shape {shape} and datatype {datatype}: {error}."
        ) from None
