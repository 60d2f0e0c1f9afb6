"""Concatenate rows and tables into one table, and split a table of predictions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, KeysView, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from runinference.collate.exact import (
    cast,
    changed_value_error,
    check_integers,
    to_array,
    unify_dtypes,
)
from runinference.collate.pytree import Path, children, leaves_with_path, map_with_path
from runinference.collate.rows import get_array_shape
from runinference.collate.stack import reject_keyed_examples, stack_arrays, stack_numbers
from runinference.collate.unbatch import unbatch
from runinference.errors import BatchShapeError, ElementError, ResultMismatchError
from runinference.extras import need

_SELECT = "To fix this, select the same columns in the same order before RunInference."


def split_examples(batch: Any) -> list[Any]:
    """Return the examples of a batch: the items of a list, or the rows of a data frame as frames of one row."""
    if is_dataframe(batch):
        return [batch.iloc[[i]] for i in range(len(batch))]
    return list(batch)


def to_tables(examples: Sequence[Any]) -> list[Any]:
    """Convert examples to tables of one type: data frames, CSR matrices, or arrays of shape (rows, features).

    Arrays of shape (features,) and one length become one table, and so do records. Otherwise, each example is a
    table.

    Raises:
        BatchShapeError: The examples are of several types, or have another number of dimensions.
        ElementError: An example cannot become a table.
    """
    if is_record(examples[0]):
        return [records_to_frame(examples)]
    reject_keyed_examples(examples)
    if _are_rows(examples):
        return [stack_arrays(examples)]
    if (rows := stack_numbers(examples)) is not None and rows.ndim == 2:
        check_integers(examples, rows, "the batch")
        return [rows]
    tables = [_to_table(example, index) for index, example in enumerate(examples)]
    types = [_describe_type(table) for table in tables]
    for index, name in enumerate(types):
        if name != types[0]:
            raise BatchShapeError(
                f"Element {index} of the batch is {name}, but element 0 is {types[0]}. To fix this, use one type "
                "for all elements."
            )
    return tables


def check_columns(
    tables: Sequence[Any],
    n_columns: int,
    names: list[str] | None,
    normalize_name: Callable[[str], str] = str,
) -> None:
    """Raise `BatchShapeError` unless each table has the columns of the training data, in the same order."""
    for index, table in enumerate(tables):
        if is_dataframe(table) and names is not None and table.columns.nlevels == 1:
            found = [normalize_name(str(column)) for column in table.columns]
            if found != names:
                raise BatchShapeError(_format_other_columns(index, found, names))
        elif n_columns and table.shape[1] != n_columns:
            raise BatchShapeError(
                f"Element {index} of the batch has {table.shape[1]} features, and the model was trained with "
                f"{n_columns}. {_SELECT}"
            )


def concat_tables(tables: Sequence[Any], examples: Sequence[Any] = ()) -> Any:
    """Concatenate the rows of tables of one type, without changing a value. The index of data frames is not kept.

    >>> concat_tables([np.zeros((2, 3)), np.ones((1, 3))]).shape
    (3, 3)

    Args:
        tables: Data frames, CSR matrices, or arrays of shape (rows, features).
        examples: The examples that the tables were made from.

    Raises:
        BatchShapeError: The columns of the tables differ.
        ElementError: The tables differ in a dtype, and there is none that holds all of their values.
    """
    first, width = tables[0], tables[0].shape[1]
    for index, table in enumerate(tables):
        if is_dataframe(table) and not table.columns.equals(first.columns):
            raise BatchShapeError(
                f"Element {index} of the batch has the columns {list(table.columns)}, but element 0 has "
                f"{list(first.columns)}. {_SELECT}"
            )
        if table.shape[1] != width:
            raise BatchShapeError(
                f"Element {index} of the batch has {table.shape[1]} features, but element 0 has {width}. {_SELECT}"
            )
    if is_dataframe(first):
        return first if len(tables) == 1 else concat_frames(tables)
    if is_sparse(first):
        return _concat_sparse(tables)
    arrays = unify_dtypes(tables, "the batch")
    if len(arrays) == len(examples):
        check_integers(examples, arrays, "the batch")
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def concat_frames(frames: Sequence[Any], ignore_index: bool = True) -> Any:
    """Concatenate data frames with the same columns, without changing a value.

    Unlike with ``pandas.concat``, columns stay categorical if their categories differ, and a column without
    values has the dtype that it has in the other frames.

    Args:
        frames: Data frames.
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
    floats = [i for i, dtype in enumerate(dtypes) if getattr(dtype, "kind", "") == "f"]
    values = table.iloc[:, floats].to_numpy(np.float64, na_value=np.nan)
    return bool((np.abs(values) >= 2.0**53).any())  # integers may have been rounded


def to_floats(table: Any) -> Any:
    """Convert an array or CSR matrix to float32 or float64, without changing a value. None becomes NaN.

    Raises:
        ElementError: A value is not a real number, or float64 cannot hold it.
    """
    values = table.data if is_sparse(table) else table
    if is_dataframe(table) or values.dtype in (np.float32, np.float64):
        return table
    dtype = np.dtype(np.float64)
    if values.dtype.kind == "O":
        floats, changed = values.astype(dtype), None
        check_integers([values.tolist()], [floats], "the batch")
    elif values.dtype.kind in "biuf":
        floats, changed = cast(values, dtype)
    else:
        raise ElementError(
            f"The elements of the batch hold {values.dtype}, and the model takes real numbers. To fix this, "
            "convert them with with_preprocess_fn."
        )
    if changed is not None:
        raise changed_value_error(int(changed[0]), "the batch", values[changed], dtype)
    return _replace_values(table, floats) if is_sparse(table) else floats


def split_predictions(
    predictions: Any, examples: Sequence[Any], tables: Sequence[Any]
) -> list[Any]:
    """Split predictions by example: one for an example that is a row, and one per row for a table.

    A list of sparse matrices is one matrix for each class, as LightGBM returns it. Each example gets such a list.
    """
    is_list = isinstance(predictions, (list, tuple))
    if is_list and predictions and all(map(is_sparse, predictions)):
        predictions = [matrix.tocsr() for matrix in predictions]
    elif is_list and any(np.ndim(part) for part in predictions):
        raise ResultMismatchError(
            f"The model returned a {type(predictions).__name__} of {len(predictions)} arrays, which can be one "
            "for each row or one for each output. To fix this, return an array of shape (rows, …) from predict()."
        )
    elif is_sparse(predictions):
        predictions = predictions.tocsr()
    elif not hasattr(predictions, "shape"):
        predictions = np.asarray(predictions)
    lengths = [table.shape[0] for table in tables]
    for _, part in leaves_with_path(predictions):
        n_found = part.shape[0] if part.shape else 0
        if n_found != sum(lengths):
            raise ResultMismatchError(
                f"The model returned {n_found} predictions for a batch of {sum(lengths)} rows. Each row "
                "needs exactly one. To fix this, check inference_args."
            )
    if len(tables) == 1 and _is_row(examples[0]):  # the examples are the rows of one table
        return unbatch(predictions, len(examples), "multi_output")
    ends = np.cumsum(lengths)
    return [
        map_with_path(predictions, partial(_take_rows, slice(end - n, end), _is_row(example)))
        for example, n, end in zip(examples, lengths, ends, strict=True)
    ]


def _take_rows(rows: slice, is_row: bool, _: Path, predictions: Any) -> Any:
    """Return a copy of some rows; for an example that is a row, of the only one."""
    part = predictions[rows]
    return (part[0] if is_row else part).copy()


def is_dataframe(value: Any) -> bool:
    return hasattr(value, "iloc") and hasattr(value, "columns")


def is_sparse(value: Any) -> bool:
    return hasattr(value, "tocsr")


def is_record(example: Any) -> bool:
    """Return whether an example is a row of named values, such as a dictionary, Series, named tuple or Beam
    row."""
    return _get_fields(example) is not None


def records_to_frame(records: Sequence[Any]) -> Any:
    """Convert records with the same names to a data frame with one row for each.

    >>> records_to_frame([{"a": 1, "b": "x"}, {"a": 2.5, "b": None}])
         a     b
    0  1.0     x
    1  2.5  None

    Raises:
        BatchShapeError: The records have different names.
        ElementError: An example is not a record, or has a value that is not a number, text or other scalar.
    """
    pandas = need("pandas", extra="xgboost")
    names = (_get_fields(records[0]) or {}).keys()
    rows = [_check_record(record, index, names) for index, record in enumerate(records)]
    frame = pandas.DataFrame(rows)
    for name in frame.columns:
        column = frame[name]
        if column.isna().all():
            frame[name] = np.full(len(frame), np.nan)
        elif column.dtype.kind == "f":
            values = [row[name] for row in rows]
            check_integers(values, column.to_numpy(), f"the batch (column {name!r})")
    return frame


def _check_record(record: Any, index: int, names: KeysView[Any]) -> Mapping[Any, Any]:
    """Return the values of a record by name. Raise an error unless it has the given names and scalar values."""
    row = _get_fields(record)
    if row is None:
        raise ElementError(
            f"Element {index} of the batch is a {type(record).__name__}, but element 0 is a record of named "
            "values. To fix this, use one type for all elements."
        )
    if list(row) != list(names):
        raise BatchShapeError(
            f"Element {index} of the batch has the columns {list(row)}, but element 0 has {list(names)}. {_SELECT}"
        )
    for name, value in row.items():
        if hasattr(value, "__len__") and not isinstance(value, (str, bytes)):
            raise ElementError(
                f"Element {index} of the batch has a {type(value).__name__} in the column {name!r}. To fix this, "
                "use a record with one number or text for each column, or convert each element to a data frame."
            )
    return row


def _get_fields(example: Any) -> Mapping[Any, Any] | None:
    if is_sparse(example):  # SciPy's DOK matrices are dictionaries
        return None
    if isinstance(example, Mapping):
        return example
    if hasattr(example, "_fields") or dataclasses.is_dataclass(example):
        return children(example)
    if hasattr(example, "as_dict"):  # a Beam row
        return example.as_dict()  # type: ignore[no-any-return]
    if hasattr(example, "iloc") and hasattr(example, "index") and not is_dataframe(example):
        return _get_series_fields(example)
    return None


def _get_series_fields(series: Any) -> dict[Any, Any]:
    if not series.index.is_unique:
        repeated = series.index[series.index.duplicated()][0]
        raise ElementError(
            f"An element of the batch is a Series with several values for the label {repeated!r}. To fix this, "
            "rename the labels with with_preprocess_fn."
        )
    return dict(zip(series.index, series.tolist(), strict=True))


def _format_other_columns(index: int, found: list[str], names: list[str]) -> str:
    differences = {
        "missing": [name for name in names if name not in found],
        "unknown to the model": [name for name in found if name not in names],
    }
    difference = "; ".join(f"{k}: {', '.join(v[:5])}" for k, v in differences.items() if v)
    return (
        f"Element {index} of the batch has different columns than the training data "
        f"({difference or 'the same in another order'}). To fix this, select them before RunInference, for "
        f"example frame[{names[:5]!r}{' + ...' if len(names) > 5 else ''}]."
    )


def _is_row(example: Any) -> bool:
    return is_record(example) or len(get_array_shape(example)) == 1


def _are_rows(examples: Sequence[Any]) -> bool:
    shapes = {example.shape if type(example) is np.ndarray else () for example in examples}
    return len(shapes) == 1 and len(*shapes) == 1


def _describe_type(table: Any) -> str:
    if is_dataframe(table):
        return "a data frame"
    return "a sparse matrix" if is_sparse(table) else "an array"


def _to_table(example: Any, index: int) -> Any:
    if is_dataframe(example):
        return example
    if is_sparse(example):
        return example.reshape(-1, example.shape[-1]).tocsr()
    array = example.to_numpy() if hasattr(example, "to_numpy") else example
    if np.ma.is_masked(array):
        array, changed = cast(array, np.dtype(float))
        if changed is not None:
            raise changed_value_error(index, "the batch", array[changed], np.dtype(float))
        array = array.filled(np.nan)
    array = to_array(array, "the batch", index)
    if array.ndim not in (1, 2):
        raise BatchShapeError(
            f"Element {index} of the batch has shape {array.shape}. To fix this, use a row of shape (features,), "
            "or a table of shape (rows, features)."
        )
    return np.atleast_2d(array)


def _concat_sparse(tables: Sequence[Any]) -> Any:
    """Concatenate CSR matrices, with a dtype that holds all of their values."""
    if len(tables) == 1:
        return tables[0]
    values = unify_dtypes([table.data for table in tables], "the batch")
    if any(value.dtype != table.dtype for value, table in zip(values, tables, strict=True)):
        tables = list(map(_replace_values, tables, values))
    return need("scipy.sparse", extra="xgboost").vstack(tables, format="csr")


def _replace_values(table: Any, values: Any) -> Any:
    return type(table)((values, table.indices, table.indptr), shape=table.shape)


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
        if dtype.kind == "O" and kinds <= set("biuf"):
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
            "with_preprocess_fn."
        ) from error
    if column.dtype.kind in "iu" and dtype.kind == "f":
        known = column.notna()
        integers = column[known].tolist()
        floats = converted[known].to_numpy(np.float64 if dtype.itemsize == 8 else dtype)
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
