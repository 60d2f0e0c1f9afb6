"""Convert values to arrays, and arrays to other dtypes, without changing a value."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from numbers import Integral
from typing import Any

import numpy as np

from runinference.errors import ElementError

#: From this number on, float64 does not hold all integers.
_MAX_FLOAT64_INTEGER = 2**53
_NUMBERS = frozenset("biufc")
_OBJECTS = frozenset("OUS")
_CONVERT = (
    "To fix this, convert all elements to one dtype with with_preprocess_fn, for example "
    'lambda x: np.asarray(x, "float64"), which rounds large integers.'
)


def to_array(value: Any, name: str, index: int | None = None) -> Any:
    """Return a NumPy array with the values of an array, tensor, number, text or nested list.

    A text, or a list with texts, becomes an array of dtype ``object``. NumPy's dtypes for texts and bytes drop
    zeros at the end, and turn numbers that are mixed with texts into texts.

    >>> to_array(["red", 3, None], "the value").tolist()
    ['red', 3, None]

    Args:
        value: The value.
        name: The name of the value, or of its batch if there is an index, in error messages.
        index: The index of the value in its batch.

    Raises:
        ElementError: NumPy cannot hold the value in an array.
    """
    if isinstance(value, np.ndarray):
        return _without_mask(value, name, index)
    if isinstance(value, (str, bytes)):
        return _wrap(value)
    try:
        array = np.asanyarray(value)
    except (ValueError, TypeError, RuntimeError, OverflowError) as error:
        reason = f" ({' '.join(str(error).split())[:200]})"
        raise _unconvertible(value, name, index, reason) from error
    if array.dtype.kind in "US" and not hasattr(value, "dtype"):
        return np.array(value, dtype=object)
    check_integers([value], [array], name, index or 0)
    if array.ndim == 0 and array.dtype.kind == "O" and getattr(value, "shape", ()) != ():
        raise _unconvertible(value, name, index)  # such as a sparse matrix
    return array


def find_common_dtype(arrays: Iterable[Any]) -> Any:
    """Return a dtype for the values of all arrays, or None if there is none. Empty arrays have no values.

    Numbers get a number type. Texts and bytes that are mixed with other values become Python objects.
    """
    arrays = list(arrays)
    dtypes = {array.dtype for array in arrays if array.size} or {arrays[0].dtype}
    kinds = {dtype.kind for dtype in dtypes}
    if len(dtypes) == 1:
        return next(iter(dtypes))
    if kinds <= _NUMBERS or kinds in ({"U"}, {"S"}, {"M"}, {"m"}):
        return np.result_type(*dtypes)
    return np.dtype(object) if kinds <= _NUMBERS | _OBJECTS else None


def cast(array: Any, dtype: Any) -> tuple[Any, Any]:
    """Convert an array to a dtype. Return the new array, and the index of the first value that changed, or None.

    Floats may be rounded to another float type, but not become infinite.

    >>> converted, changed = cast(np.array([1, 16_777_217]), np.float32)
    >>> int(converted[1]), changed
    (16777216, (1,))
    """
    if array.dtype == dtype:
        return array, None
    if not array.size:
        return np.empty(array.shape, dtype), None
    with np.errstate(all="ignore"):
        converted = array.astype(dtype)
    changed = _find_changes(array, converted)
    if changed is None or not changed.any():
        return converted, None
    return converted, tuple(map(int, np.argwhere(changed)[0]))


def unify_dtypes(arrays: Sequence[Any], name: str) -> list[Any]:
    """Convert the arrays of a batch to one dtype that holds all of their values.

    Raises:
        ElementError: There is no such dtype. The message starts with the index of an array and ``name``.
    """
    dtype = find_common_dtype(arrays)
    if dtype is None:
        index = next(i for i, array in enumerate(arrays) if array.dtype != arrays[0].dtype)
        raise ElementError(
            f"Element {index} of {name} has the dtype {arrays[index].dtype}, while element 0 has "
            f"{arrays[0].dtype}. Elements of one batch need one dtype. {_CONVERT}",
            index=index,
        )
    unified = []
    for index, array in enumerate(arrays):
        converted, changed = cast(array, dtype)
        if changed is not None:
            raise changed_value_error(index, name, array[changed], dtype)
        unified.append(converted)
    return unified


def check_integers(examples: Sequence[Any], arrays: Any, name: str, start: int = 0) -> None:
    """Raise `ElementError` if a list holds an integer that is rounded in the array made from the list.

    Args:
        examples: The examples of the batch.
        arrays: The array of each example, all of one dtype.
        name: The name of the batch in error messages.
        start: The index of the first example in its batch.
    """
    dtype = arrays.dtype if isinstance(arrays, np.ndarray) else arrays[0].dtype
    if dtype.kind not in "fc":
        return
    limit = 2.0 ** (np.finfo(dtype).nmant + 1)
    if isinstance(arrays, np.ndarray) and not (np.abs(arrays) >= limit).any():
        return
    for index, (example, array) in enumerate(zip(examples, arrays, strict=True), start):
        is_array = hasattr(example, "dtype") and getattr(example, "shape", ()) != ()
        if is_array or not (np.abs(array) >= limit).any():
            continue
        is_table = hasattr(example, "to_numpy")
        leaves = example.to_numpy(object) if is_table else np.array(example, dtype=object)
        for leaf, number in zip(leaves.ravel().tolist(), np.ravel(array).tolist(), strict=True):
            if isinstance(leaf, Integral) and not (
                np.isfinite(number) and int(number.real) == leaf
            ):
                raise changed_value_error(index, name, leaf, dtype)


def changed_value_error(index: int, name: str, value: Any, dtype: Any) -> ElementError:
    """Return the error for a value that the dtype of its batch does not hold."""
    return ElementError(
        f"Element {index} of {name} holds {value}, which {dtype} cannot hold unchanged. {_CONVERT}",
        index=index,
    )


def check_texts(array: Any, spec: str, allow_bytes: bool) -> Any:
    """Return an array of texts for ``spec``, the name of a model's input.

    Args:
        array: Any array.
        spec: The name of the input for error messages.
        allow_bytes: Whether the input also takes bytes. If not, bytes are decoded as UTF-8.

    Raises:
        ElementError: A value is neither text nor bytes, or bytes are not UTF-8.
    """
    if array.dtype.kind == "U" or (allow_bytes and array.dtype.kind == "S"):
        return array
    if not array.size:
        return np.empty(array.shape, dtype=object)
    values = array.ravel().tolist()
    for value in values:
        if not isinstance(value, (str, bytes)):
            raise ElementError(
                f"The model's input {spec!r} takes text, and an element holds {value!r} of type "
                f"{type(value).__name__}. To fix this, convert it with with_preprocess_fn."
            )
    if allow_bytes or not any(isinstance(value, bytes) for value in values):
        return array
    texts = np.empty(len(values), dtype=object)
    texts[:] = [_decode(value, spec) for value in values]
    return texts.reshape(array.shape)


def _decode(value: str | bytes, spec: str) -> str:
    if isinstance(value, str):
        return value
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise ElementError(
            f"The model's input {spec!r} takes text, and an element holds bytes that are not UTF-8 ({error}). To "
            "fix this, decode them with with_preprocess_fn."
        ) from None


def _find_changes(array: Any, converted: Any) -> Any:
    """Return for each value whether it changed, or None if none can."""
    before, after = array.dtype, converted.dtype
    from_integer, to_float = before.kind in "iu", _is_float(after)
    if np.can_cast(before, after, "safe") and not (
        before.kind in "mM" or (from_integer and before.itemsize == 8 and to_float)
    ):
        return None
    if from_integer and to_float:
        return _find_changed_integers(array, converted)
    if to_float:
        return np.isfinite(array) != np.isfinite(converted)
    if before.kind in "mM":
        return (converted.astype(before) != array) & ~np.isnat(array)
    return converted != array


def _is_float(dtype: Any) -> bool:
    """Return whether a dtype is a real or complex float. The kind of ``bfloat16`` is that of raw data."""
    is_small = dtype.kind == "V" and dtype.names is None and np.can_cast(dtype, np.float64)
    return dtype.kind in "fc" or is_small


def _find_changed_integers(integers: Any, floats: Any) -> Any:
    numbers = integers.astype(np.float64)
    changed = np.atleast_1d(floats.real.astype(np.float64) != numbers)
    large = np.atleast_1d(np.abs(numbers) >= _MAX_FLOAT64_INTEGER) & ~changed
    if large.any():
        exact = np.atleast_1d(integers)[large].tolist()
        changed[large] = [
            int(x) != n for x, n in zip(np.atleast_1d(numbers)[large], exact, strict=True)
        ]
    return changed.reshape(integers.shape)


def _wrap(value: Any) -> Any:
    array = np.empty((), dtype=object)
    array[()] = value
    return array


def _without_mask(array: Any, name: str, index: int | None) -> Any:
    if np.ma.is_masked(array):
        raise ElementError(
            f"{_describe_place(name, index)} is an array with masked values, and a batch has no mask. To fix "
            "this, fill them with with_preprocess_fn, for example lambda x: x.filled(np.nan).",
            index=index,
        )
    is_plain = isinstance(array, (np.ma.MaskedArray, np.matrix))
    return np.asarray(array) if is_plain else array


def _unconvertible(value: Any, name: str, index: int | None, reason: str = "") -> ElementError:
    if hasattr(value, "detach"):
        is_bfloat16 = "bfloat16" in str(value.dtype)  # NumPy has no such dtype
        fix = f"x.detach(){'.float()' if is_bfloat16 else ''}.cpu().numpy()"
    else:
        fix = "x.toarray()" if hasattr(value, "toarray") else "np.asarray(…)"
    return ElementError(
        f"{_describe_place(name, index)} is a {type(value).__name__} that cannot be converted to an "
        f"array{reason}. To fix this, convert it with with_preprocess_fn, for example lambda x: {fix}.",
        index=index,
    )


def _describe_place(name: str, index: int | None) -> str:
    return name[:1].upper() + name[1:] if index is None else f"Element {index} of {name}"
