"""Tables are concatenated without changing a value, an index or a category."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import apache_beam as beam
import numpy as np
import pandas as pd
import pytest
import scipy.sparse

from runinference.collate import frames
from runinference.errors import BatchShapeError, ElementError, ResultMismatchError

LARGE = 2**53 + 1


def column(*values, **options):
    return pd.DataFrame({"x": pd.Series(values, **options)})


def category(*values, **options):
    return pd.DataFrame({"x": pd.Categorical(values, **options)})


def nullable(*values, dtype="Int64"):
    return column(*values, dtype=dtype)


@pytest.mark.parametrize(
    ("parts", "dtype"),
    [
        ([category("a"), category("b")], "category"),
        ([category("a"), category(np.nan)], "category"),
        ([category(np.nan), category("b"), category("a")], "category"),
        ([category("a"), column(np.nan)], "category"),
        ([column(None), category("b")], "category"),
        ([category("a", categories=["a", "b"]), category("b", categories=["b", "a"])], "category"),
        ([category("a", ordered=True), column(np.nan)], "category"),
        ([category("a"), column("b")], object),
        ([column(1), column(0.5)], np.float64),
        ([column(1), column(None)], np.float64),
        ([column(None), column(1)], np.float64),
        ([column(0.5), column(None)], np.float64),
        ([column(True), column(0.5)], np.float64),
        ([column(True), column(None)], object),
        ([column("a"), column(1)], object),
        ([column("a"), column(np.nan)], object),
        ([nullable(LARGE, None), column(1)], "Int64"),
        ([nullable(1, None), column(0.5)], "Float64"),
        ([nullable(True, None, dtype="boolean"), column(True)], "boolean"),
        ([column(LARGE), column(1, dtype="int8")], np.int64),
        ([column(pd.Timestamp("2020")), column(None)], "datetime64[ns]"),
        ([column(pd.Timestamp("2020")), column(pd.Timestamp("2020", tz="UTC"))], object),
        ([column(1e300), column(2)], np.float64),
    ],
)
def test_each_row_keeps_its_value(parts, dtype):
    table = frames.concat_frames(parts)
    assert table.index.tolist() == list(range(len(table)))
    assert table["x"].dtype == dtype
    wanted = [value for part in parts for value in part["x"].tolist()]
    for found, value in zip(table["x"].tolist(), wanted, strict=True):
        assert (pd.isna(found) and pd.isna(value)) or found == value


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([column(LARGE), column(0.5)], f"Element 0 .*column 'x'.* holds {LARGE}"),
        ([column(0.5), column(LARGE)], f"Element 1 .*column 'x'.* holds {LARGE}"),
        ([column(None), column(LARGE)], f"Element 1 .* holds {LARGE}"),
        ([nullable(LARGE), column(0.5)], f"Element 0 .* holds {LARGE}"),
        ([column(2**64 - 1, dtype="uint64"), column(-1)], f"Element 0 .* holds {2**64 - 1}"),
        ([category(1), category("a")], "have the dtypes int64, object"),
        ([category("a", ordered=True), category("b", ordered=True)], "ordered categories"),
        (
            [column(pd.Timestamp("2020")), column("3000", dtype="datetime64[s]")],
            "Element 1 .* cannot be converted to datetime64",
        ),
    ],
)
def test_values_without_a_common_dtype_raise_an_error(parts, message):
    with pytest.raises(ElementError, match=message):
        frames.concat_frames(parts)


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        ([np.array([LARGE]), np.array([0.5])], "Element 0 .* holds"),
        ([[1.5], [LARGE]], f"Element 1 .* holds {LARGE}"),
        ([np.array([[LARGE]]), np.array([[0.5]])], "Element 0 .* holds"),
        (
            [scipy.sparse.csr_matrix([[LARGE]]), scipy.sparse.csr_matrix([[0.5]])],
            f"Element 0 .* holds {LARGE}",
        ),
    ],
)
def test_arrays_and_sparse_matrices_follow_the_same_rule(examples, message):
    with pytest.raises(ElementError, match=message):
        frames.concat_tables(frames.to_tables(examples), examples)


class Named(NamedTuple):
    a: float
    b: str


@dataclasses.dataclass
class Data:
    a: float
    b: str


@pytest.mark.parametrize(
    "make",
    [
        Named,
        Data,
        lambda a, b: beam.Row(a=a, b=b),
        lambda a, b: {"a": a, "b": b},
        lambda a, b: pd.Series({"a": a, "b": b}),
    ],
)
def test_records_become_a_frame_with_one_row_for_each(make):
    [table] = frames.to_tables([make(1, "x"), make(2.5, "y")])
    assert table["a"].tolist() == [1, 2.5]
    assert table["b"].tolist() == ["x", "y"]


@pytest.mark.parametrize(
    ("records", "error", "message"),
    [
        ([{"a": LARGE}, {"a": 0.5}], ElementError, f"Element 0 .*'a'.* holds {LARGE}"),
        ([{"a": np.int64(LARGE)}, {"a": None}], ElementError, f"holds {LARGE}"),
        ([{"a": 1}, {"b": 1}], BatchShapeError, r"Element 1 .* columns \['b'\]"),
        ([{"a": 1, "b": 2}, {"b": 2, "a": 1}], BatchShapeError, "Element 1 .* same order"),
        ([{"a": [1]}], ElementError, "a list in the column 'a'"),
        ([{"a": 1}, 5], ElementError, "Element 1 of the batch is a int"),
        ([pd.Series([1, 2], ["a", "a"])], ElementError, "several values for the label 'a'"),
    ],
)
def test_records_that_do_not_fit_together_raise_an_error(records, error, message):
    with pytest.raises(error, match=message):
        frames.to_tables(records)


def test_a_list_of_arrays_is_not_dealt_out_as_predictions():
    tables = [np.zeros((3, 2))]
    rows = list(np.zeros((3, 2)))
    for n_outputs in (2, 3, 4):
        with pytest.raises(ResultMismatchError, match=f"a list of {n_outputs} arrays"):
            frames.split_predictions([np.zeros((3, 2))] * n_outputs, rows, tables)
    assert frames.split_predictions([1, 2, 3], rows, tables) == [1, 2, 3]
