"""Convert records of named values, such as dictionaries and named tuples, to a DataFrame."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, KeysView, Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np

from runinference.collate.exact import check_integers
from runinference.collate.frames import is_dataframe
from runinference.collate.pytree import children
from runinference.collate.stack import reject_keyed_examples
from runinference.errors import BatchShapeError, ElementError
from runinference.extras import need

SELECT_COLUMNS = "To fix this, select the same columns in the same order before RunInference."


def is_record(example: Any) -> bool:
    """Return whether an example is a row of named values, such as a dictionary, Series, named tuple or Beam
    row."""
    return _get_fields(example) is not None


def read_rows(batch: Sequence[Any]) -> list[Mapping[str, Any]]:
    """Return the values of each row of a batch by name.

    Args:
        batch: Records: Beam rows, named tuples, dataclasses, dictionaries or pandas Series.

    Raises:
        ElementError: An element is not a record, or has a name that is not text.
    """
    kinds = set(map(type, batch))
    read = _find_reader(kinds.pop()) if len(kinds) == 1 else _get_fields
    rows = [*map(read, batch)]
    for index, row in enumerate(rows):
        if row is None:
            reject_keyed_examples([batch[index]])
            raise ElementError(
                f"Element {index} of the batch is a {type(batch[index]).__name__}. With columns, output or keep, "
                "elements are rows (beam.Row, named tuples, dataclasses, dictionaries or Series), DataFrames, or "
                "Arrow tables. To fix this, convert it before RunInference.",
                index=index,
            )
    if not set(map(type, chain.from_iterable(rows))) <= {str}:  # type: ignore[arg-type]
        index, name = next(
            (i, k) for i, row in enumerate(rows) for k in row or () if type(k) is not str
        )
        raise ElementError(
            f"Element {index} of the batch has a column with the name {name!r} of type {type(name).__name__}. To "
            "fix this, use strings as names.",
            index=index,
        )
    return rows  # type: ignore[return-value]


def records_to_frame(records: Sequence[Any]) -> Any:
    """Convert records with the same names to a DataFrame with one row for each.

    >>> records_to_frame([{"a": 1, "b": "x"}, {"a": 2.5, "b": None}])
         a     b
    0  1.0     x
    1  2.5  None

    Raises:
        BatchShapeError: The records have different names.
        ElementError: An example is not a record, or has a value that is not a number, text or other scalar.
    """
    pandas = need("pandas", extra="xgboost")
    names = (_get_fields(records[0]) or {}).keys()
    rows = [_check_record(record, index, names) for index, record in enumerate(records)]
    frame = pandas.DataFrame(rows)
    for name in frame.columns:
        column = frame[name]
        if column.isna().all():
            frame[name] = np.full(len(frame), np.nan)
        elif column.dtype.kind in "fc":
            values = [row[name] for row in rows]
            check_integers(values, column.to_numpy(), f"the batch (column {name!r})")
    return frame


def _check_record(record: Any, index: int, names: KeysView[Any]) -> Mapping[Any, Any]:
    """Return the values of a record by name. Raise an error unless it has the given names and scalar values."""
    row = _get_fields(record)
    if row is None:
        raise ElementError(
            f"Element {index} of the batch is a {type(record).__name__}, but element 0 is a record of named "
            "values. To fix this, use one type for all elements.",
            index=index,
        )
    if list(row) != list(names):
        raise BatchShapeError(
            f"Element {index} of the batch has the columns {list(row)}, but element 0 has {list(names)}. "
            f"{SELECT_COLUMNS}",
            index=index,
        )
    for name, value in row.items():
        if hasattr(value, "__len__") and not isinstance(value, (str, bytes)):
            raise ElementError(
                f"Element {index} of the batch has a {type(value).__name__} in the column {name!r}. To fix this, "
                "use a record with one number or string for each column, or convert each element to a DataFrame.",
                index=index,
            )
    return row


def _find_reader(kind: Any) -> Callable[[Any], Mapping[Any, Any] | None]:
    """Return a faster `_get_fields` for examples of one type."""
    if kind is dict:
        return dict.copy
    if hasattr(kind, "as_dict") and not issubclass(kind, (Mapping, tuple)):
        return kind.as_dict  # type: ignore[no-any-return]  # a row may have a field of this name
    if issubclass(kind, tuple) and hasattr(kind, "_fields"):
        fields = kind._fields
        return lambda row: dict(zip(fields, row, strict=True))
    return _get_fields


def _get_fields(example: Any) -> Mapping[Any, Any] | None:
    if hasattr(example, "tocsr"):  # SciPy's DOK matrices are dictionaries
        return None
    if isinstance(example, Mapping):
        return example
    if isinstance(example, type):
        return None
    if hasattr(example, "_fields") or dataclasses.is_dataclass(example):
        return children(example)
    if hasattr(type(example), "as_dict"):  # a Beam row
        return type(example).as_dict(example)  # type: ignore[no-any-return]
    if hasattr(example, "iloc") and hasattr(example, "index") and not is_dataframe(example):
        return _get_series_fields(example)
    return None


def _get_series_fields(series: Any) -> dict[Any, Any]:
    if not series.index.is_unique:
        repeated = series.index[series.index.duplicated()][0]
        raise ElementError(
            f"An element of the batch is a Series with several values for the label {repeated!r}. To fix this, "
            "rename the labels with with_preprocess_fn."
        )
    return dict(zip(series.index, series.tolist(), strict=True))
