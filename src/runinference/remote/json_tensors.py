"""Arrays as JSON has them, and back."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

import numpy as np

from runinference.errors import ElementError, UnusableAnswerError

#: NumPy's types by the names of the Open Inference Protocol, where both have them; texts are its "BYTES".
TYPES = {
    "BOOL": np.dtype("bool"),
    **{f"INT{bits}": np.dtype(f"int{bits}") for bits in (8, 16, 32, 64)},
    **{f"UINT{bits}": np.dtype(f"uint{bits}") for bits in (8, 16, 32, 64)},
    **{f"FP{bits}": np.dtype(f"float{bits}") for bits in (16, 32, 64)},
}
_NAMES = {dtype: name for name, dtype in TYPES.items()}


def listed(value: Any) -> Any:
    """A value as JSON has it: arrays as lists, bytes as ``{"b64": …}``, as TensorFlow Serving takes them."""
    if isinstance(value, Mapping):
        return {name: listed(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [listed(part) for part in value]
    if isinstance(value, bytes):
        return {"b64": base64.b64encode(value).decode()}
    if value is None or isinstance(value, (str, int, float)):
        return value
    array = np.asarray(value)
    if array.dtype.kind not in "biufSUO" or (array.dtype.kind == "O" and array.ndim == 0):
        raise ElementError(
            f"An element holds a {type(value).__name__}, which JSON has no form for. Convert it to numbers or "
            "texts with with_preprocess_fn."
        )
    return array.tolist() if array.dtype.kind in "biufU" else listed(array.tolist())


def as_arrays(value: Any) -> Any:
    """What JSON has as lists of numbers, as arrays; all else as it is."""
    if isinstance(value, Mapping):
        return {name: as_arrays(part) for name, part in value.items()}
    if not isinstance(value, list):
        return value
    try:
        array = np.asarray(value)
    except ValueError:  # rows of several lengths
        return [as_arrays(part) for part in value]
    return array if array.dtype.kind in "biuf" else [as_arrays(part) for part in value]


def field(answer: Any, name: str, kind: type | tuple[type, ...]) -> Any:
    """A field of an answer.

    Raises:
        UnusableAnswerError: It is not there, or of another kind.
    """
    found = answer.get(name) if isinstance(answer, Mapping) else None
    if isinstance(found, kind):
        return found
    if isinstance(answer, Mapping):
        says = f"the fields {sorted(answer)}" + (
            f" and the error {str(answer['error'])[:200]!r}" if answer.get("error") else ""
        )
    else:
        says = repr(answer)[:80]
    raise UnusableAnswerError(
        f"The answer has no {name!r}, it has {says}. Is it the right protocol?"
    )


def tensor(name: str, array: Any) -> dict[str, Any]:
    """An array as the Open Inference Protocol has it.

    Raises:
        ElementError: Its type is none of the protocol's.
    """
    kind = array.dtype.kind
    datatype = "BYTES" if kind in "SUO" else _NAMES.get(array.dtype)
    if datatype is None:
        raise ElementError(
            f"The input {name!r} has the type {array.dtype}, which the protocol does not know. Convert it with "
            "with_preprocess_fn."
        )
    data = array.ravel().tolist()
    if datatype == "BYTES":
        data = [_text(name, one) for one in data]
    return {"name": name, "shape": list(array.shape), "datatype": datatype, "data": data}


def _text(name: str, value: Any) -> Any:
    """Bytes as the text that JSON can hold."""
    if not isinstance(value, bytes):
        return value
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise ElementError(
            f"The input {name!r} holds bytes that are no UTF-8, which JSON cannot hold ({error}). Encode them "
            "with with_preprocess_fn, for example base64.b64encode, in the form that the model takes."
        ) from None


def array_of(tensor: Mapping[str, Any]) -> Any:
    """The array of a tensor as the Open Inference Protocol has it.

    Raises:
        UnusableAnswerError: Its data do not fit its shape or its type.
    """
    name, shape, datatype = (tensor.get(key) for key in ("name", "shape", "datatype"))
    dtype = TYPES.get(str(datatype), np.dtype(object) if datatype == "BYTES" else None)
    try:
        return np.asarray(tensor["data"], dtype).reshape(shape)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise UnusableAnswerError(
            f"Its output {name!r} is no tensor of shape {shape} and datatype {datatype}: {error}."
        ) from None
