"""The conformance kit: a good handler passes all checks, and each fault fails one check."""

from __future__ import annotations

import sqlite3

import numpy as np
import pytest
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
    assert faulty.fix in fault.cure
    assert str(raised.value).startswith(f"{faulty.__name__} fails 1 of ")
    assert f"{fault.check}: {fault.wrong}\n    Fix: {fault.cure}" in str(raised.value)


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
