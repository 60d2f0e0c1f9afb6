"""W1c: the rows of W1 in arrays of 1,024 rows, with unsplit results."""

import functools

import apache_beam as beam
import numpy as np
from apache_beam.ml.inference import base as beam_base
from apache_beam.ml.inference import sklearn_inference as beam_sklearn

from benchmarks.harness import Case, CollectResults, Outcome, run_pipeline
from benchmarks.w1_rows import FEATURES, identity, train_model
from runinference import PredictionResult, RunInference
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
                run_with, n, beam_base.RunInference, beam_handler.with_no_batching()
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
    return Outcome(arrays(n), [model.predict(array) for array in arrays(n)])


@functools.cache
def results(n):
    return [PredictionResult(array, np.zeros(len(array)), "rows.pickle") for array in arrays(n)]


def floor(n):
    return run_pipeline(
        functools.partial(results, n), beam.Map(identity), beam.ParDo(CollectResults())
    )


def run_with(n, transform, handler):
    return run_pipeline(
        functools.partial(arrays, n), transform(handler), beam.ParDo(CollectResults())
    )


def check(model, n, contender, outcome):
    """Check that every row came out once, in order, with the correct prediction."""
    got = np.concatenate([np.atleast_2d(example) for example in outcome.examples])
    np.testing.assert_array_equal(got, rows(n))
    if contender != "floor":
        inferences = np.concatenate([np.atleast_1d(inference) for inference in outcome.inferences])
        np.testing.assert_array_equal(inferences, model.predict(rows(n)))
