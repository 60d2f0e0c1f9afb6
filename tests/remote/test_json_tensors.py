"""Arrays survive a round trip through JSON, and unsupported values raise an error."""

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
from runinference.remote.json_tensors import (
    DTYPES,
    decode_tensor,
    encode_tensor,
    to_arrays,
    to_json,
)

ARRAYS = st.sampled_from(list(DTYPES.values())).flatmap(
    lambda dtype: npst.arrays(dtype, npst.array_shapes(min_dims=0, min_side=0, max_side=4))
)


@given(ARRAYS)
def test_decoding_an_encoded_tensor_returns_the_same_array(array):
    encoded = json.loads(json.dumps(encode_tensor("x", array)))
    decoded = decode_tensor(encoded)
    assert decoded.dtype == array.dtype
    np.testing.assert_array_equal(decoded, array)


def test_encodes_strings_and_bytes_as_bytes():
    for array in (np.array(["a", "é"]), np.array([b"a", "é".encode()], object)):
        assert encode_tensor("x", array) == {
            "name": "x",
            "shape": [2],
            "datatype": "BYTES",
            "data": ["a", "é"],
        }
    assert decode_tensor({"shape": [2], "datatype": "BYTES", "data": ["a", "é"]}).tolist() == [
        "a",
        "é",
    ]


def test_decodes_nested_data_and_null_as_nan():
    nested = {"shape": [2, 2], "datatype": "INT32", "data": [[1, 2], [3, 4]]}
    np.testing.assert_array_equal(decode_tensor(nested), [[1, 2], [3, 4]])
    assert np.isnan(decode_tensor({"shape": [1], "datatype": "FP32", "data": [None]}))


@pytest.mark.parametrize(
    "tensor",
    [
        {"shape": [3], "datatype": "FP32", "data": [1, 2]},
        {"shape": [2], "datatype": "FP32", "data": ["a", "b"]},
        {"shape": [2], "datatype": "INT8", "data": [1, 1000]},
        {"shape": [2], "datatype": "FP32"},
        {"shape": "x", "datatype": "FP32", "data": [1, 2]},
    ],
)
def test_rejects_an_inconsistent_tensor(tensor):
    with pytest.raises(UnusableAnswerError, match="is not a tensor of shape"):
        decode_tensor({"name": "x", **tensor})


def test_rejects_bytes_that_are_not_utf8_with_a_hint():
    with pytest.raises(
        ElementError, match="'image' contains bytes that are not UTF-8.*base64.b64encode"
    ):
        encode_tensor("image", np.array([b"\xff\xd8"], object))


def test_rejects_a_dtype_that_the_protocol_does_not_support():
    with pytest.raises(ElementError, match=r"support complex128 \(input 'x'\)"):
        encode_tensor("x", np.array([1j]))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.float32([1, 2]), [1.0, 2.0]),
        (torch.tensor([[1], [2]]), [[1], [2]]),
        ({"a": np.int8(5), "b": (1, "x", None)}, {"a": 5, "b": [1, "x", None]}),
        (b"\x00\x01", {"b64": "AAE="}),
        (np.array(["a", b"\x00"], object), ["a", {"b64": "AA=="}]),
        (True, True),
    ],
)
def test_converts_values_to_json(value, expected):
    assert to_json(value) == expected


@pytest.mark.parametrize("value", [1j, object(), datetime.date(2026, 1, 1), [{1}], np.array([1j])])
def test_rejects_values_without_a_json_form(value):
    with pytest.raises(ElementError, match="can't be written as JSON"):
        to_json(value)


def test_converts_lists_of_numbers_to_arrays_and_keeps_other_values():
    converted = to_arrays(
        {"a": [[1, 2], [3, 4]], "b": ["x"], "c": 0.5, "d": [[1], [2, 3]], "e": [{"f": [1]}]}
    )
    np.testing.assert_array_equal(converted["a"], [[1, 2], [3, 4]])
    assert (converted["b"], converted["c"]) == (["x"], 0.5)
    assert [row.tolist() for row in converted["d"]] == [[1], [2, 3]]
    assert converted["e"][0]["f"].tolist() == [1]
