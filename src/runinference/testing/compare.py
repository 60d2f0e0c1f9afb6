"""Compare, copy and format the results and examples of handlers."""

from __future__ import annotations

import copy
import pickle
from collections import deque
from collections.abc import Iterator, Mapping, Set
from typing import Any

import numpy as np

from runinference.collate.pytree import leaves_with_path

#: Relative and absolute tolerance of results, by a part of the name of their dtype. The first match counts.
_TOLERANCES = {"bfloat16": (3e-2, 1e-2), "float16": (1e-2, 1e-3), "": (1e-4, 1e-5)}


_COMPARES_IDENTITY: Any = object.__eq__


def same(one: Any, other: Any) -> bool:
    """Return whether two results are equal, except for rounding."""
    return _Comparison(exact=False).equal(one, other)


def unchanged(one: Any, other: Any) -> bool:
    """Return whether two values are equal in all that they contain, without rounding."""
    return _Comparison(exact=True).equal(one, other)


class _Comparison:
    """A comparison that finds the data in two values, also where ``==`` is ambiguous or compares identity.

    NaN equals NaN. Objects without data that can be compared, such as locks, are equal if their types are.
    """

    def __init__(self, exact: bool) -> None:
        self._exact = exact
        self._in_progress: set[tuple[int, int]] = set()

    def equal(self, one: Any, other: Any) -> bool:
        pair = id(one), id(other)
        if one is other or pair in self._in_progress:  # objects can refer to themselves
            return True
        self._in_progress.add(pair)
        try:
            return self._equal(one, other)
        finally:
            self._in_progress.remove(pair)

    def _equal(self, one: Any, other: Any) -> bool:
        if not self._exact and hasattr(one, "inference") and hasattr(other, "inference"):
            return self.equal(one.inference, other.inference)
        if self._exact and type(one) is not type(other):
            return False
        pair = one, other
        if all(isinstance(value, Mapping) for value in pair):
            return one.keys() == other.keys() and all(self.equal(one[k], other[k]) for k in one)
        if all(isinstance(value, (list, tuple, deque)) for value in pair):
            return self._equal_sequences(one, other)
        if all(isinstance(value, Set) for value in pair):
            return one == other or self._equal_sets(one, other)
        if all(map(_is_frame, pair)):
            return self._equal_frames(one, other)
        if all(map(_is_numeric, pair)):
            return self._equal_arrays(one, other)
        if all(isinstance(value, (str, bytes)) for value in pair):
            return bool(one == other)
        return type(one) is type(other) and self._equal_objects(one, other)

    def _equal_sequences(self, one: Any, other: Any) -> bool:
        return len(one) == len(other) and all(map(self.equal, one, other))

    def _equal_sets(self, one: Any, other: Any) -> bool:
        remaining = list(other)
        for item in one:
            index = next((i for i, each in enumerate(remaining) if self.equal(item, each)), None)
            if index is None:
                return False
            del remaining[index]
        return not remaining

    def _equal_frames(self, one: Any, other: Any) -> bool:
        if not self.equal(list(one.columns), list(other.columns)):
            return False
        columns = ((one.iloc[:, i], other.iloc[:, i]) for i in range(len(one.columns)))
        return self.equal(one.index, other.index) and all(self.equal(*pair) for pair in columns)

    def _equal_arrays(self, one: Any, other: Any) -> bool:
        for name in ("dtype", "name") if self._exact else ():  # pandas columns have a name
            if not self.equal(getattr(one, name, None), getattr(other, name, None)):
                return False
        if _is_column(one) and _is_column(other) and not self.equal(one.index, other.index):
            return False
        left, right = _to_array(one), _to_array(other)
        if left.shape != right.shape:
            return False
        if left.dtype.names and left.dtype.names == right.dtype.names:
            return all(self._equal_arrays(left[name], right[name]) for name in left.dtype.names)
        kinds = {left.dtype.kind, right.dtype.kind}
        if "O" in kinds:
            return self._equal_sequences(left.ravel().tolist(), right.ravel().tolist())
        if kinds & set("fc") and not self._exact and kinds <= set("biufc"):
            relative, absolute = max(_get_tolerance(one), _get_tolerance(other))
            return np.allclose(left, right, rtol=relative, atol=absolute, equal_nan=True)
        return bool(np.array_equal(left, right, equal_nan=kinds <= set("biufcmM")))

    def _equal_objects(self, one: Any, other: Any) -> bool:
        try:
            if bool(one == other):
                return True
        except Exception:  # such as the truth value of an array
            pass
        left, right = _get_state(one), _get_state(other)
        if left or right:
            return self.equal(left, right)
        if type(one).__eq__ is not _COMPARES_IDENTITY:
            return False
        try:
            return pickle.dumps(one) == pickle.dumps(other)
        except Exception:
            return True


def _is_frame(value: Any) -> bool:
    return hasattr(value, "iloc") and hasattr(value, "columns")


def _is_column(value: Any) -> bool:
    return hasattr(value, "iloc") and not hasattr(value, "columns")


def _is_numeric(value: Any) -> bool:
    """Return whether a value is a number, an array, a tensor or a pandas column."""
    # A nested tensor raises a RuntimeError for its shape.
    is_array = hasattr(value, "dtype") and (hasattr(value, "detach") or hasattr(value, "shape"))
    return is_array or isinstance(value, (int, float, complex))


def _to_array(value: Any) -> Any:
    """Convert a number, an array, a column or a tensor to a NumPy array."""
    if hasattr(value, "toarray"):  # a sparse matrix
        return value.toarray()
    if hasattr(value, "row_splits"):  # a ragged tensor of TensorFlow
        return _to_objects(value.to_list())
    if not hasattr(value, "detach"):
        return np.asarray(value)
    tensor = value.detach()
    if tensor.is_nested:
        return _to_objects(tensor.unbind())
    if tensor.is_quantized:
        tensor = tensor.dequantize()
    if str(tensor.layout) != "torch.strided":
        tensor = tensor.to_dense()
    return np.asarray((tensor.double() if tensor.is_floating_point() else tensor).cpu())


def _to_objects(parts: Any) -> Any:
    array = np.empty(len(parts), object)
    array[:] = list(parts)
    return array


def _get_tolerance(value: Any) -> tuple[float, float]:
    dtype = str(getattr(value, "dtype", ""))
    return next(tolerance for name, tolerance in _TOLERANCES.items() if name in dtype)


def _get_state(value: Any) -> dict[str, Any]:
    """Return the attributes of an object by name. Empty for classes, functions and objects without attributes."""
    if isinstance(value, type):
        return {}
    slots = [vars(kind).get("__slots__", ()) for kind in type(value).__mro__]
    names = [n for each in slots for n in ([each] if isinstance(each, str) else each)]
    state = {name: getattr(value, name) for name in names if hasattr(value, name)}
    return state | getattr(value, "__dict__", {})


def copy_value(value: Any) -> Any:
    """Return a deep copy. A part of a list or dictionary that cannot be copied is shared."""
    try:
        return copy.deepcopy(value)
    except Exception:
        if type(value) in (list, tuple):
            return type(value)(map(copy_value, value))
        if type(value) is dict:
            return {name: copy_value(item) for name, item in value.items()}
        return value.detach().clone() if hasattr(value, "detach") else value


def arrays_in(result: Any) -> Iterator[Any]:
    """Yield the dense arrays and tensors in a result, without those of its example."""
    for path, part in leaves_with_path(result):
        is_tensor = hasattr(part, "untyped_storage") and not part.is_nested
        is_dense = is_tensor and str(part.layout) == "torch.strided"
        if "example" not in path and (is_dense or isinstance(part, np.ndarray)):
            yield part


def share_memory(one: Any, other: Any) -> bool:
    """Return whether changing one array or tensor changes the other."""
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        return one.flags.writeable and other.flags.writeable and np.shares_memory(one, other)
    if hasattr(one, "untyped_storage") and hasattr(other, "untyped_storage"):
        pointers = {tensor.untyped_storage().data_ptr() for tensor in (one, other)}
        return len(pointers) == 1 and 0 not in pointers
    return False


def retained_bytes(part: Any) -> int:
    """Return the bytes of the memory that an array or tensor keeps alive."""
    if hasattr(part, "untyped_storage"):
        return int(part.untyped_storage().nbytes())
    return int(getattr(part.base, "nbytes", 0)) if isinstance(part, np.ndarray) else 0


def format_error(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:300]


def format_value(value: Any) -> str:
    """Return a representation of at most 80 characters."""
    try:
        text = repr(value)
    except Exception:
        text = f"an object of type {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:77]}…"
