"""Examples that are rows, or tables of rows, become one table; a table of predictions is dealt out again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from runinference.collate.stack import reject_keyed_examples
from runinference.collate.unbatch import unbatch
from runinference.errors import BatchShapeError, ResultMismatchError
from runinference.extras import need


def split_examples(batch: Any) -> list[Any]:
    """The examples of a batch: of a list its items, of a frame its rows."""
    if is_dataframe(batch):
        return [batch.iloc[[i]] for i in range(len(batch))]
    return list(batch)


def to_tables(examples: Sequence[Any]) -> list[Any]:
    """The examples as tables: data frames, sparse matrices of rows, or arrays of two dimensions.

    Arrays of one dimension and one length are the rows of one table; of other examples each is a table.

    Raises:
        BatchShapeError: An example has no or more than two dimensions, or is of another type than the first.
        ElementError: The examples are pairs, which a handler without keys cannot take.
    """
    reject_keyed_examples(examples)
    if _are_rows(examples):
        return [np.stack(examples)]
    tables = [_table(example, index) for index, example in enumerate(examples)]
    kinds = [_kind(table) for table in tables]
    for index, kind in enumerate(kinds):
        if kind != kinds[0]:
            raise BatchShapeError(
                f"Element {index} of the batch is {kind}, and element 0 is {kinds[0]}. Give all elements one type."
            )
    return tables


def check_columns(
    tables: Sequence[Any],
    n_columns: int,
    names: Sequence[str] | None,
    normalize_name: Callable[[str], str] = str,
) -> None:
    """Raises unless each table has the columns that a model was trained with.

    Args:
        tables: Data frames, arrays or sparse matrices.
        n_columns: How many columns the model was trained with.
        names: Their names, in order, if it knows any.
        normalize_name: How the model spells the name of a column.

    Raises:
        BatchShapeError: A table has others, or the same in another order.
    """
    for index, table in enumerate(tables):
        if is_dataframe(table) and names is not None and table.columns.nlevels == 1:
            found = [normalize_name(str(column)) for column in table.columns]
            if found != list(names):
                raise BatchShapeError(_other_columns(index, found, list(names)))
        elif n_columns and table.shape[1] != n_columns:
            raise BatchShapeError(
                f"Element {index} of the batch has {table.shape[1]} features, and the model was trained with "
                f"{n_columns}. Select the same columns, in the same order, before RunInference."
            )


def concat_tables(tables: Sequence[Any]) -> Any:
    """One table of the rows of all, which are of one kind.

    >>> concat_tables([np.zeros((2, 3)), np.ones((1, 3))]).shape
    (3, 3)

    Raises:
        BatchShapeError: They have several numbers of columns, or frames other columns than the first.
    """
    widths = [table.shape[1] for table in tables]
    for index, (table, width) in enumerate(zip(tables, widths, strict=True)):
        if is_dataframe(table) and not table.columns.equals(tables[0].columns):
            raise BatchShapeError(
                f"Element {index} of the batch has the columns {list(table.columns)}, and element 0 has "
                f"{list(tables[0].columns)}. Select the same columns in the same order before RunInference."
            )
        if width != widths[0]:
            raise BatchShapeError(
                f"Element {index} of the batch has {width} features, and element 0 has {widths[0]}. Select the "
                "same columns, in the same order, before RunInference."
            )
    if len(tables) == 1:
        return tables[0]
    if is_dataframe(tables[0]):
        return _concat_frames(tables)
    if _is_sparse(tables[0]):
        return need("scipy.sparse", extra="xgboost").vstack(tables, format="csr")
    return np.concatenate(tables)


def split_predictions(
    predictions: Any, examples: Sequence[Any], tables: Sequence[Any]
) -> list[Any]:
    """The predictions of each example: of a row one, of a table as many as it has rows.

    Raises:
        ResultMismatchError: There are more or fewer predictions than rows.
    """
    lengths = [table.shape[0] for table in tables]
    if len(predictions) != sum(lengths):
        raise ResultMismatchError(
            f"The model returned {len(predictions)} predictions for a batch of {sum(lengths)} rows. Each row "
            "needs exactly one: check inference_args."
        )
    if len(tables) == 1 and len(_shape(examples[0])) == 1:  # its rows are the examples
        return unbatch(predictions, len(examples))
    parts = np.split(predictions, np.cumsum(lengths)[:-1])
    return [
        part[0].copy() if len(_shape(example)) == 1 else part.copy()
        for example, part in zip(examples, parts, strict=True)
    ]


def is_dataframe(value: Any) -> bool:
    """Whether this is a data frame of pandas."""
    return hasattr(value, "iloc") and hasattr(value, "columns")


def sparse_bytes(example: Any) -> int:
    """The bytes of a sparse matrix: its values, and the indices that say where they stand."""
    parts = (getattr(example, name, None) for name in ("data", "indices", "indptr", "row", "col"))
    return sum(int(getattr(part, "nbytes", 0)) for part in parts)


def _other_columns(index: int, found: list[str], names: list[str]) -> str:
    missing = [name for name in names if name not in found]
    unknown = [name for name in found if name not in names]
    what = "; ".join(
        f"{said}: {', '.join(columns[:5])}"
        for said, columns in (("missing", missing), ("unknown to the model", unknown))
        if columns
    )
    return (
        f"Element {index} of the batch has other columns than the model was trained with "
        f"({what or 'the same in another order'}). Select them before RunInference, for example "
        f"frame[{names[:5]!r}{' + ...' if len(names) > 5 else ''}]."
    )


def _is_sparse(value: Any) -> bool:
    return hasattr(value, "tocsr")


def _are_rows(examples: Sequence[Any]) -> bool:
    """Whether the examples are arrays of one dimension and one length."""
    shapes = {example.shape if type(example) is np.ndarray else () for example in examples}
    return len(shapes) == 1 and len(*shapes) == 1


def _shape(example: Any) -> tuple[int, ...]:
    return tuple(example.shape) if hasattr(example, "shape") else np.shape(example)


def _kind(table: Any) -> str:
    if is_dataframe(table):
        return "a data frame"
    return "a sparse matrix" if _is_sparse(table) else "an array"


def _table(example: Any, index: int) -> Any:
    if is_dataframe(example):
        return example
    if _is_sparse(example):
        return example.reshape(-1, example.shape[-1]).tocsr()
    array = example.to_numpy() if hasattr(example, "to_numpy") else example
    array = (
        np.ma.filled(array.astype(float), np.nan)
        if np.ma.isMaskedArray(array)
        else np.asarray(array)
    )
    if array.ndim not in (1, 2):
        raise BatchShapeError(
            f"Element {index} of the batch has shape {array.shape}. Give a row of shape (features,), or a table "
            "of shape (rows, features)."
        )
    return np.atleast_2d(array)


def _concat_frames(frames: Sequence[Any]) -> Any:
    """One frame; columns of categories stay so where frames know different categories."""
    pandas = need("pandas", extra="xgboost")
    table = pandas.concat(frames, axis=0)
    for column, first, now in zip(table.columns, frames[0].dtypes, table.dtypes, strict=True):
        if isinstance(first, pandas.CategoricalDtype) and first != now:
            table[column] = pandas.api.types.union_categoricals([f[column] for f in frames])
    return table
