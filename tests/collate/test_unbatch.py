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

from runinference import KeyedModelHandler, ModelHandler
from runinference.collate.unbatch import to_results, unbatch, unbatch_results
from runinference.errors import OptionError, ResultMismatchError
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


def outcomes(unbatch_fn, make_output, sizes=(1, 2, 3, 4)):
    """Return the results for batches of several sizes, or the error that all of them raise."""
    found = []
    for size in sizes:
        try:
            found.append(unbatch_fn(make_output(size), size))
        except ResultMismatchError as error:
            found.append(error)
    errors = [str(x) for x in found if isinstance(x, Exception)]
    assert len(errors) in (0, len(sizes)), errors
    return errors or found


def rows_of(size, width=2):
    return np.arange(float(size * width)).reshape(size, width)


#: Outputs of a model that have two parts for the whole batch, as a list.
TWO_OUTPUTS = {
    "arrays": lambda n: [rows_of(n), rows_of(n, 3)],
    "tensors": lambda n: [torch.from_numpy(rows_of(n)), torch.ones(n)],
    "sparse": lambda n: [scipy.sparse.csr_matrix(rows_of(n)) for _ in range(2)],
    "frames": lambda n: [pd.DataFrame(rows_of(n)) for _ in range(2)],
    "states": lambda n: [rows_of(n), (rows_of(n), rows_of(n))],
    "lists of tensors": lambda n: [[torch.ones(n), torch.ones(n)], [torch.ones(n)] * 2],
    "one of them a loss": lambda n: [rows_of(n), np.float64(0.5)],
    "in a dictionary": lambda n: {"layers": [rows_of(n), rows_of(n)], "x": rows_of(n)},
    "dictionaries in a dictionary": lambda n: {"aux": [{"x": rows_of(n)}] * 2, "x": rows_of(n)},
    "in a tuple": lambda n: (rows_of(n), [rows_of(n), rows_of(n)]),
    "dictionary views": lambda n: {"a": rows_of(n), "b": rows_of(n)}.values(),
    "dictionaries": lambda n: [{"x": rows_of(n)}, {"x": rows_of(n)}],
}


@pytest.mark.parametrize("kind", TWO_OUTPUTS)
def test_a_list_of_outputs_is_an_error_for_each_batch_size(kind):
    for message in outcomes(unbatch, TWO_OUTPUTS[kind]):
        assert "To fix this" in message


@pytest.mark.parametrize("kind", [kind for kind in TWO_OUTPUTS if "views" not in kind])
def test_a_list_that_is_declared_to_hold_outputs_is_split_like_a_tuple(kind):
    results = outcomes(lambda x, n: unbatch(x, n, "multi_output"), TWO_OUTPUTS[kind])
    assert [len(x) for x in results] == [1, 2, 3, 4]
    if kind == "arrays":
        assert [part.tolist() for part in results[1][1]] == [[2, 3], [3, 4, 5]]
        assert type(results[1][1]) is list


@pytest.mark.parametrize("length", [1, 2, 3])
def test_a_list_that_is_declared_to_hold_results_is_not_split(length):
    def per_element(x, n):
        return unbatch(x, n, "per_element")

    results = outcomes(per_element, lambda n: [np.full(length, i) for i in range(n)])
    assert [row.tolist() for row in results[2]] == [[i] * length for i in range(3)]
    results = outcomes(per_element, lambda n: {"boxes": [np.full((length, 4), n)] * n})
    assert results[1][0]["boxes"].shape == (length, 4)


@pytest.mark.parametrize(
    "item",
    [
        0.5,
        "cat",
        None,
        np.float32(1),
        np.array(1.0),
        [1, 2],
        ["a", "b", "c"],
        [[{"label": "cat", "score": 0.5}]],
        {"label": "cat", "scores": [0.5, 0.5]},
        {"boxes": np.ones((7, 4)), "labels": np.ones(7)},
        {"boxes": torch.ones((0, 4))},
        PredictionResult(np.ones(2), np.ones(2)),
        ("cat", 0.5),
    ],
    ids=repr,
)
def test_a_list_without_arrays_or_of_dictionaries_has_an_item_per_element(item):
    for make in (lambda n: [item] * n, lambda n: iter([item] * n)):
        results = outcomes(unbatch, make)
        assert [len(x) for x in results] == [1, 2, 3, 4]
        assert repr(results[1]) == repr([item, item])


@pytest.mark.parametrize("length", [1, 2, 3])
@pytest.mark.parametrize(
    "kind", [np.ones, torch.ones, lambda n: [1] * n, lambda n: {"x": np.ones(n)}]
)
@pytest.mark.parametrize("form", [list, iter, collections.deque])
def test_a_handler_returns_a_list_of_results_as_in_beam(length, kind, form):
    results = outcomes(unbatch_results, lambda n: form([kind(length) for _ in range(n)]))
    assert [len(x) for x in results] == [1, 2, 3, 4]
    assert repr(results[1]) == repr([kind(length)] * 2)


def test_a_handler_returns_a_tuple_of_arrays_only_if_it_is_declared():
    def make(n):
        return tuple(np.array([i, 10 * i]) for i in range(n))

    assert all("as a list" in message for message in outcomes(unbatch_results, make))
    results = outcomes(lambda x, n: unbatch_results(x, n, "per_element"), make)
    assert results[1][1].tolist() == [1, 10]
    pair = outcomes(
        lambda x, n: unbatch_results(x, n, "multi_output"), lambda n: (rows_of(n), rows_of(n))
    )
    assert [part.tolist() for part in pair[1][1]] == [[2, 3], [2, 3]]
    assert unbatch_results(("a", "b"), 2) == ["a", "b"]
    mixed = outcomes(unbatch_results, lambda n: ("name", np.arange(n)))
    assert mixed[1] == [("name", 0), ("name", 1)]


def test_a_tuple_of_numbers_is_not_one_number_per_element():
    for output in ((0.5, 0.25), (torch.tensor(1.0), np.array(2.0)), (np.float32(1), 2)):
        assert all("leading dim" in x for x in outcomes(unbatch, lambda n, output=output: output))


def test_an_object_of_another_library_is_not_iterated_over():
    class DynamicCache:
        def __iter__(self):
            return iter([(np.ones((2, 1)), np.ones((2, 1)))] * 2)

        def __len__(self):
            return 2

    def make(n):
        return {"logits": rows_of(n), "past_key_values": DynamicCache()}

    for message in outcomes(unbatch, make):
        assert "past_key_values" in message
        assert "use_cache" in message


def test_a_handler_declares_what_a_list_is():
    class Lists(ModelHandler):
        def load_model(self):
            return lambda batch: [np.stack(batch), np.stack(batch) * 2]

        def run_inference(self, batch, model, inference_args=None):
            return self.results_of(batch, model(batch))

    rows = list(rows_of(3))
    keyed = KeyedModelHandler(Lists(list_output="multi_output"))
    [(key, first), *_] = keyed.predict(list(enumerate(rows)))
    assert (key, [x.tolist() for x in first.inference]) == (0, [[0, 1], [0, 2]])
    with pytest.raises(ResultMismatchError, match="2 results for a batch of 3"):
        Lists(list_output="per_element", min_batch_size=3).predict(rows)
    with pytest.raises(ResultMismatchError, match="list_output='per_element'"):
        Lists().predict(rows)
    with pytest.raises(OptionError, match="'multi_output', but is 'multi_out'. Did you mean"):
        Lists(list_output="multi_out")


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
