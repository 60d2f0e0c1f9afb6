"""W5: 20,000 elements with 100 keys that share 4 models. Batching by model instead of by key dominates."""

import functools
import shutil
from dataclasses import dataclass

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

GOALS = {"ours of the ideal": ("≥", 0.85), "ours ÷ Beam": ("≥", 4)}
DISTINCT = 4  # models with different weights


@dataclass(frozen=True)
class KeyedJob:
    """A number of elements, keys, and models. Adjacent keys belong to different models."""

    n: int
    n_keys: int
    n_models: int

    def keys_for_model(self, number):
        return [f"key {key}" for key in range(number, self.n_keys, self.n_models)]


def cases(scale):
    job = KeyedJob(max(2_000, int(20_000 * scale)), n_keys=100, n_models=4)
    yield make_case("W5", "100 keys, 4 models", job, GOALS)


def make_case(workload, variant, job, goals, max_rounds=None):
    """Return the case of a job."""
    paths = dict(enumerate(map(save_model, range(job.n_models))))
    ours = KeyedModelHandler(
        [
            KeyModelMapping(job.keys_for_model(number), SklearnModelHandlerNumpy(path))
            for number, path in paths.items()
        ]
    )
    beam_handler = beam_base.KeyedModelHandler(
        [
            beam_base.KeyModelMapping(
                job.keys_for_model(number), beam_sklearn.SklearnModelHandlerNumpy(path)
            )
            for number, path in paths.items()
        ]
    )
    return Case(
        workload=workload,
        variant=variant,
        n=job.n,
        runs={
            "limit": functools.partial(bare_loop, job),
            "floor": functools.partial(floor, job),
            "ours": functools.partial(run_with, job, RunInference, ours),
            "Beam": functools.partial(run_with, job, beam_base.RunInference, beam_handler),
        },
        check=functools.partial(check, job),
        goals=goals,
        max_rounds=max_rounds,
    )


def estimator(number):
    """Return the model with this number. Every fourth one has the same weights, because training takes long."""
    model, _ = train_model(number % DISTINCT)
    return model


@functools.cache
def save_model(number):
    """Return the path of the model with this number. Each model has a separate file."""
    _, path = train_model(number % DISTINCT)
    return path if number < DISTINCT else shutil.copy(path, f"{path}-{number}")


@functools.cache
def model_by_key(job):
    return {key: number for number in range(job.n_models) for key in job.keys_for_model(number)}


@functools.cache
def elements(job):
    keys = np.random.default_rng(2).integers(0, job.n_keys, job.n)
    return [(f"key {key}", row) for key, row in zip(keys, rows(job.n), strict=True)]


def number(element):
    """Return a number that identifies a key and its row."""
    key, row = element
    return (1.0 + int(key[4:])) * first_value(row)


def bare_loop(job):
    groups = [[] for _ in range(job.n_models)]
    for element in elements(job):
        groups[model_by_key(job)[element[0]]].append(element)
    outcome = Outcome()
    for model, group in enumerate(groups):
        for batch in batches(group, 1_024):
            predictions = estimator(model).predict(np.stack([row for _, row in batch]))
            outcome.add_batch([*map(number, batch)], predictions)
    return outcome


def floor(job):
    return run_pipeline(functools.partial(elements, job), beam.Map(identity), ExampleSink(number))


def run_with(job, transform, handler):
    return run_pipeline(functools.partial(elements, job), transform(handler), KeyedSink(number))


@functools.cache
def expected(job):
    """Return the number and the prediction of each element."""
    by_model = np.stack(
        [estimator(number).predict(np.stack(rows(job.n))) for number in range(DISTINCT)]
    )
    indices = [model_by_key(job)[key] % DISTINCT for key, _ in elements(job)]
    return np.array([*map(number, elements(job))]), by_model[indices, np.arange(job.n)]


def check(job, contender, outcome):
    """Check that every element came out once with its key and the prediction of its model."""
    numbers, predictions = expected(job)
    if contender == "floor":
        return outcome.check(numbers)
    outcome.check(numbers, predictions)
    for (key, row), prediction in outcome.sample:
        assert prediction == estimator(model_by_key(job)[key]).predict(row[np.newaxis])
