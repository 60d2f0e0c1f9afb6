"""Examples reach the model unchanged, whoever shares their batch, or an error says which value cannot.

`make fuzz` draws thousands of batches (`HYPOTHESIS_PROFILE=thorough`). By default, fewer are drawn.
"""

from __future__ import annotations

import math
import os
from typing import Any

import numpy as np
import pandas as pd
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from runinference import ModelHandler, Padding
from runinference.collate.frames import concat_frames
from runinference.collate.named_inputs import InputSpec, bind_inputs
from runinference.collate.records import records_to_frame
from runinference.collate.stack import stack_arrays
from runinference.collate.tables import concat_tables, to_tables
from runinference.errors import RunInferenceError

THOROUGH = os.environ.get("HYPOTHESIS_PROFILE") == "thorough"
fidelity = settings(
    max_examples=5_000 if THOROUGH else 60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)

#: Numbers at which dtypes end, and values that NumPy or pandas turn into others.
EDGES = [
    0,
    1,
    -1,
    255,
    2**24,
    2**24 + 1,
    2**31,
    2**53,
    2**53 + 1,
    2**63 - 1,
    2**63,
    2**64 - 1,
    2**70,
]
INTEGERS = st.sampled_from(EDGES) | st.integers(-(2**65), 2**65)
FLOATS = st.sampled_from([0.5, -0.0, math.nan, math.inf, 1e300, 1e-300, 65_520.0]) | st.floats()
TEXTS = st.sampled_from(["", "a\0", "\0", "é", "nan", "True"]) | st.text(max_size=3)
BYTES = st.sampled_from([b"", b"a\0", b"\0\0", b"\xff"]) | st.binary(max_size=4)
NUMBERS = INTEGERS | FLOATS
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS, BYTES)
DTYPES = st.one_of(
    npst.boolean_dtypes(),
    npst.integer_dtypes(),
    npst.unsigned_integer_dtypes(),
    npst.floating_dtypes(sizes=(16, 32, 64)),
    npst.complex_number_dtypes(sizes=(64, 128)),
    npst.datetime64_dtypes(max_period="D", min_period="ns"),
    npst.unicode_string_dtypes(max_len=3),
)


def same(found: Any, value: Any) -> bool:
    """Return whether a value is another: equal, of the same kind, or both missing."""
    if isinstance(value, (str, bytes)) or isinstance(found, (str, bytes)):
        return type(found).__mro__[-2] == type(value).__mro__[-2] and found == value
    if pd.isna(value):
        return bool(pd.isna(found))
    return bool(found == value)


def leaves(example: Any) -> list[Any]:
    """Return the values of an example as Python objects."""
    if isinstance(example, (np.ndarray, np.generic)):
        array = np.asarray(example).ravel()
        return list(array if array.dtype.kind in "mM" else array.astype(object))
    return (
        [leaf for part in example for leaf in leaves(part)]
        if isinstance(example, list)
        else [example]
    )


def check(rows: Any, batch: list[Any]) -> None:
    assert len(rows) == len(batch)
    for row, example in zip(rows, batch, strict=True):
        found, wanted = leaves(row), leaves(example)
        assert len(found) == len(wanted)
        for one, other in zip(found, wanted, strict=True):
            assert same(one, other), (one, other)


@st.composite
def arrays(draw: Any, shape: tuple[int, ...]) -> Any:
    """An array of a shape, perhaps a view with strides of another one."""
    larger = tuple(2 * size for size in shape)
    array = draw(npst.arrays(draw(DTYPES), larger[::-1] if draw(st.booleans()) else larger))
    array = array if array.shape == larger else array.T
    return array[tuple(slice(None, None, 2) for _ in shape)]


@st.composite
def batches(draw: Any) -> list[Any]:
    """Examples of one shape: scalars, nested lists and arrays of any dtype."""
    shape = draw(st.sampled_from([(), (1,), (2,), (2, 3), (0,)]))
    if draw(st.booleans()):
        return draw(st.lists(arrays(shape), min_size=1, max_size=4))

    def nest(sizes: tuple[int, ...]) -> Any:
        if not sizes:
            return draw(values)
        return [nest(sizes[1:]) for _ in range(sizes[0])]

    values = draw(st.sampled_from([SCALARS, NUMBERS, INTEGERS, FLOATS, TEXTS, BYTES]))
    some = [nest(shape) for _ in range(draw(st.integers(1, 3)))]
    return [*some, *draw(st.lists(arrays(shape), max_size=1 if shape else 0))]


@fidelity
@given(batches())
def test_a_stacked_batch_holds_the_values_of_its_examples(batch):
    try:
        stacked = stack_arrays(batch)
    except RunInferenceError:
        return
    check(stacked, batch)
    if len({example.dtype if isinstance(example, np.ndarray) else None for example in batch}) == 1:
        assert not isinstance(batch[0], np.ndarray) or stacked.dtype == batch[0].dtype.newbyteorder(
            "="
        )


@fidelity
@given(batches(), st.sampled_from(["i1", "u1", "i4", "i8", "u8", "f2", "f4", "f8", "?", "U", "S"]))
def test_an_input_holds_the_integers_and_texts_of_its_examples(batch, dtype):
    try:
        array = bind_inputs(batch, [InputSpec("x", np.dtype(dtype), ())], {})["x"]
    except RunInferenceError:
        return
    for row, example in zip(array, batch, strict=True):
        for found, value in zip(leaves(row), leaves(example), strict=True):
            if dtype == "U" and isinstance(value, bytes):
                value = value.decode()
            if isinstance(value, float) and array.dtype.kind == "f":  # floats may be rounded
                assert math.isfinite(found) == math.isfinite(value)
            else:
                assert same(found, value), (found, value)


@fidelity
@given(
    st.lists(st.lists(NUMBERS, min_size=2, max_size=2), min_size=1, max_size=4)
    | st.lists(arrays((2,)), min_size=1, max_size=4)
)
def test_a_table_of_rows_holds_the_values_of_its_examples(batch):
    try:
        tables = to_tables(batch)
        table = concat_tables(tables, batch)
    except RunInferenceError:
        return
    check(table, batch)


COLUMNS = [
    st.lists(INTEGERS.filter(lambda n: -(2**63) <= n < 2**63), min_size=1, max_size=2),
    st.lists(st.floats(allow_nan=True), min_size=1, max_size=2),
    st.lists(st.booleans(), min_size=1, max_size=2),
    st.lists(TEXTS | st.none(), min_size=1, max_size=2),
    st.lists(st.none(), min_size=1, max_size=2),
    st.lists(st.datetimes(), min_size=1, max_size=2),
]
CASTS = [None, "category", "Int64", "boolean", "string", "float32", "int8", "uint64", "object"]


@st.composite
def frame_columns(draw: Any) -> Any:
    column = pd.Series(draw(draw(st.sampled_from(COLUMNS))))
    dtype = draw(st.sampled_from(CASTS))
    try:
        converted = column if dtype is None else column.astype(dtype)
    except (TypeError, ValueError, OverflowError):
        converted = column
    start = draw(st.integers(0, 1))
    return pd.DataFrame({"x": converted}).set_axis(range(start, start + len(column)))


@fidelity
@given(st.lists(frame_columns(), min_size=1, max_size=4))
def test_concatenated_frames_hold_the_values_of_each(parts):
    try:
        table = concat_frames(parts)
    except RunInferenceError:
        return
    assert table.index.is_unique
    values = [value for part in parts for value in part["x"].tolist()]
    for found, value in zip(table["x"].tolist(), values, strict=True):
        assert same(found, value), (found, value)


@fidelity
@given(
    st.lists(
        st.fixed_dictionaries({"a": SCALARS, "b": NUMBERS | st.none()}), min_size=1, max_size=4
    )
)
def test_a_frame_of_records_holds_the_values_of_each(records):
    try:
        table = records_to_frame(records)
    except RunInferenceError:
        return
    for name in ("a", "b"):
        for found, record in zip(table[name].tolist(), records, strict=True):
            assert same(found, record[name]), (found, record[name])


@fidelity
@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=4),
    st.sampled_from([np.int64, np.int8, np.float16, np.float64, np.bool_]),
    st.sampled_from([0, 1, -1, 0.5, 300, 1e9, math.nan, -math.inf]),
    st.sampled_from(["left", "right"]),
    st.booleans(),
)
def test_padded_examples_keep_their_values_and_the_padding_has_its_own(
    lengths, dtype, value, side, use_torch
):
    padding = Padding(value, mask="mask", side=side)
    batch: list[Any] = [np.arange(length).astype(dtype) for length in lengths]
    tensors = [torch.from_numpy(array) for array in batch] if use_torch else batch

    def stack(examples: Any, *_: Any) -> Any:
        return torch.stack(list(examples)) if use_torch else stack_arrays(examples)

    try:
        joined = np.asarray(padding.join(tensors, stack))
    except RunInferenceError:
        return
    mask = padding.masks(batch)["mask"] == 1
    assert joined.dtype == dtype
    check([row[real] for row, real in zip(joined, mask, strict=True)], batch)
    assert all(same(found, value) for found in leaves(joined[~mask]))


class Sizes(ModelHandler[Any, int, object]):
    """Returns the size of the batch for each element."""

    def load_model(self) -> object:
        return object()

    def run_inference(self, batch: Any, model: object, inference_args: Any = None) -> list[int]:
        return [len(batch)] * len(batch)


class Box:
    def __init__(self, value: Any) -> None:
        self.value = value


CONTAINERS = st.recursive(
    st.just(np.zeros(1_000, np.uint8)),
    lambda inner: st.one_of(
        inner.map(lambda x: [x]),
        inner.map(lambda x: {"key": x}),
        inner.map(lambda x: np.array([x, None], dtype=object)[:1]),
        inner.map(lambda x: pd.DataFrame({"x": [x, None]}).iloc[:1]),
        inner.map(Box),
    ),
    max_leaves=4,
)


@settings(fidelity, max_examples=500 if THOROUGH else 20)
@given(CONTAINERS)
def test_a_batch_never_exceeds_its_bytes_whatever_holds_them(element):
    handler = Sizes(min_batch_size=16, max_batch_size=16, max_batch_bytes=4_000)
    assert max(handler.predict([element] * 16)) <= 4
