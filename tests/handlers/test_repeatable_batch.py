"""Calls that follow a failed one get the elements as they came, even if the failed call modified them."""

from __future__ import annotations

import dataclasses
import threading

import numpy as np
import pandas as pd
import pytest
import torch

from runinference import KeyedModelHandler, ModelHandler
from runinference.errors import UnrepeatableBatchError
from runinference.handlers.error_policy import Failure
from runinference.handlers.repeatable_batch import RepeatableBatch
from runinference.transforms.engine import InferenceEngine
from runinference.transforms.run_inference import RunInference
from serving import workers


@dataclasses.dataclass
class Row:
    values: list[float]


@dataclasses.dataclass
class Unpicklable(Row):
    def __reduce__(self):
        raise TypeError("cannot be pickled")

    def __deepcopy__(self, memo):
        return type(self)(list(self.values))


class Uncopyable(Unpicklable):
    def __deepcopy__(self, memo):
        raise TypeError("cannot be copied")


def halve_array(x):
    x /= 2
    return float(x.sum())


def halve_frame(x):
    x["a"] = x["a"] / 2
    return float(x["a"].sum())


def halve_list(x):
    x[:] = [n / 2 for n in x]
    return float(sum(x))


def halve_dict(x):
    return halve_array(x["deep"][0]["x"])


def halve_row(x):
    return halve_list(x.values)


def halve_structured_row(x):
    x["f0"], x["f1"] = x["f0"] / 2, x["f1"] / 2
    return float(x["f0"] + x["f1"])


def halve_tensor_shape(x):
    x /= 2
    x.unsqueeze_(0)
    return float(x.sum())


def array(n):
    return np.full(2, float(n))


# Each example of number n holds 2 n; a function halves it in place and returns the sum, which is n.
KINDS = {
    "array": (array, halve_array),
    "array of objects": (lambda n: array(n).astype(object), halve_array),
    "strided array": (lambda n: np.full((4, 2), float(n))[::2, 1], halve_array),
    "tensor": (lambda n: torch.full((2,), float(n)), halve_tensor_shape),
    "list": (lambda n: [float(n), float(n)], halve_list),
    "nested": (lambda n: {"deep": ({"x": array(n)},)}, halve_dict),
    "series": (lambda n: pd.Series(array(n)), halve_array),
    "frame": (lambda n: pd.DataFrame({"a": array(n)}), halve_frame),
    "row of a structured array": (
        lambda n: np.array([(n, n)], dtype="f8, f8")[0],
        halve_structured_row,
    ),
    "record": (lambda n: np.rec.array([(n, n)], dtype="f8, f8")[0], halve_structured_row),
    "frame of lists": (
        lambda n: pd.DataFrame({"a": [[float(n), float(n)]]}),
        lambda x: halve_list(x["a"].iloc[0]),
    ),
    "dataclass": (lambda n: Row([float(n), float(n)]), halve_row),
    "unpicklable": (lambda n: Unpicklable([float(n), float(n)]), halve_row),
    "bytearray": (
        lambda n: bytearray([n, n]),
        lambda x: x.__setitem__(slice(None), [n // 2 for n in x]) or float(sum(x)),
    ),
}


class Halving(ModelHandler):
    """Halves examples in place, and fails like ``error`` if the first call of a batch has ``bad`` in it."""

    def __init__(self, halve, error=ValueError, bad=6, max_size=100, **options):
        super().__init__(**options)
        self.halve, self.error, self.bad, self.max_size = halve, error, bad, max_size

    def load_model(self):
        return None

    def run_inference(self, batch, model, inference_args=None):
        sums = [self.halve(x) for x in batch]
        if self.bad in sums or len(batch) > self.max_size:
            raise self.error(f"{len(batch)} examples")
        return sums


def infer(handler, examples, dead_letters=True):
    transform = RunInference(handler)
    if dead_letters:
        transform = transform.with_exception_handling()
    engine = InferenceEngine(transform._config())
    outcomes = workers.infer(engine, engine.router.route(("", "")), examples)
    return [outcome.example if isinstance(outcome, Failure) else outcome for outcome in outcomes]


NUMBERS = [2, 4, 6, 8, 10]


@pytest.mark.parametrize("kind", KINDS)
def test_elements_beside_one_that_fails_are_predicted_from_what_came(kind):
    make, halve = KINDS[kind]
    outcomes = infer(Halving(halve), [make(n) for n in NUMBERS])
    assert [o for o in outcomes if isinstance(o, float)] == [2.0, 4.0, 8.0, 10.0]
    assert halve(outcomes[2]) == 6.0  # the dead letter has the element as it came


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("path", ["pipeline", "predict", "predict pre-batched"])
def test_a_batch_that_does_not_fit_into_memory_is_halved_as_it_came(kind, path):
    make, halve = KINDS[kind]
    handler = Halving(halve, MemoryError, bad=None, max_size=2, min_batch_size=5)
    examples = [make(n) for n in NUMBERS]
    if path == "pipeline":
        found = infer(handler, examples, dead_letters=False)
    elif path == "predict":
        found = handler.predict(examples)
    else:
        found = handler.with_no_batching().predict([examples])
    assert found == [float(n) for n in NUMBERS]


def test_whole_retries_get_what_came():
    calls = []

    class Unreachable(Halving):
        def run_inference(self, batch, model, inference_args=None):
            results = super().run_inference(batch, model)
            calls.append(results)
            if len(calls) == 1:
                raise ConnectionError("try again")
            return results

    assert infer(Unreachable(halve_array, bad=None), [array(n) for n in NUMBERS]) == [
        float(n) for n in NUMBERS
    ]
    assert calls[0] == calls[1]


def test_a_table_as_a_batch_is_retried_as_it_came():
    class Tables(Halving):
        def run_inference(self, batch, model, inference_args=None):
            batch /= 2
            sums = [float(row.sum()) for row in batch]
            if self.bad in sums:
                raise ValueError("bad")
            return sums

    outcomes = infer(Tables(None).with_no_batching(), np.stack([array(n) for n in NUMBERS]))
    assert [o for o in outcomes if isinstance(o, float)] == [2.0, 4.0, 8.0, 10.0]
    assert outcomes[2].tolist() == [6.0, 6.0]


class Frames(Halving):
    """Halves the frames and series of a pre-batched pipeline in place."""

    def run_inference(self, batch, model, inference_args=None):
        column = batch["a"] if batch.ndim > 1 else batch
        sums = [self.halve(x) if isinstance(x, list) else float(x) for x in column]
        if self.bad in sums or len(sums) > self.max_size:
            raise self.error(f"{len(sums)} rows")
        return sums


LISTS = [[float(n), float(n)] for n in NUMBERS]
TABLES = {
    "lists": lambda: pd.DataFrame({"a": [list(x) for x in LISTS]}),
    "series of lists": lambda: pd.Series([list(x) for x in LISTS]),
    "labels that are positions": lambda: pd.DataFrame({"a": NUMBERS}, [0.0, 1.0, 2.0, 3.0, 4.0]),
    "descending labels": lambda: pd.DataFrame({"a": NUMBERS}, [9.0, 7.0, 5.0, 3.0, 1.0]),
    "labels of a series": lambda: pd.Series(NUMBERS, [10.5, 20.5, 30.5, 40.5, 50.5]),
    "numbers as labels": lambda: pd.Series(NUMBERS, [4, 3, 2, 1, 0]),
}


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_a_frame_as_a_batch_is_divided_by_position_as_it_came(table):
    outcomes = infer(Frames(halve_list).with_no_batching(), table())
    assert [o for o in outcomes if isinstance(o, float)] == [2.0, 4.0, 8.0, 10.0]
    frame = outcomes[2]
    assert (frame["a"].iloc[0] if isinstance(frame, pd.DataFrame) else frame) in (6, [6.0, 6.0])
    by_memory = Frames(halve_list, MemoryError, bad=None, max_size=2).with_no_batching()
    assert by_memory.predict([table()]) == [float(n) for n in NUMBERS]


class UnpicklingError(ValueError):
    """An element that is an exception with two arguments, whose pickle can't be loaded."""

    def __init__(self, text, values):
        super().__init__(text)
        self.values = values


def test_elements_that_cannot_be_unpickled_fail_together_with_a_hint():
    handler = Halving(halve_row)
    transform = RunInference(handler).with_exception_handling()
    engine = InferenceEngine(transform._config())
    route = engine.router.route(None)
    examples = [UnpicklingError("", [float(n)] * 2) for n in NUMBERS]
    for outcome in workers.infer(engine, route, examples):
        assert isinstance(outcome.error, UnrepeatableBatchError)
        assert isinstance(outcome.error.__cause__, ValueError)
    [alone] = workers.infer(engine, route, [UnpicklingError("", [6.0, 6.0])])
    assert type(alone.error) is ValueError
    assert type(alone.example) is UnpicklingError


def test_frames_of_objects_that_cannot_be_pickled_are_not_shared():
    examples = [pd.DataFrame({"a": [Unpicklable([float(n)] * 2)]}) for n in NUMBERS]
    outcomes = infer(Halving(lambda x: halve_row(x["a"].iloc[0])), examples)
    assert not [o for o in outcomes if isinstance(o, float)]


def test_keys_do_not_change_that():
    examples = [("k", array(n)) for n in NUMBERS]
    outcomes = infer(KeyedModelHandler(Halving(halve_array)), examples)
    assert outcomes.pop(2)[1].tolist() == [6.0, 6.0]
    assert outcomes == [("k", float(n)) for n in (2, 4, 8, 10)]


def test_elements_that_cannot_be_copied_fail_together_with_a_hint():
    transform = RunInference(Halving(halve_row)).with_exception_handling()
    engine = InferenceEngine(transform._config())
    outcomes = workers.infer(
        engine, engine.router.route(None), [Uncopyable([float(n)] * 2) for n in NUMBERS]
    )
    for outcome in outcomes:
        assert isinstance(outcome.error, UnrepeatableBatchError)
        assert isinstance(outcome.error.__cause__, ValueError)
        assert "may_modify_examples" in str(outcome.error)


def test_a_handler_that_modifies_nothing_can_say_so():
    class Careful(Halving):
        def may_modify_examples(self):
            return False

    examples = [Uncopyable([float(n)] * 2) for n in NUMBERS]
    outcomes = infer(Careful(lambda x: x.values[0]), examples)
    assert [o for o in outcomes if isinstance(o, float)] == [2.0, 4.0, 8.0, 10.0]


def test_a_subclass_that_overrides_run_inference_is_not_trusted():
    from runinference.sklearn_inference import SklearnModelHandlerNumpy

    class Own(SklearnModelHandlerNumpy):
        def run_inference(self, batch, model, inference_args=None):
            return batch

    def own_function(model, batch, inference_args=None):
        return batch

    assert not SklearnModelHandlerNumpy("x").may_modify_examples()
    assert SklearnModelHandlerNumpy("x", inference_fn=own_function).may_modify_examples()
    assert Own("x").may_modify_examples()


def test_immutable_elements_are_not_copied():
    for elements in (["a", "b"], [1, 2.5, None], [("k", "text"), ("k", 1)]):
        batch = RepeatableBatch(elements)
        assert batch.take() is elements
        assert all(a is b for a, b in zip(batch.take(), elements, strict=True))


def test_threads_that_share_a_call_repeat_it_with_what_came():
    """Dynamic batching: a combined call that fails is repeated for each batch."""
    entered, resume = threading.Event(), threading.Event()

    class Busy(Halving):
        def may_join_threads(self):
            return True

        def run_inference(self, batch, model, inference_args=None):
            if len(batch) == 1 and batch[0][0] == 0:
                entered.set()
                assert resume.wait(30)
            return super().run_inference(batch, model)

    config = RunInference(Busy(halve_array, min_batch_size=9)).with_exception_handling()._config()
    engines = [InferenceEngine(config) for _ in range(3)]
    found = {}

    def work(engine, number):
        [found[number]] = workers.infer(engine, engine.router.route(None), [array(number)])

    threads = [
        threading.Thread(target=work, args=pair) for pair in zip(engines, (0, 6, 8), strict=True)
    ]
    threads[0].start()
    assert entered.wait(30)
    for thread in threads[1:]:
        thread.start()
    model_calls = engines[0].session.registry
    version = engines[0].router.route(None)
    while len(model_calls.dynamic_batcher_for(config.session.models.name, version)._queue) < 2:
        pass
    resume.set()
    for thread in threads:
        thread.join(30)
    assert (found[0], found[8]) == (0.0, 8.0)
    assert found[6].example.tolist() == [6.0, 6.0]
