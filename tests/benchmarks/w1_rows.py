"""W1: 200,000 rows of 32 float32 values and a logistic regression. The overhead of the pipeline dominates."""

import functools
import pickle
import tempfile
from pathlib import Path

import apache_beam as beam
import numpy as np
from apache_beam.ml.inference import base as beam_base
from apache_beam.ml.inference import sklearn_inference as beam_sklearn
from sklearn.linear_model import LogisticRegression

from benchmarks.harness import (
    Case,
    CollectResults,
    Outcome,
    assert_same_rows,
    batches,
    run_pipeline,
)
from runinference import PredictionResult, RunInference
from runinference.sklearn_inference import SklearnModelHandlerNumpy

FEATURES = 32
GOALS = {"ours of the ideal": ("≥", 0.80), "ours ÷ Beam": ("≥", 1.5)}


def cases(scale):
    n = max(2_000, int(200_000 * scale))
    model, path = train_model()
    fixed = {"min_batch_size": 1_024, "max_batch_size": 1_024}
    for variant, options in (("default settings", {}), ("batches of 1,024", fixed)):
        ours = SklearnModelHandlerNumpy(model_uri=path, **options)
        beam_handler = beam_sklearn.SklearnModelHandlerNumpy(model_uri=path, **options)
        yield Case(
            workload="W1",
            variant=variant,
            n=n,
            runs={
                "limit": functools.partial(bare_loop, model, n),
                "floor": functools.partial(floor, n),
                "ours": functools.partial(run_with, n, RunInference, ours),
                "Beam": functools.partial(run_with, n, beam_base.RunInference, beam_handler),
            },
            check=functools.partial(check, model, n),
            goals=GOALS,
        )


@functools.cache
def rows(n):
    """Return separate arrays, as from a source."""
    return list(np.random.default_rng(0).normal(size=(n, FEATURES)).astype(np.float32).copy())


@functools.cache
def train_model(seed=1):
    """Train a model on other rows and return it with the path of its file."""
    generator = np.random.default_rng(seed)
    features = generator.normal(size=(2_000, FEATURES)).astype(np.float32)
    model = LogisticRegression().fit(features, features @ generator.normal(size=FEATURES) > 0)
    path = Path(tempfile.mkdtemp(prefix="benchmark-")) / "rows.pickle"
    path.write_bytes(pickle.dumps(model))
    return model, str(path)


def bare_loop(model, n):
    predictions = []
    for batch in batches(rows(n), 1_024):
        predictions.extend(model.predict(np.stack(batch)))
    return Outcome(rows(n), predictions)


def floor(n):
    return run_pipeline(
        functools.partial(results, n), beam.Map(identity), beam.ParDo(CollectResults())
    )


@functools.cache
def results(n):
    """Return precomputed results for the floor, so that its last step does the same work."""
    return [PredictionResult(row, np.int64(0), "rows.pickle") for row in rows(n)]


def identity(result):
    return result


def run_with(n, transform, handler):
    return run_pipeline(
        functools.partial(rows, n), transform(handler), beam.ParDo(CollectResults())
    )


def check(model, n, contender, outcome):
    """Check that every row came out once, with the correct prediction."""
    assert_same_rows(outcome.examples, rows(n))
    if contender != "floor":
        predictions = model.predict(np.stack(outcome.examples))
        np.testing.assert_array_equal(np.asarray(outcome.inferences), predictions)
