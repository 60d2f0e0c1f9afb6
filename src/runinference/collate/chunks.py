"""Chunks of rows: DataFrames, and Arrow tables and record batches."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from runinference.collate.columns import check_names
from runinference.collate.frames import is_dataframe
from runinference.collate.row_features import ArrowFeatures, Features, FrameFeatures
from runinference.errors import ElementError, ResultMismatchError, describe
from runinference.extras import need


class Chunk(ABC):
    """A table of rows that is one element of a PCollection.

    Args:
        table: The table.
    """

    def __init__(self, table: Any) -> None:
        self._table = table

    @abstractmethod
    def names(self) -> list[Any]:
        """Return the names of all columns."""

    @abstractmethod
    def features(self, names: Sequence[str], types: Mapping[str, Sequence[type]] = {}) -> Features:
        """Return the columns with these names, and the types that their values may have."""

    def check_output(self, keep: Sequence[str] | None, outputs: Sequence[str]) -> None:
        """Raise `ElementError` if a kept column is missing, or has the name of a prediction."""
        kept = self.names() if keep is None else keep
        check_names(self.names(), kept, "The table")
        for name in outputs:
            if name in kept:
                raise collision_error(name, "The table")

    @abstractmethod
    def with_columns(self, keep: Sequence[str] | None, columns: Mapping[str, Any]) -> Any:
        """Return a table with the kept columns, or all of them, and the columns of predictions.

        The index, the dtypes and the metadata stay as they are.
        """


class _FrameChunk(Chunk):
    def names(self) -> list[Any]:
        return list(self._table.columns)

    def features(self, names: Sequence[str], types: Mapping[str, Sequence[type]] = {}) -> Features:
        return FrameFeatures(self._table, names, types)

    def with_columns(self, keep: Sequence[str] | None, columns: Mapping[str, Any]) -> Any:
        frame = (self._table if keep is None else self._table[list(keep)]).copy(deep=False)
        for name, values in columns.items():
            is_vector = getattr(values, "ndim", 1) > 1
            kinds = set(map(type, values)) if isinstance(values, list) else {None}
            is_mixed = int in kinds and len(kinds) > 1  # pandas would convert integers to floats
            frame[name] = need("pandas", extra="xgboost").Series(
                list(values) if is_vector else values,
                index=frame.index,
                dtype=object if is_vector or is_mixed else None,
            )
        return frame


class _ArrowChunk(Chunk):
    def names(self) -> list[Any]:
        return list(self._table.schema.names)

    def features(self, names: Sequence[str], types: Mapping[str, Sequence[type]] = {}) -> Features:
        return ArrowFeatures(self._table, names, types)

    def with_columns(self, keep: Sequence[str] | None, columns: Mapping[str, Any]) -> Any:
        table = self._table if keep is None else self._table.select(list(keep))
        for name, values in columns.items():
            table = table.append_column(name, _to_arrow(name, values))
        return table


def to_chunk(element: Any) -> Chunk | None:
    """Return an element as a chunk, or None if it is not a DataFrame or Arrow table."""
    if is_dataframe(element):
        return _FrameChunk(element)
    return _ArrowChunk(element) if _is_arrow(element) else None


def is_chunk_type(kind: type) -> bool:
    """Return whether the objects of a class are chunks."""
    return is_dataframe(kind) or _is_arrow(kind)


def _is_arrow(value: Any) -> bool:
    return all(hasattr(value, name) for name in ("num_rows", "schema", "select"))


def collision_error(name: str, where: str, index: int | None = None) -> ElementError:
    """Return the error for a row that already has a column with the name of a prediction."""
    return ElementError(
        f"{where} already has a column {name!r}, the name of the prediction. To fix this, choose another name "
        "with output, or leave the column out of keep.",
        index=index,
    )


def _to_arrow(name: str, values: Any) -> Any:
    pyarrow = need("pyarrow", extra="beam")
    shape: Sequence[int] = getattr(values, "shape", ())
    if isinstance(values, np.ndarray) and len(shape) == 2 and values.dtype.kind in "iuf":
        flat = pyarrow.array(np.ascontiguousarray(values).reshape(-1))
        return pyarrow.FixedSizeListArray.from_arrays(flat, shape[1])
    items = values if len(shape) == 1 else values.tolist() if shape else list(values)
    try:
        return pyarrow.array(items)
    except (pyarrow.ArrowException, OverflowError) as error:
        raise ResultMismatchError(
            f"The predictions of the column {name!r} can't be an Arrow column: {describe(error, 300)}. To fix "
            "this, return values of one type, or convert the table to a DataFrame before RunInference."
        ) from error
