"""DataFrames are concatenated without changing a value, an index or a category."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from runinference.collate.frames import concat_frames
from runinference.errors import ElementError

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
        ([column(1j), column(2)], np.complex128),
        ([column(0.5, dtype="Sparse[float]"), column(2)], "Sparse[float]"),
    ],
)
def test_each_row_keeps_its_value(parts, dtype):
    table = concat_frames(parts)
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
        ([column(1j), column(LARGE)], f"Element 1 .* holds {LARGE}"),
        ([column(0.5, dtype="Sparse[float]"), column(LARGE)], f"Element 1 .* holds {LARGE}"),
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
        concat_frames(parts)
