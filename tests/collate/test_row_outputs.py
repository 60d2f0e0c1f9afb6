"""The output of a model becomes columns of the declared types."""

from __future__ import annotations

import numpy as np
import pytest

from runinference.collate.row_outputs import OutputColumn, to_columns
from runinference.errors import ResultMismatchError


@pytest.mark.parametrize("make", [np.array, lambda rows: [*map(np.array, rows)]])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_arrays_of_one_number_per_row_are_numbers_if_numbers_are_declared(make, dtype):
    output = make(np.array([[1.5], [2.5]], dtype))
    for found, expected in ((float, [1.5, 2.5]), (list[float], [[1.5], [2.5]])):
        columns = to_columns({"p": output}["p"], 2, [OutputColumn("p", found)])
        assert np.asarray(columns["p"]).tolist() == expected
    with pytest.raises(ResultMismatchError, match="'p' have the type .*float"):
        to_columns(make(np.ones((2, 2), dtype)), 2, [OutputColumn("p", float)])
