"""Concatenate rows and tables into one table, and split a table of predictions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from runinference.collate.rows import get_array_shape
from runinference.collate.stack import reject_keyed_examples
from runinference.collate.unbatch import unbatch
from runinference.errors import BatchShapeError, ResultMismatchError
from runinference.extras import need

_SELECT = "To fix this, select the same columns in the same order before RunInference."


def split_examples(batch: Any) -> list[Any]:
    """Return the examples of a batch: the items of a list, or the rows of a data frame as frames of one row."""
    if is_dataframe(batch):
        return [batch.iloc[[i]] for i in range(len(batch))]
    return list(batch)


def to_tables(examples: Sequence[Any]) -> list[Any]:
    """Convert examples to tables of one type: data frames, CSR matrices, or arrays of shape (rows, features).

    Arrays of shape (features,) and one length become one table. Otherwise, each example is a table.
    """
    reject_keyed_examples(examples)
    if _are_rows(examples):
        return [np.stack(examples)]
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


def concat_tables(tables: Sequence[Any]) -> Any:
    """Concatenate the rows of tables of one type. Raise `BatchShapeError` if their columns differ.

    >>> concat_tables([np.zeros((2, 3)), np.ones((1, 3))]).shape
    (3, 3)
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
    if len(tables) == 1:
        return first
    if is_dataframe(first):
        return _concat_frames(tables)
    if _is_sparse(first):
        return need("scipy.sparse", extra="xgboost").vstack(tables, format="csr")
    return np.concatenate(tables)


def split_predictions(
    predictions: Any, examples: Sequence[Any], tables: Sequence[Any]
) -> list[Any]:
    """Split predictions by example: one for an example that is a row, and one per row for a table."""
    lengths = [table.shape[0] for table in tables]
    if len(predictions) != sum(lengths):
        raise ResultMismatchError(
            f"The model returned {len(predictions)} predictions for a batch of {sum(lengths)} rows. Each row "
            "needs exactly one. To fix this, check inference_args."
        )
    if len(tables) == 1 and _is_row(examples[0]):  # the examples are the rows of one table
        return unbatch(predictions, len(examples))
    parts = np.split(predictions, np.cumsum(lengths)[:-1])
    return [
        (part[0] if _is_row(example) else part).copy()
        for example, part in zip(examples, parts, strict=True)
    ]


def is_dataframe(value: Any) -> bool:
    return hasattr(value, "iloc") and hasattr(value, "columns")


def sparse_bytes(example: Any) -> int:
    """Return the bytes of the values and indices of a sparse matrix."""
    parts = (getattr(example, name, None) for name in ("data", "indices", "indptr", "row", "col"))
    return sum(getattr(part, "nbytes", 0) for part in parts)


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


def _is_sparse(value: Any) -> bool:
    return hasattr(value, "tocsr")


def _is_row(example: Any) -> bool:
    return len(get_array_shape(example)) == 1


def _are_rows(examples: Sequence[Any]) -> bool:
    shapes = {example.shape if type(example) is np.ndarray else () for example in examples}
    return len(shapes) == 1 and len(*shapes) == 1


def _describe_type(table: Any) -> str:
    if is_dataframe(table):
        return "a data frame"
    return "a sparse matrix" if _is_sparse(table) else "an array"


def _to_table(example: Any, index: int) -> Any:
    if is_dataframe(example):
        return example
    if _is_sparse(example):
        return example.reshape(-1, example.shape[-1]).tocsr()
    array = example.to_numpy() if hasattr(example, "to_numpy") else example
    if np.ma.isMaskedArray(array):
        array = np.ma.filled(array.astype(float), np.nan)
    array = np.asarray(array)
    if array.ndim not in (1, 2):
        raise BatchShapeError(
            f"Element {index} of the batch has shape {array.shape}. To fix this, use a row of shape (features,), "
            "or a table of shape (rows, features)."
        )
    return np.atleast_2d(array)


def _concat_frames(frames: Sequence[Any]) -> Any:
    """Concatenate data frames. Unlike ``pandas.concat``, keep columns categorical if their categories differ."""
    pandas = need("pandas", extra="xgboost")
    table = pandas.concat(frames, axis=0)
    for column, before, after in zip(table.columns, frames[0].dtypes, table.dtypes, strict=True):
        if isinstance(before, pandas.CategoricalDtype) and before != after:
            table[column] = pandas.api.types.union_categoricals([f[column] for f in frames])
    return table
