"""Unsplit results: one result for an array of rows."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch
from transformers.modeling_outputs import SequenceClassifierOutput

from common import FunctionHandler
from runinference import ModelHandler, PredictionResult
from runinference.collate.unsplit import count_rows, run_unsplit, unsplit_result
from runinference.errors import OutOfMemoryError, ResultMismatchError

ROWS = np.arange(6.0).reshape(3, 2)


def call_with_output(output):
    """Return the result for ``ROWS`` of a call whose model returns an output."""
    return run_unsplit(lambda rows, *_: unsplit_result(rows, output, "m"), ROWS, None, None)


def test_a_result_holds_the_array_itself_and_a_copy_of_the_output():
    output = np.zeros(3)
    result = call_with_output(output)
    assert type(result) is PredictionResult
    output += 1  # a model may reuse its output array
    assert result.inference.tolist() == [0, 0, 0]
    assert result.example is ROWS
    assert result.model_id == "m"


@pytest.mark.parametrize(
    "rows",
    [
        ROWS,
        torch.zeros(3, 2),
        pd.DataFrame(ROWS),
        scipy.sparse.csr_matrix(ROWS),
        {"scale": 2.0, "x": ROWS},
        ("a key", ROWS),
        ROWS.tolist(),
    ],
    ids=lambda rows: type(rows).__name__,
)
def test_count_rows_returns_the_leading_dimension(rows):
    assert count_rows(rows) == 3


@pytest.mark.parametrize("value", [None, "text", 3, np.float32(1), {"scale": 2.0}, ("key", 1)])
def test_count_rows_returns_none_without_a_leading_dimension(value):
    assert count_rows(value) is None


def test_does_not_iterate_over_rows():
    class Columnar(np.ndarray):
        def __iter__(self):
            raise AssertionError("the rows were iterated over")

        __getitem__ = __iter__

    rows = ROWS.view(Columnar)
    result = FunctionHandler(lambda batch: batch.sum(axis=1)).with_no_batching(whole_results=True)
    assert result.predict([rows])[0].tolist() == [1, 5, 9]
    assert unsplit_result(rows, np.zeros(3), "m").example is rows


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (
            np.zeros(2),
            r"returned 2 results for an array of 3 rows \(the output is ndarray of shape",
        ),
        ([1, 2, 3, 4], r"returned 4 results for an array of 3 rows \(the output is a list of 4"),
        (
            {"a": np.zeros(3), "b": np.zeros((1, 5))},
            r"returned 1 result for .* \(the output\['b'\]",
        ),
        ((torch.zeros(3), torch.zeros(5)), r"returned 5 results .* \(the output\[1\] is Tensor"),
    ],
)
def test_the_error_for_another_length_states_both_lengths(output, message):
    with pytest.raises(ResultMismatchError, match=message):
        unsplit_result(ROWS, output, None)


def test_accepts_scalars_in_the_output():
    output = {"logits": np.zeros((3, 2)), "loss": np.float32(0.5), "unit": "cm", "none": None}
    inference = unsplit_result(ROWS, output, None).inference
    assert inference.pop("logits").tolist() == output.pop("logits").tolist()
    assert inference == output
    assert unsplit_result(ROWS, 0.5, None).inference == 0.5


def test_copies_views():
    wide = torch.zeros(3, 100, requires_grad=True)
    output = SequenceClassifierOutput(logits=wide[:, 0], hidden_states=(np.zeros((3, 9))[:, :1],))
    inference = call_with_output(output).inference
    assert inference["logits"].untyped_storage().nbytes() == 3 * 4
    assert not inference["logits"].requires_grad
    assert inference["hidden_states"][0].base is None


def test_converts_inference_tensors_to_normal_ones():
    with torch.inference_mode():
        output = torch.ones(3, 2)
    inference = call_with_output(output).inference
    inference += 1  # an inference tensor would raise an error
    assert inference[0].tolist() == [2, 2]


def test_the_error_for_out_of_memory_suggests_smaller_arrays():
    def fail(batch):
        raise RuntimeError("CUDA out of memory")

    with pytest.raises(
        OutOfMemoryError, match="an element of 3 rows .*give the model smaller"
    ) as raised:
        run_unsplit(FunctionHandler(fail).run_inference, ROWS, fail, None)
    assert isinstance(raised.value, MemoryError)
    assert "CUDA" in str(raised.value.__cause__)


def test_a_custom_handler_can_return_an_iterator():
    def one_each(batch):
        yield from (PredictionResult(row, 0) for row in batch)

    [results] = FunctionHandler(one_each).with_no_batching(whole_results=True).predict([ROWS])
    assert [result.inference for result in results] == [0, 0, 0]


class Sums(ModelHandler):
    """A custom handler that creates its results with results_of."""

    def load_model(self):
        return lambda rows: np.sum(rows, axis=1)

    def run_inference(self, batch, model, inference_args=None):
        return self.results_of(batch, model(batch), "sums")


def test_results_of_returns_split_or_unsplit_results():
    assert [r.inference for r in Sums().predict(list(ROWS))] == [1, 5, 9]
    [result] = Sums().with_no_batching(whole_results=True).predict([ROWS])
    assert result.inference.tolist() == [1, 5, 9]
    rows = Sums().with_no_batching(whole_results=True).with_no_batching().predict([ROWS])
    assert [r.inference for r in rows] == [1, 5, 9]


def test_each_call_gets_a_copy_of_inference_args():
    seen = []

    class Adding(Sums):
        def run_inference(self, batch, model, inference_args=None):
            inference_args["plus"] += 1
            seen.append(inference_args["plus"])
            return super().run_inference(batch, model)

    Adding().with_no_batching(whole_results=True).predict([ROWS, ROWS], {"plus": 1})
    assert seen == [2, 2]
