"""Convert examples to tables, concatenate them, and split a table of predictions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
from runinference.collate.frames import concat_frames, is_dataframe
from runinference.collate.pytree import Path, leaves_with_path, map_with_path
from runinference.collate.records import SELECT_COLUMNS, is_record, records_to_frame
from runinference.collate.rows import get_array_shape
from runinference.collate.stack import reject_keyed_examples, stack_arrays, stack_numbers
from runinference.collate.unbatch import unbatch
from runinference.errors import BatchShapeError, ElementError, ResultMismatchError
from runinference.extras import need

_CONVERT = "To fix this, convert them with with_preprocess_fn."


def split_examples(batch: Any) -> list[Any]:
    """Return the examples of a batch: the items of a list, or the rows of a DataFrame as frames of one row."""
    if is_dataframe(batch):
        return [batch.iloc[[i]] for i in range(len(batch))]
    return list(batch)


def to_tables(examples: Sequence[Any]) -> list[Any]:
    """Convert examples to tables of one type: DataFrames, CSR matrices, or arrays of shape (rows, features).

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
                "for all elements.",
                index=index,
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
                raise BatchShapeError(_format_other_columns(index, found, names), index=index)
        elif n_columns and table.shape[1] != n_columns:
            raise BatchShapeError(
                f"Element {index} of the batch has {table.shape[1]} features, and the model was trained with "
                f"{n_columns}. {SELECT_COLUMNS}",
                index=index,
            )


def check_unique_columns(tables: Sequence[Any]) -> None:
    """Raise `BatchShapeError` if a DataFrame has several columns of one name."""
    for index, table in enumerate(tables):
        if is_dataframe(table) and not table.columns.is_unique:
            repeated = table.columns[table.columns.duplicated()][0]
            raise BatchShapeError(
                f"Element {index} of the batch has several columns with the name {repeated!r}. To fix this, "
                "rename them with with_preprocess_fn.",
                index=index,
            )


def concat_tables(tables: Sequence[Any], examples: Sequence[Any] = ()) -> Any:
    """Concatenate the rows of tables of one type, without changing a value. The index of DataFrames is not kept.

    >>> concat_tables([np.zeros((2, 3)), np.ones((1, 3))]).shape
    (3, 3)

    Args:
        tables: DataFrames, CSR matrices, or arrays of shape (rows, features).
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
                f"{list(first.columns)}. {SELECT_COLUMNS}",
                index=index,
            )
        if table.shape[1] != width:
            raise BatchShapeError(
                f"Element {index} of the batch has {table.shape[1]} features, but element 0 has {width}. "
                f"{SELECT_COLUMNS}",
                index=index,
            )
    if is_dataframe(first):
        return first if len(tables) == 1 else concat_frames(tables)
    if is_sparse(first):
        return _concat_sparse(tables)
    arrays = unify_dtypes(tables, "the batch")
    if len(arrays) == len(examples):
        check_integers(examples, arrays, "the batch")
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


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
        try:
            floats, changed = values.astype(dtype), None
        except (TypeError, OverflowError) as error:
            raise ElementError(
                f"The elements of the batch hold values that are not real numbers ({error}). {_CONVERT}"
            ) from error
        check_integers([values.tolist()], [floats], "the batch")
    elif values.dtype.kind in "biuf":
        floats, changed = cast(values, dtype)
    else:
        raise ElementError(
            f"The elements of the batch hold {values.dtype}, and the model takes real numbers. {_CONVERT}"
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


def is_sparse(value: Any) -> bool:
    return hasattr(value, "tocsr")


def has_only_numbers(table: Any) -> bool:
    """Return whether all columns of a table have the dtype of a number."""
    dtypes = table.dtypes if is_dataframe(table) else [table.dtype]
    return all(getattr(dtype, "kind", "") in set("biufc") for dtype in dtypes)


def _take_rows(rows: slice, is_row: bool, _: Path, predictions: Any) -> Any:
    """Return a copy of some rows; for an example that is a row, of the only one."""
    part = predictions[rows]
    return (part[0] if is_row else part).copy()


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
        return "a DataFrame"
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
            "or a table of shape (rows, features).",
            index=index,
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
