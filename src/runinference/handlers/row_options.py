"""The options that make a handler take rows: which columns are features, outputs, and kept."""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from apache_beam.typehints.typehints import TypeConstraint

from runinference.checks import check_names
from runinference.collate.class_output import ProbabilitiesOption, check_probabilities
from runinference.collate.row_outputs import OutputColumn
from runinference.errors import OptionError

#: The value of ``output``: the name of a column, or the names of several, or their types by name.
OutputOption = str | Sequence[str] | Mapping[str, Any]


@dataclass(frozen=True)
class RowOptions:
    """The options for rows.

    Attributes:
        columns: The names of the feature columns; None for the features that the model names.
        output: The columns of predictions.
        keep: The names of the columns that results have, too; None for all columns.
        probabilities: The columns of the probabilities of classes: a pattern, or pairs of a class and a name; None
            if there are none.
        has_default_output: Whether calls have no inference arguments, which could change the output of the model.
    """

    columns: tuple[str, ...] | None
    output: tuple[OutputColumn, ...]
    keep: tuple[str, ...] | None
    has_default_output: bool = True
    probabilities: str | tuple[tuple[Any, str], ...] | None = None

    @classmethod
    def create(
        cls,
        columns: str | Sequence[str] | None,
        output: OutputOption | None,
        keep: str | Sequence[str] | None,
        inference_args: Any = None,
        probabilities: ProbabilitiesOption | None = None,
    ) -> RowOptions | None:
        """Return the options, or None if none is given.

        Raises:
            OptionError: A value is not a list of different names, or a name is both an output and kept.
        """
        if all(option is None for option in (columns, output, keep, probabilities)):
            return None
        names = _check_list("columns", columns)
        if names == ():
            raise OptionError(
                "columns is empty. To fix this, list the feature columns, or leave columns out if the model names "
                "its features."
            )
        kept, declared = _check_list("keep", keep), output if isinstance(output, Mapping) else {}
        outputs = (
            ("prediction",)
            if output is None
            else _check_list("output", tuple(output) if declared else output)
        )
        if not outputs:
            raise OptionError('output is empty. To fix this, name a column, such as "prediction".')
        found = check_probabilities(probabilities)
        if found is not None and len(outputs) > 1:
            raise OptionError(
                f"output names {len(outputs)} columns, but with probabilities it is the name of the column with "
                "the class. To fix this, name one column."
            )
        for name in outputs:
            if name in (kept or ()):
                raise OptionError(
                    f"{name!r} is in output and in keep, but a row has one column with this name. To fix this, "
                    "choose another name with output."
                )
        for name, kind in declared.items():
            _check_type(name, kind)
        may_be_field = output is not None and found is None
        columns_out = tuple(
            OutputColumn(name, declared.get(name, Any), may_be_field) for name in outputs
        )
        return cls(names, columns_out, kept, not inference_args, found)


def _check_type(name: str, kind: Any) -> None:
    is_type = kind is Any or isinstance(kind, (type, types.UnionType, TypeConstraint))
    if not is_type and typing.get_origin(kind) is None:
        raise OptionError(
            f"output declares {kind!r} for {name!r}, which is not a type. To fix this, pass a type, such as float "
            "or Sequence[float]."
        )


def _check_list(option: str, value: Any) -> tuple[str, ...] | None:
    if value is None:
        return None
    names = [value] if isinstance(value, str) else value
    check_names(option, names)
    for name in names:
        if list(names).count(name) > 1:
            raise OptionError(f"{option} lists {name!r} twice. To fix this, list each column once.")
    return tuple(names)
