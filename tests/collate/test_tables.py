"""Arrays and sparse matrices are concatenated without changing a value, and predictions are split by example."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse

from runinference.collate.tables import concat_tables, split_predictions, to_tables
from runinference.errors import ElementError, ResultMismatchError

LARGE = 2**53 + 1


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
        concat_tables(to_tables(examples), examples)


def test_a_list_of_arrays_is_not_dealt_out_as_predictions():
    tables = [np.zeros((3, 2))]
    rows = list(np.zeros((3, 2)))
    for n_outputs in (2, 3, 4):
        with pytest.raises(ResultMismatchError, match=f"a list of {n_outputs} arrays"):
            split_predictions([np.zeros((3, 2))] * n_outputs, rows, tables)
    assert split_predictions([1, 2, 3], rows, tables) == [1, 2, 3]
