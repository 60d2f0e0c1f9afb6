"""Split arrays, tensors, tables and sparse matrices into rows that own their memory."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from itertools import pairwise
from numbers import Integral
from typing import Any

import numpy as np

from runinference.collate.memory import copy_items


def get_shape(value: Any) -> tuple[Any, ...] | None:
    """Return the shape of a value, or None if it has no ``shape`` that is a tuple of sizes."""
    if isinstance(value, np.ndarray):
        return tuple(value.shape)
    if _is_nested(value):
        return (value.size(0), *[None] * (value.dim() - 1))
    try:
        shape = tuple(value.shape)
    except (AttributeError, TypeError, ValueError, RuntimeError):
        return None
    return shape if not shape or isinstance(shape[0], Integral) else None


def get_array_shape(example: Any) -> tuple[int, ...]:
    """Return the shape of an array or tensor, or of the array that NumPy makes of a number or nested list."""
    shape = getattr(example, "shape", None)
    return tuple(shape) if shape is not None else np.shape(example)


def split_rows(value: Any) -> list[Any]:
    """Return the rows of a value that has a shape.

    A row of a SciPy sparse matrix is a CSR matrix of one row. A row of a sparse tensor is a sparse tensor with
    one dimension less, in COO layout for PyTorch. A sparse vector is split into numbers.

    >>> from scipy.sparse import coo_array
    >>> [row.toarray().tolist() for row in split_rows(coo_array([[1, 0], [0, 2]]))]
    [[[1, 0]], [[0, 2]]]
    """
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        with torch.inference_mode(False):  # a copy made in inference mode could not be modified
            return [row.clone() for row in _to_unbindable(value.detach()).unbind(0)]
    if _is_tensorflow(value):
        return _split_tensorflow(value)
    if hasattr(value, "tocsr") and hasattr(value, "toarray"):
        return _split_scipy_sparse(value)
    if hasattr(value, "iloc"):
        return [get_row(value, i) for i in range(len(value))]
    if len(value.shape) == 1:
        items = list(value)
        is_numeric = isinstance(value, np.ndarray) and value.dtype.kind in "biufcSUmM"
        return items if is_numeric else copy_items(items)
    rows = (get_row(value, i) for i in range(value.shape[0]))
    return [row.copy() if hasattr(row, "copy") else row for row in rows]


def get_row(value: Any, index: int) -> Any:
    """Return an entry of an array, or a row of a table as a table of one row."""
    if hasattr(value, "iloc"):
        return value.iloc[[index]] if len(value.shape) > 1 else value.iloc[index]
    if hasattr(value, "num_rows") and hasattr(value, "take"):  # a PyArrow table
        return value.take([index])
    return value[index]


def slice_rows(value: Any, index: slice) -> Any:
    """Return some rows of a list, an array or a table, by position: tables may slice by the labels of rows.

    >>> import pandas as pd
    >>> slice_rows(pd.Series([1, 2, 3], index=[2.0, 1.0, 0.0]), slice(2)).tolist()
    [1, 2]
    """
    return value.iloc[index] if hasattr(value, "iloc") else value[index]


def select_rows(value: Any, indices: Sequence[int]) -> Any:
    """Return the rows of a list, an array or a table at the given indices.

    >>> select_rows(np.array([[1, 2], [3, 4], [5, 6]]), [0, 2]).tolist()
    [[1, 2], [5, 6]]
    """
    if isinstance(value, (list, tuple)):
        return [value[index] for index in indices]
    if hasattr(value, "iloc"):
        return value.iloc[indices]
    if hasattr(value, "num_rows") and hasattr(value, "take"):  # a PyArrow table
        return value.take(indices)
    if _is_tensorflow(value):
        return sys.modules["tensorflow"].gather(value, indices)
    return value[np.asarray(indices)]


def _to_unbindable(tensor: Any) -> Any:
    """Convert a PyTorch tensor to a layout that ``unbind`` supports."""
    if tensor.is_mkldnn:
        return tensor.to_dense()
    if str(tensor.layout) in ("torch.sparse_csc", "torch.sparse_bsr", "torch.sparse_bsc"):
        return tensor.to_sparse_coo()
    return tensor


def _split_scipy_sparse(value: Any) -> list[Any]:
    if len(value.shape) == 1:
        return list(value.toarray())
    if len(value.shape) > 2:
        return [value[i].copy() for i in range(value.shape[0])]
    rows = value.tocsr()  # most other formats cannot be indexed
    return [rows[i : i + 1].copy() for i in range(rows.shape[0])]


def _split_tensorflow(value: Any) -> list[Any]:
    tensorflow = sys.modules["tensorflow"]
    if isinstance(value, tensorflow.SparseTensor):
        if len(value.shape) > 1:
            return list(_split_sparse_tensor(value))
        value = tensorflow.sparse.to_dense(tensorflow.sparse.reorder(value))
    is_ragged = isinstance(value, tensorflow.RaggedTensor)
    rows = [value[i] for i in range(value.shape[0])] if is_ragged else tensorflow.unstack(value)
    deep_copy = tensorflow.raw_ops.DeepCopy
    return [
        tensorflow.nest.map_structure(lambda x: deep_copy(x=x), row, expand_composites=True)
        for row in rows
    ]


def _split_sparse_tensor(value: Any) -> Iterator[Any]:
    """Yield the rows of a TensorFlow sparse tensor. TensorFlow has no fast operation for this."""
    tensorflow = sys.modules["tensorflow"]
    value = tensorflow.sparse.reorder(value)
    indices, values = value.indices.numpy(), value.values.numpy()
    ends = indices[:, 0].searchsorted(range(value.shape[0] + 1))
    for start, end in pairwise(ends):
        yield tensorflow.SparseTensor(
            indices[start:end, 1:],
            tensorflow.constant(values[start:end], value.dtype),
            value.dense_shape[1:],
        )


def _is_nested(value: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor) and value.is_nested


def _is_tensorflow(value: Any) -> bool:
    tensorflow = sys.modules.get("tensorflow")
    return tensorflow is not None and bool(tensorflow.is_tensor(value))
