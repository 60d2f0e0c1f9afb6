"""Splitting of outputs of any structure into one result per element."""

from __future__ import annotations

import collections
import dataclasses

import numpy as np
import pandas as pd
import pyarrow
import pytest
import scipy.sparse
import torch
from transformers.modeling_outputs import SequenceClassifierOutput

from runinference import ModelHandler
from runinference.collate.unbatch import to_results, unbatch
from runinference.errors import ResultMismatchError
from runinference.results import PredictionResult

Named = collections.namedtuple("Named", ["logits", "loss"])


@dataclasses.dataclass
class Output:
    logits: torch.Tensor
    loss: float | None = None


def test_splits_an_array_into_rows_that_own_their_memory():
    rows = unbatch(np.arange(6.0).reshape(3, 2), 3)
    assert [row.tolist() for row in rows] == [[0, 1], [2, 3], [4, 5]]
    assert all(row.base is None for row in rows)


def test_splits_a_tensor_into_rows_that_own_their_memory():
    rows = unbatch(torch.arange(6.0).reshape(3, 2), 3)
    assert [row.tolist() for row in rows] == [[0, 1], [2, 3], [4, 5]]
    assert all(row.untyped_storage().nbytes() == 8 for row in rows)


def test_rows_of_an_inference_tensor_are_normal_tensors():
    with torch.inference_mode():
        output = torch.ones(2, 3)
    row, _ = unbatch(output, 2)
    row += 1  # an inference tensor would raise an error
    assert row.tolist() == [2, 2, 2]


def test_splits_a_vector_into_scalars():
    assert unbatch(np.array([1, 2]), 2) == [1, 2]
    assert [t.item() for t in unbatch(torch.tensor([1, 2]), 2)] == [1, 2]


def test_splits_lists_and_iterators_into_items():
    assert unbatch(["a", "b"], 2) == ["a", "b"]
    assert unbatch((x for x in "ab"), 2) == ["a", "b"]
    assert unbatch(range(2), 2) == [0, 1]


def test_splits_a_mapping_into_dictionaries_and_repeats_scalars():
    rows = unbatch({"logits": torch.eye(2), "loss": torch.tensor(0.5), "note": None}, 2)
    assert [row["logits"].tolist() for row in rows] == [[1, 0], [0, 1]]
    assert [row["loss"].item() for row in rows] == [0.5, 0.5]
    assert [row["note"] for row in rows] == [None, None]


def test_splits_tuples_in_a_mapping_such_as_hidden_states():
    layers = tuple(torch.full((8, 4), float(layer)) for layer in range(3))
    rows = unbatch({"hidden_states": layers}, 8)
    assert len(rows) == 8
    assert [layer.tolist() for layer in rows[7]["hidden_states"]] == [[0] * 4, [1] * 4, [2] * 4]


def test_a_tuple_is_one_structure():
    rows = unbatch((torch.eye(4), torch.arange(4)), 4)
    assert len(rows) == 4
    assert rows[2][0].tolist() == [0, 0, 1, 0]
    assert rows[2][1].item() == 2


def test_a_tuple_is_one_structure_even_if_it_is_as_long_as_the_batch():
    rows = unbatch((np.array([1, 2]), np.array([3, 4])), 2)
    assert rows == [(1, 3), (2, 4)]


def test_splits_a_tuple_of_results_into_items():
    results = tuple(PredictionResult(np.ones(2), np.ones(2)) for _ in range(2))
    assert unbatch(results, 2) == list(results)
    assert unbatch(("a", "b"), 2) == ["a", "b"]


def test_named_tuples_and_dataclasses_keep_their_type():
    first, _ = unbatch(Named(np.eye(2), 0.5), 2)
    assert isinstance(first, Named)
    assert first.logits.tolist() == [1, 0]
    assert first.loss == 0.5
    first, _ = unbatch(Output(torch.eye(2)), 2)
    assert isinstance(first, Output)
    assert first.logits.tolist() == [1, 0]
    assert first.loss is None


def test_splits_hugging_face_outputs_into_dictionaries():
    first, _ = unbatch(SequenceClassifierOutput(loss=torch.tensor(1.0), logits=torch.eye(2)), 2)
    assert first["logits"].tolist() == [1, 0]
    assert first["loss"].item() == 1


def test_splits_frames_series_and_sparse_matrices_into_rows():
    frame = pd.DataFrame({"a": [1, 2], "b": [3, 4]})
    assert [row.to_dict("records") for row in unbatch(frame, 2)] == [
        [{"a": 1, "b": 3}],
        [{"a": 2, "b": 4}],
    ]
    assert unbatch(frame["a"], 2) == [1, 2]
    rows = unbatch(scipy.sparse.csr_matrix(np.eye(2)), 2)
    assert [row.toarray().tolist() for row in rows] == [[[1, 0]], [[0, 1]]]


@pytest.mark.parametrize(
    "output", [[1], np.ones((1, 2)), torch.ones(1), {"x": [1]}, ([1],), iter([1])]
)
def test_the_error_for_another_length_states_both_lengths(output):
    with pytest.raises(ResultMismatchError, match=r"returned 1 result for a batch of 8 elements"):
        unbatch(output, 8)


@pytest.mark.parametrize(
    "output", [None, 3.5, "text", {"loss": 0.1}, torch.tensor(1.0), (0.1, 0.2)]
)
def test_the_error_for_a_missing_leading_dimension_suggests_what_to_return(output):
    with pytest.raises(ResultMismatchError, match="nothing in it has a leading dimension"):
        unbatch(output, 8)


def test_the_error_for_a_list_of_several_outputs_suggests_a_tuple():
    with pytest.raises(ResultMismatchError, match="return a tuple"):
        unbatch([np.ones((8, 2)), np.ones((8, 3))], 8)


def test_the_error_names_the_part_with_another_length():
    with pytest.raises(
        ResultMismatchError, match=r"the output\['boxes'\] is Tensor of shape \(3, 4\)"
    ):
        unbatch({"logits": torch.ones(2), "boxes": torch.ones(3, 4)}, 2)


def test_results_have_the_example_and_the_model_id():
    assert to_results([1, 2], np.array([3, 4]), "m") == [(1, 3, "m"), (2, 4, "m")]


@pytest.mark.parametrize("n", [1, 4])
def test_run_inference_returns_all_results_and_predict_raises_for_another_length(n):
    class Miscounting(ModelHandler):
        def load_model(self):
            return None

        def run_inference(self, batch, model, inference_args=None):
            return to_results(batch, [0] * n, None)

    results = Miscounting().run_inference([1, 2, 3], None)
    assert [result.inference for result in results] == [0] * n
    with pytest.raises(
        ResultMismatchError, match=f"returned {n} results? for a batch of 3 elements"
    ):
        Miscounting(min_batch_size=3).predict([1, 2, 3])


def test_splits_an_arrow_table_into_rows_and_not_columns():
    table = pyarrow.table({"a": [1, 2], "b": [3, 4]})
    assert [row.to_pylist() for row in unbatch(table, 2)] == [
        [{"a": 1, "b": 3}],
        [{"a": 2, "b": 4}],
    ]
