"""Requests are strict JSON, and ambiguous or deeply nested responses raise an error."""

from __future__ import annotations

import json
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runinference.errors import ElementError, UnusableAnswerError
from runinference.remote.json_text import (
    MAX_DEPTH,
    check_depth,
    decode_json,
    encode_json,
    find_non_finite,
)

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
)


def fail(word):
    raise AssertionError(f"{word} is not JSON")


@given(VALUES)
def test_a_body_is_sent_unchanged_as_strict_json_or_the_error_names_a_bad_number(value):
    found = find_non_finite(value)
    if found is None:
        assert json.loads(encode_json(value), parse_constant=fail) == value
    else:
        with pytest.raises(ElementError, match=re.escape(found)):
            encode_json(value)


@pytest.mark.parametrize(
    ("body", "where"),
    [
        ({"instances": [[1.0], [math.nan]]}, "nan (at instances[1][0])"),
        ({"inputs": [{"data": [1, -math.inf]}]}, "-inf (at inputs[0].data[1])"),
        (math.inf, "inf (at the top level)"),
        ({"temperature": math.nan, "n": math.inf}, "nan (at temperature)"),
    ],
)
def test_names_the_number_that_json_cannot_represent_and_its_position(body, where):
    with pytest.raises(ElementError) as raised:
        encode_json(body)
    assert where in str(raised.value)
    assert "with_preprocess_fn" in str(raised.value)


def test_rejects_a_value_that_contains_itself():
    loop = [1.0]
    loop.append(loop)
    with pytest.raises(ElementError, match="can't be serialized to JSON"):
        encode_json(loop)


@pytest.mark.parametrize("text", ["NaN", "[1, Infinity, -Infinity]", '{"a": NaN}'])
def test_reads_the_nan_and_infinity_that_servers_in_python_send(text):
    assert find_non_finite(decode_json(text.encode())) is not None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"[" * 200_000, "nested too deeply"),
        (b'{"a":' * 200_000, "nested too deeply"),
        (b"[" + b"9" * 10_000 + b"]", "can't be read"),
        (b'{"a": [1], "b": 2, "a": [3]}', "two values for 'a'"),
    ],
)
def test_rejects_a_response_that_cannot_be_read_or_is_ambiguous(text, message):
    with pytest.raises(UnusableAnswerError, match=message):
        decode_json(text)


def test_accepts_a_key_twice_with_the_same_value():
    assert decode_json(b'{"a": 1, "a": 1}') == {"a": 1}


@pytest.mark.parametrize("text", [b"", b"[1", b"{'a': 1}", b'"\xff"', b"\x00"])
def test_text_that_is_not_json_is_a_value_error(text):
    with pytest.raises(ValueError):  # noqa: PT011 - json.JSONDecodeError or UnicodeDecodeError
        decode_json(text)


@pytest.mark.parametrize("opening", ["[", '{"a":'])
def test_limits_the_nesting_of_values_that_are_kept(opening):
    def nest(depth):
        value = 1
        for _ in range(depth):
            value = [value] if opening == "[" else {"a": value}
        return value

    check_depth(nest(MAX_DEPTH))
    with pytest.raises(UnusableAnswerError, match="nested too deeply"):
        check_depth([1, nest(MAX_DEPTH + 1)])
