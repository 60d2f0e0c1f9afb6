"""Examples are stacked without changing a value, or an error names the value or the shape."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch

from runinference.collate.stack import stack_arrays
from runinference.errors import BatchShapeError, ElementError

LARGE = 2**53 + 1  # float64 does not hold it


def flatten(value):
    if isinstance(value, (str, bytes, dict)):
        return [value]
    values = value.tolist() if hasattr(value, "tolist") else value
    return np.array(values, dtype=object).ravel().tolist()


@pytest.mark.parametrize(
    "batch",
    [
        [b"ab\0", b"\0", b""],
        ["ab\0", "\0", "é"],
        [np.bytes_(b"ab\0"), np.str_("c")],
        [["red", 3], ["blue", 4.5]],
        [["red", None], ["blue", True]],
        [["red", float("inf")], ["blue", 1]],
        [[b"\0", "text"], [1, 2]],
        [[2**70, 1], [0.5, 1]],
        [None, 2.5],
        [np.array(["a"]), np.array(["abc"])],
        [np.array(["a"]), np.array([1])],
        [np.array([LARGE]), np.array([3], np.int8)],
        [np.array([2**63], np.uint64), np.array([1], np.uint8)],
        [np.array([0.1], np.float32), np.array([0.1])],
        [[1, 2], [0.5, 2]],
        [np.array([True, False]), np.array([2, 3])],
        [np.array([1.5, 2]), np.array([1j, 2])],
        [np.datetime64("2020-01-01T00", "us"), np.datetime64("2020-01-01T00:00:01", "s")],
        [torch.tensor([1, 2]), [0.5, 3]],
        [pd.Series([1, 2], ["a", "b"]), pd.Series([0.5, 2], ["a", "b"])],
        [{"a": 1}, {"b": 2}],
        np.zeros((10, 4)).T[::2],
        list(np.zeros((10, 4)).T[:, ::3]),
    ],
    ids=repr,
)
def test_each_row_has_the_values_of_its_example(batch):
    stacked = stack_arrays(batch)
    assert len(stacked) == len(batch)
    for row, example in zip(stacked, batch, strict=True):
        for found, value in zip(flatten(row), flatten(example), strict=True):
            assert found == value
            assert isinstance(found, (str, bytes)) == isinstance(value, (str, bytes))


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ([[LARGE, 0.5]], f"Element 0 of the batch holds {LARGE}, which float64 cannot hold"),
        ([[1, 2], [LARGE, 0.5]], f"Element 1 of the batch holds {LARGE}"),
        ([[1, 2], [1j, LARGE]], f"Element 1 of the batch holds {LARGE}, which complex128"),
        ([0.5, LARGE], f"Element 1 of the batch holds {LARGE}"),
        ([np.array([0.5]), np.array([LARGE])], f"Element 1 of the batch holds {LARGE}"),
        ([np.array([-1]), np.array([2**64 - 1], np.uint64)], f"Element 1 .* holds {2**64 - 1}"),
        ([np.datetime64("3000-01-01"), np.datetime64(1, "ns")], "Element 0 .* holds 3000-01-01"),
        ([np.timedelta64(1, "D"), np.int64(3)], "the dtype int64, while element 0 has timedelta64"),
        ([np.array([(1,)], "i4,"), np.array([1])], "Elements of one batch need one dtype"),
        ([np.ma.array([1, 2], mask=[0, 1])], "masked values"),
        ([[1, [2, 3]]], "a list that cannot be converted to an array"),
        ([scipy.sparse.eye(2).tocsr()], "a csr_matrix that .*toarray"),
        ([torch.ones(2, requires_grad=True)], "a Tensor that .*detach"),
        ([torch.ones(2, dtype=torch.bfloat16)], r"a Tensor that .*float\(\)"),
        ([("key", np.ones(3))], "KeyedModelHandler"),
    ],
)
def test_a_batch_that_cannot_hold_an_example_raises_an_error_that_names_it(batch, message):
    with pytest.raises(ElementError, match=message):
        stack_arrays(batch)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ([[1], [2, 3], [4]], r"Element 1 of the batch has shape \(2,\), while 2 of 3"),
        ([np.ones(2), [1, 2, 3]], r"Element 1 of the batch has shape \(3,\)"),
        (
            [pd.Series([1, 2], ["a", "b"]), pd.Series([1, 2], ["b", "a"])],
            "Element 1 of the batch has other labels",
        ),
    ],
)
def test_examples_of_different_shapes_or_labels_raise_an_error(batch, message):
    with pytest.raises(BatchShapeError, match=message):
        stack_arrays(batch)


def test_an_empty_example_has_no_dtype():
    assert stack_arrays([np.array([], np.int64), []]).shape == (2, 0)
    assert stack_arrays([np.zeros((0, 2)), np.zeros((0, 2), np.int64)]).shape == (2, 0, 2)
