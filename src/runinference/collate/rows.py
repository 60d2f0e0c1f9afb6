"""The rows of an array, a tensor, a table or a sparse matrix, each with memory of its own."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import pairwise
from numbers import Integral
from typing import Any


def get_shape(value: Any) -> tuple[Any, ...] | None:
    """The shape of what can be cut in rows; None for what has none, and for a shape of the user's own kind."""
    if _is_nested(value):
        return (value.size(0), *[None] * (value.dim() - 1))
    try:
        shape = tuple(value.shape)
    except (AttributeError, TypeError, ValueError, RuntimeError):
        return None
    known = not shape or isinstance(shape[0], Integral)
    return shape if known else None


def split_rows(value: Any) -> list[Any]:
    """The rows of what has a shape.

    A row of a sparse matrix of SciPy's is a matrix of one row in the CSR format, whatever the format was. A row
    of a sparse tensor is a sparse tensor with a dimension less; of PyTorch's in the COO layout. A row of a
    nested or ragged tensor has a length of its own. What is sparse and has one dimension gives plain numbers.

    >>> from scipy.sparse import coo_array
    >>> [row.toarray().tolist() for row in split_rows(coo_array([[1, 0], [0, 2]]))]
    [[[1, 0]], [[0, 2]]]
    """
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        return [row.clone() for row in _unbindable(value.detach()).unbind(0)]
    if _is_of_tensorflow(value):
        return _of_tensorflow(value)
    if hasattr(value, "tocsr") and hasattr(value, "toarray"):
        return _of_sparse(value)
    if hasattr(value, "iloc"):
        return [get_row(value, i) for i in range(len(value))]
    if len(value.shape) == 1:
        return list(value)
    rows = (get_row(value, i) for i in range(value.shape[0]))
    return [row.copy() if hasattr(row, "copy") else row for row in rows]


def get_row(value: Any, index: int) -> Any:
    """The entry of an array, or the row of a table as a table of one row."""
    if hasattr(value, "iloc"):
        return value.iloc[[index]] if len(value.shape) > 1 else value.iloc[index]
    if hasattr(value, "num_rows") and hasattr(value, "take"):  # a table of Arrow's
        return value.take([index])
    return value[index]


def _unbindable(tensor: Any) -> Any:
    """A tensor of PyTorch's in a layout that has rows."""
    if tensor.is_mkldnn:
        return tensor.to_dense()
    if str(tensor.layout) in ("torch.sparse_csc", "torch.sparse_bsr", "torch.sparse_bsc"):
        return tensor.to_sparse_coo()
    return tensor


def _of_sparse(value: Any) -> list[Any]:
    """The rows of a sparse matrix or array of SciPy's; most of its formats cannot be indexed."""
    if len(value.shape) == 1:
        return list(value.toarray())
    if len(value.shape) > 2:
        return [value[i].copy() for i in range(value.shape[0])]
    rows = value.tocsr()
    return [rows[i : i + 1].copy() for i in range(rows.shape[0])]


def _of_tensorflow(value: Any) -> list[Any]:
    tensorflow = sys.modules["tensorflow"]
    if isinstance(value, tensorflow.SparseTensor):
        if len(value.shape) > 1:
            return list(_of_sparse_tensor(value))
        value = tensorflow.sparse.to_dense(tensorflow.sparse.reorder(value))
    if isinstance(value, tensorflow.RaggedTensor):
        rows = [value[i] for i in range(value.shape[0])]
    else:
        rows = tensorflow.unstack(value)
    deep_copy = tensorflow.raw_ops.DeepCopy
    return [
        tensorflow.nest.map_structure(lambda x: deep_copy(x=x), row, expand_composites=True)
        for row in rows
    ]


def _of_sparse_tensor(value: Any) -> Iterator[Any]:
    """The rows of a sparse tensor of TensorFlow's, which has no operation that is quick for many."""
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


def _is_of_tensorflow(value: Any) -> bool:
    tensorflow = sys.modules.get("tensorflow")
    return tensorflow is not None and bool(tensorflow.is_tensor(value))
