"""Conversion between arrays and the binary data of tensors of the Open Inference Protocol."""

from __future__ import annotations

import math
import struct
from typing import Any

import numpy as np

from runinference.errors import ElementError

#: NumPy dtypes by their names in the protocol. Strings and bytes are its "BYTES".
DTYPES = {
    "BOOL": np.dtype("bool"),
    **{f"INT{bits}": np.dtype(f"int{bits}") for bits in (8, 16, 32, 64)},
    **{f"UINT{bits}": np.dtype(f"uint{bits}") for bits in (8, 16, 32, 64)},
    **{f"FP{bits}": np.dtype(f"float{bits}") for bits in (16, 32, 64)},
}
_RAW_DTYPES = {"BF16": np.dtype("uint16"), **DTYPES}
_LENGTH = struct.Struct("<I")  # before each value of a BYTES tensor


def to_raw(array: Any, name: str) -> bytes:
    """Return the data of a tensor: little-endian numbers, or texts and bytes with their lengths."""
    if array.dtype.kind in "SUO":
        return b"".join(_with_length(item, name) for item in array.ravel().tolist())
    return bytes(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes())


def _with_length(value: Any, name: str) -> bytes:
    try:
        data = value if isinstance(value, bytes) else str(value).encode()
        return _LENGTH.pack(len(data)) + data
    except (UnicodeEncodeError, struct.error) as error:
        raise ElementError(f"The input {name!r} has a value that can't be sent: {error}.") from None


def from_raw(data: bytes, datatype: str, shape: Any) -> Any:
    """Convert the data of a tensor to an array. BF16 becomes float32, BYTES becomes an object array of ``bytes``.

    Raises:
        KeyError: The datatype is unknown.
        ValueError: The shape is not a list of sizes, or the data have another size.
    """
    is_shape = isinstance(shape, list) and all(
        isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in shape
    )
    if not is_shape:
        raise ValueError("the shape is not a list of sizes")
    n_values = math.prod(shape)
    if datatype == "BYTES":
        return _split_values(data, n_values).reshape(shape)
    dtype = _RAW_DTYPES[datatype]
    if len(data) != n_values * dtype.itemsize:
        raise ValueError(f"it has {len(data)} bytes, not {n_values * dtype.itemsize}")
    array = np.frombuffer(data, dtype.newbyteorder("<")).reshape(shape)
    if datatype == "BF16":
        return (array.astype(np.uint32) << 16).view(np.float32)
    if datatype == "BOOL" and (array.view(np.uint8) > 1).any():
        raise ValueError("a byte is neither 0 nor 1")
    return array.astype(dtype)


def _split_values(data: bytes, n_values: int) -> Any:
    values: list[bytes] = []
    start = 0
    while start < len(data):
        if start + _LENGTH.size > len(data):
            raise ValueError("the length of a value is incomplete")
        [length] = _LENGTH.unpack_from(data, start)
        start += _LENGTH.size
        if start + length > len(data):
            raise ValueError(f"a value of {length} bytes is incomplete")
        values.append(data[start : start + length])
        start += length
    if len(values) != n_values:
        raise ValueError(f"it has {len(values)} values, not {n_values}")
    array = np.empty(n_values, object)
    array[:] = values
    return array
