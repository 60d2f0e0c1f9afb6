"""Rows of arrays and tensors, including sparse and ragged ones."""

from __future__ import annotations

import importlib
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.sparse
import torch

from runinference.collate.rows import get_shape
from runinference.collate.unbatch import unbatch
from runinference.errors import ResultMismatchError

pytestmark = pytest.mark.xdist_group("tensorflow")  # import it in one process only
tf = importlib.import_module("tensorflow")
DENSE = np.array([[1.0, 0, 0, 2], [0, 0, 0, 0], [0, 3, 0, 0], [0, 0, 4, 0]])
FORMATS = ["csr", "csc", "coo", "bsr", "dia", "dok", "lil"]
CLASSES = [getattr(scipy.sparse, f"{f}_{kind}") for f in FORMATS for kind in ("matrix", "array")]
LAYOUTS = {
    "coo": torch.Tensor.to_sparse,
    "csr": torch.Tensor.to_sparse_csr,
    "csc": torch.Tensor.to_sparse_csc,
    "bsr": lambda tensor: tensor.to_sparse_bsr((2, 2)),
    "bsc": lambda tensor: tensor.to_sparse_bsc((2, 2)),
}


@pytest.mark.parametrize("sparse", CLASSES)
def test_splits_a_sparse_matrix_of_any_format_into_csr_matrices_of_one_row(sparse):
    rows = unbatch(sparse(DENSE), 4)
    assert [row.format for row in rows] == ["csr"] * 4
    assert [row.shape for row in rows] == [(1, 4)] * 4
    assert np.vstack([row.toarray() for row in rows]).tolist() == DENSE.tolist()
    assert all(row.data.base is None or row.data.base.nbytes == row.data.nbytes for row in rows)


@pytest.mark.parametrize("sparse", CLASSES)
def test_a_sparse_matrix_of_another_length_raises_an_error(sparse):
    with pytest.raises(ResultMismatchError, match="returned 4 results for a batch of 3"):
        unbatch(sparse(DENSE), 3)


def test_splits_a_sparse_matrix_in_a_field():
    first, *_ = unbatch({"tf_idf": scipy.sparse.dok_matrix(DENSE), "n": 4}, 4)
    assert first["tf_idf"].toarray().tolist() == [[1, 0, 0, 2]]
    assert first["n"] == 4


@pytest.mark.parametrize("sparse", [scipy.sparse.coo_array, scipy.sparse.dok_array])
def test_splits_a_sparse_vector_into_numbers(sparse):
    assert unbatch(sparse(np.array([0.0, 2, 0])), 3) == [0, 2, 0]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_splits_a_sparse_tensor_of_any_layout_into_sparse_rows(layout):
    rows = unbatch(LAYOUTS[layout](torch.from_numpy(DENSE)), 4)
    assert all(row.layout is torch.sparse_coo for row in rows)
    assert torch.stack([row.to_dense() for row in rows]).tolist() == DENSE.tolist()


@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
def test_splits_a_nested_tensor_into_tensors_of_different_lengths(layout):
    parts = [torch.ones(2), torch.zeros(3)]
    nested = torch.nested.nested_tensor(parts, layout=layout)
    assert [row.tolist() for row in unbatch(nested, 2)] == [[1, 1], [0, 0, 0]]
    with pytest.raises(ResultMismatchError, match=r"Tensor of shape \(2, "):
        unbatch(nested, 3)


def test_splits_an_mkldnn_tensor_into_strided_rows():
    assert [row.tolist() for row in unbatch(torch.eye(2).to_mkldnn(), 2)] == [[1, 0], [0, 1]]


def test_splits_a_tensorflow_sparse_tensor_with_unordered_indices():
    sparse = tf.SparseTensor([[2, 1], [0, 3], [0, 0]], [3.0, 2.0, 1.0], [3, 4])
    rows = [pickle.loads(pickle.dumps(row)) for row in unbatch(sparse, 3)]
    assert [tf.sparse.to_dense(row).numpy().tolist() for row in rows] == DENSE[:3].tolist()
    with pytest.raises(ResultMismatchError, match="returned 3 results for a batch of 2"):
        unbatch(sparse, 2)


def test_splits_a_tensorflow_sparse_vector_into_scalars():
    sparse = tf.SparseTensor([[2], [0]], [3, 1], [3])
    assert [int(row) for row in unbatch(sparse, 3)] == [1, 0, 3]


def test_splits_a_tensorflow_sparse_tensor_of_strings():
    first, second = unbatch(tf.SparseTensor([[0, 1], [1, 0]], ["a", "é"], [2, 2]), 2)
    assert first.values.numpy().tolist() == [b"a"]
    assert second.values.numpy().tolist() == ["é".encode()]


def test_splits_a_tensorflow_ragged_tensor_into_rows_of_different_lengths():
    ragged = tf.ragged.constant([[1], [2, 3], []], dtype=tf.int32)
    assert [row.numpy().tolist() for row in unbatch(ragged, 3)] == [[1], [2, 3], []]
    deeper = tf.ragged.constant([[[1], [2, 3]], [[]]], dtype=tf.int32)
    assert [row.to_list() for row in unbatch(deeper, 2)] == [[[1], [2, 3]], [[]]]
    with pytest.raises(ResultMismatchError, match="returned 3 results for a batch of 2"):
        unbatch(ragged, 2)


def test_splits_tensorflow_strings_and_variables_into_tensors():
    assert [row.numpy() for row in unbatch(tf.constant(["a", "b"]), 2)] == [b"a", b"b"]
    assert [row.numpy().tolist() for row in unbatch(tf.Variable([[1], [2]]), 2)] == [[1], [2]]


def test_the_error_for_a_value_that_cannot_be_split_suggests_what_to_return():
    with pytest.raises(
        ResultMismatchError, match="cannot be split into rows .* list with one entry"
    ):
        unbatch(SimpleNamespace(shape=(2, 2)), 2)


@pytest.mark.parametrize("shape", ["square", 3, None, object(), tf.TensorShape(None)])
def test_ignores_a_users_attribute_named_shape(shape):
    output = SimpleNamespace(shape=shape)
    assert get_shape(output) is None
    with pytest.raises(ResultMismatchError, match="nothing in it has a leading dimension"):
        unbatch(output, 2)


@pytest.mark.parametrize("kind", [set, frozenset])
def test_rejects_a_set_because_it_has_no_order(kind):
    with pytest.raises(ResultMismatchError, match="nothing in it has a leading dimension"):
        unbatch(kind("ab"), 2)
