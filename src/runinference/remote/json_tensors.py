"""Conversion between arrays and JSON."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

import numpy as np

from runinference.collate.exact import check_texts
from runinference.errors import ElementError, UnusableAnswerError
from runinference.remote.json_text import MAX_DEPTH
from runinference.remote.raw_tensors import DTYPES, from_raw, to_raw

_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_OUTPUT_DTYPES = {**DTYPES, "BYTES": np.dtype(object), "BF16": np.dtype("float32")}
# Limits of what an error message quotes from a response.
_MAX_NAME = 80  # characters
_MAX_KEYS = 20


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
    try:
        array = np.asarray(value)
        kind = array.dtype.kind
    except Exception:  # a framework's tensor that NumPy can't read
        kind = "V"
    if kind not in "biufSUO" or (kind == "O" and array.ndim == 0):
        raise ElementError(
            f"An element contains a {type(value).__name__}, which can't be written as JSON. Convert it to numbers "
            "or strings with with_preprocess_fn."
        )
    return array.tolist() if kind in "biufU" else to_json(array.tolist())


def to_arrays(value: Any, depth: int = 0) -> Any:
    """Convert nested lists of numbers to arrays, and leave other values unchanged.

    Raises:
        UnusableAnswerError: The value is nested too deeply.
    """
    if depth > MAX_DEPTH:
        raise UnusableAnswerError("The response is nested too deeply.")
    if isinstance(value, Mapping):
        return {name: to_arrays(item, depth + 1) for name, item in value.items()}
    if not isinstance(value, list):
        return value
    try:
        array = np.asarray(value)
    except (ValueError, RecursionError):  # rows of different lengths, or too many dimensions
        return [to_arrays(item, depth + 1) for item in value]
    if array.dtype.kind not in "biuf" or _rounds_integers(array, value):
        return [to_arrays(item, depth + 1) for item in value]
    return array


def _rounds_integers(array: Any, value: Any) -> bool:
    """Return whether NumPy made floats of numbers among which are integers that a float can't hold."""
    if array.dtype.kind != "f" or not (np.abs(array) >= 2.0**53).any():
        return False
    numbers = np.asarray(value, object).flat
    return any(isinstance(number, int) and int(float(number)) != number for number in numbers)


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
    found = value.get("error") or value.get("errors")
    error = f", error {str(found)[:200]!r}" if found else ""
    more = ", ..." if len(value) > _MAX_KEYS else ""
    return f"{{{', '.join(repr(key)[:_MAX_NAME] for key in list(value)[:_MAX_KEYS])}{more}}}{error}"


def encode_tensor(name: str, array: Any, binary: bool = False) -> dict[str, Any]:
    """Convert an array to a tensor of the Open Inference Protocol, whose data are ``bytes`` if it is binary."""
    kind = array.dtype.kind
    native = array.dtype.newbyteorder("=")
    datatype = "BYTES" if kind in "SUO" else _NAMES.get(native)
    if binary and native.name == "bfloat16":  # of the package ml_dtypes
        datatype = "BF16"
    if datatype is None:
        raise ElementError(
            f"The protocol doesn't support {array.dtype} (input {name!r}). Convert it with with_preprocess_fn."
        )
    data: Any
    if binary:
        texts = datatype == "BYTES"
        data = to_raw(check_texts(array, name, True) if texts else array, name)
    elif datatype == "BYTES":
        data = [
            _decode_bytes(name, item) for item in check_texts(array, name, True).ravel().tolist()
        ]
    else:
        data = array.ravel().tolist()
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
    """Convert a tensor of the Open Inference Protocol to an array. BF16 becomes float32, BYTES become objects.

    The data are JSON or ``bytes``.

    Raises:
        UnusableAnswerError: The data don't have the datatype or the shape that the tensor states.
    """
    name, shape, datatype = (tensor.get(key) for key in ("name", "shape", "datatype"))
    try:
        if isinstance(tensor["data"], bytes):
            return from_raw(tensor["data"], str(datatype), shape)
        dtype = _OUTPUT_DTYPES[str(datatype)]
        return _to_dtype(tensor["data"], dtype).reshape(shape)
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        parts = [str(part)[:_MAX_NAME] for part in (repr(name), shape, datatype)]
        raise UnusableAnswerError(
            f"The output {parts[0]} is not a tensor of shape {parts[1]} and datatype {parts[2]}: "
            f"{str(error)[:200]}."
        ) from None


def _to_dtype(data: Any, dtype: Any) -> Any:
    """Convert JSON data to an array without changing a value.

    Raises:
        ValueError: A value is not of this dtype, such as 1.5 for an integer or text for a number.
    """
    if dtype.kind == "O":
        return np.asarray(data, dtype)
    array = np.asarray(data)
    if array.dtype.kind == "f" and dtype.kind in "iu":
        # NumPy rounds integers to floats if some of them need uint64 and others int64.
        objects = np.asarray(data, dtype=object)
        if all(isinstance(value, int) for value in objects.flat):
            array = np.asarray(data, dtype)
    if array.dtype.kind == "O" and dtype.kind == "f":
        array = np.asarray(data, np.float64)  # null stands for NaN, which JSON doesn't have
    if not array.size:
        return array.astype(dtype)
    if array.dtype.kind not in {"b": "b", "f": "iuf"}.get(dtype.kind, "iuf"):
        raise ValueError(f"the data are of type {array.dtype}")
    if array.dtype.kind == "f" and dtype.kind != "f":
        array = np.asarray(data, object)  # NumPy makes floats of very large integers among others
    with np.errstate(all="ignore"):
        converted = array.astype(dtype)
    is_same = converted == array if dtype.kind != "f" else np.isinf(converted) == np.isinf(array)
    if not is_same.all():
        raise ValueError(f"{array[~is_same].flat[0]} is not a value of {dtype}")
    return converted
