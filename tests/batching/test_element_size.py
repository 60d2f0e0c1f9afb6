"""The size of an element is what it holds, at a bounded cost."""

from __future__ import annotations

import collections
import dataclasses
import io
import sys
from typing import Any, NamedTuple

import apache_beam as beam
import numpy as np
import pandas as pd
import PIL.Image
import pyarrow as pa
import pytest
import scipy.sparse
import tensorflow as tf
import torch

from runinference.batching.element_size import batch_size_in_bytes, size_in_bytes

MIB = 1 << 20
BLOCK = np.zeros(MIB, np.uint8)


@dataclasses.dataclass
class Data:
    field: Any


@dataclasses.dataclass(slots=True)
class Slots:
    field: Any


class Private:
    __slots__ = ("__field",)

    def __init__(self, field: Any) -> None:
        self.__field = field


class Named(NamedTuple):
    field: Any


class Tensor(torch.Tensor):
    """A subclass, whose module is not that of PyTorch."""


def containing_itself():
    holder: list[Any] = [BLOCK]
    holder.append(holder)
    return holder


ELEMENTS = {
    "array": BLOCK,
    "broadcast array": np.broadcast_to(np.uint8(0), (MIB,)),
    "array of objects": np.array([bytes(MIB)], dtype=object),
    "structured array": np.array([(1, BLOCK)], dtype=[("id", "i4"), ("x", "O")]),
    "dataclass": Data(BLOCK),
    "slots": Slots(BLOCK),
    "private slots": Private(BLOCK),
    "named tuple": Named(BLOCK),
    "Beam row": beam.Row(field=BLOCK),
    "nested": {"a": [(Data([BLOCK]),)]},
    "set": {bytes(MIB)},
    "deque": collections.deque([BLOCK]),
    "user dictionary": collections.UserDict(a=BLOCK),
    "cycle": containing_itself(),
    "memoryview": memoryview(BLOCK),
    "BytesIO": io.BytesIO(bytes(MIB)),
    "image": PIL.Image.new("L", (1024, 1024)),
    "image of int32": PIL.Image.new("I", (512, 512)),
    "frame of strings": pd.DataFrame({"text": ["x" * MIB], "n": [1.0]}),
    "frame of arrays": pd.DataFrame({"pixels": [BLOCK]}),
    "string dtype": pd.DataFrame({"text": pd.array(["x" * MIB], dtype="string")}),
    "categories": pd.DataFrame({"text": pd.Categorical(["x" * MIB])}),
    "multi-index": pd.DataFrame({"n": [1]}, pd.MultiIndex.from_tuples([("x" * MIB, 1)])),
    "string array": pd.array(["x" * MIB], dtype="string"),
    "integer array": pd.array([0] * (MIB // 9 + 1), dtype="Int64"),
    "categorical": pd.Categorical(["x" * MIB]),
    "extension array of objects": pd.arrays.NumpyExtensionArray(np.array([bytes(MIB)], object)),
    "interval array": pd.arrays.IntervalArray.from_breaks(np.arange(MIB // 16 + 1.0)),
    "PyArrow buffer": pa.py_buffer(bytes(MIB)),
    "series of strings": pd.Series(["x" * MIB]),
    "index of strings": pd.Index(["x" * MIB]),
    "tensor": torch.zeros(MIB // 4),
    "expanded tensor": torch.zeros(1).expand(MIB // 4),
    "tensor subclass": torch.zeros(MIB // 4).as_subclass(Tensor),
    "TensorFlow tensor": tf.zeros(MIB // 4),
    "TensorFlow strings": tf.constant(["x" * MIB]),
    "ragged tensor": tf.ragged.constant([[0.0] * (MIB // 8), [0.0] * (MIB // 8)]),
    "protocol buffer": tf.train.BytesList(value=[bytes(MIB)]),
}


@pytest.mark.parametrize("element", ELEMENTS.values(), ids=ELEMENTS)
def test_the_size_is_that_of_the_data_at_any_depth(element):
    assert MIB <= size_in_bytes(element) < MIB + 1_000


@pytest.mark.parametrize("layout", ["csr", "csc", "coo", "bsr", "lil", "dok", "dia"])
def test_the_size_of_a_sparse_matrix_includes_values_and_indices(layout):
    matrix = scipy.sparse.random(200, 200, 0.1, format=layout, rng=0)
    assert size_in_bytes(matrix) >= 4_000 * 8


@pytest.mark.parametrize("layout", ["coo", "csr", "csc"])
def test_the_size_of_a_sparse_tensor_includes_values_and_indices(layout):
    assert size_in_bytes(getattr(torch.eye(1_000), f"to_sparse_{layout}")()) >= 1_000 * (4 + 8)


@pytest.mark.parametrize(
    "element",
    [
        [0.5] * 100_000,
        (0.5,) * 100_000,
        dict.fromkeys(range(100000), 0.5),
        set(range(100_000)),
        np.array([0.5] * 100_000, dtype=object),
        pd.Series(["x"] * 100_000),
        [[[0.5] * 3] * 200] * 200,
    ],
    ids=["list", "tuple", "dictionary", "set", "objects", "series", "nested"],
)
def test_many_values_are_estimated_from_some(element):
    visited = 0

    def count(frame: Any, event: str, argument: Any) -> None:
        nonlocal visited
        visited += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        size = size_in_bytes(element)
    finally:
        sys.setprofile(None)
    assert visited < 50_000
    assert 20 * 100_000 < size < 120 * 100_000


def _dict(id: int) -> Any:
    return {"id": id, "name": "a", "text": "x" * 1_000}


def _nested(id: int) -> Any:
    return {"id": id, "source": {"name": "a", "lines": ["y", "x" * 1_000]}}


@pytest.mark.parametrize("n", [100, 1_500, 5_000])
@pytest.mark.parametrize(
    "make", [_dict, _nested, lambda n: ("id", "x" * 1_100), lambda n: Data([n, np.zeros(140)])]
)
@pytest.mark.parametrize("container", [list, lambda items: dict(enumerate(items)), np.array])
def test_the_estimate_includes_all_fields_of_records(make, n, container):
    records = [make(i) for i in range(n)]
    if container is np.array:
        array = np.empty(n, object)
        array[:] = records
        records = array
    else:
        records = container(records)
    assert n * 1_000 < size_in_bytes(records) < n * 1_700


def test_the_size_of_a_batch_is_the_sum_of_its_elements():
    batch = [np.zeros(n) for n in range(5_000)]
    assert batch_size_in_bytes(batch) == sum(array.nbytes for array in batch)
    assert batch_size_in_bytes(np.zeros((3, 2))) == 48


def test_an_object_whose_attributes_raise_has_a_size():
    class Hostile:
        def __getattr__(self, name: str) -> Any:
            raise KeyError(name)

    assert size_in_bytes(Hostile()) > 0
    assert size_in_bytes([BLOCK, Hostile()]) > MIB
    assert size_in_bytes(pd.DataFrame({"dtype": [BLOCK]})) > MIB
    assert size_in_bytes(size_in_bytes) < 1_000  # not what its module holds


def test_a_row_has_the_size_of_its_values():
    class Point(NamedTuple):
        x: int
        name: str

    values = [1, "a" * 100]
    expected = sum(map(sys.getsizeof, values))
    assert size_in_bytes(beam.Row(x=values[0], name=values[1])) == expected
    assert size_in_bytes(Point(*values)) == expected
    keys = sum(map(sys.getsizeof, ["x", "name"]))
    assert size_in_bytes(dict(zip(["x", "name"], values, strict=True))) == expected + keys
    assert size_in_bytes(beam.Row(x=np.zeros(1000))) == 8000
    assert size_in_bytes(beam.Row()) > 0
