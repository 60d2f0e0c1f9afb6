"""The feature columns of a batch of rows, of a DataFrame, or of an Arrow table."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from operator import itemgetter
from typing import Any

import numpy as np

from runinference.collate.exact import cast, check_integers, to_array
from runinference.collate.stack import stack_arrays
from runinference.errors import BatchShapeError, ElementError, suggest
from runinference.extras import need

_INTEGERS, _FLOATS, _BOOLS = (int, np.integer), (float, np.floating), (bool, np.bool_)
#: The values that a column of a type may hold. Columns of other types aren't checked.
_ALLOWED: dict[Any, tuple[type, ...]] = {
    bool: _BOOLS,
    int: _INTEGERS,
    float: (*_FLOATS, *_INTEGERS),
    str: (str,),
    bytes: (bytes,),
}


class Features(ABC):
    """The feature columns of a batch.

    Attributes:
        names: The names of the columns, in order.
    """

    names: Sequence[str]

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of rows."""

    @abstractmethod
    def array(self, name: str) -> Any:
        """Return the values of a column as an array of shape (rows, …), without changing a value."""

    @abstractmethod
    def frame(self) -> Any:
        """Return the columns as a DataFrame."""

    def values(self, name: str) -> list[Any]:
        """Return the values of a column as Python objects."""
        values: list[Any] = self.array(name).tolist()
        return values

    def matrix(self) -> Any:
        """Return an array of shape (rows, columns); of shape (rows, …) if the only column holds arrays."""
        arrays = [self.array(name) for name in self.names]
        for name, array in zip(self.names, arrays, strict=True):
            if array.ndim > 1 and len(arrays) > 1:
                raise BatchShapeError(
                    f"The column {name!r} holds arrays of shape {array.shape[1:]}, which cannot be combined with "
                    "the other columns to one array. To fix this, pass columns of numbers, or one column of "
                    "arrays."
                )
        if arrays[0].ndim > 1:
            return arrays[0]
        if any(array.dtype.kind not in "biufc" for array in arrays):
            return np.stack([array.astype(object) for array in arrays], axis=1)
        dtype = np.result_type(*(array.dtype for array in arrays))
        return np.stack(
            [_convert(array, dtype, name) for name, array in zip(self.names, arrays, strict=True)],
            axis=1,
        )


class RowFeatures(Features):
    """The features of rows, each a mapping of names to values.

    >>> features = RowFeatures([{"id": 7, "a": 1, "b": "x"}, {"id": 8, "a": None, "b": "y"}], ["a", "b"])
    >>> features.array("a").tolist(), features.values("b")
    ([1.0, nan], ['x', 'y'])

    Args:
        rows: The rows; at least one.
        names: The names of the features.
        types: The declared types of columns, by name. A value of another type is an error.
    """

    def __init__(
        self, rows: Sequence[Mapping[str, Any]], names: Sequence[str], types: Mapping[str, Any] = {}
    ) -> None:
        self.names = names
        self._n_rows = len(rows)
        self._columns = read_columns(rows, names)
        self._kinds = {name: set(map(type, values)) for name, values in self._columns.items()}
        for name in types.keys() & self._columns.keys():
            check_types(name, self._columns[name], self._kinds[name], types[name])
        self._types = types

    def __len__(self) -> int:
        return self._n_rows

    def values(self, name: str) -> list[Any]:
        return list(self._columns[name])

    def array(self, name: str) -> Any:
        values, kinds = self._columns[name], self._kinds[name] - {type(None)}
        if any(
            issubclass(kind, (np.ndarray, list, tuple)) or hasattr(kind, "detach") for kind in kinds
        ):
            return stack_arrays(
                [_check_not_none(value, name, i) for i, value in enumerate(values)],
                f"the column {name!r}",
            )
        return _to_column(
            name, values, kinds, len(kinds) < len(self._kinds[name]), self._types.get(name)
        )

    def frame(self) -> Any:
        pandas = need("pandas", extra="xgboost")
        columns = {}
        for name in self.names:
            values, kinds = self._columns[name], self._kinds[name]
            if nested := [kind for kind in kinds if _is_nested(kind)]:
                index = next(i for i, value in enumerate(values) if type(value) in nested)
                raise ElementError(
                    f"Element {index} of the batch has a {nested[0].__name__} in the column {name!r}, and the "
                    "model takes one number or text per column. To fix this, flatten it with with_preprocess_fn.",
                    index=index,
                )
            columns[name] = self._series(pandas, name)
        return pandas.DataFrame(columns)

    def _series(self, pandas: Any, name: str) -> Any:
        array = self.array(name)
        if array.dtype.kind == "O" and not self._kinds[name] <= {str, bytes, type(None)}:
            return pandas.Series(list(self._columns[name]))  # such as timestamps
        return array


class FrameFeatures(Features):
    """The features of a DataFrame, without a copy of its columns if possible."""

    def __init__(self, frame: Any, names: Sequence[str]) -> None:
        check_names(list(frame.columns), names, "The frame")
        self.names = names
        self._frame = frame[list(names)]

    def __len__(self) -> int:
        return len(self._frame)

    def values(self, name: str) -> list[Any]:
        column = self._frame[name]
        values: list[Any] = column.tolist()
        if isinstance(column.dtype, np.dtype):
            return values
        return [*map(_none_if_missing, values)]

    def array(self, name: str) -> Any:
        column = self._frame[name]
        kind = column.dtype.kind
        if kind == "O" or not isinstance(column.dtype, np.dtype):
            return RowFeatures(
                [{name: _none_if_missing(value)} for value in column.tolist()], [name]
            ).array(name)
        return column.to_numpy()

    def frame(self) -> Any:
        # An estimator may join or select rows by the index.
        return self._frame if self._frame.index.is_unique else self._frame.reset_index(drop=True)


class ArrowFeatures(Features):
    """The features of a PyArrow table or record batch."""

    def __init__(self, table: Any, names: Sequence[str]) -> None:
        check_names(list(table.schema.names), names, "The table")
        self.names = names
        self._table = table.select(list(names))

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def values(self, name: str) -> list[Any]:
        values: list[Any] = self._table.column(name).to_pylist()
        return values

    def array(self, name: str) -> Any:
        column = self._table.column(name)
        is_number = str(column.type).rstrip("0123456789") in (
            "int",
            "uint",
            "float",
            "double",
            "halffloat",
        )
        if is_number and not column.null_count:
            return (
                column.to_numpy(zero_copy_only=False)
                if hasattr(column, "buffers")
                else column.to_numpy()
            )
        return RowFeatures([{name: value} for value in column.to_pylist()], [name]).array(name)

    def frame(self) -> Any:
        need("pandas", extra="xgboost")
        frame = self._table.to_pandas(ignore_metadata=True)
        for name in self.names:
            column = self._table.column(name)
            if column.null_count and str(column.type) in ("int64", "uint64"):
                frame[name] = self.array(name)  # checks that no integer is rounded
        return frame


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
            check_names(list(row), names, f"Element {index} of the batch", index)
        raise


def check_names(
    found: Sequence[Any], names: Iterable[str], where: str, index: int | None = None
) -> None:
    """Raise `ElementError` if a name is missing, or several columns have a name."""
    for name in names:
        if name not in found:
            raise ElementError(
                f"{where} has no column {name!r}.{suggest(name, map(str, found))} Its columns are "
                f"{', '.join(map(str, found[:20]))}{', …' if len(found) > 20 else ''}. To fix this, add the "
                "column before RunInference.",
                index=index,
            )
    if len(set(found)) < len(found):
        repeated = next(name for name in found if found.count(name) > 1)
        raise ElementError(
            f"{where} has several columns with the name {repeated!r}. To fix this, rename them before "
            "RunInference.",
            index=index,
        )


def check_types(name: str, values: Sequence[Any], kinds: set[type], declared: Any) -> None:
    """Raise `ElementError` for the first value that isn't of the declared type: a type, or several with None."""
    expected = declared if isinstance(declared, tuple) else (declared,)
    allowed = [kind for each in expected for kind in _ALLOWED.get(each, (each,))]
    wrong = {
        kind
        for kind in kinds
        if not issubclass(kind, tuple(allowed)) or (issubclass(kind, bool) and bool not in expected)
    }
    if wrong:
        index = next(i for i, value in enumerate(values) if type(value) in wrong)
        names = " or ".join("None" if each is type(None) else each.__name__ for each in expected)
        raise ElementError(
            f"Element {index} of the batch has {values[index]!r} of type {type(values[index]).__name__} in the "
            f"column {name!r}, whose type is {names}. To fix this, convert it before RunInference.",
            index=index,
        )


def _to_column(
    name: str, values: Sequence[Any], kinds: set[type], has_none: bool, declared: Any
) -> Any:
    """Return an array of one dimension. Missing numbers are NaN, and other missing values None."""
    if not kinds:
        return np.full(len(values), np.nan)
    if all(issubclass(kind, _BOOLS) for kind in kinds) and not has_none:
        return np.array(values)
    is_number = all(issubclass(kind, (*_INTEGERS, *_FLOATS)) and kind is not bool for kind in kinds)
    if not is_number:
        array = np.empty(len(values), dtype=object)
        array[:] = values
        return array
    has_float = has_none or any(issubclass(kind, _FLOATS) for kind in kinds) or declared is float
    if not has_float:
        return np.array(values)
    numbers = [np.nan if value is None else value for value in values] if has_none else values
    only_floats = all(issubclass(kind, np.floating) for kind in kinds) and not has_none
    array = np.array(numbers) if only_floats else np.array(numbers, dtype=np.float64)
    if any(issubclass(kind, _INTEGERS) for kind in kinds):
        check_integers(numbers, array, f"the batch (column {name!r})")
    return array


def _convert(array: Any, dtype: Any, name: str) -> Any:
    converted, changed = cast(array, dtype)
    if changed is not None:
        index = changed[0]
        raise ElementError(
            f"Element {index} of the batch holds {array[changed]} in the column {name!r}, which {dtype} cannot "
            "hold unchanged. To fix this, convert the column before RunInference.",
            index=index,
        )
    return converted


def _is_nested(kind: type) -> bool:
    return hasattr(kind, "__len__") and not issubclass(kind, (str, bytes))


def _check_not_none(value: Any, name: str, index: int) -> Any:
    if value is None:
        raise ElementError(
            f"Element {index} of the batch has None in the column {name!r}, where other elements have arrays. "
            "To fix this, fill it before RunInference.",
            index=index,
        )
    return to_array(value, f"the column {name!r}", index)


def _none_if_missing(value: Any) -> Any:
    """Return None for a missing value of a pandas column: NaN, NaT or NA."""
    if value is None or isinstance(value, (str, bytes)) or hasattr(value, "__len__"):
        return value
    is_missing = value is not value or type(value).__name__ in ("NAType", "NaTType")
    try:
        return None if is_missing or value != value else value
    except TypeError:
        return value
