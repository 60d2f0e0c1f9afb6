"""An error that shows which elements are bad costs few model calls."""

from __future__ import annotations

import pickle

import numpy as np
import pandas as pd
import pytest

from runinference import KeyedModelHandler, ModelHandler, samples
from runinference.errors import BatchShapeError, ElementError, get_failing_index
from runinference.handlers.error_policy import Failure
from runinference.handlers.suspects import find_suspects
from runinference.sklearn_inference import SklearnModelHandlerNumpy
from runinference.transforms.engine import InferenceEngine
from runinference.transforms.run_inference import RunInference
from serving import workers

NAN = "Input X contains NaN."


def make_rows(n, bad, change):
    images, _ = samples.held_out_digits()
    rows = [row.astype(float) for row in images[:n]]
    for index in bad:
        rows[index] = change(rows[index])
    return rows


def with_nan(row):
    return np.where(np.arange(len(row)) == 5, np.nan, row)


CHANGES = {
    "NaN": with_nan,
    "infinity": lambda row: row + np.inf,
    "another shape": lambda row: row[:-1],
    "another type": lambda row: {"no": "row"},
}


class Counting:
    """Calls the estimator as the handler does by default, and counts the calls."""

    def __init__(self):
        self.n_calls = 0

    def __call__(self, model, batch, inference_args=None):
        self.n_calls += 1
        return model.predict(np.stack(batch))


def infer(handler, batch):
    engine = InferenceEngine(RunInference(handler).with_exception_handling()._config())
    return workers.infer(engine, engine.router.route(batch[0]), batch)


def find_failures(outcomes):
    return [i for i, outcome in enumerate(outcomes) if isinstance(outcome, Failure)]


@pytest.mark.parametrize("is_keyed", [False, True])
@pytest.mark.parametrize("bad", [[17], [0, 63], [3, 4, 5]])
@pytest.mark.parametrize("change", CHANGES)
def test_exactly_the_bad_rows_fail_with_their_own_errors(change, bad, is_keyed):
    handler = SklearnModelHandlerNumpy(samples.digits_classifier())
    rows = make_rows(64, bad, CHANGES[change])
    alone = [infer(handler, [rows[index]])[0] for index in bad]
    if is_keyed:
        handler, rows = KeyedModelHandler(handler), [("key", row) for row in rows]
    outcomes = infer(handler, rows)
    assert find_failures(outcomes) == bad
    for index, own in zip(bad, alone, strict=True):
        assert repr(outcomes[index].error) == repr(own.error)


@pytest.mark.parametrize("is_keyed", [False, True])
@pytest.mark.parametrize("bad", [[0], [17], [17, 40, 63]])
def test_rows_with_nan_cost_one_call_each_and_one_for_all_others(bad, is_keyed):
    count = Counting()
    handler = SklearnModelHandlerNumpy(samples.digits_classifier(), inference_fn=count)
    rows = make_rows(64, bad, with_nan)
    if is_keyed:
        handler, rows = KeyedModelHandler(handler), [("key", row) for row in rows]
    assert find_failures(infer(handler, rows)) == bad
    assert count.n_calls == 1 + len(bad) + 1


def test_a_pre_batched_array_with_nan_costs_three_calls():
    count = Counting()
    handler = SklearnModelHandlerNumpy(samples.digits_classifier(), inference_fn=count)
    rows = np.stack(make_rows(64, [17], with_nan))
    assert find_failures(infer(handler.with_no_batching(), rows)) == [17]
    assert count.n_calls == 3


class Rejecting(ModelHandler):
    """Rejects batches with negative numbers, with an error that names one element."""

    def __init__(self, choose_index, **options):
        super().__init__(**options)
        self.choose_index, self.n_calls = choose_index, 0

    def load_model(self):
        return None

    def run_inference(self, batch, model, inference_args=None):
        self.n_calls += 1
        bad = [index for index, element in enumerate(batch) if element < 0]
        if bad:
            raise ElementError("negative", index=self.choose_index(bad, batch))
        return list(batch)


def test_an_element_that_the_handler_names_costs_two_more_calls():
    handler = Rejecting(lambda bad, batch: bad[0])
    assert find_failures(infer(handler, [1] * 40 + [-1] + [1] * 59)) == [40]
    assert handler.n_calls == 3


@pytest.mark.parametrize(
    "choose_index",
    [lambda bad, batch: 0, lambda bad, batch: len(batch) - 1, lambda bad, batch: 1_000],
    ids=["first", "last", "outside"],
)
def test_a_wrong_index_costs_at_most_twice_the_calls_of_bisection(choose_index):
    handler, numbers = Rejecting(choose_index), [1] * 64
    for index in (20, 21, 50):
        numbers[index] = -1
    assert find_failures(infer(handler, numbers)) == [20, 21, 50]
    assert handler.n_calls <= 2 * (1 + 2 * 3 * 6)


def test_a_batch_in_which_all_elements_are_bad_costs_few_calls_per_element():
    handler = Rejecting(lambda bad, batch: bad[0])
    assert len(find_failures(infer(handler, [-1] * 1_000))) == 1_000
    assert handler.n_calls <= 3_000


@pytest.mark.parametrize(
    "element",
    [
        np.array([1, np.nan]),
        np.array([[1, np.inf]], np.float32),
        [1.0, float("nan")],
        {"a": np.ones(2), "b": float("inf")},
        ("key", np.array([np.nan])),
        pd.DataFrame({"a": [np.nan]}),
    ],
    ids=repr,
)
def test_finds_numbers_that_are_not_finite_in_any_structure(element):
    assert find_suspects(ValueError(NAN), ["text", element, 3, 4.5]) == [1]


def test_other_errors_and_finite_elements_have_no_suspects():
    bad = [np.array([np.nan]), np.array([1.0]), np.array([1.0])]
    assert find_suspects(ValueError(NAN), bad) == [0]
    assert find_suspects(ValueError("the financial nanny"), bad) == []
    assert find_suspects(ValueError(NAN), bad[1:]) == []
    assert find_suspects(ValueError(NAN), bad[:1] + bad[:1] + bad[1:2]) == []


class Hostile:
    def __getattr__(self, name):
        raise RuntimeError(name)


def test_elements_that_cannot_be_examined_have_no_suspects():
    looped: list = []
    looped.append(looped)
    assert find_suspects(ValueError(NAN), [Hostile(), looped, object()]) == []


@pytest.mark.parametrize("kind", [ElementError, BatchShapeError])
def test_an_error_keeps_the_index_of_its_element(kind):
    error = pickle.loads(pickle.dumps(kind("bad", index=3)))
    assert (str(error), get_failing_index(error)) == ("bad", 3)
    assert get_failing_index(kind("bad")) is None
