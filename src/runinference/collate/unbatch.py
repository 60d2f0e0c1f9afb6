"""Split the output of a batch into one result per element, along its leading dimension.

=====================================  ===============================================================
output                                 element ``i`` gets
=====================================  ===============================================================
tensor, array, sparse matrix, frame    row ``i``, as a copy that owns its memory
mapping                                a dictionary with the same keys, each value split
tuple, named tuple, dataclass          the same structure, each field split
list, range, iterator                  item ``i``
scalar, string, set, ``None``          the same value, if it is a field of a structure
=====================================  ===============================================================

A tuple is one structure, such as ``(logits, hidden_states)``. A list is ambiguous if its items hold arrays: they
may be several outputs of a model, such as the probabilities of two targets, or the results of the elements.
Whether the list is as long as the batch does not decide it. Such a list is an error, unless the handler declares
its meaning with ``list_output``. Lists of numbers, strings, nested lists of these, or dictionaries hold one item
per element.

What a handler's ``run_inference`` returns is different: there, a list has one result per element, as in Beam.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, MappingView, Sequence
from itertools import repeat
from typing import Any, Literal

import numpy as np

from runinference.collate.memory import IMMUTABLE, copy_items, copy_value
from runinference.collate.pytree import children, is_dataclass_instance
from runinference.collate.rows import get_shape, split_rows
from runinference.errors import ResultMismatchError
from runinference.results import PredictionResult

#: What a list in the output of a model is: one item per element, or one item per output of the model.
ListOutput = Literal["per_element", "multi_output"]

#: Values without rows, or without an order of their items.
_SCALAR_TYPES = (str, bytes, bytearray, PredictionResult, set, frozenset)


class SplitRows(list[Any]):
    """One item per element of a batch, which is not split again."""


def unbatch(output: Any, size: int, list_output: ListOutput | None = None) -> list[Any]:
    """Split the output of a model for a batch of ``size`` elements into one result per element.

    >>> unbatch({"label": ["cat", "dog"], "loss": 0.5}, 2)
    [{'label': 'cat', 'loss': 0.5}, {'label': 'dog', 'loss': 0.5}]

    Args:
        output: The output of the model.
        size: The number of elements.
        list_output: What a list in the output is. If None, a list whose items hold arrays is an error.

    Raises:
        ResultMismatchError: A part of the output has another length than the batch, or can be read in two ways.
    """
    rows = _Splitter(size, list_output).split(output, "the output", is_part=False)
    if rows is None and type(output) is tuple and not any(map(_is_number, output)):
        rows = _check_length(SplitRows(output), size, "the output")
    if rows is None:
        raise ResultMismatchError(
            f"The model returned {describe(output)} for a batch of {size}: nothing in it has a leading dimension, "
            "so it cannot be split by element. To fix this, return a tensor, array or list with one entry for "
            "each element, or a dictionary of these."
        )
    return rows


def unbatch_results(output: Any, size: int, list_output: ListOutput | None = None) -> list[Any]:
    """Split what ``run_inference`` returned for a batch of ``size`` elements into one result per element.

    A list or iterator has one result per element, as in Beam. Other values are split by ``unbatch``. A tuple of
    arrays is an error, because it can also have one result per element; a tuple of an array and a number can't.

    >>> unbatch_results([np.array([1, 2]), np.array([3, 4])], 2)
    [array([1, 2]), array([3, 4])]

    Raises:
        ResultMismatchError: The number of results is not ``size``, or the handler returned a tuple of arrays.
    """
    if type(output) is tuple and list_output != "multi_output":
        have_rows = {_has_rows(item) for item in output if item is not None}
        if list_output is None and have_rows == {True}:
            raise ResultMismatchError(
                f"The handler returned {describe(output)} for a batch of {size} elements. Its items have a "
                "leading dimension, so it may be several outputs of the model, or one result per element. To fix "
                "this, return one result per element as a list, or several outputs with self.results_of(batch, "
                "output)."
            )
        if list_output == "per_element" or True not in have_rows:
            output = list(output)
    if list_output == "multi_output" or isinstance(output, SplitRows) or not _is_plain(output):
        return unbatch(output, size, list_output)
    return _check_length(SplitRows(copy_items(list(output))), size, "the output")


def to_results(
    batch: Sequence[Any],
    output: Any,
    model_id: str | None,
    list_output: ListOutput | None = None,
) -> list[PredictionResult]:
    """Return a ``PredictionResult`` for each example of a batch, with its part of the output.

    The transform and ``predict`` check the length of a list, so that other code gets all its results.
    """
    size = len(batch)
    if isinstance(output, list) and len(output) != size and not any(map(_has_rows, output)):
        size = len(output)
    rows = output if isinstance(output, SplitRows) else unbatch(output, size, list_output)
    examples = [*batch, *[None] * (len(rows) - len(batch))]
    # tuple.__new__ takes half the time of calling the class.
    fields = zip(examples, rows, repeat(model_id))
    return SplitRows(map(tuple.__new__, repeat(PredictionResult), fields))


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


def get_list_output(handler: Any) -> ListOutput | None:
    """Return what an object with Beam's handler methods declares about lists in the output of its model."""
    return getattr(handler, "_list_output", None)


def describe(value: Any) -> str:
    """Describe a value for an error message, by its shape or type."""
    if (shape := get_shape(value)) is not None:
        return f"{type(value).__name__} of shape {shape}"
    if value is None or isinstance(value, (str, bytes, int, float)):
        return repr(value)[:40]
    name = "list" if isinstance(value, SplitRows) else type(value).__name__
    return f"a {name}" + (f" of {len(value)}" if hasattr(value, "__len__") else "")


def mismatch_error(
    found: int, batch: str, entry: str, where: str, value: Any, hint: str = ""
) -> ResultMismatchError:
    """Create the error for a part of an output, named ``where``, with another length than the batch."""
    return ResultMismatchError(
        f"The model returned {found} result{'s' * (found != 1)} for {batch} ({where} is {describe(value)}). "
        f"Each {entry} needs exactly one. To fix this, check that the model keeps the leading dimension, and that "
        f"inference_fn does not merge, drop or add rows.{hint}"
    )


class _Splitter:
    """Splits the values in the output of a batch of ``size`` elements."""

    def __init__(self, size: int, list_output: ListOutput | None) -> None:
        self._size = size
        self._list_output = list_output

    def split(self, value: Any, where: str, is_part: bool = True) -> SplitRows | None:
        """Return the rows of a value, or None if it has no leading dimension."""
        if value is None or isinstance(value, _SCALAR_TYPES):
            return None
        if isinstance(value, list):
            return self._split_list(value, where, is_part)
        if (
            isinstance(value, Mapping) and get_shape(value) is None
        ):  # a SciPy DOK matrix has a shape
            return self._split_fields(value, where, dict)
        if isinstance(value, tuple) or is_dataclass_instance(value):
            return self._split_fields(children(value) or {}, where, _get_builder(value))
        if (shape := get_shape(value)) is not None:
            return self._split_array(value, shape, where)
        if isinstance(value, Iterator):
            return _check_length(SplitRows(copy_items(list(value))), self._size, where)
        if not isinstance(value, Iterable):
            return None
        if is_part and not isinstance(value, (Sequence, MappingView, deque)):
            raise _cannot_split(value, self._size, where)
        return self._split_list(list(value), where, is_part)

    def _split_list(self, items: list[Any], where: str, is_part: bool) -> SplitRows:
        declared = self._list_output
        if declared == "multi_output" and any(map(_has_rows, items)):
            rows = self._split_fields(dict(enumerate(items)), where, lambda row: list(row.values()))
            if rows is not None:
                return rows
        if isinstance(items, SplitRows):
            return _check_length(items, self._size, where)
        if declared is None and self._may_be_outputs(items, is_part):
            raise _ambiguous_list(items, self._size, where)
        return _check_length(SplitRows(copy_items(items)), self._size, where)

    def _may_be_outputs(self, items: list[Any], is_part: bool) -> bool:
        """Return whether the items may be outputs of the model for the whole batch."""
        if set(map(type, items)) <= IMMUTABLE:
            return False
        if is_part or not all(map(is_record, items)):
            return any(map(_holds_arrays, items))
        # A list of dictionaries is one for each element, as detection models return it. Their arrays are as long
        # as the batch only by chance.
        lengths = {length for item in items for length in _iter_lengths(item)}
        return len(items) > 1 and len(items) == self._size and lengths == {self._size}

    def _split_fields(
        self, fields: Mapping[Any, Any], where: str, build: Callable[[dict[Any, Any]], Any]
    ) -> SplitRows | None:
        columns = {name: self.split(part, f"{where}[{name!r}]") for name, part in fields.items()}
        if all(column is None for column in columns.values()):
            return None
        full = [
            _repeat_scalar(fields[k], self._size) if rows is None else rows
            for k, rows in columns.items()
        ]
        return SplitRows(
            build(dict(zip(columns, row, strict=True))) for row in zip(*full, strict=True)
        )

    def _split_array(self, value: Any, shape: Sequence[int], where: str) -> SplitRows | None:
        if len(shape) == 0:
            return None
        if shape[0] != self._size:
            raise _mismatch(shape[0], self._size, where, value)
        try:
            return _check_length(SplitRows(split_rows(value)), self._size, where)
        except (TypeError, ValueError, LookupError, RuntimeError, AttributeError) as error:
            if isinstance(error, ResultMismatchError):
                raise
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise ResultMismatchError(
                f"The model returned {describe(value)} for a batch of {self._size}, which cannot be split into "
                f"rows ({reason}). To fix this, return a dense array or tensor, or a list with one entry for each "
                f"element."
            ) from error


def _get_builder(value: Any) -> Callable[[dict[Any, Any]], Any]:
    """Return a function that builds a tuple, named tuple or dataclass like ``value`` from its fields."""
    if not isinstance(value, tuple):
        return lambda row: dataclasses.replace(value, **row)
    if hasattr(value, "_fields"):
        return lambda row: type(value)(**row)
    return lambda row: tuple(row.values())


def _repeat_scalar(value: Any, size: int) -> Iterable[Any]:
    """Return a value ``size`` times, each one a copy if it can be modified."""
    is_shared = copy_value(value) is value
    return repeat(value, size) if is_shared else (copy_value(value) for _ in range(size))


def _is_plain(output: Any) -> bool:
    """Return whether a value is a list, an iterator or another iterable without a structure or a shape."""
    if isinstance(output, list):
        return True
    structures = (Mapping, tuple, *_SCALAR_TYPES)
    if not isinstance(output, Iterable) or isinstance(output, structures):
        return False
    return not is_dataclass_instance(output) and get_shape(output) is None


def is_record(value: Any) -> bool:
    """Return whether a value has named parts."""
    return isinstance(value, Mapping) or hasattr(value, "_fields") or is_dataclass_instance(value)


def _is_number(value: Any) -> bool:
    is_number = isinstance(value, (int, float, complex, np.number))
    return is_number or (not isinstance(value, np.generic) and get_shape(value) == ())


def _holds_arrays(value: Any) -> bool:
    """Return whether a value is an array with a leading dimension, or contains one."""
    return type(value) not in IMMUTABLE and next(_iter_lengths(value), None) is not None


def _iter_lengths(value: Any) -> Iterator[int]:
    """Yield the leading dimensions of the arrays in a value."""
    if isinstance(value, _SCALAR_TYPES):
        return
    if shape := get_shape(value):
        yield int(shape[0])
    elif shape is None:
        for part in (children(value) or {}).values():
            if type(part) not in IMMUTABLE:
                yield from _iter_lengths(part)


def _has_rows(value: Any) -> bool:
    """Return whether a value is split by element if it is part of a structure."""
    if type(value) in IMMUTABLE or isinstance(value, _SCALAR_TYPES):
        return False
    if isinstance(value, list) or get_shape(value):
        return True
    return any(map(_has_rows, (children(value) or {}).values()))


def _check_length(rows: SplitRows, size: int, where: str) -> SplitRows:
    if len(rows) != size:
        raise _mismatch(len(rows), size, where, rows)
    return rows


def _mismatch(found: int, size: int, where: str, value: Any) -> ResultMismatchError:
    return mismatch_error(found, f"a batch of {size} elements", "element", where, value)


def _ambiguous_list(items: list[Any], size: int, where: str) -> ResultMismatchError:
    first = next(item for item in items if _holds_arrays(item))
    elements = f"{size} element{'s' * (size != 1)}"
    return ResultMismatchError(
        f"The model returned a list of {len(items)} for a batch of {elements} ({where} holds {describe(first)}), "
        "which can be read in two ways. To fix this: if the items are several outputs of the model, return a "
        "tuple or a dictionary, or set list_output='multi_output'. If each item is the result of one element, set "
        "list_output='per_element'."
    )


def _cannot_split(value: Any, size: int, where: str) -> ResultMismatchError:
    hint = "leave it out of the output"
    if "cache" in type(value).__name__.lower():
        hint = "call the model with inference_args={'use_cache': False}"
    return ResultMismatchError(
        f"The model returned {describe(value)} as {where} for a batch of {size}, which cannot be split by "
        f"element. To fix this, {hint}, or return a tensor, array or list with one entry for each element."
    )
