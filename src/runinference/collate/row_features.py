"""The feature columns of a batch of rows, of a DataFrame, or of an Arrow table."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from types import NoneType
from typing import Any

import numpy as np

from runinference.collate.columns import Column, check_names, read_columns
from runinference.collate.exact import cast
from runinference.errors import BatchShapeError, ElementError
from runinference.extras import need


class Features(ABC):
    """The feature columns of a batch.

    Args:
        names: The names of the columns, in order.
        types: The types that the values of columns may have. A value of another type is an error.
    """

    _row = "Row {} of the table"  # in error messages

    def __init__(self, names: Sequence[str], types: Mapping[str, Sequence[type]]) -> None:
        self.names = names
        self._types = types

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of rows."""

    @abstractmethod
    def array(self, name: str) -> Any:
        """Return the values of a column as an array of shape (rows, …), without changing a value."""

    @abstractmethod
    def frame(self) -> Any:
        """Return the columns as a DataFrame."""

    @abstractmethod
    def values(self, name: str) -> list[Any]:
        """Return the values of a column as Python objects."""

    def examples(self) -> list[dict[str, Any]]:
        """Return the values of each row by name."""
        columns = [self.values(name) for name in self.names]
        return [dict(zip(self.names, row, strict=True)) for row in zip(*columns, strict=True)]

    def matrix(self) -> Any:
        """Return an array of shape (rows, columns); of shape (rows, …) if the only column holds arrays."""
        arrays = {name: self.array(name) for name in self.names}
        first = arrays[self.names[0]]
        for name, array in arrays.items():
            if array.ndim > 1 and len(arrays) > 1:
                raise BatchShapeError(
                    f"The column {name!r} holds arrays of shape {array.shape[1:]}, which cannot be combined with "
                    "the other columns to one array. To fix this, pass columns of numbers, or one column of "
                    "arrays."
                )
            if array.dtype.kind in "mM":  # NumPy would convert them to integers
                raise ElementError(
                    f"The column {name!r} holds values of type {array.dtype}, and the model takes numbers. To fix "
                    "this, convert the column before RunInference."
                )
        if first.ndim > 1:
            return first
        if any(array.dtype.kind not in "biufc" for array in arrays.values()):
            return np.stack([array.astype(object) for array in arrays.values()], axis=1)
        dtype = np.result_type(*(array.dtype for array in arrays.values()))
        return np.stack([self._cast(name, array, dtype) for name, array in arrays.items()], axis=1)

    def _cast(self, name: str, array: Any, dtype: Any) -> Any:
        converted, changed = cast(array, dtype)
        if changed is not None:
            column = Column(name, [], row=self._row)
            raise column.make_changed_error(changed[0], array[changed], dtype)
        return converted

    def _make_column(self, name: str, values: Sequence[Any]) -> Column:
        return Column(name, values, self._types.get(name, ()), self._row)


class RowFeatures(Features):
    """The features of rows, each a mapping of names to values.

    >>> features = RowFeatures([{"id": 7, "a": 1, "b": "x"}, {"id": 8, "a": None, "b": "y"}], ["a", "b"])
    >>> features.array("a").tolist(), features.values("b")
    ([1.0, nan], ['x', 'y'])

    Args:
        rows: The rows; at least one.
        names: The names of the features.
        types: The types that the values of columns may have.
        optional: The names of the columns that rows may lack, for which they have None then.
    """

    _row = "Element {} of the batch"

    def __init__(
        self,
        rows: Sequence[Mapping[str, Any]],
        names: Sequence[str],
        types: Mapping[str, Sequence[type]] = {},
        optional: Collection[str] = (),
    ) -> None:
        may_miss = {name: (*types[name], NoneType) for name in optional if name in types}
        super().__init__(names, {**types, **may_miss})
        self.optional = optional
        self._rows = rows
        if optional:
            rows = [{**dict.fromkeys(optional), **row} for row in rows]
        self._columns = {
            name: self._make_column(name, values)
            for name, values in read_columns(rows, names).items()
        }

    def __len__(self) -> int:
        return len(self._rows)

    def examples(self) -> list[dict[str, Any]]:
        """Return the values of each row by name, without the optional columns that it lacks."""
        return [{name: row[name] for name in self.names if name in row} for row in self._rows]

    def values(self, name: str) -> list[Any]:
        return list(self._columns[name].values)

    def array(self, name: str) -> Any:
        return self._columns[name].to_array()

    def frame(self) -> Any:
        pandas = need("pandas", extra="xgboost")
        return pandas.DataFrame(
            {name: self._columns[name].to_series(pandas) for name in self.names}
        )


class FrameFeatures(Features):
    """The features of a DataFrame, without a copy of its columns if possible."""

    def __init__(
        self, frame: Any, names: Sequence[str], types: Mapping[str, Sequence[type]] = {}
    ) -> None:
        super().__init__(names, types)
        check_names(frame.columns, names, "The frame")
        self._frame = frame[list(names)]

    def __len__(self) -> int:
        return len(self._frame)

    def values(self, name: str) -> list[Any]:
        column = self._frame[name]
        if not isinstance(column.dtype, np.dtype):
            column = column.astype(object).where(column.notna(), None)
        values: list[Any] = column.tolist()
        return values

    def array(self, name: str) -> Any:
        column = self._frame[name]
        if column.dtype.kind == "O" or not isinstance(column.dtype, np.dtype):
            return self._make_column(name, column.tolist()).to_array()
        return column.to_numpy()

    def frame(self) -> Any:
        # An estimator may join or select rows by the index.
        frame = self._frame if self._frame.index.is_unique else self._frame.reset_index(drop=True)
        changed = {}
        for name, types in self._types.items():
            column = frame[name]
            if str in types or column.dtype.kind not in "biuf":
                self._make_column(name, column.tolist())  # checks the types
                if column.dtype.kind == "f":
                    changed[name] = column.astype(object)  # all texts are missing
        return frame.assign(**changed) if changed else frame


class ArrowFeatures(Features):
    """The features of a PyArrow table or record batch."""

    def __init__(
        self, table: Any, names: Sequence[str], types: Mapping[str, Sequence[type]] = {}
    ) -> None:
        super().__init__(names, types)
        check_names(table.schema.names, names, "The table")
        self._table = table.select(list(names))

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def values(self, name: str) -> list[Any]:
        values: list[Any] = self._table.column(name).to_pylist()
        return values

    def array(self, name: str) -> Any:
        column = self._table.column(name)
        kind = str(column.type).rstrip("0123456789")
        if kind not in ("int", "uint", "float", "double", "halffloat") or column.null_count:
            return self._make_column(name, self.values(name)).to_array()
        return column.to_numpy(**({"zero_copy_only": False} if hasattr(column, "buffers") else {}))

    def frame(self) -> Any:
        need("pandas", extra="xgboost")
        frame = self._table.to_pandas(ignore_metadata=True)
        for name in self.names:
            column = self._table.column(name)
            if column.null_count and str(column.type) in ("int64", "uint64"):
                frame[name] = self.array(name)  # checks that no integer is rounded
        return FrameFeatures(frame, self.names, self._types).frame()
