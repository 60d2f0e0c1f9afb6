"""The columns of predictions that a handler of rows adds, and their types."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from runinference.collate.class_output import ClassColumns
from runinference.collate.row_outputs import OutputColumn, describe_type
from runinference.errors import OptionError, suggest
from runinference.handlers.model_handler import ModelHandler
from runinference.handlers.model_signature import ModelSignature
from runinference.handlers.row_options import RowOptions

_SCALARS = {bool, int, float, str, bytes}


def resolve_outputs(
    handler: Any, options: RowOptions, signature: ModelSignature
) -> tuple[tuple[OutputColumn, ...], ClassColumns | None]:
    """Return the columns of predictions, and which of them are probabilities of classes.

    Args:
        handler: The handler of the model.
        options: The columns that the user asks for.
        signature: What the model declares about its output and its classes.

    Raises:
        OptionError: The model returns another type than declared, or no probabilities of classes.
    """
    classes = _find_class_columns(handler, options, signature)
    if classes is None:
        if (columns := _add_field_types(options.output, signature.fields)) is not None:
            return columns, None
        found = signature.output if options.has_default_output else Any
        return _add_type(options.output, found), None
    [label] = _add_type(options.output, _get_label_type(signature.classes or ()))
    return (label, *_list_class_columns(classes, label, options.keep)), classes


def _add_field_types(
    columns: tuple[OutputColumn, ...], fields: Mapping[str, Any] | None
) -> tuple[OutputColumn, ...] | None:
    """Return the columns with the types of the fields that they select; None if they select none.

    Raises:
        OptionError: The output has no such field.
    """
    if fields is None or (
        len(columns) == 1 and not (columns[0].may_be_field and columns[0].name in fields)
    ):
        return None
    for column in columns:
        if column.name not in fields:
            raise OptionError(
                f"The output of the model has no field {column.name!r} (output).{suggest(column.name, fields)} "
                f"Its fields are {', '.join(fields)}."
            )
    return tuple(_add_type((column,), fields[column.name])[0] for column in columns)


def _add_type(columns: tuple[OutputColumn, ...], found: Any) -> tuple[OutputColumn, ...]:
    """Return the columns of predictions, with the type that the model declares if the user declares none."""
    declared = columns[0].type
    if {declared, found} <= _SCALARS and declared != found and len(columns) == 1:
        raise OptionError(
            f"output declares {describe_type(declared)} for {columns[0].name!r}, and the predictions of the model "
            f"have the type {describe_type(found)}. To fix this, declare output={{{columns[0].name!r}: "
            f"{describe_type(found)}}}, or convert the column after RunInference."
        )
    if len(columns) == 1 and declared is Any:
        return (replace(columns[0], type=found),)
    return columns


def _find_class_columns(
    handler: Any, options: RowOptions, signature: ModelSignature
) -> ClassColumns | None:
    if options.probabilities is None:
        return None
    name, reason = type(handler).__name__, f" ({signature.error})" if signature.error else ""
    if not _predicts_classes(type(handler)):
        raise OptionError(
            f"{name} returns no probabilities of classes. To fix this, leave probabilities out, and name the "
            "fields of the model's output with output."
        )
    if signature.classes is None and not signature.error:
        raise OptionError(
            f"The model of {name} predicts no probabilities of classes. To fix this, leave probabilities out, or "
            "use a classifier that predicts them."
        )
    return ClassColumns(options.probabilities, signature.classes, f"model of {name}", reason)


def _predicts_classes(kind: Any) -> bool:
    """Return whether handlers have ``predict_classes``, and no ``run_inference`` of a user that it bypasses."""
    method = getattr(kind, "predict_classes", ModelHandler.predict_classes)
    packages = {each.__module__.partition(".")[0] for each in (method, kind.run_inference)}
    return method is not ModelHandler.predict_classes and len(packages) == 1


def _list_class_columns(
    columns: ClassColumns, label: OutputColumn, keep: Sequence[str] | None
) -> list[OutputColumn]:
    for name in columns.names:
        if name == label.name or name in (keep or ()):
            other = "output" if name == label.name else "keep"
            raise OptionError(
                f"{name!r} is in probabilities and in {other}, but a row has one column with this name. To fix "
                "this, choose another name with probabilities."
            )
    return [OutputColumn(name, float) for name in columns.names]


def _get_label_type(classes: Sequence[Any]) -> Any:
    kinds = set(map(type, classes))
    return kinds.pop() if len(kinds) == 1 else Any
