"""Turn the output of a model for a batch into named columns of predictions."""

from __future__ import annotations

import sys
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Union

import numpy as np

from runinference.collate.pytree import children, is_dataclass_instance
from runinference.errors import ResultMismatchError


@dataclass(frozen=True)
class OutputColumn:
    """A column of predictions.

    Attributes:
        name: The name of the column.
        type: The type of its values; ``Any`` if it is unknown.
        may_be_field: Whether it is the field with this name, if the output of the model has fields.
    """

    name: str
    type: Any = Any
    may_be_field: bool = True


def to_columns(output: Any, n_rows: int, columns: Sequence[OutputColumn]) -> dict[str, Any]:
    """Return the columns of predictions by name: arrays of shape (rows, …), or lists of Python objects.

    Args:
        output: The output of the model for all rows, or a list with one output per row.
        n_rows: The number of rows.
        columns: Columns for fields of the output, or one column for the whole output.

    Raises:
        ResultMismatchError: The output has other fields, another length, or values of another type.
    """
    if len(columns) == 1 and not _is_field(columns[0], output):
        found = {columns[0].name: output if isinstance(output, list) else _to_values(output)}
    else:
        found = _to_fields(output, [column.name for column in columns])
    for column in columns:
        values = _drop_unit_dimensions(found[column.name], column)
        if isinstance(values, list):
            values = [*map(_to_item, values)]
        found[column.name] = values
        if len(values) != n_rows:
            raise ResultMismatchError(
                f"The model returned {len(values)} values of {column.name!r} for {n_rows} rows. To fix this, "
                "return one value per row."
            )
        _check_type(column, values)
    return found


def _drop_unit_dimensions(values: Any, column: OutputColumn) -> Any:
    """Return an array of shape (rows, 1), which many models return, as numbers if these are declared."""
    if column.type not in (bool, int, float, str, bytes):
        return values
    if isinstance(values, np.ndarray) and values.shape[1:].count(1) == values.ndim - 1:
        return values.reshape(len(values))
    if isinstance(values, list) and all(getattr(item, "shape", ()) == (1,) for item in values):
        return [item[0] for item in values]
    return values


def to_python(values: Any) -> list[Any]:
    """Return the values of a column as Python objects, which Beam's schemas describe."""
    if isinstance(values, np.ndarray) and values.dtype.kind not in "OmM":
        return values.tolist()  # type: ignore[no-any-return]
    return list(values)


def _to_values(output: Any) -> Any:
    """Return a part of an output as an array or a list with one item per row."""
    if isinstance(output, list):
        return [*map(_to_item, output)]
    if (fields := _get_fields(output)) is not None:
        parts = {name: to_python(_to_values(part)) for name, part in fields.items()}
        return [dict(zip(parts, row, strict=True)) for row in zip(*parts.values(), strict=True)]
    return _to_array(output)


def _is_field(column: OutputColumn, output: Any) -> bool:
    items = output if isinstance(output, list) else [output]
    return column.may_be_field and any(column.name in (_get_fields(item) or {}) for item in items)


def _to_fields(output: Any, names: list[str]) -> dict[str, Any]:
    """Return the fields of an output by name. The fields of a tuple have the names in order."""
    if (
        isinstance(output, list)
        and output
        and all(_get_fields(item) is not None for item in output)
    ):
        rows = [_name_fields(_get_fields(item) or {}, names) for item in output]
        return {name: [row[name] for row in rows] for name in names}
    fields = _get_fields(output)
    if fields is None:
        raise ResultMismatchError(
            f"output names {len(names)} columns ({', '.join(names)}), and the model returned one "
            f"{type(output).__name__}. To fix this, name one column."
        )
    return {name: _to_values(part) for name, part in _name_fields(fields, names).items()}


def _name_fields(fields: Mapping[Any, Any], names: list[str]) -> dict[str, Any]:
    if [*fields] == [*range(len(names))]:
        return dict(zip(names, fields.values(), strict=True))
    if not set(fields) >= set(names):
        raise ResultMismatchError(
            f"The output of the model has the fields {', '.join(map(str, fields))}, and output names "
            f"{', '.join(names)}. To fix this, name fields of the model's output."
        )
    return {name: fields[name] for name in names}


def _get_fields(output: Any) -> Mapping[Any, Any] | None:
    if hasattr(output, "iloc") and hasattr(output, "columns"):
        return {str(name): output[name] for name in output.columns}
    if isinstance(output, (Mapping, tuple)) or is_dataclass_instance(output):
        return children(output)
    pydantic = sys.modules.get("pydantic")
    return dict(output) if pydantic and isinstance(output, pydantic.BaseModel) else None


def _to_array(output: Any) -> Any:
    if hasattr(output, "detach"):  # a PyTorch tensor
        tensor = output.detach().cpu()
        return (tensor.float() if "bfloat16" in str(tensor.dtype) else tensor).numpy()
    if hasattr(output, "toarray"):
        return output.toarray()
    if isinstance(output, np.ndarray):
        return output
    return output.to_numpy() if hasattr(output, "to_numpy") else np.asarray(output)


def _to_item(item: Any) -> Any:
    """Return an output of one row as Python objects."""
    if isinstance(item, np.generic):
        return item.item()
    if hasattr(item, "detach") or hasattr(item, "shape"):
        return _to_array(item).tolist()
    if isinstance(item, dict):
        return {name: _to_item(part) for name, part in item.items()}
    if type(item) in (list, tuple):
        return [_to_item(part) for part in item]
    return item


def _check_type(column: OutputColumn, values: Any) -> None:
    if (found := _find_other_type(column.type, values)) is not None:
        raise ResultMismatchError(
            f"The predictions of the column {column.name!r} have the type {found}, and its declared type is "
            f"{describe_type(column.type)}. To fix this, declare output={{{column.name!r}: {found}}}."
        )


def _find_other_type(declared: Any, values: Any) -> str | None:
    """Return the type of values that don't have the declared one. Only the first vector is checked."""
    if declared is Any or not len(values):
        return None
    first = to_python(values[:1])[0]
    has_one_type = isinstance(values, np.ndarray) and values.dtype.kind != "O"
    kinds = {type(first)} if has_one_type else set(map(type, values))
    for kind in kinds:
        if not _fits(kind, declared):
            return _suggest_type(kind, first, declared)
    items = typing.get_args(declared)
    if not isinstance(first, list) or len(items) != 1:
        return None
    vector = np.asarray(values[0]) if isinstance(values, np.ndarray) else first
    found = _find_other_type(items[0], vector)
    return None if found is None else f"Sequence[{found}]"


def describe_type(declared: Any) -> str:
    """Return a type as it is written in Python."""
    is_class = isinstance(declared, type) and not typing.get_args(declared)
    text = declared.__name__ if is_class else str(declared)
    return text.replace("collections.abc.", "").replace("typing.", "")


def _suggest_type(kind: type, first: Any, declared: Any) -> str:
    if kind is type(None):
        return f"{describe_type(declared)} | None"
    if kind is list and isinstance(first, list) and first:
        return f"Sequence[{_suggest_type(type(first[0]), first[0], Any)}]"
    return kind.__name__


def _fits(kind: type, declared: Any) -> bool:
    origin = typing.get_origin(declared)
    if declared is Any:
        return True
    if origin in (Union, types.UnionType):
        return any(_fits(kind, each) for each in typing.get_args(declared))
    expected = origin or declared
    if not isinstance(expected, type):
        return True
    return issubclass(kind, expected) and not (kind is bool and expected is int)
