"""The types of rows: the schema of the input, which columns are checked against, and that of the results."""

from __future__ import annotations

import keyword
import types
import typing
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Any, Union

import apache_beam as beam
import numpy as np
from apache_beam.typehints.row_type import RowTypeConstraint

from runinference.collate.chunks import is_chunk_type
from runinference.collate.row_outputs import describe_type
from runinference.errors import OptionError, suggest
from runinference.handlers.row_handler import RowModelHandler, map_row_handlers, takes_rows

_CHECKED = (bool, int, float, str, bytes)
#: The types of columns that a feature of a type takes, and their name.
_TAKEN: Mapping[Any, tuple[set[type], str]] = {
    float: ({bool, int, float}, "numbers"),
    int: ({bool, int}, "integers"),
    bool: ({bool}, "bools"),
    str: ({str}, "text"),
}


def with_input_type(handler: Any, element_type: Any) -> Any:
    """Return a handler whose columns are checked against the schema of its input, if that has one.

    Args:
        handler: Any handler. Those without rows are returned unchanged.
        element_type: The type of the elements, with a key if the handler takes keys.

    Raises:
        OptionError: The schema lacks a column, or has a type that the model doesn't take.
    """
    value = element_type if takes_rows(handler) else get_pair_types(element_type)[1]
    fields = get_fields(value)
    if fields is None:
        return handler
    return map_row_handlers(handler, partial(_bind, fields=fields))


def pass_rows_through(results: beam.PCollection) -> beam.PCollection:
    """Return rows as the outputs of a DoFn without ``finish_bundle``, and any other PCollection as it is.

    Beam 2.77 loses what a DoFn emits in ``finish_bundle`` if the next one takes batches, as in ``WriteToJson``.
    """
    element_type = results.element_type
    if get_fields(element_type) is None and get_fields(get_pair_types(element_type)[1]) is None:
        return results
    emit = beam.Map(_get_same).with_output_types(element_type)
    return results | "BeamML_RunInference_EmitRows" >> emit


def _get_same(row: Any) -> Any:
    return row


def get_fields(element_type: Any) -> dict[str, Any] | None:
    """Return the types of the fields of a row type by name, or None if it has no schema."""
    is_row = isinstance(element_type, RowTypeConstraint)
    row_type = element_type if is_row else None
    if row_type is None and isinstance(element_type, type):
        row_type = RowTypeConstraint.from_user_type(element_type)
    if row_type is None:
        return None
    names = [name for name, _ in row_type._fields]
    fields = {name: row_type.get_type_for(name) for name in names}
    if any(isinstance(kind, (str, typing.ForwardRef)) for kind in fields.values()):
        return {
            **fields,
            **_resolve_annotations(row_type.user_type),
        }  # from __future__ import annotations
    return fields


def _resolve_annotations(row_class: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(row_class)
    except NameError:
        return dict.fromkeys(row_class.__annotations__, Any)


def get_pair_types(element_type: Any) -> tuple[Any, Any]:
    """Return the types of the key and the value of ``(key, value)``; ``Any`` for other types."""
    return find_pair_types(element_type) or (Any, Any)


def find_pair_types(element_type: Any) -> tuple[Any, Any] | None:
    """Return the types of the key and the value of ``(key, value)``; None for other types.

    Beam infers a union of pairs if their values differ in type.
    """
    pairs = [getattr(each, "tuple_types", ()) for each in _list_types(element_type)]
    if any(len(pair) != 2 for pair in pairs):
        return None
    keys, values = zip(*pairs, strict=True)
    return beam.typehints.Union[keys], beam.typehints.Union[values]


def _list_types(element_type: Any) -> Sequence[Any]:
    """Return the types of a union, or the type itself."""
    types: Sequence[Any] = [*getattr(element_type, "union_types", ())]
    return types or [element_type]


def get_output_type(handler: RowModelHandler, element_type: Any) -> Any:
    """Return the type of the results: a row type with the kept columns and the predictions, if it is known.

    Args:
        handler: The handler.
        element_type: The type of its elements, without a key.
    """
    fields = get_fields(element_type)
    if fields is None and isinstance(element_type, type) and is_chunk_type(element_type):
        return element_type
    if fields is None:
        if handler.keep is None or not _is_mapping(element_type):
            return Any
        fields = dict.fromkeys(handler.keep, Any)
    kept = fields if handler.keep is None else {name: fields[name] for name in handler.keep}
    return make_row_type({**kept, **{column.name: column.type for column in handler.output}})


def make_row_type(fields: Mapping[str, Any]) -> Any:
    """Return the type of rows with these types by name; ``Any`` if a name can't be one in a schema of Beam."""
    for name in fields:
        if not name.isidentifier() or keyword.iskeyword(name) or name.startswith("_"):
            return Any
    return RowTypeConstraint.from_fields(
        [(name, _spell_union(kind)) for name, kind in fields.items()]
    )


def _spell_union(kind: Any) -> Any:
    """Return ``Union[int, None]`` for ``int | None``, which schemas of Beam 2.77 take for any object."""
    return Union.__getitem__(typing.get_args(kind)) if isinstance(kind, types.UnionType) else kind


def _is_mapping(element_type: Any) -> bool:
    """Return whether the elements are dictionaries, which are no tables."""
    dictionary = beam.typehints.Dict[Any, Any].__class__
    return all(
        kind is dict or typing.get_origin(kind) is dict or isinstance(kind, dictionary)
        for kind in _list_types(element_type)
    )


def _bind(handler: RowModelHandler, fields: Mapping[str, Any]) -> RowModelHandler:
    check_names("columns", [n for n in handler.columns if n not in handler.optional], fields)
    check_names("keep", handler.keep or (), fields)
    for column in handler.output:
        if handler.keep is None and column.name in fields:
            raise OptionError(
                f"The rows already have a column {column.name!r}, the name of the prediction. To fix this, choose "
                "another name with output, or leave the column out of keep."
            )
    kinds = {name: get_kinds(fields[name]) for name in fields}
    for name in handler.feature_types.keys() & fields.keys():
        expected = handler.feature_types[name]
        _check_type(name, expected, fields[name], kinds[name])
    return handler.with_types(list(fields), {name: kind for name, kind in kinds.items() if kind})


def check_names(option: str, names: Collection[str], fields: Mapping[str, Any]) -> None:
    for name in names:
        if name not in fields:
            raise OptionError(
                f"The rows have no column {name!r} ({option}).{suggest(name, fields)} Their columns are "
                f"{', '.join(list(fields)[:20])}{', …' if len(fields) > 20 else ''}."
            )


def _check_type(name: str, expected: Any, declared: Any, kinds: tuple[type, ...]) -> None:
    found = set(kinds) - {type(None)}
    allowed, takes = _TAKEN.get(expected, (found, ""))
    if not found <= allowed:
        raise OptionError(
            f"The column {name!r} has the type {describe_type(declared)}, and the model's feature {name!r} takes "
            f"{takes}. To fix this, convert the column before RunInference."
        )


def get_kinds(declared: Any) -> tuple[type, ...]:
    """Return the Python types of a column's values, including that of None if they can be missing.

    The result is empty if they are unknown.
    """
    origin = typing.get_origin(declared)
    union = typing.get_args(declared) if origin in (Union, types.UnionType) else ()
    parts = list(union or getattr(declared, "union_types", None) or [declared])
    kinds = [_get_kind(part) for part in parts]
    return () if None in kinds else tuple(kinds)  # type: ignore[arg-type]


def _get_kind(declared: Any) -> type | None:
    if declared is type(None) or declared in _CHECKED:
        return declared  # type: ignore[no-any-return]
    if isinstance(declared, type) and issubclass(declared, np.generic):
        kinds = {"b": bool, "i": int, "u": int, "f": float, "U": str, "S": bytes}
        return kinds.get(np.dtype(declared).kind)
    return None
