"""Results own their memory: they can be modified, and a model may reuse its output."""

from __future__ import annotations

import array
import collections
import dataclasses

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch

from common import FunctionHandler
from runinference import KeyedModelHandler, ModelHandler, PredictionResult
from runinference.collate.memory import copy_value
from runinference.collate.unbatch import unbatch, unbatch_results

Pair = collections.namedtuple("Pair", ["first", "second"])


@dataclasses.dataclass(frozen=True)
class Frozen:
    scores: np.ndarray
    name: str = "a"


class ListSubclass(list):
    pass


ARRAY = np.arange(3.0)
TENSOR = torch.arange(3.0)


@pytest.mark.parametrize(
    "value",
    [
        ARRAY,
        ARRAY[:2],
        TENSOR,
        TENSOR[:1],
        np.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f8")])[0],
        np.ma.array([1, 2], mask=[0, 1]),
        [ARRAY],
        (ARRAY, "a"),
        {"a": {"b": TENSOR}},
        collections.OrderedDict(a=ARRAY),
        Pair(ARRAY, None),
        Frozen(ARRAY),
        {1, 2},
        bytearray(b"a"),
        pd.DataFrame({"a": [1, 2]}),
        scipy.sparse.csr_matrix(np.eye(2)),
        PredictionResult(1, ARRAY),
        ListSubclass([ARRAY]),
        collections.deque([ARRAY, TENSOR], maxlen=2),
        collections.UserList([ARRAY]),
        array.array("d", [1, 2]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_copies_what_can_be_modified_and_keeps_its_type(value):
    copied = copy_value(value)
    assert copied is not value
    assert type(copied) is type(value)
    assert repr(copied) == repr(value)


@pytest.mark.parametrize("value", [1, "a", None, b"a", np.float32(1), (1, "a"), object, len])
def test_returns_values_that_cannot_be_modified_as_they_are(value):
    assert copy_value(value) is value


@pytest.mark.parametrize(
    "make", [ListSubclass, collections.deque, collections.UserList, collections.UserDict]
)
def test_items_of_containers_are_copied(make):
    value = {"a": ARRAY} if make is collections.UserDict else [ARRAY]
    copied = copy_value(make(value))
    [item] = copied.values() if make is collections.UserDict else copied
    assert not np.shares_memory(item, ARRAY)


def test_a_parameter_of_the_model_is_copied_to_a_tensor():
    parameter = torch.nn.Parameter(torch.ones(()))
    for row in unbatch({"rows": np.eye(2), "temperature": parameter}, 2):
        row["temperature"] += 1
        assert type(row["temperature"]) is torch.Tensor
    assert float(parameter) == 1


def test_structured_rows_are_no_views():
    output = np.array([(1, 2.0), (3, 4.0)], dtype=[("a", "i4"), ("b", "f8")])
    rows = unbatch(output, 2)
    output["a"] = 0
    assert [row["a"] for row in rows] == [1, 3]
    assert all(row.base.nbytes == row.nbytes for row in rows)


@pytest.mark.parametrize(
    "scalar",
    [torch.tensor(1.0), np.array(1.0), {"a": torch.tensor(1.0)}, (np.array(1.0),)],
    ids=repr,
)
def test_each_result_has_its_own_scalar(scalar):
    rows = unbatch({"rows": np.eye(3), "scalar": scalar}, 3)
    leaves = [row["scalar"] for row in rows]
    while isinstance(leaves[0], (dict, tuple)):
        leaves = [leaf["a"] if isinstance(leaf, dict) else leaf[0] for leaf in leaves]
    leaves[0] += 1
    assert [float(leaf) for leaf in leaves] == [2, 1, 1]


def test_results_of_a_handler_that_works_in_inference_mode_can_be_modified():
    class InferenceMode(ModelHandler):
        def load_model(self):
            return torch.nn.Identity()

        @torch.inference_mode()
        def run_inference(self, batch, model, inference_args=None):
            return self.results_of(batch, {"x": model(torch.stack(batch)), "n": torch.tensor(1.0)})

    for result in InferenceMode().predict([torch.ones(2), torch.ones(2)]):
        result.inference["x"] += 1
        result.inference["n"] += 1
        assert (result.inference["x"].tolist(), float(result.inference["n"])) == ([2, 2], 2)


class Reused(ModelHandler):
    """Writes each output into the same array, and returns it in some form."""

    def __init__(self, form, **options):
        super().__init__(**options)
        self.form = form

    def load_model(self):
        return np.empty((2, 3))

    def run_inference(self, batch, model, inference_args=None):
        model[: len(batch)] = batch
        return self.form(batch, model[: len(batch)])


FORMS = {
    "results": lambda batch, rows: [PredictionResult(*x) for x in zip(batch, rows, strict=True)],
    "rows": lambda batch, rows: list(rows),
    "iterator": lambda batch, rows: iter(rows),
    "deques": lambda batch, rows: [collections.deque([row]) for row in rows],
    "dictionaries": lambda batch, rows: [{"x": row} for row in rows],
    "array": lambda batch, rows: rows,
    "dictionary": lambda batch, rows: {"x": rows},
}


@pytest.mark.parametrize("form", FORMS)
def test_a_model_may_reuse_its_output(form):
    examples = [np.full(3, float(i)) for i in range(6)]
    handler = Reused(FORMS[form], min_batch_size=2, max_batch_size=2)
    keyed = KeyedModelHandler(handler).predict(list(enumerate(examples)))
    for results in (handler.predict(examples), [result for _, result in keyed]):
        found = [getattr(result, "inference", result) for result in results]
        found = [x["x"] if isinstance(x, dict) else x for x in found]
        found = [x[0] if isinstance(x, collections.deque) else x for x in found]
        assert [x.tolist() for x in found] == [x.tolist() for x in examples]


@pytest.mark.parametrize(
    "form", [lambda batch, rows: rows, lambda batch, rows: PredictionResult(batch, (rows, "m"))]
)
def test_unsplit_results_own_their_memory(form):
    handler = Reused(form).with_no_batching(whole_results=True)
    for i, result in enumerate(handler.predict([np.zeros((2, 3)), np.ones((2, 3))])):
        rows = result.inference[0] if hasattr(result, "inference") else result
        assert rows.tolist() == np.full((2, 3), i).tolist()


def test_an_example_in_a_result_is_not_copied():
    example = np.ones(2)
    [result] = FunctionHandler(lambda batch: [PredictionResult(batch[0], 1)]).predict([example])
    assert result.example is example
    assert unbatch_results(iter([example]), 1)[0] is not example
