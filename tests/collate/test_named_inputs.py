"""Batches are bound to the inputs of a model in the dtypes that they declare, without changing a value."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from runinference.collate.named_inputs import InputSpec, bind_inputs
from runinference.errors import ElementError


def bind(batch, dtype, others=()):
    inputs = [InputSpec("x", dtype, ()), InputSpec("y", dtype, (), required=False)]
    return bind_inputs(batch, inputs, dict(others))


@pytest.mark.parametrize(
    ("batch", "dtype"),
    [
        ([[1, 2], [0.5, 3]], np.float32),
        ([np.array([1]), np.array([2.5])], np.float32),
        ([np.array([2**24])], np.float32),
        ([np.array([2**53 - 1])], np.float64),
        ([np.array([np.nan, np.inf])], np.float16),
        ([np.array([300], np.uint16)], np.int32),
        ([np.array([True]), [1.0]], np.float32),
        ([[1.5, 2]], ml_dtypes.bfloat16),
        ([{"x": [1], "y": np.array([2])}], np.float32),
        ([b"a\0", "b\0"], bytes),
        ([b"a\0", "b\0"], str),
        ([["a", "b"], ["c", "d"]], str),
    ],
    ids=repr,
)
def test_arrays_have_the_dtype_of_the_input_and_the_values_of_the_examples(batch, dtype):
    arrays = bind(batch, dtype)
    for name, array in arrays.items():
        column = [row[name] for row in batch] if isinstance(batch[0], dict) else batch
        assert array.dtype == (object if dtype in (str, bytes) else dtype)
        for row, example in zip(array.tolist(), column, strict=True):
            text = example.decode() if dtype is str and isinstance(example, bytes) else example
            kind = object if dtype in (str, bytes) else np.float64
            np.testing.assert_array_equal(np.array(row, kind), np.array(text, kind))


@pytest.mark.parametrize(
    ("batch", "dtype", "message"),
    [
        ([np.array([2**24 + 1])], np.float32, "holds 16777217"),
        ([np.array([2**24 + 1]), np.array([0.5])], np.float32, "holds 16777217"),
        ([[2**24 + 1, 0.5]], np.float32, "holds 16777217, which float32 cannot hold"),
        ([[0.5], [2**53 + 1]], np.float64, "holds 9007199254740993"),
        ([np.array([2**53 + 1])], np.float64, "holds 9007199254740993"),
        ([np.array([2**64 - 1], np.uint64)], np.int64, "holds 18446744073709551615"),
        ([[2049]], np.float16, "holds 2049"),
        ([[70_000.0]], np.float16, "holds 70000.0"),
        ([np.array([257])], ml_dtypes.bfloat16, "holds 257"),
        ([np.array([1e39])], ml_dtypes.bfloat16, r"holds 1e\+39"),
        ([[1.0]], np.int64, "another kind of number"),
        ([np.array([-1])], np.uint8, "another kind of number"),
        ([["a"]], np.float32, "another kind of number"),
        ([[None]], np.float32, "another kind of number"),
        (["a", 3], str, "takes text, and an element holds 3 of type int"),
        (["a", float("nan")], bytes, "takes text, and an element holds nan"),
        ([True], str, "takes text, and an element holds True"),
        ([None], bytes, "takes text, and an element holds None"),
        ([b"\xff"], str, "not UTF-8"),
    ],
)
def test_a_value_that_the_input_cannot_hold_raises_an_error_that_names_it(batch, dtype, message):
    with pytest.raises(ElementError, match=message):
        bind(batch, dtype)


@pytest.mark.parametrize("value", [2**24 + 1, [2**24 + 1, 0.5], np.array([2**24 + 1])])
def test_a_value_for_all_elements_is_converted_under_the_same_rules(value):
    with pytest.raises(ElementError, match="holds 16777217"):
        bind([[1]], np.float32, {"y": value})
    assert bind([[1]], np.float32, {"y": [1, 2.5]})["y"].tolist() == [1, 2.5]
