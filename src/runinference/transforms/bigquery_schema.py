"""The schema of a BigQuery table for rows."""

from __future__ import annotations

import collections.abc
import datetime
import decimal
import types
import typing
from typing import Any, Union

import apache_beam as beam
import numpy as np
from apache_beam.utils.timestamp import Timestamp

from runinference.errors import OptionError
from runinference.transforms.row_types import get_fields

_TYPES: dict[Any, str] = {
    bool: "BOOLEAN",
    int: "INTEGER",
    float: "FLOAT",
    str: "STRING",
    bytes: "BYTES",
    datetime.date: "DATE",
    datetime.datetime: "TIMESTAMP",
    Timestamp: "TIMESTAMP",
    decimal.Decimal: "NUMERIC",
}
_NUMPY_KINDS = {"b": "BOOLEAN", "i": "INTEGER", "u": "INTEGER", "f": "FLOAT", "U": "STRING"}
_SEQUENCES = (list, collections.abc.Sequence, collections.abc.Iterable)


def bigquery_schema(rows: beam.PCollection | type) -> dict[str, Any]:
    """Return the schema of a BigQuery table for rows, for ``WriteToBigQuery``.

    A column that can be None is ``NULLABLE``, a sequence is ``REPEATED``, and a nested row is a ``RECORD``.

    >>> from typing import NamedTuple
    >>> class Scored(NamedTuple):
    ...     id: int
    ...     score: float | None
    >>> for field in bigquery_schema(Scored)["fields"]:
    ...     print(field)
    {'name': 'id', 'type': 'INTEGER', 'mode': 'REQUIRED'}
    {'name': 'score', 'type': 'FLOAT', 'mode': 'NULLABLE'}

    Args:
        rows: A PCollection with a schema, such as the results of ``RunInference`` on rows; or the type of a row.

    Returns:
        A dictionary with the list ``fields``, as in the JSON form of a schema.

    Raises:
        OptionError: There is no schema, BigQuery has no type for a column, or a sequence can be None.
    """
    row_type = rows.element_type if isinstance(rows, beam.PCollection) else rows
    fields = get_fields(row_type)
    if fields is None:
        raise OptionError(
            f"The elements have the type {row_type}, which has no schema. To fix this, list the columns to keep "
            "in RunInference, or declare the type of the rows with with_output_types."
        )
    return {"fields": [_make_field(name, kind, "REQUIRED") for name, kind in fields.items()]}


def _make_field(name: str, kind: Any, mode: str) -> dict[str, Any]:
    parts, item = _list_types(kind), _get_item_type(kind)
    if mode == "REQUIRED" and len(parts) == 2 and type(None) in parts:
        return _make_field(name, next(part for part in parts if part is not type(None)), "NULLABLE")
    if mode == "REQUIRED" and item is not None:
        return _make_field(name, item, "REPEATED")
    if (fields := get_fields(kind)) is not None:
        nested = [_make_field(*field, "REQUIRED") for field in fields.items()]
        return {"name": name, "type": "RECORD", "mode": mode, "fields": nested}
    if mode == "NULLABLE" and item is not None:
        raise OptionError(
            f"The column {name!r} can be None or an array, and arrays of BigQuery can't be NULL. To fix this, "
            "replace None with an empty list before WriteToBigQuery, and declare the type without None."
        )
    found = _TYPES.get(kind)
    if isinstance(kind, type) and issubclass(kind, np.generic):
        found = _NUMPY_KINDS.get(np.dtype(kind).kind)
    if found is None:
        raise OptionError(
            f"BigQuery has no type for the column {name!r} of type {kind}. To fix this, declare it, for example "
            f"RunInference(..., output={{{name!r}: float}}), or convert the column."
        )
    return {"name": name, "type": found, "mode": mode}


def _list_types(kind: Any) -> typing.Sequence[Any]:
    if typing.get_origin(kind) in (Union, types.UnionType):
        return typing.get_args(kind)
    return [*getattr(kind, "union_types", ())]


def _get_item_type(kind: Any) -> Any:
    """Return the type of the items of a sequence, or None for other types."""
    if typing.get_origin(kind) in _SEQUENCES:
        return typing.get_args(kind)[0]
    return getattr(kind, "inner_type", None)
