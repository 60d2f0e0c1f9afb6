"""The conformance kit: a good handler passes all checks, and each fault fails one check."""

from __future__ import annotations

import collections
import dataclasses
import datetime
import random
import sqlite3
import threading
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch

from runinference import KeyedModelHandler, ModelHandler, PredictionResult
from runinference.testing import HandlerFaultsError, check_handler

NUMBERS = [1.0, 5.0, 3.0, 2.0]


class Good(ModelHandler):
    """Multiplies numbers by the one in its path."""

    def __init__(self, path="2", **options):
        super().__init__(**options)
        self.path = path

    def load_model(self):
        return float(self.path)

    def update_model_path(self, model_path=None):
        self.path = model_path or self.path

    def run_inference(self, batch, model, inference_args=None):
        plus = (inference_args or {}).get("plus", 0)
        return [PredictionResult(x, x * model + plus, self.path) for x in batch]


def test_a_good_handler_passes_every_check():
    report = check_handler(
        Good(), NUMBERS, inference_args={"plus": 1}, bad_example="x", updated_path="3"
    )
    assert len(report.passed) == 12
    assert report.skipped == {}


def test_the_report_lists_skipped_checks():
    report = check_handler(Good(), [1.0, 1.0, 1.0])
    assert report.skipped == {
        "order": "needs examples with different results",
        "errors": "needs bad_example",
        "updates": "needs updated_path",
    }


def test_a_handler_written_for_beam_can_be_checked():
    class Beams:
        def load_model(self):
            return float

        def run_inference(self, batch, model, inference_args=None):
            return map(model, batch)

        def get_num_bytes(self, batch):
            return 8 * len(batch)

        def get_metrics_namespace(self):
            return "Beams"

    assert "splitting" in check_handler(Beams(), NUMBERS).passed


def test_a_keyed_handler_can_be_checked():
    pairs = list(zip("abcd", NUMBERS, strict=True))
    report = check_handler(
        KeyedModelHandler(Good()), pairs, bad_example=("e", "x"), updated_path="3"
    )
    assert report.skipped == {}


class LoadsNothing(Good):
    check, fix = "loading", "Return the model"

    def load_model(self):
        pass


class FailsToLoad(Good):
    check, fix = "loading", "predict"

    def load_model(self):
        raise FileNotFoundError(self.path)


class DropsResults(Good):
    check, fix = "splitting", "one result for each element"

    def run_inference(self, batch, model, inference_args=None):
        return super().run_inference(batch, model, inference_args)[:3]


class DependsOnBatch(Good):
    check, fix = "batching", "no mean over the batch"

    def run_inference(self, batch, model, inference_args=None):
        return np.array(batch) - np.mean(batch)


class Sorts(Good):
    check, fix = "order", "in the order of the batch"

    def run_inference(self, batch, model, inference_args=None):
        return super().run_inference(sorted(batch), model, inference_args)


class ReturnsViews(Good):
    check, fix = "memory", "row.copy"

    def run_inference(self, batch, model, inference_args=None):
        rows = np.outer(batch, np.ones(3))
        return [PredictionResult(x, row, self.path) for x, row in zip(batch, rows, strict=True)]


class GivesTensorViews(ReturnsViews):
    def run_inference(self, batch, model, inference_args=None):
        rows = torch.outer(torch.tensor(batch), torch.ones(3))
        return [PredictionResult(x, row, self.path) for x, row in zip(batch, rows, strict=True)]


class SharesAResult(Good):
    check, fix = "memory", "row.copy"

    def run_inference(self, batch, model, inference_args=None):
        rows = np.ones(3)
        return [{"x": x * model, "all": rows} for x in batch]


class SharesATensor(SharesAResult):
    def run_inference(self, batch, model, inference_args=None):
        scale = torch.ones(())
        return [{"x": x * model, "scale": scale} for x in batch]


class ReusesItsOutput(Good):
    check, fix = "memory", "new output for each call"

    def load_model(self):
        return [np.zeros(1) for _ in range(100)]

    def run_inference(self, batch, model, inference_args=None):
        for x, row in zip(batch, model, strict=False):
            row[0] = 2 * x
        return model[: len(batch)]


class GivesOutTheModel(Good):
    check, fix = "memory", "Return a copy"

    def load_model(self):
        return {x: np.array([x]) for x in NUMBERS}

    def run_inference(self, batch, model, inference_args=None):
        return [model[x] for x in batch]


class DependsOnItsNeighbor(Good):
    """The longest text of a batch, that is, only some batches of two, changes the result of the others."""

    check, fix = "batching", "padding without a mask"
    examples = ["a", "bb", "cc", "ddddd"]

    def run_inference(self, batch, model, inference_args=None):
        longest = max(map(len, batch))
        return [(x, longest == 5 and len(x) == 1) for x in batch]


class DependsOnTheBatchSize(Good):
    check, fix = "batching", "other elements of the batch"

    def run_inference(self, batch, model, inference_args=None):
        return [x * model + (len(batch) > 4) for x in batch]


class KeepsAState(Good):
    check, fix = "batching", "independent of earlier calls"

    def load_model(self):
        return [0]

    def run_inference(self, batch, model, inference_args=None):
        model[0] += len(batch)
        return [x + model[0] for x in batch]


class ChangesExamplesOfFailures(Good):
    check, fix = "errors", "Change a copy"
    examples = [np.array([x]) for x in NUMBERS]

    def run_inference(self, batch, model, inference_args=None):
        for x in batch:
            x *= 2
        results = [float(x[0]) for x in batch]
        for x in batch:
            x /= 2
        return results


class ChangesAnAttributeOfExamples(Good):
    check, fix = "examples", "Change a copy"
    examples = [collections.Counter({"x": int(x)}) for x in NUMBERS]

    def run_inference(self, batch, model, inference_args=None):
        results = [x["x"] for x in batch]
        for x in batch:
            x["seen"] = 1
        return results


class ChangesExamples(Good):
    check, fix = "examples", "Change a copy"
    examples = [np.array([x]) for x in NUMBERS]

    def run_inference(self, batch, model, inference_args=None):
        results = [x * 2 for x in batch]
        batch[0] += 1e-4  # so small that results are the same
        batch[0] -= 2e-4
        batch[0][0] = round(float(batch[0][0])) + 0.01
        return [np.round(row) for row in results]


class ChangesArguments(Good):
    check, fix = "arguments", "inference_args"

    def run_inference(self, batch, model, inference_args=None):
        inference_args = inference_args if inference_args is not None else {}
        inference_args["seen"] = True
        return super().run_inference(batch, model, {})


class ReturnsBytesAsText(Good):
    check, fix = "metrics", "number of bytes"

    def get_num_bytes(self, batch):
        return "8"


class SwallowsErrors(Good):
    check, fix = "errors", "Raise an error"

    def run_inference(self, batch, model, inference_args=None):
        return [x * model if isinstance(x, float) else None for x in batch]


class RemembersFailures(Good):
    check, fix = "errors", "keep nothing of a batch that failed"

    def load_model(self):
        return []

    def run_inference(self, batch, model, inference_args=None):
        if "x" in batch:
            model.append("x")
            raise ValueError("x")
        return [0.0 if model else 2 * x for x in batch]


class ChangesItself(Good):
    check, fix = "handler", "return value of load_model()"

    def load_model(self):
        self.model = super().load_model()
        return self.model


class ChangesAList(Good):
    check, fix = "handler", "shared by threads"

    def __init__(self):
        super().__init__()
        self.calls = []

    def run_inference(self, batch, model, inference_args=None):
        self.calls.append(len(batch))
        return super().run_inference(batch, model, inference_args)


class HoldsAConnection(Good):
    check, fix = "pickling", "load_model"

    def __init__(self):
        super().__init__()
        self.connection = sqlite3.connect(":memory:")


class LosesPathWhenPickled(Good):
    check, fix = "pickling", "__getstate__"

    def __getstate__(self):
        return {**vars(self), "path": "7"}


class IgnoresUpdates(Good):
    check, fix = "updates", "Store the path"

    def update_model_path(self, model_path=None):
        pass


class NamesTheOldModel(Good):
    check, fix = "updates", "model_id"

    def run_inference(self, batch, model, inference_args=None):
        return [PredictionResult(x, x * model, "2") for x in batch]


FAULTY = [
    LoadsNothing,
    FailsToLoad,
    DropsResults,
    DependsOnBatch,
    Sorts,
    ReturnsViews,
    GivesTensorViews,
    SharesAResult,
    SharesATensor,
    ReusesItsOutput,
    GivesOutTheModel,
    DependsOnItsNeighbor,
    DependsOnTheBatchSize,
    KeepsAState,
    ChangesExamplesOfFailures,
    ChangesAnAttributeOfExamples,
    ChangesExamples,
    ChangesArguments,
    ReturnsBytesAsText,
    SwallowsErrors,
    RemembersFailures,
    ChangesItself,
    ChangesAList,
    HoldsAConnection,
    LosesPathWhenPickled,
    IgnoresUpdates,
    NamesTheOldModel,
]
#: Arguments that only one check needs.
ARGUMENTS = {"errors": {"bad_example": "x"}, "updates": {"updated_path": "3"}}


@pytest.mark.parametrize("faulty", FAULTY, ids=lambda faulty: faulty.__name__)
def test_each_fault_fails_one_check_with_a_fix(faulty):
    examples = getattr(faulty, "examples", NUMBERS)
    with pytest.raises(HandlerFaultsError) as raised:
        check_handler(faulty(), examples, **ARGUMENTS.get(faulty.check, {}))
    [fault] = raised.value.faults
    assert fault.check == faulty.check
    assert faulty.fix in fault.hint
    assert str(raised.value).startswith(f"{faulty.__name__} fails 1 of ")
    assert f"{fault.check}: {fault.wrong}\n    Fix: {fault.hint}" in str(raised.value)


def test_the_report_names_attributes_that_cannot_be_pickled():
    with pytest.raises(HandlerFaultsError, match="cannot be sent to workers .*: connection"):
        check_handler(HoldsAConnection(), NUMBERS)


def test_the_error_lists_all_faults():
    class Several(ChangesItself, ChangesArguments):
        pass

    with pytest.raises(HandlerFaultsError) as raised:
        check_handler(Several(), NUMBERS)
    assert [fault.check for fault in raised.value.faults] == ["arguments", "handler"]
    assert isinstance(raised.value, AssertionError)


def test_uses_a_custom_comparison():
    with pytest.raises(HandlerFaultsError, match="batching"):
        check_handler(DependsOnBatch(), NUMBERS)
    check_handler(DependsOnBatch(), NUMBERS, same=lambda a, b: np.shape(a) == np.shape(b))


def test_too_few_examples_raise_an_error():
    with pytest.raises(ValueError, match="three examples or more, with different results, not 1"):
        check_handler(Good(), [1.0])


def test_a_class_and_other_objects_are_rejected():
    for wrong in (Good, "model.pkl", None):
        with pytest.raises(ValueError, match="check_handler"):
            check_handler(wrong, NUMBERS)


class Echo(Good):
    """Returns what a function makes of each example."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def run_inference(self, batch, model, inference_args=None):
        return [PredictionResult(x, self.function(x)) for x in batch]


class Document:
    """An object that compares by identity."""

    def __init__(self, text, links=()):
        self.text = text
        self.links = list(links)


class Slotted:
    __slots__ = ("__weakref__", "text")

    def __init__(self, text):
        self.text = text


@dataclasses.dataclass
class Measured:
    """A dataclass whose comparison is ambiguous."""

    values: Any
    name: str = "a"


def _cyclic(text):
    document = Document(text)
    document.links.append(document)
    return document


def _frame(n):
    missing = np.array(["a", np.nan, None], dtype=object)
    return pd.DataFrame(
        {"name": missing, "n": n, "time": pd.NaT, "kind": pd.Categorical(["x", None, "y"])}
    )


def _tensor(n):
    return torch.tensor([float(n), float("nan")])


#: Examples without ``__eq__``, or with one that is ambiguous or not reflexive, and a function of an example.
EXAMPLES = {
    "objects": ([Document(x) for x in "abc"], lambda x: x.text),
    "nested objects": ([Document(x, [Document(x)]) for x in "abc"], lambda x: x.links[0].text),
    "cyclic objects": ([_cyclic(x) for x in "abc"], lambda x: x.text),
    "slots": ([Slotted(x) for x in "abc"], lambda x: x.text),
    "dataclasses of arrays": ([Measured(np.full(2, n)) for n in range(3)], lambda x: x.values[0]),
    "dataclasses of tensors": ([Measured(_tensor(n)) for n in range(3)], lambda x: x.values[0]),
    "arrays with nan": ([np.array([n, np.nan]) for n in range(3)], lambda x: x[0]),
    "arrays of objects": (
        [np.array([n, None, np.nan, "a", np.zeros(2)], object) for n in range(3)],
        lambda x: x[0],
    ),
    "structured arrays": (
        [np.array([(n, np.nan)], [("a", "i4"), ("b", "f8")]) for n in range(3)],
        lambda x: x["a"][0],
    ),
    "dates": (
        [np.array([n, "NaT"], "datetime64[D]") for n in ("2020-01-01", "2021-01-01", "2022-01-01")],
        lambda x: str(x[0]),
    ),
    "texts": ([np.array([x, "b"]) for x in "abc"], lambda x: str(x[0])),
    "frames": ([_frame(n) for n in range(3)], lambda x: x["n"].sum()),
    "columns": ([_frame(n)["n"] for n in range(3)], lambda x: x.sum()),
    "sparse matrices": (
        [scipy.sparse.csr_matrix(np.eye(2) * n) for n in range(1, 4)],
        lambda x: x.sum(),
    ),
    "tensors": ([_tensor(n) for n in range(3)], lambda x: x[0]),
    "tensors of half precision": (
        [torch.tensor([n], dtype=torch.bfloat16) for n in range(3)],
        lambda x: x * 2,
    ),
    "tensors with gradients": (
        [torch.ones(1, requires_grad=True) * n for n in range(3)],
        lambda x: float(x),
    ),
    "sparse tensors": ([torch.eye(2).to_sparse() * n for n in range(3)], lambda x: x * 1),
    "nested tensors": (
        [torch.nested.nested_tensor([torch.ones(1) * n, torch.ones(2)]) for n in range(3)],
        lambda x: float(x[0]),
    ),
    "sets": ([{n, "a", float("nan")} for n in range(3)], lambda x: len(str(x))),
    "sets of objects": ([{Document(x)} for x in "abc"], lambda x: next(iter(x)).text),
    "queues": ([collections.deque([x]) for x in "abc"], lambda x: x[0]),
    "nan": ([float("nan"), 1.0, 2.0], lambda x: x),
    "locks": ([(threading.Lock(), n) for n in range(3)], lambda x: x[1]),
    "generators": ([(n, (m for m in range(3))) for n in range(3)], lambda x: x[0]),
    "timestamps": ([datetime.datetime(2020, 1, n + 1) for n in range(3)], lambda x: x.day),
    "functions": ([(len, n) for n in range(3)], lambda x: x[1]),
    "bytes": ([bytes([n, 0]) for n in range(3)], lambda x: x[0]),
}


@pytest.mark.parametrize(("examples", "function"), EXAMPLES.values(), ids=EXAMPLES)
def test_right_handlers_are_not_blamed_for_their_examples(examples, function):
    report = check_handler(Echo(function), examples)
    assert {"batching", "examples", "memory"} <= set(report.passed)


#: Results that compare by identity, ambiguously or not reflexively, as functions of a number.
RESULTS = {
    "objects": lambda x: Document(str(x)),
    "slots": lambda x: Slotted(str(x)),
    "dataclasses of arrays": lambda x: Measured(np.array([x, np.nan])),
    "frames": lambda x: _frame(x),
    "columns": lambda x: _frame(x)["n"],
    "sets of objects": lambda x: {Document(str(x))},
    "arrays of objects": lambda x: np.array([x, None, np.nan, "a"], object),
    "structured arrays": lambda x: np.array([(x, np.nan)], [("a", "f4"), ("b", "f8")]),
    "dates": lambda x: np.array([f"{2000 + int(x)}-01-01", "NaT"], "datetime64[D]"),
    "sparse tensors": lambda x: torch.eye(2).to_sparse() * x,
    "tensors of half precision": lambda x: torch.tensor([x], dtype=torch.bfloat16),
    "tensors with gradients": lambda x: torch.tensor([x], requires_grad=True),
    "read-only arrays": lambda x: np.broadcast_to(np.array(x), ()),
    "a constant of the class": lambda x: {"x": x, "names": NAMES},
    "nothing": lambda x: None,
}
NAMES = ["cat", "dog"]


@pytest.mark.parametrize("function", RESULTS.values(), ids=RESULTS)
def test_right_handlers_are_not_blamed_for_their_results(function):
    assert "batching" in check_handler(Echo(function), NUMBERS).passed


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rounding_in_half_precision_is_not_blamed(dtype):
    class Rounds(Good):
        def run_inference(self, batch, model, inference_args=None):
            step = 1 + torch.finfo(dtype).eps * (len(batch) > 1)
            return torch.tensor([[x] for x in batch]).to(dtype) * step

    assert "batching" in check_handler(Rounds(), NUMBERS).passed


def test_checks_that_compare_results_are_skipped_if_results_are_random():
    class Samples(Good):
        def run_inference(self, batch, model, inference_args=None):
            return [x + random.random() for x in batch]

    report = check_handler(Samples(), NUMBERS, bad_example="x", updated_path="3")
    compared = {"batching", "order", "errors", "pickling", "updates"}
    assert report.skipped.keys() == compared
    assert all("vary from call to call" in reason for reason in report.skipped.values())


def test_examples_can_come_from_a_generator():
    assert "examples" in check_handler(Good(), (x for x in NUMBERS)).passed
