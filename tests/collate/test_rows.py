"""Rows of arrays and tensors of every kind, sparse and ragged ones too."""

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

pytestmark = pytest.mark.xdist_group("tensorflow")  # one process pays for the import
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
def test_a_sparse_matrix_of_any_format_gives_csr_matrices_of_one_row(sparse):
    rows = unbatch(sparse(DENSE), 4)
    assert [row.format for row in rows] == ["csr"] * 4
    assert [row.shape for row in rows] == [(1, 4)] * 4
    assert np.vstack([row.toarray() for row in rows]).tolist() == DENSE.tolist()
    assert all(row.data.base is None or row.data.base.nbytes == row.data.nbytes for row in rows)


@pytest.mark.parametrize("sparse", CLASSES)
def test_a_sparse_matrix_of_another_length_is_an_error(sparse):
    with pytest.raises(ResultMismatchError, match="returned 4 results for a batch of 3"):
        unbatch(sparse(DENSE), 3)


def test_a_sparse_matrix_is_split_where_it_is_a_field():
    first, *_ = unbatch({"tf_idf": scipy.sparse.dok_matrix(DENSE), "n": 4}, 4)
    assert first["tf_idf"].toarray().tolist() == [[1, 0, 0, 2]]
    assert first["n"] == 4


@pytest.mark.parametrize("sparse", [scipy.sparse.coo_array, scipy.sparse.dok_array])
def test_a_sparse_vector_gives_numbers(sparse):
    assert unbatch(sparse(np.array([0.0, 2, 0])), 3) == [0, 2, 0]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_sparse_tensor_of_any_layout_gives_sparse_rows(layout):
    rows = unbatch(LAYOUTS[layout](torch.from_numpy(DENSE)), 4)
    assert all(row.layout is torch.sparse_coo for row in rows)
    assert torch.stack([row.to_dense() for row in rows]).tolist() == DENSE.tolist()


@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
def test_a_nested_tensor_gives_a_tensor_of_its_own_length_to_each(layout):
    parts = [torch.ones(2), torch.zeros(3)]
    nested = torch.nested.nested_tensor(parts, layout=layout)
    assert [row.tolist() for row in unbatch(nested, 2)] == [[1, 1], [0, 0, 0]]
    with pytest.raises(ResultMismatchError, match=r"Tensor of shape \(2, "):
        unbatch(nested, 3)


def test_a_tensor_in_the_layout_of_mkldnn_gives_ordinary_rows():
    assert [row.tolist() for row in unbatch(torch.eye(2).to_mkldnn(), 2)] == [[1, 0], [0, 1]]


def test_a_sparse_tensor_of_tensorflow_gives_sparse_rows_in_whatever_order_it_was_filled():
    sparse = tf.SparseTensor([[2, 1], [0, 3], [0, 0]], [3.0, 2.0, 1.0], [3, 4])
    rows = [pickle.loads(pickle.dumps(row)) for row in unbatch(sparse, 3)]
    assert [tf.sparse.to_dense(row).numpy().tolist() for row in rows] == DENSE[:3].tolist()
    with pytest.raises(ResultMismatchError, match="returned 3 results for a batch of 2"):
        unbatch(sparse, 2)


def test_a_sparse_vector_of_tensorflow_gives_scalars():
    sparse = tf.SparseTensor([[2], [0]], [3, 1], [3])
    assert [int(row) for row in unbatch(sparse, 3)] == [1, 0, 3]


def test_a_sparse_tensor_of_texts_gives_texts():
    first, second = unbatch(tf.SparseTensor([[0, 1], [1, 0]], ["a", "é"], [2, 2]), 2)
    assert first.values.numpy().tolist() == [b"a"]
    assert second.values.numpy().tolist() == ["é".encode()]


def test_a_ragged_tensor_gives_rows_of_their_own_length():
    ragged = tf.ragged.constant([[1], [2, 3], []], dtype=tf.int32)
    assert [row.numpy().tolist() for row in unbatch(ragged, 3)] == [[1], [2, 3], []]
    deeper = tf.ragged.constant([[[1], [2, 3]], [[]]], dtype=tf.int32)
    assert [row.to_list() for row in unbatch(deeper, 2)] == [[[1], [2, 3]], [[]]]
    with pytest.raises(ResultMismatchError, match="returned 3 results for a batch of 2"):
        unbatch(ragged, 2)


def test_texts_and_variables_of_tensorflow_give_tensors():
    assert [row.numpy() for row in unbatch(tf.constant(["a", "b"]), 2)] == [b"a", b"b"]
    assert [row.numpy().tolist() for row in unbatch(tf.Variable([[1], [2]]), 2)] == [[1], [2]]


def test_what_has_a_shape_and_cannot_be_cut_is_an_error_that_says_what_to_return():
    with pytest.raises(ResultMismatchError, match="cannot be cut in rows .* list with one entry"):
        unbatch(SimpleNamespace(shape=(2, 2)), 2)


@pytest.mark.parametrize("shape", ["square", 3, None, object(), tf.TensorShape(None)])
def test_a_shape_of_the_users_own_kind_is_no_shape(shape):
    output = SimpleNamespace(shape=shape)
    assert get_shape(output) is None
    with pytest.raises(ResultMismatchError, match="nothing in it has a leading dimension"):
        unbatch(output, 2)


@pytest.mark.parametrize("kind", [set, frozenset])
def test_a_set_is_no_batch_of_results_because_it_has_no_order(kind):
    with pytest.raises(ResultMismatchError, match="nothing in it has a leading dimension"):
        unbatch(kind("ab"), 2)
