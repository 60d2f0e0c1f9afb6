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
    describe_json,
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
        {"shape": [1], "datatype": "INT64", "data": [1.5]},
        {"shape": [1], "datatype": "INT64", "data": [2**63]},
        {"shape": [1], "datatype": "UINT8", "data": [-1]},
        {"shape": [1], "datatype": "INT32", "data": [True]},
        {"shape": [1], "datatype": "BOOL", "data": [2]},
        {"shape": [1], "datatype": "BOOL", "data": ["False"]},
        {"shape": [1], "datatype": "FP32", "data": ["1.5"]},
        {"shape": [1], "datatype": "FP16", "data": [1e9]},
        {"shape": [1], "datatype": "FP32", "data": [{}]},
        {"shape": [1], "datatype": "COMPLEX", "data": [1]},
        {"shape": [1], "datatype": None, "data": [1]},
    ],
)
def test_rejects_an_inconsistent_tensor(tensor):
    with pytest.raises(UnusableAnswerError, match="is not a tensor of shape"):
        decode_tensor({"name": "x", **tensor})


def test_decodes_integers_written_as_floats_and_bfloat16():
    assert decode_tensor({"shape": [2], "datatype": "INT64", "data": [1.0, 2.0]}).tolist() == [1, 2]
    decoded = decode_tensor({"shape": [1], "datatype": "BF16", "data": [0.5]})
    assert (decoded.dtype, decoded.tolist()) == (np.float32, [0.5])


def test_an_error_about_a_huge_tensor_is_short():
    huge = "x" * 1_000_000
    with pytest.raises(UnusableAnswerError) as raised:
        decode_tensor({"name": huge, "shape": [huge], "datatype": huge, "data": huge})
    assert len(str(raised.value)) < 1_000
    assert len(describe_json({huge: 1, **dict.fromkeys(map(str, range(10_000)))})) < 2_000


def test_keeps_integers_that_a_float_cannot_hold():
    values = {"large": [1, 2**63 + 1], "mixed": [0.5, 2**53 + 1], "float": [0.5, 2.0**60]}
    converted = to_arrays(values)
    assert list(converted["large"]) == values["large"]
    assert list(converted["mixed"]) == values["mixed"]
    assert converted["float"].dtype == np.float64


def test_rejects_deeply_nested_values():
    value = "leaf"
    for _ in range(500):
        value = [value]
    with pytest.raises(UnusableAnswerError, match="nested too deeply"):
        to_arrays(value)


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


@pytest.mark.parametrize(
    "value",
    [
        1j,
        object(),
        datetime.date(2026, 1, 1),
        [{1}],
        np.array([1j]),
        torch.ones(1, requires_grad=True),
    ],
)
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
