"""W9: 10,000 rows and an XGBoost model with 100 trees. One model call per batch."""

import functools
import operator
import tempfile
from pathlib import Path

import numpy as np
import xgboost
from apache_beam.ml.inference import base as beam_base

from benchmarks.harness import Case, Outcome, Sink, batches, check_share, run_pipeline
from benchmarks.placeholders import placeholder_package
from benchmarks.w1_rows import FEATURES, check, first_value, floor, rows
from runinference import RunInference
from runinference.xgboost_inference import XGBoostModelHandlerNumpy


def cases(scale):
    n = max(256, int(10_000 * scale))
    model, path = train_model()
    elements = {"Beam": max(128, n // 8)}
    ours = XGBoostModelHandlerNumpy(model_class=make_classifier, model_state=path)
    beam_handler = import_beam_module().XGBoostModelHandlerNumpy(
        model_class=make_classifier, model_state=path
    )
    yield Case(
        workload="W9",
        variant="100 trees, default settings",
        n=n,
        runs={
            "limit": functools.partial(bare_loop, model, n),
            "floor": functools.partial(floor, n),
            "ours": functools.partial(run_with, n, rows, RunInference, ours),
            "Beam": functools.partial(
                run_with, elements["Beam"], tables, beam_base.RunInference, beam_handler
            ),
        },
        check=check_share(functools.partial(check, model), n, elements),
        elements=elements,
        goals={"ours of the ideal": ("≥", 0.75), "ours ÷ Beam": ("≥", 25)},
    )


def import_beam_module():
    """Import Beam's module with a placeholder for datatable, which is unmaintained."""
    with placeholder_package("datatable", "Frame"):
        from apache_beam.ml.inference import xgboost_inference
    return xgboost_inference


def make_classifier():
    return xgboost.XGBClassifier(n_jobs=1)


@functools.cache
def train_model():
    generator = np.random.default_rng(1)
    features = generator.normal(size=(2_000, FEATURES)).astype(np.float32)
    labels = (features @ generator.normal(size=FEATURES) > 0).astype(int)
    model = xgboost.XGBClassifier(n_estimators=100, max_depth=6, n_jobs=1).fit(features, labels)
    path = Path(tempfile.mkdtemp(prefix="benchmark-")) / "trees.ubj"
    model.save_model(path)
    return model, str(path)


@functools.cache
def tables(n):
    """Return one-row tables, as Beam's handler requires."""
    return [row[np.newaxis] for row in rows(n)]


def bare_loop(model, n):
    outcome = Outcome()
    for batch in batches(rows(n), 1_024):
        features = np.stack(batch)
        outcome.add_batch(features[:, 0], model.predict(features))
    return outcome


def run_with(n, elements, transform, handler):
    sink = Sink(first_value, operator.methodcaller("item"))
    return run_pipeline(functools.partial(elements, n), transform(handler), sink)
