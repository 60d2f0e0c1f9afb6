"""W1c: the rows of W1 in arrays of 1,024 rows, with unsplit results."""

import functools

import apache_beam as beam
import numpy as np
from apache_beam.ml.inference import base as beam_base
from apache_beam.ml.inference import sklearn_inference as beam_sklearn

from benchmarks.harness import Case, ExampleSink, Outcome, Sink, identity, run_pipeline
from benchmarks.w1_rows import FEATURES, check_sample, first_value, train_model
from runinference import RunInference
from runinference.sklearn_inference import SklearnModelHandlerNumpy

ROWS = 1_024


def cases(scale):
    n = max(4 * ROWS, int(1_000_000 * scale))
    model, path = train_model()
    ours = SklearnModelHandlerNumpy(model_uri=path).with_no_batching(whole_results=True)
    beam_handler = beam_sklearn.SklearnModelHandlerNumpy(model_uri=path, inference_fn=predict_array)
    yield Case(
        workload="W1c",
        variant=f"arrays of {ROWS:,}",
        n=n,
        runs={
            "limit": functools.partial(bare_loop, model, n),
            "floor": functools.partial(floor, n),
            "ours": functools.partial(run_with, n, RunInference, ours),
            "Beam": functools.partial(
                run_with_beam, n, beam_base.RunInference, beam_handler.with_no_batching()
            ),
        },
        check=functools.partial(check, model, n),
        goals={"ours of the ideal": ("≥", 0.85), "ours ÷ Beam": ("≥", 4)},
    )


def predict_array(model, batch, inference_args=None):
    """Predict without copying the array, unlike Beam's default function."""
    return model.predict(batch)


@functools.cache
def rows(n):
    return np.random.default_rng(0).normal(size=(n, FEATURES)).astype(np.float32)


@functools.cache
def arrays(n):
    """Return arrays that own their memory, as from a columnar source."""
    return [rows(n)[start : start + ROWS].copy() for start in range(0, n, ROWS)]


def bare_loop(model, n):
    outcome = Outcome()
    for array in arrays(n):
        outcome.add(first_value(array), total(model.predict(array)))
    return outcome


def total(predictions):
    """Return the sum of the predictions of an array, as its value for the checksum."""
    return float(predictions.sum())


def floor(n):
    sink = ExampleSink(first_value)
    return run_pipeline(functools.partial(arrays, n), beam.Map(identity), sink)


def run_with(n, transform, handler):
    sink = Sink(first_value, total)
    return run_pipeline(functools.partial(arrays, n), transform(handler), sink)


def run_with_beam(n, transform, handler):
    """Run Beam's transform, which returns one result per row, even if the element is an array."""
    return run_pipeline(functools.partial(arrays, n), transform(handler), Sink(first_value))


def check(model, n, contender, outcome):
    """Check that every array, or in Beam every row, came out once, with the correct predictions."""
    features, predictions = rows(n), expected(model, n)
    starts = np.arange(0, n, ROWS)
    if contender == "Beam":
        outcome.check(features[:, 0], predictions)
        check_sample(model, outcome)
    elif contender == "floor":
        outcome.check(features[starts, 0])
    else:
        outcome.check(features[starts, 0], np.add.reduceat(predictions, starts))
        for array, inference in outcome.sample:
            np.testing.assert_array_equal(inference, model.predict(array))


@functools.cache
def expected(model, n):
    return model.predict(rows(n))
