"""The values of one column of a table: check their types, and convert them to an array without changing any."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from numbers import Integral, Number
from operator import itemgetter
from types import NoneType
from typing import Any

import numpy as np

from runinference.collate.exact import to_array
from runinference.collate.stack import stack_arrays
from runinference.errors import ElementError, suggest

#: The types of values for a feature of a model that takes bools, integers, numbers or texts.
FEATURE_TYPES: Mapping[Any, tuple[type, ...]] = {
    bool: (bool, NoneType),
    int: (Integral, bool),
    float: (Number, bool, NoneType),
    str: (str, NoneType),
}
_INTEGERS, _BOOLS = (int, np.integer), (bool, np.bool_)
_NUMBERS = (*_INTEGERS, float, np.floating)
#: The types of values in a column of a declared type; otherwise, only that type itself.
_ALLOWED: Mapping[type, tuple[type, ...]] = {bool: _BOOLS, int: _INTEGERS, float: _NUMBERS}
_TYPE_NAMES = {NoneType: "None", Number: "number", Integral: "integer"}
_MAX_FLOAT64_INTEGER = 2**53


class Column:
    """The values of one column, with None instead of pandas' ``NA``.

    >>> Column("a", [1, None]).to_array().tolist()
    [1.0, nan]

    Args:
        name: The name of the column.
        values: The values.
        types: The types that the values may have. If there are none, they aren't checked.
        row: The name of a row in error messages, with a placeholder for its index.

    Raises:
        ElementError: A value has another type.
    """

    def __init__(
        self,
        name: str,
        values: Sequence[Any],
        types: Sequence[type] = (),
        row: str = "Element {} of the batch",
    ) -> None:
        self.kinds = set(map(type, values))
        if nullable := {kind for kind in self.kinds if kind.__name__ == "NAType"}:
            values = [None if type(value) in nullable else value for value in values]
            self.kinds = self.kinds - nullable | {NoneType}
        self.values = values
        self._name, self._types, self._row = name, types, row
        if types:
            self._check_types()

    def to_array(self) -> Any:
        """Return an array of shape (rows, …). Missing numbers are NaN, and other missing values None.

        Raises:
            ElementError: An integer would be rounded, or an array is missing.
        """
        values, kinds = self.values, self.kinds - {NoneType}
        if any(
            issubclass(kind, (np.ndarray, list, tuple)) or hasattr(kind, "detach") for kind in kinds
        ):
            arrays = [self._to_array(index, value) for index, value in enumerate(values)]
            return stack_arrays(arrays, f"the column {self._name!r}")
        if not kinds and str not in self._types:
            return np.full(len(values), np.nan)
        if all(issubclass(kind, _BOOLS) for kind in kinds) and kinds == self.kinds:
            return np.array(values)
        # A model that takes numbers takes a bool as one. Elsewhere, True and 1 may be different categories.
        numbers = _NUMBERS + _BOOLS * (Number in self._types or Integral in self._types)
        if str in self._types or not all(
            issubclass(kind, numbers) and (kind is not bool or bool in numbers) for kind in kinds
        ):
            array = np.empty(len(values), dtype=object)
            array[:] = values
            return array
        return self._to_numbers()

    def to_series(self, pandas: Any) -> Any:
        """Return the values as an array or a pandas Series.

        Raises:
            ElementError: A value is a list or another collection, or an integer would be rounded.
        """
        if nested := {kind for kind in self.kinds if _is_nested(kind)}:
            index = next(i for i, value in enumerate(self.values) if type(value) in nested)
            raise ElementError(
                f"{self._row.format(index)} has a {type(self.values[index]).__name__} in the column "
                f"{self._name!r}, and the model takes one number or text per column. To fix this, flatten it with "
                "with_preprocess_fn.",
                index=index,
            )
        array = self.to_array()
        is_text = str in self._types or self.kinds <= {str, bytes, NoneType}
        if array.dtype.kind == "O" and not is_text:
            return pandas.Series(list(self.values))  # such as timestamps
        return array

    def _check_types(self) -> None:
        allowed = tuple(kind for each in self._types for kind in _ALLOWED.get(each, (each,)))
        wrong = {
            kind
            for kind in self.kinds
            if not _is_nested(kind)  # found by the array or the series
            and (not issubclass(kind, allowed) or (kind is bool and bool not in self._types))
        }
        may_miss = NoneType in self._types
        for index, value in enumerate(self.values) if wrong else ():
            if type(value) in wrong and not (may_miss and value != value):  # NaN is missing
                names = [_TYPE_NAMES.get(each, each.__name__) for each in self._types]
                raise ElementError(
                    f"{self._row.format(index)} has {value!r} of type {type(value).__name__} in the column "
                    f"{self._name!r}, whose type is {' or '.join(names)}. To fix this, convert it before "
                    "RunInference.",
                    index=index,
                )

    def _to_numbers(self) -> Any:
        values, kinds = self.values, self.kinds
        if NoneType in kinds:
            values = [np.nan if value is None else value for value in values]
        has_floats = not all(issubclass(kind, _INTEGERS) for kind in kinds)
        if all(issubclass(kind, np.floating) for kind in kinds):
            return np.array(values)
        array = np.array(values, dtype=np.float64 if has_floats or float in self._types else None)
        if array.dtype.kind == "f":
            for index in np.flatnonzero(np.abs(array) >= _MAX_FLOAT64_INTEGER).tolist():
                if isinstance(values[index], _INTEGERS) and int(array[index]) != values[index]:
                    raise self.make_changed_error(index, values[index], array.dtype)
        return array

    def make_changed_error(self, index: int, value: Any, dtype: Any) -> ElementError:
        """Return the error for a value that a dtype can't hold."""
        return ElementError(
            f"{self._row.format(index)} holds {value} in the column {self._name!r}, which {dtype} cannot hold "
            "unchanged. To fix this, convert the column before RunInference.",
            index=index,
        )

    def _to_array(self, index: int, value: Any) -> Any:
        if value is None:
            raise ElementError(
                f"{self._row.format(index)} has None in the column {self._name!r}, where others have arrays. To "
                "fix this, fill it before RunInference.",
                index=index,
            )
        return to_array(value, f"the column {self._name!r}", index)


def read_columns(
    rows: Sequence[Mapping[str, Any]], names: Sequence[str]
) -> dict[str, Sequence[Any]]:
    """Return the values of columns by name.

    Raises:
        ElementError: A row has no value for a name. The message suggests the closest name.
    """
    if not names:
        return {}
    try:
        if len(names) == 1:
            return {names[0]: [row[names[0]] for row in rows]}
        return dict(zip(names, zip(*map(itemgetter(*names), rows), strict=True), strict=True))
    except KeyError:
        for index, row in enumerate(rows):
            check_names(row, names, f"Element {index} of the batch", index)
        raise


def check_names(
    found: Collection[Any], names: Iterable[str], where: str, index: int | None = None
) -> None:
    """Raise `ElementError` if a name is missing, or several columns have a name."""
    known = set(found)
    if len(known) < len(found):
        columns = list(found)
        repeated = next(name for name in columns if columns.count(name) > 1)
        raise ElementError(
            f"{where} has several columns with the name {repeated!r}. To fix this, rename them before "
            "RunInference.",
            index=index,
        )
    for name in names:
        if name not in known:
            columns = [*map(str, found)]
            raise ElementError(
                f"{where} has no column {name!r}.{suggest(name, columns)} Its columns are "
                f"{', '.join(columns[:20])}{', …' if len(columns) > 20 else ''}. To fix this, add the column "
                "before RunInference.",
                index=index,
            )


def _is_nested(kind: type) -> bool:
    return hasattr(kind, "__len__") and not issubclass(kind, (str, bytes))
