"""Each rule holds on each path: per bundle, across bundles, per window, prebatched, with keys and in `predict`."""

from __future__ import annotations

import copy
import threading

import apache_beam as beam
import numpy as np
import pandas as pd
import pytest
from apache_beam.transforms import window

from common import RUNNER, CollectElements
from pipelines.paths import PATHS, PREBATCHED, Outcome, Path, run
from runinference import ModelHandler, ModelMetadata, PredictionResult, RunInference
from runinference.handlers import error_policy
from runinference.remote.handler import RemoteModelHandler

PIPELINE_PATHS = [path for path in PATHS if not path.is_local]
#: Paths on which RunInference forms the batches.
BATCHING_PATHS = [path for path in PATHS if not path.prebatched]
ONE_MODEL_PATHS = [path for path in PIPELINE_PATHS if "per key" not in path.name]


def paths(among):
    return pytest.mark.parametrize("path", among, ids=str)


class Scaler(ModelHandler):
    """Multiplies numbers by an argument, after a function that may raise has seen the batch.

    Attributes:
        calls: ``(examples, model, arguments)`` of each call.
    """

    calls: list = []

    def __init__(self, check=lambda batch: None, **options):
        super().__init__(**options)
        self.check = check
        self.path = "first"

    def load_model(self):
        return self.path

    def update_model_path(self, model_path=None):
        self.path = model_path or self.path

    def copy(self):
        return copy.copy(self)

    def run_inference(self, batch, model, inference_args=None):
        self.calls.append((list(batch), model, dict(inference_args or {})))
        self.check(batch)
        factor = (inference_args or {}).get("factor", 2)
        return [PredictionResult(x, x * factor, model) for x in batch]


@pytest.fixture(autouse=True)
def _clear():
    Scaler.calls.clear()


def scale(path: Path, examples, check=lambda batch: None, options=None, **arguments) -> Outcome:
    return run(path, Scaler(check, **(options or {}), **path.options), examples, **arguments)


def n_windows(path: Path) -> int:
    return 2 if isinstance(path.window_fn, window.SlidingWindows) else 1


def repeat(path: Path, examples) -> list:
    """Return the examples, once for each of their windows."""
    return [example for example in examples for _ in range(n_windows(path))]


# Identity, keys, windows and timestamps


@paths(PATHS)
def test_each_example_gets_its_own_result_with_its_key_window_and_timestamp(path):
    outcome = scale(path, range(10), options={"max_batch_size": 3})
    inferences = [(r.example, r.inference) for r in outcome.predictions]
    assert sorted(inferences) == [(n, 2 * n) for n in repeat(path, range(10))]
    if "model per key" not in path.name:
        assert inferences == sorted(inferences)
    if path.is_local:
        return
    for result, timestamp, its_window in outcome.results:
        expected = result.example
        if path.prebatched:
            expected -= expected % PREBATCHED
        assert timestamp == expected
        context = window.WindowFn.AssignContext(expected)
        assert its_window in path.window_fn.assign(context)
    keys = [path.add_key(r.example)[0] for r in outcome.predictions] if outcome.keys else []
    assert outcome.keys == keys


@paths(PATHS)
def test_no_elements_give_no_calls_and_no_results(path):
    outcome = scale(path, [])
    assert (outcome.results, outcome.failed, Scaler.calls) == ([], [], [])


class Echo(Scaler):
    def run_inference(self, batch, model, inference_args=None):
        return list(batch)


class Unequal:
    """An example that can be neither compared nor hashed nor shown."""

    __hash__ = None

    def __eq__(self, other):
        raise TypeError("cannot be compared")

    def __repr__(self):
        raise TypeError("cannot be shown")


STRANGE = [None, [1, 2], {"a": 1}, np.arange(3), float("nan"), {1}, Unequal(), b"", "", [], ()]


@paths(PATHS)
def test_examples_may_be_none_unhashable_or_not_comparable(path):
    outcome = run(path, Echo(min_batch_size=3, max_batch_size=3, **path.options), STRANGE)
    types = [type(prediction) for prediction in outcome.predictions]
    assert types == [type(example) for example in repeat(path, STRANGE)]


# Arguments and models


@paths(PATHS)
def test_constant_arguments_are_in_each_call(path):
    outcome = scale(path, range(6), inference_args={"factor": 5})
    assert sorted(r.inference for r in outcome.predictions) == [
        5 * n for n in repeat(path, range(6))
    ]
    assert all(arguments == {"factor": 5} for _, _, arguments in Scaler.calls)


@paths(PIPELINE_PATHS)
@pytest.mark.parametrize("make", [float, np.array], ids=["number", "array"])
def test_arguments_from_a_side_input_are_those_of_the_element(path, make):
    def side_inputs(timestamp):
        return {"arguments": {"factor": make(timestamp // 4 + 1)}}

    outcome = scale(path, range(12), side_inputs=side_inputs)
    found = sorted((r.example, float(r.inference)) for r in outcome.predictions)
    assert found == [(n, n * (n // 4 + 1)) for n in repeat(path, range(12))]


@paths(ONE_MODEL_PATHS)
def test_the_model_is_that_of_the_latest_refresh_in_the_window_of_the_element(path):
    def side_inputs(timestamp):
        name = ("first", "second", "third")[timestamp // 4]
        return {"update": ModelMetadata(name, name) if timestamp >= 4 else None}

    outcome = scale(path, range(12), side_inputs=side_inputs)
    found = sorted((r.example, r.model_id) for r in outcome.predictions)
    assert found == [(n, ("first", "second", "third")[n // 4]) for n in repeat(path, range(12))]


# Limits of a batch


class Weighed:
    def __init__(self, weight):
        self.weight = self.nbytes = weight

    def __mul__(self, factor):
        return self.weight * factor


def weight(example):
    return example.weight


WEIGHTS = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8]


@paths(BATCHING_PATHS)
@pytest.mark.parametrize(
    "options",
    [
        {"max_batch_bytes": 10},
        {"max_batch_weight": 10, "element_size_fn": weight},
        {"max_padded_size": 10, "batch_length_fn": weight},
        {"batch_length_fn": weight, "batch_bucket_boundaries": [4], "max_batch_size": 4},
        {"max_batch_size": 3},
        {"min_batch_size": 4, "max_batch_size": 4},
    ],
    ids=lambda options: ", ".join(options),
)
def test_each_batch_keeps_the_limits(path, options):
    outcome = scale(path, [Weighed(n) for n in WEIGHTS], options=options)
    assert sorted(r.inference for r in outcome.predictions) == sorted(
        2 * n for n in repeat(path, WEIGHTS)
    )
    for batch, _, _ in Scaler.calls:
        weights = [example.weight for example in batch]
        if "max_batch_bytes" in options or "max_batch_weight" in options:
            assert sum(weights) <= 10
        if "max_padded_size" in options:
            assert max(weights) * len(weights) <= 10
        if "batch_bucket_boundaries" in options:
            assert len({n >= 4 for n in weights}) == 1
        assert len(weights) <= options.get("max_batch_size", 100)


@paths([path for path in BATCHING_PATHS if "model per key" not in path.name])
def test_all_batches_but_the_last_have_the_minimum_size(path):
    scale(path, range(10), options={"min_batch_size": 4, "max_batch_size": 4})
    sizes = [len(batch) for batch, _, _ in Scaler.calls]
    assert sizes == ([4] * 5 if n_windows(path) == 2 else [4, 4, 2])


# Failures


BAD = {3, 7, 8}


def fail_on_bad(batch):
    if BAD & set(batch):
        raise LookupError("bad")


@paths(PIPELINE_PATHS)
def test_exactly_the_failing_examples_are_dead_letters(path):
    outcome = scale(path, range(12), fail_on_bad, handling={})
    good = [n for n in range(12) if n not in BAD]
    assert sorted(r.example for r in outcome.predictions) == repeat(path, good)
    assert sorted(outcome.failed) == [(n, "LookupError") for n in repeat(path, sorted(BAD))]


@paths(PATHS)
def test_without_exception_handling_the_error_is_raised_as_it_is(path):
    with pytest.raises(LookupError, match="bad"):
        scale(path, range(12), fail_on_bad)


@paths(PIPELINE_PATHS)
def test_errors_of_other_classes_are_raised(path):
    with pytest.raises(LookupError, match="bad"):
        scale(path, range(12), fail_on_bad, handling={"exc_class": ValueError})


def fail_above_two(batch):
    if len(batch) > 2:
        raise MemoryError


@paths(PATHS)
@pytest.mark.parametrize("handling", [None, {}])
def test_a_batch_that_memory_does_not_suffice_for_is_halved(path, handling):
    options = {"min_batch_size": 6, "max_batch_size": 6}
    outcome = scale(path, range(12), fail_above_two, options, handling=handling)
    assert sorted(r.inference for r in outcome.predictions) == [
        2 * n for n in repeat(path, range(12))
    ]
    assert outcome.failed == []


@paths(PIPELINE_PATHS)
def test_a_transient_error_is_retried(path, monkeypatch):
    monkeypatch.setattr(error_policy, "FIRST_PAUSE_SECS", 0)
    seen = set()

    def fail_once(batch):
        if 5 in batch and not seen:
            seen.add(5)
            raise ConnectionError("try again")

    outcome = scale(path, range(8), fail_once, handling={})
    assert sorted(r.example for r in outcome.predictions) == repeat(path, range(8))
    assert outcome.failed == []
    assert seen == {5}


@paths([path for path in PIPELINE_PATHS if not path.prebatched])
def test_an_example_without_a_length_is_a_dead_letter_and_the_others_are_not(path):
    def length(example):
        return {n: n for n in range(1, 6)}[example]

    outcome = scale(path, range(6), options={"batch_length_fn": length}, handling={})
    assert sorted(r.example for r in outcome.predictions) == repeat(path, range(1, 6))
    assert outcome.failed == repeat(path, [(0, "KeyError")])


class Hanging(Scaler):
    """Waits for an event that is set at the end of the test."""

    released = threading.Event()

    def run_inference(self, batch, model, inference_args=None):
        if 5 in batch:
            self.released.wait(60)
            return []  # without an effect on later tests
        return super().run_inference(batch, model, inference_args)


@paths(
    [path for path in PIPELINE_PATHS if path.name in ("per bundle", "across bundles", "prebatched")]
)
def test_a_call_that_exceeds_the_timeout_is_abandoned(path):
    handler = Hanging(min_batch_size=1, max_batch_size=1, **path.options)
    try:
        outcome = run(path, handler, [5], handling={"timeout": 0.5})
    finally:
        Hanging.released.set()
        Hanging.released = threading.Event()
    assert outcome.failed == [(5, "InferenceTimeoutError")]


# Metrics


class _Clock:
    """A clock that advances by a second after each element."""

    nanoseconds = 10**18

    def time_ns(self):
        return self.nanoseconds

    def tick(self):
        self.nanoseconds += 10**9


@paths(ONE_MODEL_PATHS)
def test_metrics_count_inferences_batches_failures_and_waiting(path):
    clock = _Clock()
    options = {"min_batch_size": 4, "max_batch_size": 4}
    outcome = scale(
        path, range(12), fail_on_bad, options, handling={}, after=clock.tick, clock=clock
    )
    metrics, n = outcome.metrics, n_windows(path)
    assert metrics["num_inferences"] == 9 * n
    assert metrics["failed_elements"] == 3 * n
    good = [batch for batch, _, _ in Scaler.calls if not BAD & set(batch)]
    sizes = metrics["inference_request_batch_size"]
    assert (sizes.count, sizes.sum, sizes.max) == (len(good), 9 * n, max(map(len, good)))
    assert metrics["failed_batches_counter"] == len(Scaler.calls) - len(good)
    assert metrics["inference_batch_latency_micro_secs"].count == sizes.count
    assert metrics["inference_request_batch_byte_size"].count == sizes.count
    if not path.prebatched:
        queued = metrics["queue_time_micro_secs"]
        waits = 12 * n // 4
        seconds = (4 // n - 1) * 1_000_000
        assert (queued.count, queued.sum, queued.max) == (waits, waits * seconds, seconds)


# Functions before and after inference


def test_functions_run_before_and_after_inference_on_each_path():
    def add_ten(example):
        return [add_ten(each) for each in example] if isinstance(example, list) else example + 10

    collected = {}
    with beam.Pipeline(runner=RUNNER) as pipeline:
        for path in PIPELINE_PATHS:
            if "key" in path.name:
                continue
            handler = path.wrap(Scaler(**path.options))
            handler = handler.with_preprocess_fn(add_ten).with_postprocess_fn(lambda r: r.inference)
            elements = [[n] if path.prebatched else n for n in range(5)]
            numbers = pipeline | f"{path} numbers" >> beam.Create(elements)
            windows = numbers | f"{path} windows" >> beam.WindowInto(path.window_fn)
            collected[path.name] = path, []
            results = windows | f"{path} infer" >> RunInference(handler)
            _ = results | f"{path} collect" >> beam.ParDo(CollectElements(collected[path.name][1]))
    expected = [2 * (n + 10) for n in range(5)]
    for path, results in collected.values():
        assert sorted(CollectElements.take(results)) == repeat(path, expected), path
    handler = Scaler().with_preprocess_fn(add_ten).with_postprocess_fn(lambda r: r.inference)
    assert handler.predict(range(5)) == expected


# Models elsewhere, and results that are not split


class RemoteScaler(RemoteModelHandler):
    """A Scaler whose requests run together."""

    def __init__(self, check=lambda batch: None, **options):
        super().__init__(num_retries=0, max_request_size=3, overload_ratio=1e6, **options)
        self.check = check

    def create_client(self):
        return "client"

    def request(self, batch, model, inference_args=None):
        self.check(batch)
        return [PredictionResult(x, x * inference_args["factor"], model) for x in batch]


def fail_on_bad_or_above_four(batch):
    if len(batch) > 4:
        raise MemoryError
    fail_on_bad(batch)


def change_factor(timestamp):
    return {"arguments": {"factor": timestamp // 8 + 2}}


@paths(PIPELINE_PATHS)
def test_requests_to_a_server_follow_the_rules(path):
    class Copied(RemoteScaler):
        def copy(self):
            return copy.copy(self)

    handler = Copied(fail_on_bad_or_above_four, min_batch_size=6, max_batch_size=6, **path.options)
    outcome = run(path, handler, range(12), side_inputs=change_factor, handling={})
    check_scaled(path, outcome)


@pytest.mark.parametrize(
    ("options", "handling"),
    [({}, {"use_subprocess": True}), ({"large_model": True}, {}), ({}, {"timeout": 120})],
    ids=["subprocess", "shared process", "timeout"],
)
def test_a_model_in_another_process_or_thread_follows_the_rules(options, handling):
    path = PATHS[0]
    options = {"min_batch_size": 6, "max_batch_size": 6, **options}
    handler = Scaler(fail_on_bad_or_above_four, **options)
    outcome = run(path, handler, range(12), side_inputs=change_factor, handling=handling)
    check_scaled(path, outcome)


def check_scaled(path, outcome):
    good = [n for n in range(12) if n not in BAD]
    found = sorted((r.example, r.inference) for r in outcome.predictions)
    assert found == repeat(path, [(n, n * (n // 8 + 2)) for n in good])
    assert sorted(outcome.failed) == [(n, "LookupError") for n in repeat(path, sorted(BAD))]


class UnsplitScaler(Scaler):
    def run_inference(self, batch, model, inference_args=None):
        self.check(batch.tolist())
        return self.results_of(batch, batch * (inference_args or {}).get("factor", 2), model)


def test_unsplit_results_follow_the_rules():
    handler = UnsplitScaler(fail_on_bad).with_no_batching(whole_results=True)
    arrays = [np.arange(3 * n, 3 * n + 3) for n in range(5)]
    path = Path("unsplit")
    outcome = run(
        path,
        handler,
        arrays,
        side_inputs=lambda timestamp: {"arguments": {"factor": np.array(timestamp)}},
        handling={},
    )
    found = [(r.inference.tolist(), timestamp) for r, timestamp, _ in outcome.results]
    assert found == [((arrays[n] * n).tolist(), n) for n in (0, 3, 4)]
    assert [(array.tolist(), kind) for array, kind in outcome.failed] == [
        ([3, 4, 5], "LookupError"),
        ([6, 7, 8], "LookupError"),
    ]
    assert outcome.metrics["num_inferences"] == 9
    assert outcome.metrics["failed_elements"] == 2
    good = [arrays[n] for n in (0, 3, 4)]
    predicted = UnsplitScaler().with_no_batching(whole_results=True).predict(good)
    assert [r.inference.tolist() for r in predicted] == [(2 * array).tolist() for array in good]


@pytest.mark.parametrize("element", [[], np.zeros((0, 3)), pd.DataFrame({"a": []})], ids=type)
@pytest.mark.parametrize("whole_results", [False, True])
def test_a_batch_without_rows_on_which_the_model_fails_is_a_dead_letter(element, whole_results):
    handler = UnsplitScaler(fail_on_empty).with_no_batching(whole_results=whole_results)
    outcome = run(Path("empty"), handler, [element], handling={})
    assert outcome.results == []
    [(failed, _)] = outcome.failed
    assert (type(failed), len(failed)) == (type(element), 0)
    with pytest.raises((LookupError, AttributeError)):
        handler.predict([element])


def fail_on_empty(batch):
    raise LookupError("no rows")
