"""Arrays survive the way to JSON and back, and what cannot go is told."""

from __future__ import annotations

import datetime
import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from runinference.errors import ElementError, UnusableAnswerError
from runinference.remote.json_tensors import TYPES, array_of, as_arrays, listed, tensor

ARRAYS = st.sampled_from(list(TYPES.values())).flatmap(
    lambda dtype: npst.arrays(dtype, npst.array_shapes(min_dims=0, min_side=0, max_side=4))
)


@given(ARRAYS)
def test_a_tensor_of_the_protocol_is_the_same_array_again(array):
    there = json.loads(json.dumps(tensor("x", array)))
    back = array_of(there)
    assert back.dtype == array.dtype
    np.testing.assert_array_equal(back, array)


def test_texts_and_bytes_go_as_bytes():
    for array in (np.array(["a", "é"]), np.array([b"a", "é".encode()], object)):
        assert tensor("x", array) == {
            "name": "x",
            "shape": [2],
            "datatype": "BYTES",
            "data": ["a", "é"],
        }
    assert array_of({"shape": [2], "datatype": "BYTES", "data": ["a", "é"]}).tolist() == ["a", "é"]


def test_nested_data_are_taken_too_and_nulls_are_no_numbers():
    nested = {"shape": [2, 2], "datatype": "INT32", "data": [[1, 2], [3, 4]]}
    np.testing.assert_array_equal(array_of(nested), [[1, 2], [3, 4]])
    assert np.isnan(array_of({"shape": [1], "datatype": "FP32", "data": [None]}))


@pytest.mark.parametrize(
    "wrong",
    [
        {"shape": [3], "datatype": "FP32", "data": [1, 2]},
        {"shape": [2], "datatype": "FP32", "data": ["a", "b"]},
        {"shape": [2], "datatype": "INT8", "data": [1, 1000]},
        {"shape": [2], "datatype": "FP32"},
        {"shape": "x", "datatype": "FP32", "data": [1, 2]},
    ],
)
def test_a_tensor_that_contradicts_itself_is_told(wrong):
    with pytest.raises(UnusableAnswerError, match="is no tensor of shape"):
        array_of({"name": "x", **wrong})


def test_bytes_that_json_cannot_hold_are_told_with_the_cure():
    with pytest.raises(
        ElementError, match="'image' holds bytes that are no UTF-8.*base64.b64encode"
    ):
        tensor("image", np.array([b"\xff\xd8"], object))


def test_a_type_that_the_protocol_does_not_know_is_told():
    with pytest.raises(ElementError, match="'x' has the type complex128"):
        tensor("x", np.array([1j]))


@pytest.mark.parametrize(
    ("value", "as_json"),
    [
        (np.float32([1, 2]), [1.0, 2.0]),
        (torch.tensor([[1], [2]]), [[1], [2]]),
        ({"a": np.int8(5), "b": (1, "x", None)}, {"a": 5, "b": [1, "x", None]}),
        (b"\x00\x01", {"b64": "AAE="}),
        (np.array(["a", b"\x00"], object), ["a", {"b64": "AA=="}]),
        (True, True),
    ],
)
def test_what_json_has_a_form_for_takes_it(value, as_json):
    assert listed(value) == as_json


@pytest.mark.parametrize("value", [1j, object(), datetime.date(2026, 1, 1), [{1}], np.array([1j])])
def test_what_json_has_no_form_for_is_told(value):
    with pytest.raises(ElementError, match="which JSON has no form for"):
        listed(value)


def test_lists_of_numbers_come_as_arrays_and_all_else_as_it_is():
    answer = as_arrays(
        {"a": [[1, 2], [3, 4]], "b": ["x"], "c": 0.5, "d": [[1], [2, 3]], "e": [{"f": [1]}]}
    )
    np.testing.assert_array_equal(answer["a"], [[1, 2], [3, 4]])
    assert (answer["b"], answer["c"]) == (["x"], 0.5)
    assert [row.tolist() for row in answer["d"]] == [[1], [2, 3]]
    assert answer["e"][0]["f"].tolist() == [1]
