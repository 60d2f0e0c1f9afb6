"""W1: 200,000 rows of 32 float32 values and a logistic regression. The overhead of the pipeline dominates."""

import functools
import operator
import pickle
import tempfile
from pathlib import Path

import apache_beam as beam
import numpy as np
from apache_beam.ml.inference import base as beam_base
from apache_beam.ml.inference import sklearn_inference as beam_sklearn
from sklearn.linear_model import LogisticRegression

from benchmarks.harness import Case, ExampleSink, Outcome, Sink, batches, identity, run_pipeline
from runinference import RunInference
from runinference.sklearn_inference import SklearnModelHandlerNumpy

FEATURES = 32
GOALS = {"default settings": 0.62, "batches of 1,024": 0.65}

#: The first value of a row, which identifies the row.
first_value = operator.methodcaller("item", 0)


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
            goals={"ours of the ideal": ("≥", GOALS[variant]), "ours ÷ Beam": ("≥", 1.15)},
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
    outcome = Outcome()
    for batch in batches(rows(n), 1_024):
        features = np.stack(batch)
        outcome.add_batch(features[:, 0], model.predict(features))
    return outcome


def floor(n):
    sink = ExampleSink(first_value)
    return run_pipeline(functools.partial(rows, n), beam.Map(identity), sink)


def run_with(n, transform, handler):
    return run_pipeline(functools.partial(rows, n), transform(handler), Sink(first_value))


@functools.cache
def expected(model, n):
    """Return the number and the prediction of each row."""
    features = np.stack(rows(n))
    return features[:, 0], model.predict(features)


def check(model, n, contender, outcome):
    """Check that every row came out once, with the correct prediction."""
    numbers, predictions = expected(model, n)
    outcome.check(numbers, 0 if contender == "floor" else predictions)
    if contender != "floor":
        check_sample(model, outcome)


def check_sample(model, outcome):
    """Check the predictions of the sampled rows."""
    if outcome.sample:
        rows, predictions = zip(*outcome.sample, strict=True)
        correct = model.predict(np.reshape(np.stack(rows), (-1, FEATURES)))
        np.testing.assert_array_equal(np.ravel(predictions), correct)
