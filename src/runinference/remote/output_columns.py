"""The types of the columns that hold answers of a type, or the fields of these answers."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, Optional, Union

from runinference.extras import need

_SCALARS = (bool, int, float, str, bytes, type(None))


def get_column_type(output_type: Any) -> Any:
    """Return the type of a column with values of a type; ``Any`` if a column of Beam has no type for them.

    >>> get_column_type(Literal["good", "bad"])
    <class 'str'>
    """
    origin, args = typing.get_origin(output_type), typing.get_args(output_type)
    if output_type in _SCALARS:
        return output_type
    if origin is typing.Annotated:
        return get_column_type(args[0])
    if origin is list:
        item: Any = get_column_type(args[0])
        return Any if item is Any else Sequence[item]
    if origin is Literal:
        return _join(map(type, args))
    if origin in (Union, types.UnionType):
        return _join(map(get_column_type, args))
    return Any


def get_field_types(output_type: Any) -> Mapping[str, Any] | None:
    """Return the types of columns with the fields of a type, by name; None if it has no fields."""
    if not isinstance(output_type, type):
        return None
    model: Any = output_type
    if issubclass(model, need("pydantic", extra="remote").BaseModel):
        hints = {name: field.annotation for name, field in model.model_fields.items()}
    elif dataclasses.is_dataclass(output_type):
        names = {field.name for field in dataclasses.fields(output_type)}
        hints = {
            name: hint for name, hint in typing.get_type_hints(output_type).items() if name in names
        }
    else:
        return None
    return {name: get_column_type(hint) for name, hint in hints.items()}


def _join(kinds: Iterable[Any]) -> Any:
    """Return the type of values of several types: one of them, or None."""
    found = set(kinds)
    others = found - {type(None)}
    if len(others) != 1 or not others <= set(_SCALARS):
        return Any
    [kind] = others
    # Schemas of Beam 2.77 take kind | None for any object.
    return kind if found == others else Optional[kind]  # noqa: UP045
