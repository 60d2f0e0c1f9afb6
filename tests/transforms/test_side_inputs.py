"""Inference arguments and model refreshes from side inputs, which may differ from window to window."""

from __future__ import annotations

import apache_beam as beam
import numpy as np
import pandas as pd
import pytest
import torch
from apache_beam.transforms.window import (
    FixedWindows,
    GlobalWindow,
    TimestampedValue,
    WindowedValue,
)

from common import RUNNER, CollectElements, FunctionHandler
from runinference import KeyedModelHandler, KeyModelPathMapping, ModelMetadata, RunInference
from runinference.errors import OptionError
from runinference.transforms.infer_dofn import InferDoFn
from runinference.transforms.side_inputs import AsLatest, are_same_arguments


class Scaled(FunctionHandler):
    """Multiplies by an argument, and records each batch with it."""

    calls: list[tuple[list[float], int]] = []

    def __init__(self, **options) -> None:
        super().__init__(_identity, **options)

    def run_inference(self, batch, model, inference_args=None):
        self.calls.append((list(batch), inference_args["scale"]))
        return [x * inference_args["scale"] for x in batch]

    def validate_inference_args(self, inference_args) -> None:
        if set(inference_args or ()) != {"scale"}:
            raise ValueError(f"not {inference_args}")


def _identity(value):
    return value


def scaled(handler, **options):
    """Return the numbers 0 to 3, two in each window, multiplied by the argument of their window."""
    good: list = []
    with beam.Pipeline(runner=RUNNER) as pipeline:

        def timed(label, values):
            values = pipeline | label >> beam.Create([TimestampedValue(*v) for v in values])
            return values | f"{label} in windows" >> beam.WindowInto(FixedWindows(10))

        arguments = timed("arguments", [(("scale", 10), 0), (("scale", 100), 10)])
        numbers = timed("numbers", [(0, 0), (1, 1), (2, 10), (3, 11)])
        if isinstance(handler, KeyedModelHandler):
            numbers |= beam.WithKeys(str)
        transform = RunInference(handler, inference_args=beam.pvalue.AsDict(arguments), **options)
        _ = numbers | transform | beam.ParDo(CollectElements(good))
    return sorted(CollectElements.take(good))


@pytest.mark.parametrize(
    "options",
    [{}, {"max_batch_duration_secs": 1}, {"min_batch_size": 4, "max_batch_size": 4}],
    ids=str,
)
def test_each_element_is_called_with_the_arguments_of_its_window(options):
    assert scaled(Scaled(**options)) == [0, 10, 200, 300]


def test_arguments_reach_the_handler_inside_a_keyed_handler():
    results = scaled(KeyedModelHandler(Scaled()))
    assert results == [("0", 0), ("1", 10), ("2", 200), ("3", 300)]


def test_arguments_that_are_not_a_dictionary_become_dead_letters():
    with beam.Pipeline(runner=RUNNER) as pipeline:
        wrong = pipeline | beam.Create([7])
        transform = RunInference(Scaled(), inference_args=beam.pvalue.AsSingleton(wrong))
        _, letters = pipeline | "one" >> beam.Create([1]) | transform.with_exception_handling()
        bad: list = []
        _ = letters.failed_inferences | beam.ParDo(CollectElements(bad))
    [(element, (kind, message, _))] = CollectElements.take(bad)
    assert (element, kind) == (1, OptionError)
    assert "use beam.pvalue.AsDict" in message


def test_a_batch_runs_before_elements_with_other_arguments_are_batched():
    do_fn = InferDoFn(RunInference(Scaled(min_batch_size=10, max_batch_size=10))._config())
    do_fn.setup()
    do_fn.start_bundle()
    Scaled.calls.clear()
    outputs = []
    for number, scale in enumerate((1, 1, 2, 2, 1)):
        origin = WindowedValue(number, 0, (GlobalWindow(),))
        outputs += do_fn.process(number, origin, arguments={"scale": scale}) or ()
    outputs += do_fn.finish_bundle()
    assert [output.value for output in outputs] == [0, 1, 4, 6, 4]
    assert Scaled.calls == [([0, 1], 1), ([2, 3], 2), ([4], 1)]


A, B = ModelMetadata("a", "model-a"), ModelMetadata("b", "model-b")


def test_the_latest_model_refresh_is_used_and_two_with_the_same_timestamp_are_refused():
    assert AsLatest._from_runtime_iterable([], {}) is None
    assert AsLatest._from_runtime_iterable([(1, A), (3, B), (2, A)], {}) == B
    assert AsLatest._from_runtime_iterable([(1, A), (1, A)], {}) == A
    conflict = AsLatest._from_runtime_iterable([(1, A), (1, B)], {})
    assert "2 model refreshes have the same timestamp" in str(conflict.error())


@pytest.mark.parametrize(
    "make",
    [
        dict,
        lambda: {"a": np.zeros(2)},
        lambda: {"a": torch.ones(2, 3)},
        lambda: {"a": float("nan"), "b": np.array([np.nan])},
        lambda: {"a": [{"b": (1, "c", None)}]},
        lambda: {"a": pd.DataFrame({"b": [1.0, None]})},
        lambda: {"a": np.array(["b", None], dtype=object)},
    ],
)
def test_equal_arguments_are_the_same(make):
    assert are_same_arguments(make(), make())


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"a": np.zeros(2)}, {"a": np.ones(2)}),
        ({"a": np.zeros(2)}, {"a": np.zeros(2, np.float32)}),
        ({"a": np.zeros(2)}, {"a": np.zeros((2, 1))}),
        ({"a": torch.ones(2)}, {"a": torch.zeros(2)}),
        ({"a": torch.ones(2)}, {"a": np.ones(2)}),
        ({"a": 1}, {"a": True}),
        ({"a": 1}, {"a": 1.0}),
        ({"a": 0.0}, {"a": -0.0}),
        ({"a": "1"}, {"a": 1}),
        ({"a": 1}, {"b": 1}),
        ({}, None),
        ({"a": lambda: 1}, {"a": lambda: 1}),
    ],
)
def test_arguments_that_a_model_could_tell_apart_are_not_the_same(one, other):
    assert not are_same_arguments(one, other)


class OneRepr:
    """A value that looks like all others of its class."""

    def __init__(self, value):
        self.value = value

    def __eq__(self, other):
        return self.value == other.value

    def __hash__(self):
        return 0

    def __repr__(self):
        return "OneRepr"


def test_refreshes_with_the_same_repr_are_not_the_same():
    first, second = (KeyModelPathMapping([OneRepr(n)], "path") for n in (1, 2))
    conflict = AsLatest._from_runtime_iterable([(1, [first]), (1, [second])], {})
    assert "2 model refreshes have the same timestamp" in str(conflict.error())
    assert AsLatest._from_runtime_iterable([(1, [first]), (1, [first])], {}) == [first]


def test_the_error_about_many_refreshes_with_the_same_timestamp_is_short():
    updates = [(1, ModelMetadata(f"{n}" * 10_000, "name")) for n in range(1000)]
    message = str(AsLatest._from_runtime_iterable(updates, {}).error())
    assert "1000 model refreshes" in message
    assert len(message) < 2000
