"""Outputs of a model reach the results unchanged, and are unchanged by the coder, whatever they are made of.

`make fuzz` draws thousands of outputs (`HYPOTHESIS_PROFILE=thorough`). By default, fewer are drawn.
"""

from __future__ import annotations

import dataclasses
import os
from collections import namedtuple
from typing import Any

import numpy as np
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from runinference import PredictionResult
from runinference.collate.unbatch import unbatch, unbatch_results
from runinference.transforms.coders import PredictionResultCoder

THOROUGH = os.environ.get("HYPOTHESIS_PROFILE") == "thorough"
fidelity = settings(
    max_examples=5_000 if THOROUGH else 60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
CODER = PredictionResultCoder()

Pair = namedtuple("Pair", ["first", "second"])


@dataclasses.dataclass
class Output:
    first: Any
    second: Any


TEXTS = st.text(st.characters(codec="utf-8"), max_size=2)
NUMPY_DTYPES = st.one_of(
    npst.boolean_dtypes(),
    npst.integer_dtypes(endianness="?"),
    npst.unsigned_integer_dtypes(endianness="?"),
    npst.floating_dtypes(endianness="?"),
    npst.complex_number_dtypes(),
    npst.datetime64_dtypes(max_period="D", min_period="ns"),
    npst.byte_string_dtypes(max_len=3),
    npst.unicode_string_dtypes(max_len=3),
    npst.array_dtypes(max_size=2),
)
TORCH_DTYPES = st.sampled_from(
    [
        torch.bool,
        torch.uint8,
        torch.int16,
        torch.int64,
        torch.uint32,
        torch.float16,
        torch.bfloat16,
        torch.float32,
        torch.float64,
        torch.complex64,
        torch.float8_e4m3fn,
    ]
)


@st.composite
def arrays(draw: Any, size: int | None = None) -> Any:
    """Draw an array in any order or with any strides, with a first dimension of ``size``."""
    tail = tuple(draw(st.lists(st.integers(0, 3), max_size=2)))
    shape = tail if size is None else (size, *tail)
    array = draw(npst.arrays(draw(NUMPY_DTYPES), (*shape, 2)))
    array = np.asfortranarray(array) if draw(st.booleans()) else array
    return array[::-1, ..., 0] if array.ndim > 1 and draw(st.booleans()) else array[..., 1]


@st.composite
def tensors(draw: Any, size: int | None = None) -> Any:
    """Draw a tensor with any strides, with a first dimension of ``size``."""
    tail = tuple(draw(st.lists(st.integers(0, 3), max_size=2)))
    shape = tail if size is None else (size, *tail)
    dtype = draw(TORCH_DTYPES)
    n_bytes = torch.empty((*shape, 3), dtype=dtype).nbytes
    data = draw(st.binary(min_size=n_bytes, max_size=n_bytes))
    if dtype is torch.bool:
        data = bytes(byte % 2 for byte in data)
    whole = torch.frombuffer(bytearray(data), dtype=dtype) if data else torch.empty(0, dtype=dtype)
    tensor = whole.reshape(*shape, 3)[..., draw(st.integers(0, 2))]
    if dtype.is_complex and draw(st.booleans()):
        tensor = tensor.conj()
    if draw(st.booleans()):
        with torch.inference_mode():
            tensor = tensor * 1 if dtype.is_floating_point and dtype.itemsize > 1 else tensor
    return tensor


def outputs(size: int) -> Any:
    """Draw the output of a model for a batch, and the results of its elements."""
    scalars = st.one_of(st.none(), st.integers(), st.text(max_size=2), arrays(), tensors())
    scalars = scalars.filter(lambda x: not getattr(x, "ndim", 0))
    leaves = st.one_of(
        (arrays(size) | tensors(size)).map(lambda x: (x, [x[i] for i in range(size)])),
        st.lists(st.integers() | st.text(max_size=2), min_size=size, max_size=size).map(
            lambda x: (x, x)
        ),
    )
    parts = leaves | scalars.map(lambda x: (x, [x] * size))

    def combine(inner: Any) -> Any:
        names = st.text(max_size=2) | st.integers()
        return st.one_of(
            st.tuples(names, leaves, inner).map(
                lambda x: (
                    {x[0]: x[1][0], "other": x[2][0]},
                    [{x[0]: a, "other": b} for a, b in zip(x[1][1], x[2][1], strict=True)],
                )
            ),
            *(
                st.tuples(leaves, inner).map(
                    lambda x, make=make: (
                        make(x[0][0], x[1][0]),
                        [make(a, b) for a, b in zip(x[0][1], x[1][1], strict=True)],
                    )
                )
                for make in (lambda a, b: (a, b), Pair, Output)
            ),
        )

    return leaves | combine(st.recursive(parts, combine, max_leaves=3))


def as_bytes(value: Any) -> bytes:
    if isinstance(value, torch.Tensor):
        value = value.resolve_conj().resolve_neg().clone(memory_format=torch.contiguous_format)
        return value.reshape(-1).view(torch.uint8).numpy().tobytes() if value.numel() else b""
    return np.asarray(value).tobytes()


def assert_same(found: Any, expected: Any) -> None:
    """Compare types, dtypes, shapes and values, bit by bit."""
    if isinstance(expected, (np.ndarray, np.generic, torch.Tensor)):
        assert type(found) is type(expected)
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
        assert as_bytes(found) == as_bytes(expected)
    elif isinstance(expected, dict):
        assert list(found) == list(expected)
        assert_same(list(found.values()), list(expected.values()))
    elif isinstance(expected, (list, tuple)):
        assert type(found) is type(expected) or type(expected) is list
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    elif dataclasses.is_dataclass(expected):
        assert type(found) is type(expected)
        assert_same(vars(found), vars(expected))
    else:
        assert type(found) is type(expected)
        assert found == expected


def buffers(value: Any) -> list[Any]:
    """Return the arrays and tensors in a value."""
    if isinstance(value, (np.ndarray, np.void, torch.Tensor)):
        return [value]
    parts = vars(value) if dataclasses.is_dataclass(value) else value
    parts = parts.values() if isinstance(parts, dict) else parts
    return (
        [x for part in parts for x in buffers(part)]
        if isinstance(value, (tuple, list, dict, Output))
        else []
    )


def assert_owns_its_memory(value: Any) -> None:
    for buffer in buffers(value):
        if isinstance(buffer, torch.Tensor):
            assert buffer.untyped_storage().nbytes() == buffer.nbytes
            assert not buffer.is_inference()
        elif buffer.base is not None:
            assert buffer.base.nbytes == buffer.nbytes


@st.composite
def batches(draw: Any) -> Any:
    size = draw(st.integers(1, 3))
    return (size, *draw(outputs(size)))


@fidelity
@given(batches())
def test_each_element_gets_its_part_of_an_output_unchanged_and_in_its_own_memory(batch):
    size, output, expected = batch
    rows = unbatch(output, size)
    assert_same(rows, expected)
    for row in rows:
        assert_owns_its_memory(row)
    results = unbatch_results([PredictionResult(i, row) for i, row in enumerate(expected)], size)
    assert_same([result.inference for result in results], expected)
    for result in results:
        assert_owns_its_memory(result.inference)


VALUES = st.recursive(
    arrays() | tensors() | st.none() | st.integers() | st.floats(allow_nan=False) | TEXTS,
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.tuples(inner, inner)
        | st.dictionaries(TEXTS, inner, max_size=2)
    ),
    max_leaves=4,
)


@fidelity
@given(VALUES, VALUES)
def test_the_coder_changes_nothing(example, inference):
    result = CODER.decode(CODER.encode(PredictionResult(example, inference, "m")))
    assert_same(result.example, example)
    assert_same(result.inference, inference)
    assert result.model_id == "m"


@fidelity
@given(st.lists(arrays() | tensors(), min_size=1, max_size=3), st.booleans())
def test_a_list_of_arrays_is_read_as_declared(arrays, as_outputs):
    size = len(arrays)
    assert_same(unbatch_results(arrays, size), arrays)
    assert_same(unbatch(arrays, size, "per_element"), arrays)
    stacked = [np.zeros((size, 2)), torch.zeros(size)]
    for row in unbatch(stacked, size, "multi_output"):
        assert_same(row, [np.zeros(2), torch.tensor(0.0)])
