"""With exception handling, exactly the failing records become dead letters."""

from __future__ import annotations

import os
import threading

import apache_beam as beam
import numpy as np
import pytest
from apache_beam.metrics import MetricsFilter
from apache_beam.transforms import window
from hypothesis import given, settings
from hypothesis import strategies as st

from common import RUNNER, CollectElements, Doubler, FunctionHandler, linear_regression
from runinference import KeyedModelHandler, KeyModelMapping, ModelHandler, RunInference
from runinference.errors import InferenceTimeoutError, OptionError, TooManyFailuresError
from runinference.sklearn_inference import SklearnModelHandlerNumpy
from transforms.subprocess_models import Crashing, HangingChild


class Outcome:
    """The outputs of a pipeline with exception handling."""

    def __init__(self, elements, handler, *, timed=False, inference=None, **handling) -> None:
        good, bad, before, after = [], [], [], []
        pipeline = beam.Pipeline(runner=RUNNER)
        examples = pipeline | beam.Create(elements, reshuffle=False)
        if timed:
            examples |= beam.Map(lambda n: window.TimestampedValue(n, n)) | beam.WindowInto(
                window.FixedWindows(10)
            )
        transform = (inference or RunInference(handler)).with_exception_handling(**handling)
        results, letters = examples | transform
        results | "good" >> beam.ParDo(CollectElements(good))
        letters.failed_inferences | "bad" >> beam.ParDo(CollectElements(bad))
        for i, failed in enumerate(letters.failed_preprocessing):
            failed | f"before{i}" >> beam.ParDo(CollectElements(before))
        for i, failed in enumerate(letters.failed_postprocessing):
            failed | f"after{i}" >> beam.ParDo(CollectElements(after))
        self.result = pipeline.run()
        self.result.wait_until_finish()
        self.timed = {"good": good, "bad": bad}
        self.good, self.bad, self.before, self.after = map(
            CollectElements.take, (good, bad, before, after)
        )

    def counter(self, name: str) -> int:
        found = self.result.metrics().query(MetricsFilter().with_name(name))["counters"]
        return sum(metric.committed for metric in found)


class Picky(Doubler):
    """Rejects negative numbers."""

    def run_inference(self, batch, model, inference_args=None):
        results = super().run_inference(batch, model, inference_args)
        for number in batch:
            if number < 0:
                raise ValueError(f"negative: {number}")
        return results


def test_one_failing_element_among_many_is_the_only_dead_letter():
    outcome = Outcome([*range(1, 50), -7], Picky("alone", min_batch_size=50, max_batch_size=50))
    assert sorted(result.example for result in outcome.good) == list(range(1, 50))
    [(element, (kind, message, lines))] = outcome.bad
    assert element == -7
    assert kind is ValueError
    assert message == "ValueError('negative: -7')"
    assert "run_inference" in "".join(lines)
    assert outcome.counter("failed_elements") == 1
    assert outcome.counter("num_inferences") == 49
    assert outcome.counter("batch_splits") > 0
    assert outcome.counter("failed_batches_counter") > 0


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(-3, 3), max_size=40), st.integers(1, 16))
def test_exactly_the_failing_elements_become_dead_letters(numbers, size):
    outcome = Outcome(numbers, Picky("any", min_batch_size=size, max_batch_size=size))
    assert sorted(result.example for result in outcome.good) == sorted(n for n in numbers if n >= 0)
    assert sorted(element for element, _ in outcome.bad) == sorted(n for n in numbers if n < 0)


def test_results_and_dead_letters_keep_their_window_and_timestamp():
    outcome = Outcome(
        range(30), FunctionHandler(_refuse_seven, min_batch_size=8, max_batch_size=8), timed=True
    )
    [(letter, stamp, its_window)] = outcome.timed["bad"]
    assert letter[0] == stamp == 17
    assert its_window.start == 10
    for result, stamp, its_window in outcome.timed["good"]:
        assert result == stamp
        assert its_window.start == result // 10 * 10
    assert len(outcome.good) == 29


def _refuse_seven(batch):
    if 17 in batch:
        raise ValueError("seventeen")
    return batch


JUNK = [None, "text", np.zeros((2, 2)), object, {"a": 1}, b"\x00", [], float("nan"), ("k", 1)]


def test_values_of_wrong_types_become_dead_letters(tmp_path):
    handler = SklearnModelHandlerNumpy(linear_regression(tmp_path / "m.pickle"), min_batch_size=16)
    good = [np.array([float(n)]) for n in range(100)]
    mixed = [*good[:50], *JUNK, *good[50:]]
    outcome = Outcome(mixed, handler)
    assert sorted(round(float(result.inference)) for result in outcome.good) == [
        2 * n for n in range(100)
    ]
    assert len(outcome.bad) == len(JUNK)


def test_an_element_whose_weight_fails_becomes_a_dead_letter():
    handler = Doubler("weigh", max_batch_weight=10, element_size_fn=len)
    outcome = Outcome(["ab", 5, "cd"], handler)
    assert sorted(result.inference for result in outcome.good) == ["abab", "cdcd"]
    [(element, (kind, _, _))] = outcome.bad
    assert (element, kind) == (5, TypeError)


def test_preprocess_and_postprocess_functions_have_dead_letters_too():
    handler = Doubler("around").with_preprocess_fn(int).with_postprocess_fn(_refuse_four)
    outcome = Outcome(["1", "x", "2"], handler)
    assert outcome.good == [2]
    assert [element for element, _ in outcome.before] == ["x"]
    assert [element.example for element, _ in outcome.after] == [2]


def _refuse_four(result):
    if result.inference == 4:
        raise ValueError("four")
    return result.inference


class Hostile:
    """Raises an error that is hard to report, which the element names."""

    def __call__(self, element, timestamp=beam.DoFn.TimestampParam):
        if element == "local class":
            raise type("Local", (KeyError,), {})("local")
        if element == "failing repr":
            raise UnshowableError
        if element == "long message":
            raise ValueError("x" * 5_000_000)
        return element


class UnshowableError(Exception):
    def __repr__(self):
        raise RuntimeError("no repr")

    __str__ = __repr__


@pytest.mark.parametrize("handling", [{}, {"timeout": 60}])
@pytest.mark.parametrize("where", ["before", "inference", "after"])
def test_errors_that_are_hard_to_report_are_dead_letters_of_bounded_size(where, handling):
    handler = FunctionHandler(
        lambda batch: [*map(Hostile(), batch)] if where == "inference" else batch
    )
    if where == "before":
        handler = handler.with_preprocess_fn(Hostile())
    if where == "after":
        handler = handler.with_postprocess_fn(Hostile())
    outcome = Outcome(["good", "local class", "failing repr", "long message"], handler, **handling)
    assert outcome.good == ["good"]
    letters = dict({"before": outcome.before, "after": outcome.after}.get(where, outcome.bad))
    assert {element: kind.__name__ for element, (kind, _, _) in letters.items()} == {
        "local class": "KeyError",
        "failing repr": "UnshowableError",
        "long message": "ValueError",
    }
    for _, message, lines in letters.values():
        assert len(message) + len("".join(lines)) < 100_000


def test_errors_of_other_classes_fail_the_pipeline():
    with pytest.raises(ValueError, match="negative"):
        Outcome([-1], Picky("named"), exc_class=KeyError)


@pytest.mark.parametrize(("n_bad", "stops"), [(1, False), (11, True)])
def test_the_threshold_counts_records_not_batches(n_bad, stops):
    numbers = [*range(1, 101 - n_bad), *range(-n_bad, 0)]
    handler = Picky("threshold", min_batch_size=100, max_batch_size=100)
    if stops:
        with pytest.raises(TooManyFailuresError, match="11 of 100 elements failed"):
            Outcome(numbers, handler, threshold=0.1)
    else:
        assert len(Outcome(numbers, handler, threshold=0.1).good) == 99


def test_too_few_results_become_dead_letters():
    outcome = Outcome([1, 2, 3], FunctionHandler(lambda batch: batch[:-1], min_batch_size=3))
    assert len(outcome.bad) == 3
    assert outcome.good == []


def test_an_error_in_a_lazy_result_becomes_a_counted_dead_letter():
    def lazily(batch):
        for element in batch:
            if element == 2:
                raise RuntimeError("failed while it was read")
            yield element

    outcome = Outcome([1, 2, 3], FunctionHandler(lazily, min_batch_size=3))
    assert sorted(outcome.good) == [1, 3]
    assert [element for element, _ in outcome.bad] == [2]
    assert outcome.counter("failed_batches_counter") > 0


def test_a_batch_that_runs_out_of_memory_is_halved():
    def tight(batch):
        if len(batch) > 5:
            raise MemoryError("too many")
        return batch

    handler = FunctionHandler(tight, min_batch_size=40, max_batch_size=40)
    assert sorted(Outcome(range(100), handler).good) == list(range(100))


class Sticky(ModelHandler):
    """Hangs on one element until the test ends, and counts its loads."""

    loads: list[int] = []
    hung = threading.Event()

    def load_model(self):
        self.loads.append(1)
        return len(self.loads)

    def run_inference(self, batch, model, inference_args=None):
        if 13 in batch:
            self.hung.wait(60)
        return [(element, model) for element in batch]


def test_a_call_that_exceeds_the_timeout_is_abandoned_and_the_model_is_reloaded():
    Sticky.loads.clear()
    Sticky.hung.clear()
    outcome = Outcome(range(10, 20), Sticky(min_batch_size=10, max_batch_size=10), timeout=0.3)
    Sticky.hung.set()
    assert sorted(element for element, _ in outcome.good) == [10, 11, 12, 14, 15, 16, 17, 18, 19]
    [(element, (kind, _, _))] = outcome.bad
    assert (element, kind) == (13, InferenceTimeoutError)
    # Two copies that hang, and the one that serves.
    assert len(Sticky.loads) == min(2, outcome.counter("inference_timeouts")) + 1
    assert outcome.counter("failed_batches_counter") >= outcome.counter("inference_timeouts") > 0


def test_a_timeout_error_of_the_handler_is_not_an_inference_timeout():
    def slow_server(batch):
        raise TimeoutError("the server did not answer")

    outcome = Outcome([1], FunctionHandler(slow_server), timeout=30)
    [(_, (kind, _, _))] = outcome.bad
    assert kind is TimeoutError
    assert outcome.counter("inference_timeouts") == 0


def test_a_crash_in_a_subprocess_fails_one_element():
    outcome = Outcome(range(10, 18), Crashing(min_batch_size=8), use_subprocess=True)
    assert sorted(element for element, _ in outcome.good) == [10, 11, 12, 15, 16, 17]
    assert {element: kind.__name__ for element, (kind, _, _) in outcome.bad} == {
        13: "ChildDiedError",
        14: "ValueError",
    }
    assert all(pid != os.getpid() for _, pid in outcome.good)


def test_a_subprocess_that_hangs_is_terminated():
    outcome = Outcome([12, 13], HangingChild(max_batch_size=1), use_subprocess=True, timeout=15)
    assert outcome.good == [12]
    assert [element for element, _ in outcome.bad] == [13]


class NoModel(ModelHandler):
    loads: list[int] = []

    def load_model(self):
        self.loads.append(1)
        raise FileNotFoundError("no model here")

    def run_inference(self, batch, model, inference_args=None):
        return batch


def test_a_model_that_cannot_be_loaded_fails_only_the_elements_of_its_keys():
    handler = KeyedModelHandler(
        [
            KeyModelMapping(["good"], Doubler("good")),
            KeyModelMapping(["none"], NoModel(min_batch_size=4)),
        ]
    )
    NoModel.loads.clear()
    elements = [("good", 1), ("none", 2), ("good", 3), ("none", 4), ("other", 5), 6]
    outcome = Outcome(elements, handler)
    assert sorted(outcome.good) == [("good", (1, 2, "good")), ("good", (3, 6, "good"))]
    kinds = {element: kind.__name__ for element, (kind, _, _) in outcome.bad}
    assert kinds == {
        ("none", 2): "FileNotFoundError",
        ("none", 4): "FileNotFoundError",
        ("other", 5): "UnknownKeyError",
        6: "MissingKeyError",
    }
    assert len(NoModel.loads) == 1


def test_a_missing_model_fails_the_pipeline_if_it_is_the_only_one():
    with pytest.raises(FileNotFoundError, match="no model here"):
        Outcome([1], NoModel())


def test_a_failing_prebatched_element_is_split():
    outcome = Outcome([[1, -2, 3], [4]], Picky("own").with_no_batching())
    assert sorted(result.inference for result in outcome.good) == [2, 6, 8]
    assert [element for element, _ in outcome.bad] == [-2]


def test_prebatched_elements_for_several_models_keep_examples_with_a_known_key():
    handler = KeyedModelHandler(
        [KeyModelMapping(["a"], Doubler("a")), KeyModelMapping(["b"], Doubler("b"))]
    )
    batches = [[("a", 1), ("b", 2), ("c", 3), ("a", 4)], [("b", 5)]]
    outcome = Outcome(batches, handler.with_no_batching())
    assert sorted((key, result.inference) for key, result in outcome.good) == [
        ("a", 2),
        ("a", 8),
        ("b", 4),
        ("b", 10),
    ]
    assert [element for element, _ in outcome.bad] == [("c", 3)]


def test_with_exception_handling_returns_a_copy():
    plain = RunInference(Doubler("copy"))
    handled = plain.with_exception_handling()
    with beam.Pipeline(runner=RUNNER) as pipeline:
        numbers = pipeline | beam.Create([1])
        assert isinstance(numbers | "plain" >> plain, beam.PCollection)
        _, letters = numbers | "handled" >> handled
        assert letters._fields == (
            "failed_inferences",
            "failed_preprocessing",
            "failed_postprocessing",
        )


@pytest.mark.parametrize("handling", [{"threshold": 1.5}, {"threshold": -1}, {"timeout": 0}])
def test_values_out_of_range_raise(handling):
    with pytest.raises(OptionError):
        RunInference(Doubler("range")).with_exception_handling(**handling)
