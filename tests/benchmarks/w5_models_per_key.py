"""W5: 20,000 elements with 100 keys that share 4 models. Batching by model instead of by key dominates."""

import functools

import apache_beam as beam
import numpy as np
from apache_beam.ml.inference import base as beam_base
from apache_beam.ml.inference import sklearn_inference as beam_sklearn

from benchmarks.harness import (
    Case,
    ExampleSink,
    KeyedSink,
    Outcome,
    batches,
    identity,
    run_pipeline,
)
from benchmarks.w1_rows import first_value, rows, train_model
from runinference import KeyedModelHandler, KeyModelMapping, RunInference
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
    estimators = tuple(model for model, _ in models)
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
        goals={"ours of the ideal": ("≥", 0.85), "ours ÷ Beam": ("≥", 4)},
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


@functools.cache
def key_numbers():
    return {f"key {key}": 1.0 + key for key in range(KEYS)}


def number(element):
    """Return a number that identifies a key and its row."""
    key, row = element
    return key_numbers()[key] * first_value(row)


def bare_loop(models, n):
    groups = [[] for _ in models]
    for element in elements(n):
        groups[model_by_key()[element[0]]].append(element)
    outcome = Outcome()
    for model, group in zip(models, groups, strict=True):
        for batch in batches(group, 1_024):
            predictions = model.predict(np.stack([row for _, row in batch]))
            outcome.add_batch([*map(number, batch)], predictions)
    return outcome


def floor(n):
    return run_pipeline(functools.partial(elements, n), beam.Map(identity), ExampleSink(number))


def run_with(n, transform, handler):
    return run_pipeline(functools.partial(elements, n), transform(handler), KeyedSink(number))


@functools.cache
def expected(models, n):
    """Return the number and the prediction of each element."""
    by_model = np.stack([model.predict(np.stack(rows(n))) for model in models])
    indices = [model_by_key()[key] for key, _ in elements(n)]
    return np.array([*map(number, elements(n))]), by_model[indices, np.arange(n)]


def check(models, n, contender, outcome):
    """Check that every element came out once with its key and the prediction of its model."""
    numbers, predictions = expected(models, n)
    if contender == "floor":
        return outcome.check(numbers)
    outcome.check(numbers, predictions)
    for (key, row), prediction in outcome.sample:
        assert prediction == models[model_by_key()[key]].predict(row[np.newaxis])
