"""Split the output of a batch into one result per element, along its leading dimension.

=====================================  ===============================================================
output                                 element ``i`` gets
=====================================  ===============================================================
tensor, array, sparse matrix, frame    row ``i``, as a copy that owns its memory
list, range, iterator                  item ``i``
mapping                                a dictionary with the same keys, each value split
tuple, named tuple, dataclass          the same structure, each field split
scalar, string, set, ``None``          the same value, if it is a field of a structure
=====================================  ===============================================================

A list is a batch of results. A tuple is one structure, such as ``(logits, hidden_states)``, unless none of its
items has a leading dimension: then its items are the results.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import repeat
from typing import Any

from runinference.collate.pytree import children, is_dataclass_instance
from runinference.collate.rows import get_shape, split_rows
from runinference.errors import ResultMismatchError
from runinference.results import PredictionResult

_Rows = list[Any]

#: Values without rows, or without an order of their items.
_SCALAR_TYPES = (str, bytes, bytearray, PredictionResult, set, frozenset)


def unbatch(output: Any, size: int) -> list[Any]:
    """Split the output of a batch of ``size`` elements into one result per element.

    >>> unbatch({"label": ["cat", "dog"], "loss": 0.5}, 2)
    [{'label': 'cat', 'loss': 0.5}, {'label': 'dog', 'loss': 0.5}]
    """
    rows = _unbatch(output, size, "the output")
    if rows is None and isinstance(output, tuple) and len(output) == size:
        return list(output)
    if rows is None:
        raise ResultMismatchError(
            f"The model returned {describe(output)} for a batch of {size}: nothing in it has a leading dimension, "
            "so it cannot be split by element. To fix this, return a tensor, array or list with one entry for "
            "each element, or a dictionary of these."
        )
    return rows


def to_results(batch: Sequence[Any], output: Any, model_id: str | None) -> list[PredictionResult]:
    """Return a ``PredictionResult`` for each example of a batch, with its part of the output.

    The transform and ``predict`` check the length of a list, so that other code gets all its results.
    """
    rows = output if isinstance(output, list) else unbatch(output, len(batch))
    examples = [*batch, *[None] * (len(rows) - len(batch))]
    # tuple.__new__ takes half the time of calling the class.
    return list(map(tuple.__new__, repeat(PredictionResult), zip(examples, rows, repeat(model_id))))


def batch_length(batch: Any) -> int | None:
    """Return the number of examples in a batch, or None for a mapping or a batch without a length."""
    try:
        return None if isinstance(batch, Mapping) else len(batch)
    except TypeError:
        return None


def is_divisible(batch: Any) -> bool:
    """Return whether a batch has rows that can be called by themselves. One without rows fails as a whole."""
    is_sequence = isinstance(batch, (list, tuple)) or hasattr(batch, "shape")
    return is_sequence and bool(batch_length(batch))


def describe(value: Any) -> str:
    """Describe a value for an error message, by its shape or type."""
    if (shape := get_shape(value)) is not None:
        return f"{type(value).__name__} of shape {shape}"
    if value is None or isinstance(value, (str, bytes, int, float)):
        return repr(value)[:40]
    return f"a {type(value).__name__}" + (f" of {len(value)}" if hasattr(value, "__len__") else "")


def mismatch_error(
    found: int, batch: str, entry: str, where: str, value: Any, hint: str = ""
) -> ResultMismatchError:
    """Create the error for a part of an output, named ``where``, with another length than the batch."""
    return ResultMismatchError(
        f"The model returned {found} result{'s' * (found != 1)} for {batch} ({where} is {describe(value)}). "
        f"Each {entry} needs exactly one. To fix this, check that the model keeps the leading dimension, and that "
        f"inference_fn does not merge, drop or add rows.{hint}"
    )


def _unbatch(value: Any, size: int, where: str) -> _Rows | None:
    """Return the rows of a value, or None if it has no leading dimension."""
    if value is None or isinstance(value, _SCALAR_TYPES):
        return None
    if isinstance(value, list):
        return _check_length(value, size, where)
    if isinstance(value, Mapping) and get_shape(value) is None:  # a SciPy DOK matrix has a shape
        return _unbatch_fields(value, size, where, dict)
    if isinstance(value, tuple) or is_dataclass_instance(value):
        return _unbatch_fields(children(value) or {}, size, where, _get_builder(value))
    if (shape := get_shape(value)) is not None:
        return _unbatch_array(value, shape, size, where)
    return _check_length(list(value), size, where) if isinstance(value, Iterable) else None


def _get_builder(value: Any) -> Callable[[dict[Any, Any]], Any]:
    """Return a function that builds a tuple, named tuple or dataclass like ``value`` from its fields."""
    if not isinstance(value, tuple):
        return lambda row: dataclasses.replace(value, **row)
    if hasattr(value, "_fields"):
        return lambda row: type(value)(**row)
    return lambda row: tuple(row.values())


def _unbatch_fields(
    fields: Mapping[Any, Any], size: int, where: str, build: Callable[[dict[Any, Any]], Any]
) -> _Rows | None:
    columns = {name: _unbatch(part, size, f"{where}[{name!r}]") for name, part in fields.items()}
    if all(column is None for column in columns.values()):
        return None
    full = [repeat(fields[k], size) if rows is None else rows for k, rows in columns.items()]
    return [build(dict(zip(columns, row, strict=True))) for row in zip(*full, strict=True)]


def _unbatch_array(value: Any, shape: Sequence[int], size: int, where: str) -> _Rows | None:
    if len(shape) == 0:
        return None
    if shape[0] != size:
        raise _mismatch(shape[0], size, where, value)
    try:
        return _check_length(split_rows(value), size, where)
    except (TypeError, ValueError, LookupError, RuntimeError, AttributeError) as error:
        if isinstance(error, ResultMismatchError):
            raise
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ResultMismatchError(
            f"The model returned {describe(value)} for a batch of {size}, which cannot be split into rows "
            f"({reason}). To fix this, return a dense array or tensor, or a list with one entry for each element."
        ) from error


def _check_length(rows: _Rows, size: int, where: str) -> _Rows:
    if len(rows) != size:
        raise _mismatch(len(rows), size, where, rows)
    return rows


def _mismatch(found: int, size: int, where: str, value: Any) -> ResultMismatchError:
    hint = ""
    if isinstance(value, list) and value and all(_has_length(part, size) for part in value):
        hint = " Each item has the batch's length. If the items are several outputs of the model, return a tuple."
    return mismatch_error(found, f"a batch of {size} elements", "element", where, value, hint)


def _has_length(part: Any, size: int) -> bool:
    return bool((get_shape(part) or (None,))[0] == size)
