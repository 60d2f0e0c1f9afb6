"""W9: 20,000 rows and an XGBoost model of 100 trees: one call a batch."""

import functools
import tempfile
from pathlib import Path

import apache_beam as beam
import numpy as np
import xgboost
from apache_beam.ml.inference import base as beam_base

from benchmarks.harness import Case, KeepResult, Outcome, batches, run_pipeline, same_rows
from benchmarks.stand_ins import standing_in
from benchmarks.w1_rows import FEATURES, floor, rows
from runinference import RunInference
from runinference.xgboost_inference import XGBoostModelHandlerNumpy


def cases(scale):
    n = max(256, int(20_000 * scale))
    model, path = trained()
    ours = XGBoostModelHandlerNumpy(model_class=one_thread, model_state=path)
    peer = module_of_beam().XGBoostModelHandlerNumpy(model_class=one_thread, model_state=path)
    yield Case(
        workload="W9",
        variant="100 trees, default settings",
        n=n,
        runs={
            "limit": functools.partial(bare_loop, model, n),
            "floor": functools.partial(floor, n),
            "ours": functools.partial(run_with, n, rows, RunInference, ours),
            "Beam": functools.partial(run_with, n, tables, beam_base.RunInference, peer),
        },
        check=functools.partial(check, model, n),
        goals={"ours of the ideal": ("≥", 0.7), "ours ÷ Beam": ("≥", 25)},
    )


def module_of_beam():
    """Beam's, which imports a package that has had no release for years."""
    with standing_in("datatable", "Frame"):
        from apache_beam.ml.inference import xgboost_inference
    return xgboost_inference


def one_thread():
    return xgboost.XGBClassifier(n_jobs=1)


@functools.cache
def trained():
    generator = np.random.default_rng(1)
    features = generator.normal(size=(2_000, FEATURES)).astype(np.float32)
    labels = (features @ generator.normal(size=FEATURES) > 0).astype(int)
    model = xgboost.XGBClassifier(n_estimators=100, max_depth=6, n_jobs=1).fit(features, labels)
    path = Path(tempfile.mkdtemp(prefix="benchmark-")) / "trees.ubj"
    model.save_model(path)
    return model, str(path)


@functools.cache
def tables(n):
    """The elements as Beam's handler takes them: a table of one row each."""
    return [row[np.newaxis] for row in rows(n)]


def bare_loop(model, n):
    predictions = []
    for batch in batches(rows(n), 1_024):
        predictions.extend(model.predict(np.stack(batch)))
    return Outcome(rows(n), predictions)


def run_with(n, elements, transform, handler):
    return run_pipeline(
        functools.partial(elements, n), transform(handler), beam.ParDo(KeepResult())
    )


def check(model, n, contestant, outcome):
    """Every row came out once, and each with the prediction that belongs to it."""
    found = [np.ravel(example) for example in outcome.examples]
    same_rows(found, rows(n))
    if contestant != "floor":
        inferences = np.array([np.ravel(inference)[0] for inference in outcome.inferences])
        np.testing.assert_array_equal(inferences, model.predict(np.stack(found)))
