"""Threads and steps share models and a memory budget, also after pickling."""

from __future__ import annotations

import random
import sys
import uuid
from concurrent.futures import ThreadPoolExecutor

import apache_beam as beam
import pytest
from apache_beam.metrics import MetricsFilter

from common import RUNNER, FunctionHandler, linear_regression, no_updates, run
from runinference import KeyedModelHandler, KeyModelMapping, ModelMetadata, RunInference
from runinference.errors import OptionError, UnknownOptionError
from runinference.sklearn_inference import SklearnModelHandlerNumpy
from serving.workers import RecordingHandler, Worker, alive_models


def test_threads_share_one_model():
    step = RunInference(RecordingHandler("one"))._config()
    with ThreadPoolExecutor(4) as threads:
        workers = list(threads.map(lambda _: Worker(step), range(4)))
        results = list(threads.map(lambda worker: worker.results(1), workers))
    assert results == [[(1, "one")]] * 4
    assert RecordingHandler.loads == ["one"]


@pytest.mark.parametrize("together", [True, False])
def test_steps_with_the_same_identifier_share_a_model(together):
    names = ("same", "same") if together else ("one", "other")
    with beam.Pipeline(runner=RUNNER) as pipeline:
        numbers = pipeline | beam.Create([1, 2])
        for place, name in zip(("left", "right"), names, strict=True):
            identifier = f"{name}-{uuid.uuid4() if not together else 'shared'}"
            _ = numbers | place >> RunInference(RecordingHandler("m"), model_identifier=identifier)
    assert RecordingHandler.loads == (["m"] if together else ["m", "m"])


@pytest.mark.parametrize(
    "model",
    [{"a": 1}, [1, 2], (1, 2), 7, "text", None, frozenset()],
    ids=lambda m: type(m).__name__,
)
def test_any_object_can_be_a_model(model):
    class Returns(FunctionHandler):
        def load_model(self):
            return model

        def run_inference(self, batch, model, inference_args=None):
            return [model for _ in batch]

    assert run([0], RunInference(Returns(len))) == [model]


def managed(name, n_bytes=1, **limits):
    return RunInference(
        RecordingHandler(name, n_bytes),
        model_identifier=name,
        use_model_manager=True,
        model_manager_args={**RecordingHandler.budget, **limits},
    )._config()


def test_steps_share_a_budget_and_evict_the_least_recently_used_model():
    a, b, c = (Worker(managed(name, max_models=2)) for name in "abc")
    for worker, alive in ((a, "a"), (b, "ab"), (a, "ab"), (c, "ac"), (a, "ac"), (b, "ab")):
        worker.results(1)
        assert alive_models() == list(alive)
    assert RecordingHandler.loads == ["a", "b", "c", "b"]
    assert RecordingHandler.max_alive <= 2


def test_the_budget_can_be_in_bytes():
    limits = {"max_model_bytes": 100 << 20}
    a, b, c = (Worker(managed(name, 40 << 20, **limits)) for name in "abc")
    for worker, alive in ((a, "a"), (b, "ab"), (c, "bc"), (b, "bc")):
        worker.results(1)
        assert alive_models() == list(alive)


def test_counts_evictions():
    pipeline = beam.Pipeline(runner=RUNNER)
    numbers = pipeline | beam.Create(range(4), reshuffle=False)
    for name in ("one", "other"):
        _ = numbers | name >> RunInference(
            RecordingHandler(name, max_batch_size=1),
            use_model_manager=True,
            model_manager_args={**RecordingHandler.budget, "max_models": 1},
        )
    result = pipeline.run()
    result.wait_until_finish()
    counters = result.metrics().query(MetricsFilter().with_name("model_evictions"))["counters"]
    assert sum(counter.committed for counter in counters) == len(RecordingHandler.loads) - 1 > 0
    assert RecordingHandler.max_alive == 1


def test_steps_with_different_budgets_do_not_share_them():
    a, b = Worker(managed("a", max_models=1)), Worker(managed("b", max_models=3))
    a.results(1)
    b.results(1)
    assert alive_models() == ["a", "b"]


def test_models_per_key_share_the_budget():
    mappings = [KeyModelMapping([name], RecordingHandler(name, max_batch_size=1)) for name in "xyz"]
    transform = RunInference(
        KeyedModelHandler(mappings),
        use_model_manager=True,
        model_manager_args={**RecordingHandler.budget, "max_models": 2},
    )
    keys = "xyzxyzzyx"
    assert sorted(run([(key, 1) for key in keys], transform)) == sorted((k, (1, k)) for k in keys)
    assert RecordingHandler.max_alive <= 2


@pytest.mark.parametrize("seed", range(4))
def test_concurrent_threads_keep_the_budget(seed):
    steps = [managed(name, max_models=2) for name in "abc"]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)

    def work(number):
        dice = random.Random(1000 * seed + number)
        workers = [Worker(step) for step in steps]
        for _ in range(40):
            n = dice.randrange(3)
            assert workers[n].results(number) == [(number, "abc"[n])]

    try:
        with ThreadPoolExecutor(4) as threads:
            list(threads.map(work, range(4)))
    finally:
        sys.setswitchinterval(interval)
    assert RecordingHandler.max_alive <= 2
    assert len(alive_models()) <= 2


def test_invalid_manager_arguments_raise():
    with pytest.raises(UnknownOptionError, match="Did you mean 'max_models'"):
        managed("x", max_model=2)
    with pytest.raises(OptionError, match="needs use_model_manager=True"):
        RunInference(RecordingHandler("x"), model_manager_args={"max_models": 2})
    with pytest.raises(OptionError, match="must be at least 1"):
        managed("x", max_models=0)


@pytest.mark.parametrize(
    ("options", "wrap"),
    [
        ({}, None),
        ({"large_model": True}, None),
        ({"max_batch_size": 1}, None),
        ({}, KeyedModelHandler),
    ],
    ids=["plain", "shared", "small batches", "keyed"],
)
@pytest.mark.parametrize("names", ["abcdef", "ababcbca", "abcabc"])
def test_at_most_the_old_and_the_new_model_are_loaded_within_a_bundle(options, wrap, names):
    """Each model that a bundle had used to stay until its end."""
    handler = RecordingHandler("first", **options)
    handler = wrap(handler) if wrap else handler
    step = RunInference(handler, model_metadata_pcoll=no_updates())._config()
    workers = [Worker(step) for _ in range(2)]
    for worker in workers:
        updates = [None, None, *(ModelMetadata(name, name) for name in names)]
        elements = [("k", n) if wrap else n for n in range(len(updates))]
        found = worker.bundle_with_updates(zip(elements, updates, strict=True))
        expected = [(n, "first" if n < 2 else names[n - 2]) for n in range(len(updates))]
        assert sorted(x[1] if wrap else x for x in found) == expected
    assert RecordingHandler.max_alive <= 2
    assert len(alive_models()) <= 2


def test_a_model_that_is_replaced_is_closed_when_no_bundle_uses_it():
    step = RunInference(RecordingHandler("a"), model_metadata_pcoll=no_updates())._config()
    one, other = Worker(step), Worker(step)
    assert one.results(1) == other.results(1) == [(1, "a")]
    assert one.results(1, update=ModelMetadata("b", "")) == [(1, "b")]
    assert other.results(1, update=ModelMetadata("b", "")) == [(1, "b")]
    assert alive_models() == ["b"]
    assert RecordingHandler.loads == ["a", "b"]


def slope(path, value, name="model"):
    return linear_regression(path / f"{name}-{value}", value)


@pytest.mark.parametrize("manager", [False, True], ids=["apart", "managed"])
def test_steps_with_one_identifier_and_different_models_each_use_their_own(tmp_path, manager):
    """The model that was loaded first used to serve both, under the name of the other."""
    options = {"model_identifier": f"mine-{uuid.uuid4()}", "use_model_manager": manager}
    mappings = [KeyModelMapping(["k"], SklearnModelHandlerNumpy(slope(tmp_path, 4)))]
    steps = {
        1: RunInference(SklearnModelHandlerNumpy(slope(tmp_path, 1)), **options),
        2: RunInference(SklearnModelHandlerNumpy(slope(tmp_path, 2)), **options),
        3: RunInference(SklearnModelHandlerNumpy(slope(tmp_path, 3), large_model=True), **options),
        4: RunInference(KeyedModelHandler(mappings), **options),
    }
    workers = {value: Worker(step._config()) for value, step in steps.items()}
    for value in (1, 2, 3, 1, 2, 3):
        [result] = workers[value].results([1.0])
        assert (round(float(result.inference)), result.model_id[-1]) == (value, str(value))
    [(_, result)] = workers[4].results(("k", [1.0]))
    assert round(float(result.inference)) == 4


def test_steps_that_call_one_model_in_different_ways_share_it():
    identifier = f"mine-{uuid.uuid4()}"
    handlers = [
        RecordingHandler("m"),
        RecordingHandler("m", max_batch_size=3),
        RecordingHandler("m").with_preprocess_fn(len),
        KeyedModelHandler(RecordingHandler("m")),
    ]
    for handler in handlers:
        Worker(RunInference(handler, model_identifier=identifier)._config())
    assert RecordingHandler.loads == ["m"]
