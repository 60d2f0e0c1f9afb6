"""Concatenate DataFrames without changing a value."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from runinference.collate.exact import check_integers
from runinference.errors import ElementError
from runinference.extras import need


def is_dataframe(value: Any) -> bool:
    return hasattr(value, "iloc") and hasattr(value, "columns")


def concat_frames(frames: Sequence[Any], ignore_index: bool = True) -> Any:
    """Concatenate DataFrames with the same columns, without changing a value.

    Unlike with ``pandas.concat``, columns stay categorical if their categories differ, and a column without
    values has the dtype that it has in the other frames.

    Args:
        frames: DataFrames.
        ignore_index: Whether the index of the result is 0, 1, 2, …

    Raises:
        ElementError: The frames differ in the dtype of a column, and there is none that holds all of its values.
    """
    pandas = need("pandas", extra="xgboost")
    try:
        table = pandas.concat(frames, axis=0, ignore_index=ignore_index)
    except (ValueError, TypeError, OverflowError):  # such as a timestamp out of bounds
        table = None
    if table is None or _may_have_changed(frames[0], table):
        table = pandas.concat(_unify_columns(frames), axis=0, ignore_index=ignore_index)
    return table


def to_categories(column: Any, categories: Any) -> Any:
    """Return a column as a categorical one, with the given categories and those that only it has."""
    pandas = need("pandas", extra="xgboost")
    if isinstance(column.dtype, pandas.CategoricalDtype):
        return column
    known = pandas.Index(categories)
    unknown = pandas.Index(column[column.notna() & ~column.isin(known)].unique())
    return column.astype(pandas.CategoricalDtype(known.append(unknown) if len(unknown) else known))


def _may_have_changed(first: Any, table: Any) -> bool:
    """Return whether a table with other dtypes than its first frame, or with large floats, may hold other values.

    This is much faster than a comparison of the dtypes of all frames.
    """
    dtypes = list(table.dtypes)
    if dtypes != list(first.dtypes):
        return True
    objects = [i for i, dtype in enumerate(dtypes) if getattr(dtype, "kind", "") == "O"]
    if objects and first.iloc[:, objects].isna().all().any():
        return True  # the dtype of a column without values is that of the others
    if any(getattr(dtype, "kind", "") == "c" for dtype in dtypes):
        return True
    floats = [i for i, dtype in enumerate(dtypes) if getattr(dtype, "kind", "") == "f"]
    values = table.iloc[:, floats].to_numpy(np.float64, na_value=np.nan)
    return bool((np.abs(values) >= 2.0**53).any())  # integers may have been rounded


def _unify_columns(frames: Sequence[Any]) -> list[Any]:
    """Return frames whose columns have the same dtypes."""
    dtypes = [list(frame.dtypes) for frame in frames]
    changed = [frame.copy(deep=False) for frame in frames]
    for position, found in enumerate(zip(*dtypes, strict=True)):
        if all(dtype == found[0] for dtype in found):
            continue
        columns = [frame.iloc[:, position] for frame in frames]
        for frame, column in zip(changed, _unify_column(columns), strict=True):
            frame.isetitem(position, column)
    return changed


def _unify_column(columns: Sequence[Any]) -> list[Any]:
    """Convert the columns of several frames to one dtype that holds all of their values."""
    pandas = need("pandas", extra="xgboost")
    filled = [column for column in columns if column.notna().any()] or columns[:1]
    is_categorical = [isinstance(c.dtype, pandas.CategoricalDtype) for c in filled]
    if all(is_categorical):
        dtype = _unify_categories(pandas, filled)
    elif any(is_categorical):
        dtype = np.dtype(object)
    else:
        dtype = pandas.concat([column.iloc[:0] for column in filled]).dtype
        has_bool = any(column.dtype.kind == "b" for column in filled)
        kinds = {c.dtype.kind if isinstance(c.dtype, np.dtype) else "" for c in filled}
        if dtype.kind == "O" and kinds <= set("biufc"):
            dtype = np.result_type(*(column.dtype for column in filled))  # pandas: bool and number
        if len(filled) < len(columns) and dtype.kind in "biu" and isinstance(dtype, np.dtype):
            dtype = np.dtype(object if has_bool else float)  # for missing values
    return [_cast_column(column, dtype, index) for index, column in enumerate(columns)]


def _cast_column(column: Any, dtype: Any, index: int) -> Any:
    if column.dtype == dtype:
        return column
    try:
        converted = column.astype(dtype)
    except (ValueError, TypeError, OverflowError) as error:
        raise ElementError(
            f"Element {index} of the batch has {column.dtype} in the column {column.name!r}, which cannot be "
            f"converted to {dtype}, the dtype of its batch ({error}). To fix this, convert the column with "
            "with_preprocess_fn.",
            index=index,
        ) from error
    if column.dtype.kind in "iu" and dtype.kind in "fc":
        known = column.notna()
        integers = column[known].tolist()
        floats = np.asarray(converted[known])
        check_integers([integers], [floats], f"the batch (column {column.name!r})", index)
    return converted


def _unify_categories(pandas: Any, columns: Sequence[Any]) -> Any:
    """Return a categorical dtype with the categories of all columns."""
    dtypes = [column.dtype for column in columns]
    if all(dtype == dtypes[0] for dtype in dtypes):
        return dtypes[0]
    name = columns[0].name
    fix = (
        "To fix this, give the column all of its categories with with_preprocess_fn: "
        "column.astype(pandas.CategoricalDtype(categories))."
    )
    if any(dtype.ordered for dtype in dtypes):
        raise ElementError(
            f"The ordered categories of the column {name!r} differ between the elements of a batch. {fix}"
        )
    kinds = {dtype.categories.dtype for dtype in dtypes}
    if len(kinds) > 1:
        raise ElementError(
            f"The categories of the column {name!r} have the dtypes {', '.join(sorted(map(str, kinds)))} in the "
            f"elements of a batch. {fix}"
        )
    categories = dtypes[0].categories.append([dtype.categories for dtype in dtypes[1:]])
    return pandas.CategoricalDtype(categories.unique())
