"""W5: 20,000 elements with 100 keys that share 4 models. Batching by model instead of by key dominates."""

import functools

import apache_beam as beam
import numpy as np
from apache_beam.ml.inference import base as beam_base
from apache_beam.ml.inference import sklearn_inference as beam_sklearn

from benchmarks.harness import Case, CollectKeyedResults, Outcome, batches, run_pipeline
from benchmarks.w1_rows import rows, train_model
from runinference import KeyedModelHandler, KeyModelMapping, PredictionResult, RunInference
from runinference.sklearn_inference import SklearnModelHandlerNumpy

KEYS, MODELS = 100, 4


def cases(scale):
    n = max(2_000, int(20_000 * scale))
    models = [train_model(seed) for seed in range(MODELS)]
    ours = KeyedModelHandler(
        [
            KeyModelMapping(keys_for_model(number), SklearnModelHandlerNumpy(model_uri=path))
            for number, (_, path) in enumerate(models)
        ]
    )
    beam_handler = beam_base.KeyedModelHandler(
        [
            beam_base.KeyModelMapping(
                keys_for_model(i), beam_sklearn.SklearnModelHandlerNumpy(path)
            )
            for i, (_, path) in enumerate(models)
        ]
    )
    estimators = [model for model, _ in models]
    yield Case(
        workload="W5",
        variant="100 keys, 4 models",
        n=n,
        runs={
            "limit": functools.partial(bare_loop, estimators, n),
            "floor": functools.partial(floor, n),
            "ours": functools.partial(run_with, n, RunInference, ours),
            "Beam": functools.partial(run_with, n, beam_base.RunInference, beam_handler),
        },
        check=functools.partial(check, estimators, n),
        goals={"ours of the ideal": ("≥", 0.7), "ours ÷ Beam": ("≥", 4)},
    )


def keys_for_model(number):
    """Return the keys of a model. Adjacent keys belong to different models."""
    return [f"key {key}" for key in range(number, KEYS, MODELS)]


@functools.cache
def model_by_key():
    return {key: number for number in range(MODELS) for key in keys_for_model(number)}


@functools.cache
def elements(n):
    keys = np.random.default_rng(2).integers(0, KEYS, n)
    return [(f"key {key}", row) for key, row in zip(keys, rows(n), strict=True)]


def bare_loop(models, n):
    groups = [[] for _ in models]
    for element in elements(n):
        groups[model_by_key()[element[0]]].append(element)
    examples, predictions = [], []
    for model, group in zip(models, groups, strict=True):
        for batch in batches(group, 1_024):
            examples.extend(batch)
            predictions.extend(model.predict(np.stack([row for _, row in batch])))
    return Outcome(examples, predictions)


@functools.cache
def results(n):
    return [(k, PredictionResult(row, np.int64(0), "rows.pickle")) for k, row in elements(n)]


def identity(result):
    return result


def floor(n):
    return run_pipeline(
        functools.partial(results, n), beam.Map(identity), beam.ParDo(CollectKeyedResults())
    )


def run_with(n, transform, handler):
    return run_pipeline(
        functools.partial(elements, n), transform(handler), beam.ParDo(CollectKeyedResults())
    )


def check(models, n, contender, outcome):
    """Check that every element came out once with its key and the prediction of its model."""
    by_row = {id(row): key for key, row in elements(n)}
    assert len(outcome.examples) == n
    assert {id(row): key for key, row in outcome.examples} == by_row
    if contender == "floor":
        return
    for number, model in enumerate(models):
        indices = [
            i for i, (key, _) in enumerate(outcome.examples) if model_by_key()[key] == number
        ]
        predictions = model.predict(np.stack([outcome.examples[i][1] for i in indices]))
        np.testing.assert_array_equal([outcome.inferences[i] for i in indices], predictions)
