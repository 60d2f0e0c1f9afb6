"""Models that don't fit into memory together are loaded once per bundle, not once per batch."""

from __future__ import annotations

from collections import Counter

import apache_beam as beam
import numpy as np
import pytest

from common import RUNNER, CollectElements, run
from runinference import (
    KeyedModelHandler,
    KeyModelMapping,
    ModelHandler,
    PredictionResult,
    RunInference,
)

KEYS = range(6)
N_ROUNDS = 7
PAIRS = [(key, number) for number in range(N_ROUNDS) for key in KEYS]
LOADS: list[int] = []


class Named(ModelHandler):
    """Returns the number of the model, whose weights are an array of a mebibyte."""

    def __init__(self, number, **options):
        super().__init__(**options)
        self.number = number

    def load_model(self):
        LOADS.append(self.number)
        return np.full(1 << 17, self.number, np.float64)

    def run_inference(self, batch, model, inference_args=None):
        return [PredictionResult(x, int(model[0])) for x in batch]


def handler(limits, **options):
    mappings = [KeyModelMapping([key], Named(key, **options)) for key in KEYS]
    return KeyedModelHandler(mappings, **limits)


MODELS = {"max_models_per_worker_hint": 2}
BYTES = {"max_model_bytes_per_worker": 5 << 19}


def transform_in_one_bundle(handler, **options):
    return run(PAIRS, RunInference(handler, **options))


def in_lists(handler):
    lists = [[pair for pair in PAIRS if pair[1] == number] for number in range(N_ROUNDS)]
    return run(lists, RunInference(handler.with_no_batching()))


def unsplit(handler):
    arrays = [(key, np.full(1, number)) for key, number in PAIRS]
    found = run(arrays, RunInference(handler.with_no_batching(whole_results=True)))
    return [(key, result) for key, [result] in found]


PATHS = {
    "bundle": (lambda limits: transform_in_one_bundle(handler(limits))),
    "batches of one": (lambda limits: transform_in_one_bundle(handler(limits, max_batch_size=1))),
    "dead letters": (
        lambda limits: run(PAIRS, _Main(RunInference(handler(limits)).with_exception_handling()))
    ),
    "lists": (lambda limits: in_lists(handler(limits))),
    "unsplit": (lambda limits: unsplit(handler(limits))),
    "across bundles": (
        lambda limits: transform_in_one_bundle(handler(limits, max_batch_duration_secs=1))
    ),
    "model manager": (
        lambda limits: transform_in_one_bundle(
            handler({}),
            use_model_manager=True,
            model_manager_args=_manager_args(limits),
        )
    ),
    "predict": (lambda limits: handler(limits).predict(PAIRS)),
    "predict batches of one": (lambda limits: handler(limits, max_batch_size=1).predict(PAIRS)),
}


class _Main(beam.PTransform):
    def __init__(self, step):
        super().__init__()
        self.step = step

    def expand(self, elements):
        return (elements | self.step)[0]


def _manager_args(limits):
    names = {
        "max_models_per_worker_hint": "max_models",
        "max_model_bytes_per_worker": "max_model_bytes",
    }
    return {names[name]: value for name, value in limits.items()}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("limits", [MODELS, BYTES], ids=["models", "bytes"])
def test_each_model_is_loaded_once(path, limits):
    LOADS.clear()
    found = PATHS[path](limits)
    assert Counter((key, result.inference) for key, result in found) == {
        (key, key): N_ROUNDS for key in KEYS
    }
    assert sorted(LOADS) == list(KEYS)


def test_steps_that_share_a_budget_don_t_evict_each_other_for_each_batch():
    LOADS.clear()
    names = ("one", "other", "third")
    found = []
    with beam.Pipeline(runner=RUNNER) as pipeline:
        numbers = pipeline | beam.Create(range(12), reshuffle=False)
        for number, name in enumerate(names):
            step = RunInference(
                Named(number, max_batch_size=1),
                use_model_manager=True,
                model_manager_args={"max_models": 1},
                model_identifier=f"{__name__}-{name}",
            )
            numbers | name >> step | f"collect {name}" >> beam.ParDo(CollectElements(found))
    assert len(CollectElements.take(found)) == 36
    assert sorted(LOADS) == [0, 1, 2]


def test_what_is_held_is_bounded(monkeypatch):
    """More elements than are held are called in between, those of the model with the most first."""
    from runinference.transforms import model_groups

    monkeypatch.setattr(model_groups, "_MAX_ELEMENTS", 10)
    LOADS.clear()
    found = transform_in_one_bundle(handler(MODELS, max_batch_size=1))
    assert Counter((key, result.inference) for key, result in found) == {
        (key, key): N_ROUNDS for key in KEYS
    }
    assert len(KEYS) < len(LOADS) < len(PAIRS) / 2


def test_predict_has_the_batch_sizes_of_each_model():
    sizes = []

    class Recording(Named):
        def run_inference(self, batch, model, inference_args=None):
            sizes.append((self.number, len(batch)))
            return super().run_inference(batch, model)

    keyed = KeyedModelHandler(
        [
            KeyModelMapping([0], Recording(0, min_batch_size=3, max_batch_size=3)),
            KeyModelMapping([1], Recording(1, max_batch_size=1)),
        ]
    )
    pairs = [(number % 2, number) for number in range(8)]
    assert [(key, result.example) for key, result in keyed.predict(pairs)] == pairs
    assert sizes == [(0, 3), (0, 1), *[(1, 1)] * 4]
