"""W1c: the rows of W1 in arrays and data frames of 1,024 rows, with unsplit results."""

import functools
import pickle
import tempfile
from dataclasses import replace
from pathlib import Path

import apache_beam as beam
import numpy as np
import pandas as pd
from apache_beam.ml.inference import base as beam_base
from apache_beam.ml.inference import sklearn_inference as beam_sklearn
from sklearn.base import clone

from benchmarks.harness import (
    Case,
    ExampleSink,
    Outcome,
    Sink,
    check_share,
    identity,
    run_pipeline,
)
from benchmarks.w1_rows import FEATURES, check_sample, first_value, train_model
from runinference import RunInference
from runinference.sklearn_inference import SklearnModelHandlerNumpy, SklearnModelHandlerPandas

ROWS = 1_024
COLUMNS = [f"feature {number}" for number in range(FEATURES)]
GOALS = {"ours of the ideal": ("≥", 0.85)}


def cases(scale):
    n = max(4 * ROWS, int(1_000_000 * scale))
    model, path = train_model()
    beam_handler = beam_sklearn.SklearnModelHandlerNumpy(model_uri=path, inference_fn=predict_array)
    beam_n = max(4 * ROWS, n // 4)  # Beam's handler returns one result per row, which takes longer
    beams = functools.partial(run_beam, beam_n, beam_handler.with_no_batching())
    ours = SklearnModelHandlerNumpy(model_uri=path)
    goals = {**GOALS, "ours ÷ Beam": ("≥", 4)}
    yield replace(
        make_case(f"arrays of {ROWS:,}", n, arrays, model, ours, {"Beam": beams}, goals),
        elements={"Beam": beam_n},
        check=check_share(functools.partial(check, model, arrays), n, {"Beam": beam_n}),
    )
    framed, path = train_on_frame()  # Beam's handler accepts only frames of one row
    ours = SklearnModelHandlerPandas(model_uri=path)
    yield make_case(f"frames of {ROWS:,}", n, frames, framed, ours, {}, GOALS)


def make_case(variant, n, make_elements, model, handler, runs, goals):
    elements = functools.partial(make_elements, n)
    handler = handler.with_no_batching(whole_results=True)
    return Case(
        workload="W1c",
        variant=variant,
        n=n,
        runs={
            "limit": functools.partial(bare_loop, model, elements),
            "floor": functools.partial(floor, elements),
            "ours": functools.partial(run_ours, elements, handler),
            **runs,
        },
        check=functools.partial(check, model, make_elements, n),
        goals=goals,
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


@functools.cache
def frames(n):
    return [pd.DataFrame(array, columns=COLUMNS) for array in arrays(n)]


@functools.cache
def train_on_frame():
    """Train a model on a frame with the same columns and return it with the path of its file."""
    model, _ = train_model()
    features = np.random.default_rng(2).normal(size=(2_000, FEATURES)).astype(np.float32)
    frame = pd.DataFrame(features, columns=COLUMNS)
    framed = clone(model).fit(frame, model.predict(features))
    path = Path(tempfile.mkdtemp(prefix="benchmark-")) / "frames.pickle"
    path.write_bytes(pickle.dumps(framed))
    return framed, str(path)


def number(element):
    """Return the first value of an array or frame, which identifies it."""
    return np.asarray(element).item(0)


def total(predictions):
    """Return the sum of the predictions of an array, as its value for the checksum."""
    return float(predictions.sum())


def bare_loop(model, elements):
    outcome = Outcome()
    for element in elements():
        outcome.add(number(element), total(model.predict(element)))
    return outcome


def floor(elements):
    return run_pipeline(elements, beam.Map(identity), ExampleSink(number))


def run_ours(elements, handler):
    return run_pipeline(elements, RunInference(handler), Sink(number, total))


def run_beam(n, handler):
    """Run Beam's transform, which returns one result per row, even if the element is an array."""
    elements = functools.partial(arrays, n)
    return run_pipeline(elements, beam_base.RunInference(handler), Sink(first_value))


def check(model, make_elements, n, contender, outcome):
    """Check that every array, or in Beam every row, came out once, with the correct predictions."""
    first = rows(n)[:, 0]
    if contender == "Beam":
        outcome.check(first, expected(model, make_elements, n))
        return check_sample(model, outcome)
    starts = np.arange(0, n, ROWS)
    if contender == "floor":
        return outcome.check(first[starts])
    outcome.check(first[starts], np.add.reduceat(expected(model, make_elements, n), starts))
    for element, inference in outcome.sample:
        np.testing.assert_array_equal(inference, model.predict(element))


@functools.cache
def expected(model, make_elements, n):
    """Return the predictions of all rows."""
    return np.concatenate([model.predict(element) for element in make_elements(n)])
