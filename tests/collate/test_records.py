"""Records of named values become one DataFrame, or an error says which of them does not fit."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import apache_beam as beam
import numpy as np
import pandas as pd
import pytest

from runinference.collate.records import records_to_frame
from runinference.errors import BatchShapeError, ElementError

LARGE = 2**53 + 1


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
    table = records_to_frame([make(1, "x"), make(2.5, "y")])
    assert table["a"].tolist() == [1, 2.5]
    assert table["b"].tolist() == ["x", "y"]


@pytest.mark.parametrize(
    ("records", "error", "message"),
    [
        ([{"a": LARGE}, {"a": 0.5}], ElementError, f"Element 0 .*'a'.* holds {LARGE}"),
        ([{"a": np.int64(LARGE)}, {"a": None}], ElementError, f"holds {LARGE}"),
        ([{"a": 1j}, {"a": LARGE}], ElementError, f"Element 1 .* holds {LARGE}"),
        ([{"a": 1}, {"b": 1}], BatchShapeError, r"Element 1 .* columns \['b'\]"),
        ([{"a": 1, "b": 2}, {"b": 2, "a": 1}], BatchShapeError, "Element 1 .* same order"),
        ([{"a": [1]}], ElementError, "a list in the column 'a'"),
        ([{"a": 1}, 5], ElementError, "Element 1 of the batch is a int"),
        ([pd.Series([1, 2], ["a", "a"])], ElementError, "several values for the label 'a'"),
    ],
)
def test_records_that_do_not_fit_together_raise_an_error(records, error, message):
    with pytest.raises(error, match=message):
        records_to_frame(records)
