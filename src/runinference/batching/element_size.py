"""The bytes of data in an element, at a bounded cost."""

from __future__ import annotations

import functools
import sys
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import is_dataclass
from enum import Enum
from functools import partial
from itertools import chain, islice
from operator import attrgetter
from types import FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np

# An element that holds more values than this is estimated from some of its values.
_MAX_VALUES = 2_048
_MAX_DEPTH = 32
_MAX_SHORT = 16
_MAX_FIELDS = 256
# The parts of a container that are visited in any case, so that the size of a record includes all of its fields.
_MIN_VISITED = 16

# Types without parts and without `nbytes`. Most elements and keys have one, so they are looked up first.
# `__sizeof__()` takes a third of the time of `sys.getsizeof()`, which differs only for objects that the garbage
# collector tracks.
_SCALAR_TYPES = frozenset({str, bytes, int, float, bool, type(None)})
# Objects that elements share, or whose attributes are not data.
_OPAQUE_TYPES = (type, ModuleType, FunctionType, MethodType, Enum)

#: The IDs of the objects that contain a value, to stop where an object contains itself.
_Path = tuple[int, ...]
_Sizer = Callable[[Any, int, _Path], int]

_get_dtype, _get_nbytes = attrgetter("dtype"), attrgetter("nbytes")


def size_in_bytes(value: Any) -> int:
    """Return the bytes of data in an element.

    These are the buffers of arrays, tensors, tables, images and sparse matrices, and ``sys.getsizeof`` of other
    values, in containers and objects. The size of an element of more than 2,048 values is estimated.

    >>> size_in_bytes([np.zeros(8), {1: np.zeros(8)}]) - size_in_bytes(1)
    128
    """
    kind: Any = type(value)
    if kind is tuple and len(value) <= _MAX_SHORT:  # such as a key and an example
        return _measure_short(value)
    if kind is np.ndarray and not value.dtype.hasobject:
        return value.nbytes  # type: ignore[no-any-return]
    if kind in _SCALAR_TYPES:
        return value.__sizeof__()  # type: ignore[no-any-return]
    if kind is list and len(value) <= _MAX_SHORT:
        return _measure_short(value)
    if (get_parts := _find_record_parts(kind)) is not None:
        parts = get_parts(value)
        if len(parts) <= _MAX_FIELDS and _SCALAR_TYPES.issuperset(map(type, parts)):
            names = sum(map(sys.getsizeof, value)) if kind is dict else 0
            return sum(map(sys.getsizeof, parts)) + names or sys.getsizeof(value)
    return _measure(value, _MAX_VALUES, ())


@functools.lru_cache(maxsize=1_024)
def _find_record_parts(kind: Any) -> Callable[[Any], Any] | None:
    """Return a function for the parts of a row of values, such as a dictionary, or None for other types.

    A row of scalars takes a quarter of the time that `_measure` takes.
    """
    if kind is dict:
        return dict.values
    if issubclass(kind, tuple):
        return tuple if hasattr(kind, "_fields") else None
    is_plain = _find_sizer(kind) is _measure_object and not _list_slots(kind)
    names = ("dtype", "nbytes", "ByteSize", "schema", "__getattr__", "__buffer__", "__array__")
    has_fields = hasattr(kind, "as_dict") or is_dataclass(kind)
    return (
        _get_values
        if is_plain and has_fields and not any(map(partial(hasattr, kind), names))
        else None
    )


def _get_values(value: Any) -> Any:
    return value.__dict__.values()


def batch_size_in_bytes(batch: Any) -> int:
    """Return the sum of the bytes of the elements of a batch, or the bytes of a batch that is an array."""
    if not isinstance(batch, (list, tuple)):
        return size_in_bytes(batch)
    are_arrays = set(map(type, batch)) == {np.ndarray}
    if are_arrays and not any(dtype.hasobject for dtype in set(map(_get_dtype, batch))):
        return sum(map(_get_nbytes, batch))
    return sum(map(size_in_bytes, batch))


def _measure_short(value: Any) -> int:
    """Return the bytes of a tuple or list of few parts, such as a key and an example, without a call for most
    parts."""
    total = 0
    for part in value:
        kind = type(part)
        if kind in _SCALAR_TYPES:
            total += part.__sizeof__()
        elif kind is np.ndarray and not part.dtype.hasobject:
            total += part.nbytes
        else:
            total += _measure(part, _MAX_VALUES // len(value), (id(value),))
    return total


def _measure(value: Any, budget: int, path: _Path) -> int:
    """Return the bytes of a value, visiting at most ``budget`` parts of it."""
    kind: Any = type(value)
    if kind in _SCALAR_TYPES:
        return value.__sizeof__()  # type: ignore[no-any-return]
    if id(value) in path or len(path) > _MAX_DEPTH:
        return sys.getsizeof(value, 0)
    try:
        return _find_sizer(kind)(value, budget, (*path, id(value)))
    except (
        Exception
    ):  # attributes of a user's class can raise anything, and a size never fails an element
        return sys.getsizeof(value, 0)


def _measure_parts(parts: Any, n_parts: int, budget: int, path: _Path) -> int:
    """Return the bytes of the parts of a value; if there are too many, those of some of them times the ratio."""
    n_visited = min(n_parts, max(_MIN_VISITED, budget))
    if n_visited == 0:
        return 0
    if n_visited < n_parts:
        can_slice = isinstance(parts, (list, tuple, np.flatiter))
        step = -(-n_parts // n_visited)
        parts = parts[::step] if can_slice else islice(parts, n_visited)
    scalars, others = 0, []
    for n_visited, part in enumerate(parts, 1):  # noqa: B007 - counts the parts
        if type(part) in _SCALAR_TYPES:
            scalars += part.__sizeof__()
        else:
            others.append(part)
    total = scalars + (_measure_nested(others, budget, path) if others else 0)
    return total * n_parts // n_visited


def _measure_nested(parts: list[Any], budget: int, path: _Path) -> int:
    """Return the bytes of nested parts. If there are too many, visit all parts of some."""
    n_parts = len(parts)
    most = max(1, budget // _MIN_VISITED)
    counts = [min(_count_values(part), most) for part in parts]
    n_values = sum(counts)
    if n_values > budget:
        step = -(-n_parts // max(1, n_parts * budget // n_values))
        parts, counts = parts[::step], counts[::step]
        n_values = sum(counts)
    shares = [max(count, budget * count // n_values) for count in counts]
    total = sum(_measure(part, share, path) for part, share in zip(parts, shares, strict=True))
    return total * n_parts // len(parts)


def _count_values(part: Any) -> int:
    """Return how many values a part of a container holds directly, or a guess."""
    try:
        if isinstance(part, Mapping):
            return max(1, 2 * len(part))
        if isinstance(part, (list, tuple, set, frozenset, deque)):
            return max(1, len(part))
        if isinstance(part, np.ndarray):
            return max(1, part.size if part.dtype.hasobject else 1)
        return max(1, len(getattr(part, "__dict__", ())))
    except Exception:  # see _measure
        return 1


@functools.lru_cache(maxsize=1_024)
def _find_sizer(kind: Any) -> _Sizer:
    """Return the function that measures values of a type."""
    for parent, sizer in _SIZERS.items():
        if issubclass(kind, parent):
            return sizer
    packages = (parent.__module__.partition(".")[0] for parent in kind.__mro__)
    sizers = (_SIZERS_BY_PACKAGE.get(package) for package in packages)
    return next(filter(None, sizers), _measure_object)


def _measure_array(value: Any, budget: int, path: _Path) -> int:
    nbytes = int(value.nbytes)
    if isinstance(value, np.ma.MaskedArray):
        nbytes += int(value.mask.nbytes)
    if value.dtype.kind in "OT":  # objects, or strings of variable width
        return nbytes + _measure_parts(value.flat, value.size, budget, path)
    if value.dtype.hasobject:  # a structured array
        return sum(_measure(value[name], budget, path) for name in value.dtype.names)
    return nbytes


def _measure_sequence(value: Any, budget: int, path: _Path) -> int:
    return _measure_parts(value, len(value), budget, path)


def _measure_mapping(value: Any, budget: int, path: _Path) -> int:
    if 2 * len(value) > budget:
        items = islice(value.items(), max(_MIN_VISITED, budget // 2))
        columns = [*zip(*items, strict=True)]
        sizes = [_measure_parts(column, len(column), budget // 2, path) for column in columns]
        return sum(sizes) * len(value) // len(columns[0])
    return _measure_parts(chain.from_iterable(value.items()), 2 * len(value), budget, path)


def _measure_pandas(value: Any, budget: int, path: _Path) -> int:
    kind: Any = type(value)
    if hasattr(kind, "dtype") and not hasattr(kind, "array"):  # an extension array
        value = sys.modules["pandas"].Series(value, copy=False)
        return _measure_column(value, budget, path)
    if not hasattr(value, "memory_usage"):
        return sys.getsizeof(value)
    if not hasattr(value, "columns"):
        index = _measure(value.index, budget, path) if hasattr(value, "iloc") else 0
        return index + _measure_column(value, budget, path)
    total, row_bytes = _measure(value.index, budget, path), 0
    for position, dtype in enumerate(value.dtypes):
        if isinstance(dtype, np.dtype) and dtype.kind != "O":
            row_bytes += dtype.itemsize
        else:
            total += _measure_column(value.iloc[:, position], budget, path)
    return int(total + row_bytes * len(value))


def _measure_column(column: Any, budget: int, path: _Path) -> int:
    """Return the bytes of a Series without its index, or of an Index."""
    options = {"index": False} if hasattr(column, "iloc") else {}
    if hasattr(column, "levels"):
        return int(column.memory_usage(deep=True))
    dtype = column.dtype
    nbytes = int(column.memory_usage(**options))
    is_text = dtype.kind == "O" and (isinstance(dtype, np.dtype) or dtype.type is str)
    is_text = is_text and not hasattr(dtype, "pyarrow_dtype")
    if is_text and getattr(dtype, "storage", "python") == "python":
        sample = (
            column.array
            if len(column) <= budget
            else column.array[:: -(-len(column) // max(1, budget))]
        )
        values = np.asarray(sample, dtype=object)
        sampled = _measure_parts(values.flat, len(values), budget, path)
        return nbytes + sampled * len(column) // max(1, len(values))
    return int(column.memory_usage(deep=True, **options))


def _measure_torch(value: Any, budget: int, path: _Path) -> int:
    layout = str(getattr(value, "layout", "torch.strided"))
    if layout == "torch.sparse_coo":
        return int(value._nnz() * (value.element_size() + 8 * value.dim()))
    if layout in ("torch.sparse_csr", "torch.sparse_bsr"):
        parts = value.values(), value.crow_indices(), value.col_indices()
        return sum(int(part.nbytes) for part in parts)
    if layout in ("torch.sparse_csc", "torch.sparse_bsc"):
        parts = value.values(), value.ccol_indices(), value.row_indices()
        return sum(int(part.nbytes) for part in parts)
    if hasattr(value, "nbytes"):
        return int(value.nbytes)
    return _measure_object(value, budget, path)


def _measure_tensorflow(value: Any, budget: int, path: _Path) -> int:
    if hasattr(value, "flat_values"):  # a ragged tensor
        parts = [value.flat_values, *value.nested_row_splits]
        return sum(_measure(part, budget, path) for part in parts)
    if hasattr(value, "dense_shape"):  # a sparse tensor, or the gradient of a lookup
        return sum(_measure(part, budget, path) for part in (value.indices, value.values))
    if not hasattr(value, "dtype"):
        return _measure_object(value, budget, path)
    size = value.dtype.size
    if value.dtype.name == "string":
        return _measure(value.numpy(), budget, path)
    return int(value.shape.num_elements() * size)


def _measure_image(value: Any, budget: int, path: _Path) -> int:
    """Return the bytes of the pixels of a PIL image, which its decoder allocates."""
    if not hasattr(value, "getbands"):
        return _measure_object(value, budget, path)
    width, height = value.size
    n_bytes = 4 if value.mode in ("I", "F") else 2 if value.mode.startswith("I;16") else 1
    return int(width * height * len(value.getbands()) * n_bytes)


def _measure_object(value: Any, budget: int, path: _Path) -> int:
    nbytes = getattr(value, "nbytes", None)
    if hasattr(value, "dtype") and nbytes is not None:
        return int(nbytes)  # an array of another library
    if callable(size := getattr(value, "ByteSize", None)):
        return int(size())  # a protocol buffer
    if isinstance(nbytes, int) and not isinstance(nbytes, bool) and hasattr(value, "schema"):
        return nbytes  # a table of PyArrow
    fields = list(getattr(value, "__dict__", {}).values())
    kind: Any = type(value)
    for name in _list_slots(kind):
        if hasattr(value, name):
            fields.append(getattr(value, name))
    if not fields:
        return max(
            sys.getsizeof(value), nbytes if isinstance(nbytes, int) else 0, _measure_buffer(value)
        )
    return _measure_parts(fields, len(fields), budget, path)


def _measure_buffer(value: Any) -> int:
    """Return the bytes of an object that shares a buffer, such as a buffer of PyArrow; 0 for others."""
    try:
        with memoryview(value) as view:
            return view.nbytes
    except (TypeError, ValueError, BufferError):
        return 0


@functools.lru_cache(maxsize=1_024)
def _list_slots(kind: Any) -> tuple[str, ...]:
    names = []
    for parent in kind.__mro__:
        slots = parent.__dict__.get("__slots__", ())
        for name in [slots] if isinstance(slots, str) else slots:
            is_private = name.startswith("__") and not name.endswith("__")
            names.append(f"_{parent.__name__.lstrip('_')}{name}" if is_private else name)
    return tuple(name for name in names if name not in ("__dict__", "__weakref__"))


def _measure_opaque(value: Any, budget: int, path: _Path) -> int:
    return sys.getsizeof(value)


def _measure_memoryview(value: Any, budget: int, path: _Path) -> int:
    return int(value.nbytes)


_SIZERS: dict[Any, _Sizer] = {
    np.ndarray: _measure_array,
    np.generic: _measure_array,
    (str, bytes, bytearray, *_OPAQUE_TYPES): _measure_opaque,
    memoryview: _measure_memoryview,
    (tuple, list, set, frozenset, deque): _measure_sequence,
    Mapping: _measure_mapping,
}
_SIZERS_BY_PACKAGE: dict[str, _Sizer] = {
    "pandas": _measure_pandas,
    "torch": _measure_torch,
    "tensorflow": _measure_tensorflow,
    "PIL": _measure_image,
}
