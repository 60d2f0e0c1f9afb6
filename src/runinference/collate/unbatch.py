"""One result per element: cuts the output of a batch along its leading dimension, whatever its structure.

=====================================  ===============================================================
output                                 element ``i`` gets
=====================================  ===============================================================
tensor, array, sparse matrix, frame    row ``i``, as a copy that owns its memory (see `rows`)
list, range, iterator                  item ``i``
mapping                                a dictionary of the same keys, each value split
tuple, named tuple, dataclass          the same structure, each field split
scalar, string, set, ``None``          nothing of its own: as a field of a structure it is given to each
=====================================  ===============================================================

A list is a batch of results; a tuple is one structure, such as ``(logits, hidden_states)``, unless no part of
it has a leading dimension: then its items are the results.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import repeat
from typing import Any

from runinference.collate.rows import get_shape, split_rows
from runinference.errors import ResultMismatchError
from runinference.results import PredictionResult

_Rows = list[Any]


def unbatch(output: Any, size: int) -> list[Any]:
    """The results of a batch of ``size`` elements, one each.

    >>> unbatch({"label": ["cat", "dog"], "loss": 0.5}, 2)
    [{'label': 'cat', 'loss': 0.5}, {'label': 'dog', 'loss': 0.5}]

    Raises:
        ResultMismatchError: The output, or a part of it, has another length than the batch, or nothing in it
            has a leading dimension.
    """
    rows = _unbatch(output, size, "the output")
    if rows is None and isinstance(output, tuple) and len(output) == size:
        return list(output)
    if rows is None:
        raise ResultMismatchError(
            f"The model returned {describe(output)} for a batch of {size}: nothing in it has a leading dimension, "
            "so it cannot be told which element each part belongs to. Return a tensor, array or list with one "
            "entry for each element, or a dictionary of such."
        )
    return rows


def to_results(batch: Sequence[Any], output: Any, model_id: str | None) -> list[PredictionResult]:
    """Each example of a batch with its own part of the output, as a ``PredictionResult``.

    A list of another length stays one: who runs the handler says so, and a program that calls the handler
    itself gets what there is.
    """
    rows = output if isinstance(output, list) else unbatch(output, len(batch))
    examples = [*batch, *[None] * (len(rows) - len(batch))]
    # Made by tuple itself, in C: at half the price of a call of the class for each.
    return list(map(tuple.__new__, repeat(PredictionResult), zip(examples, rows, repeat(model_id))))


def batch_length(batch: Any) -> int | None:
    """How many examples a batch has; None where that is unknown, as of a dictionary or a sparse matrix."""
    if isinstance(batch, Mapping):
        return None
    try:
        return len(batch)
    except TypeError:
        return None


def _unbatch(value: Any, size: int, where: str) -> _Rows | None:
    """The rows of a value, or None when it has no leading dimension."""
    if value is None or isinstance(value, _WHOLE):
        return None
    if isinstance(value, list):
        return _checked(value, size, where)
    if isinstance(value, Mapping) and get_shape(value) is None:  # as a DOK matrix of SciPy's is
        return _unbatch_fields(value, size, where, dict)
    if isinstance(value, tuple):
        fields = getattr(value, "_fields", None)
        if fields is not None:
            named = dict(zip(fields, value, strict=True))
            return _unbatch_fields(named, size, where, lambda row: type(value)(**row))
        numbered = dict(enumerate(value))
        return _unbatch_fields(numbered, size, where, lambda row: tuple(row.values()))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        named = {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.init}
        return _unbatch_fields(named, size, where, lambda row: dataclasses.replace(value, **row))
    if (shape := get_shape(value)) is not None:
        return _unbatch_array(value, shape, size, where)
    if isinstance(value, Iterable):
        return _checked(list(value), size, where)
    return None


#: What is one value, and what has no order by which its items could belong to the elements.
_WHOLE = (str, bytes, bytearray, PredictionResult, set, frozenset)


def _unbatch_fields(
    fields: Mapping[Any, Any], size: int, where: str, build: Callable[[dict[Any, Any]], Any]
) -> _Rows | None:
    columns = {name: _unbatch(part, size, f"{where}[{name!r}]") for name, part in fields.items()}
    if all(column is None for column in columns.values()):
        return None
    each = {
        name: [fields[name]] * size if column is None else column
        for name, column in columns.items()
    }
    return [build(dict(zip(each, row, strict=True))) for row in zip(*each.values(), strict=True)]


def _unbatch_array(value: Any, shape: Sequence[int], size: int, where: str) -> _Rows | None:
    if len(shape) == 0:
        return None
    if shape[0] != size:
        raise _mismatch(shape[0], size, where, value)
    try:
        return _checked(split_rows(value), size, where)
    except (TypeError, ValueError, LookupError, RuntimeError, AttributeError) as error:
        if isinstance(error, ResultMismatchError):
            raise
        why = " ".join(str(error).split())[:200] or type(error).__name__
        raise ResultMismatchError(
            f"The model returned {describe(value)} for a batch of {size}, which cannot be cut in rows ({why}). "
            "Return a dense array or tensor, or a list with one entry for each element."
        ) from error


def _checked(rows: _Rows, size: int, where: str) -> _Rows:
    if len(rows) != size:
        raise _mismatch(len(rows), size, where, rows)
    return rows


def _mismatch(found: int, size: int, where: str, value: Any) -> ResultMismatchError:
    hint = ""
    if isinstance(value, list) and value and all(_leads_with(part, size) for part in value):
        hint = " Its items each have the batch's length: if they are the model's several outputs, return a tuple."
    return ResultMismatchError(
        f"The model returned {found} result{'s' * (found != 1)} for a batch of {size} elements"
        f" ({where} is {describe(value)}). Each element needs exactly one: check that the model keeps the"
        f" leading dimension, and that inference_fn does not merge, drop or add rows.{hint}"
    )


def _leads_with(part: Any, size: int) -> bool:
    return bool((get_shape(part) or (None,))[0] == size)


def describe(value: Any) -> str:
    """What a value is, for a message."""
    if (shape := get_shape(value)) is not None:
        return f"{type(value).__name__} of shape {shape}"
    if value is None or isinstance(value, (str, bytes, int, float)):
        return repr(value)[:40]
    return f"a {type(value).__name__}" + (f" of {len(value)}" if hasattr(value, "__len__") else "")
