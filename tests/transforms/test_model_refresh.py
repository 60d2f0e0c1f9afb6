"""Model refresh: a new model replaces the old one while the pipeline runs, unless it cannot be loaded."""

from __future__ import annotations

import copy
import gc
import os
import threading
import weakref

import apache_beam as beam
import numpy as np
import pytest
from apache_beam.metrics import MetricsFilter
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.transforms import window
from apache_beam.transforms.periodicsequence import PeriodicImpulse
from apache_beam.transforms.window import WindowedValue
from apache_beam.utils.timestamp import Timestamp

from common import RUNNER, CollectElements, linear_regression, no_updates
from runinference import (
    KeyedModelHandler,
    KeyModelMapping,
    KeyModelPathMapping,
    ModelHandler,
    ModelMetadata,
    PredictionResult,
    RunInference,
)
from runinference.errors import OptionError
from runinference.sklearn_inference import SklearnModelHandlerNumpy
from runinference.transforms.infer_dofn import InferDoFn

GLOBAL = window.GlobalWindow()


class TrackedModel:
    """A model that knows its path, and whose live instances are tracked."""

    alive: weakref.WeakSet[TrackedModel] = weakref.WeakSet()

    def __init__(self, path: str) -> None:
        self.path = path
        self.alive.add(self)


class FromPath(ModelHandler):
    """Loads a model by path. A path with "broken" in it cannot be loaded."""

    loads: list[str] = []

    def __init__(self, path: str, **options) -> None:
        super().__init__(**options)
        self._path = path

    def load_model(self):
        self.loads.append(self._path)
        if "broken" in self._path:
            raise OSError(f"cannot read {self._path}")
        return TrackedModel(self._path)

    def update_model_path(self, model_path=None):
        self._path = model_path or self._path

    def run_inference(self, batch, model, inference_args=None):
        assert model.path == self._path, "a handler called the model of another handler"
        return [PredictionResult(x, model.path, self._path) for x in batch]


@pytest.fixture(autouse=True)
def _fresh():
    FromPath.loads.clear()
    gc.collect()
    TrackedModel.alive.clear()


class Worker:
    """Drives the DoFn of a step in one thread, as a runner does."""

    def __init__(self, transform: RunInference) -> None:
        self.config = transform._config()
        self._set_up()

    def _set_up(self) -> None:
        self.do_fn = InferDoFn(self.config)
        self.do_fn.setup()

    def thread(self) -> Worker:
        """Return another thread of the same process."""
        other = copy.copy(self)
        other._set_up()
        return other

    def bundle(self, *elements_and_updates):
        self.do_fn.start_bundle()
        outputs = []
        for element, update in elements_and_updates:
            origin = WindowedValue(element, 0, (GLOBAL,))
            outputs += self.do_fn.process(element, origin, update) or []
        outputs += self.do_fn.finish_bundle()
        return [output.value for output in outputs]


def make_worker(handler, **options) -> Worker:
    transform = RunInference(handler, model_metadata_pcoll=no_updates(), **options)
    return Worker(transform)


A, B = ModelMetadata("a", "model-a"), ModelMetadata("b", "model-b")


def get_inferences(results):
    return [result.inference for result in results]


def test_a_refresh_replaces_the_model_and_results_have_its_id():
    worker = make_worker(FromPath("first"))
    assert get_inferences(worker.bundle((1, None))) == ["first"]
    [result] = worker.bundle((2, A))
    assert (result.inference, result.model_id) == ("a", "a")
    assert FromPath.loads == ["first", "a"]


def test_elements_of_one_bundle_use_the_model_of_their_refresh():
    results = make_worker(FromPath("first")).bundle((1, A), (2, A), (3, B), (4, A))
    assert {result.example: result.inference for result in results} == {
        1: "a",
        2: "a",
        3: "b",
        4: "a",
    }


def test_an_element_whose_window_has_no_refresh_uses_the_current_model():
    """As in Beam: an empty window of the side input does not restore the first model."""
    worker = make_worker(FromPath("first"))
    results = [
        *worker.bundle((1, None), (2, A), (3, None)),
        *worker.bundle((4, None), (5, B), (6, None)),
    ]
    found = {result.example: result.inference for result in results}
    assert found == {1: "first", 2: "a", 3: "a", 4: "a", 5: "b", 6: "b"}


def test_the_old_model_is_freed_after_its_last_call():
    worker = make_worker(FromPath("first"))
    for n in range(6):
        worker.bundle((n, ModelMetadata(f"update-{n}", "")))
    gc.collect()
    assert [model.path for model in TrackedModel.alive] == ["update-5"]


@pytest.mark.parametrize("n_updates", [2, 3])
def test_the_old_model_is_freed_if_the_runner_dropped_the_thread_that_used_it(n_updates):
    process = make_worker(FromPath("first"))
    for n in range(n_updates):
        worker = process.thread()
        worker.bundle((n, ModelMetadata(f"update-{n}", "")))
        if n < n_updates - 1:
            del worker
            gc.collect()
    gc.collect()
    assert [model.path for model in TrackedModel.alive] == [f"update-{n_updates - 1}"]


def test_a_thread_that_waits_keeps_its_model():
    one = make_worker(FromPath("first"))
    other = one.thread()
    for n in range(3):
        one.bundle((n, A))
        other.bundle((n, B))
    assert FromPath.loads == ["a", "b"]


def test_models_of_other_keys_stay_loaded_if_the_runner_dropped_the_thread_that_used_them():
    process = make_worker(per_key_handler())
    for element in ELEMENTS * 2:
        worker = process.thread()
        worker.bundle((element, mappings(k1="x", k2="y", k3="z")))
        del worker
        gc.collect()
    assert FromPath.loads == ["x", "y", "z"]


def test_alternating_refreshes_in_a_bundle_load_each_model_once():
    worker = make_worker(FromPath("first", max_batch_size=1))
    results = worker.bundle(*[(n, (A, B)[n % 2]) for n in range(10)])
    assert sorted(get_inferences(results)) == ["a"] * 5 + ["b"] * 5
    assert FromPath.loads == ["a", "b"]


def test_an_equal_refresh_loads_nothing():
    worker = make_worker(FromPath("first"))
    for n in range(5):
        worker.bundle((n, ModelMetadata("a", "model-a")))
    assert FromPath.loads == ["a"]


def test_the_old_model_stays_in_use_if_the_new_one_cannot_be_loaded(caplog):
    caplog.set_level("WARNING")
    worker = make_worker(FromPath("first"))
    worker.bundle((1, A))
    assert get_inferences(worker.bundle((2, ModelMetadata("broken", "")))) == ["a"]
    assert "the previous model stays in use" in caplog.text
    assert get_inferences(worker.bundle((3, ModelMetadata("broken", "")))) == ["a"]
    assert FromPath.loads == ["a", "broken"]
    assert get_inferences(worker.bundle((4, B))) == ["b"]


def test_a_first_model_that_cannot_be_loaded_raises():
    with pytest.raises(OSError, match="cannot read broken"):
        make_worker(FromPath("broken")).bundle((1, None))


@pytest.mark.parametrize(
    "update", ["a path", 7, {"model_id": "x"}, [KeyModelPathMapping(["k"], "x")]]
)
def test_a_refresh_of_the_wrong_type_is_logged_and_the_model_stays_in_use(update, caplog):
    caplog.set_level("WARNING")
    worker = make_worker(FromPath("first"))
    assert get_inferences(worker.bundle((1, update))) == ["first"]
    assert "ModelMetadata(model_id, model_name)" in caplog.text
    assert get_inferences(worker.bundle((2, A), (3, update))) == ["a", "a"]


def test_all_threads_of_a_process_share_the_new_model():
    transform = RunInference(FromPath("first"), model_metadata_pcoll=no_updates())
    workers = [Worker(transform) for _ in range(4)]
    for update in (A, B):
        threads = [threading.Thread(target=w.bundle, args=((1, update),)) for w in workers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(set(FromPath.loads)) == ["a", "b"]


def per_key_handler(**options):
    mappings = [
        KeyModelMapping(["k1", "k2"], FromPath("one")),
        KeyModelMapping(["k3"], FromPath("two")),
    ]
    return KeyedModelHandler(mappings, **options)


def mappings(**by_key):
    return [KeyModelPathMapping([key], path, f"id-{path}") for key, path in by_key.items()]


def keyed(results):
    return {key: result.inference for key, result in results}


ELEMENTS = [("k1", 1), ("k2", 2), ("k3", 3)]


def test_models_per_key_are_refreshed_per_key():
    worker = make_worker(per_key_handler())
    assert keyed(worker.bundle(*[(e, None) for e in ELEMENTS])) == {
        "k1": "one",
        "k2": "one",
        "k3": "two",
    }
    update = mappings(k1="x", k2="y", k3="two")
    assert keyed(worker.bundle(*[(e, update) for e in ELEMENTS])) == {
        "k1": "x",
        "k2": "y",
        "k3": "two",
    }
    again = mappings(k1="x", k2="y", k3="two")
    FromPath.loads.clear()
    worker.bundle(*[(e, again) for e in ELEMENTS])
    assert FromPath.loads == []


def test_keys_with_the_same_new_path_share_a_model():
    worker = make_worker(per_key_handler())
    update = [KeyModelPathMapping(["k1", "k2"], "x"), KeyModelPathMapping(["k3"], "z")]
    assert keyed(worker.bundle(*[(e, update) for e in ELEMENTS])) == {
        "k1": "x",
        "k2": "x",
        "k3": "z",
    }
    assert sorted(FromPath.loads) == ["x", "z"]


def test_replaced_models_of_keys_are_freed():
    worker = make_worker(per_key_handler())
    for n in range(4):
        worker.bundle(*[(e, mappings(k1=f"x{n}", k2=f"x{n}", k3=f"z{n}")) for e in ELEMENTS])
    gc.collect()
    assert sorted(model.path for model in TrackedModel.alive) == ["x3", "z3"]


def test_a_key_keeps_its_old_model_if_its_new_one_cannot_be_loaded():
    worker = make_worker(per_key_handler(max_models_per_worker_hint=2))
    worker.bundle(*[(e, None) for e in ELEMENTS])
    update = mappings(k1="broken", k2="y", k3="z")
    assert keyed(worker.bundle(*[(e, update) for e in ELEMENTS])) == {
        "k1": "one",
        "k2": "y",
        "k3": "z",
    }


@pytest.mark.parametrize(
    ("update", "message"),
    [
        (mappings(k1="x"), "Missing: 'k2', 'k3'"),
        (mappings(k1="x", k2="x", k3="x", k4="x"), "Unknown keys: 'k4'"),
        ([*mappings(k1="x", k2="x", k3="x"), *mappings(k1="y")], "names the key 'k1' twice"),
        (mappings(k1="", k2="x", k3="x"), "empty path"),
        ([KeyModelPathMapping([["k1"]], "x")], "not hashable"),
        ([KeyModelPathMapping([("k1", [])], "x")], "not hashable"),
        ([KeyModelPathMapping("k1", "x")], "must be a list"),
        ([KeyModelPathMapping(["k1", "k2", "k3"], None)], "list of KeyModelPathMapping"),
        (ModelMetadata("x", ""), "list of KeyModelPathMapping"),
    ],
)
def test_an_invalid_refresh_of_models_per_key_is_logged_and_the_models_stay_in_use(
    update, message, caplog
):
    caplog.set_level("WARNING")
    worker = make_worker(per_key_handler())
    results = worker.bundle(*[(e, update) for e in ELEMENTS])
    assert keyed(results) == {"k1": "one", "k2": "one", "k3": "two"}
    assert caplog.text.count(message) == 1


def test_a_first_refresh_that_cannot_be_loaded_leaves_the_handlers_own_model(caplog):
    caplog.set_level("WARNING")
    worker = make_worker(FromPath("first"))
    broken = ModelMetadata("broken", "")
    assert get_inferences(worker.bundle((1, broken))) == ["first"]
    assert "cannot read broken" in caplog.text
    assert get_inferences(worker.bundle((2, broken))) == ["first"]
    assert get_inferences(worker.bundle((3, A))) == ["a"]
    assert FromPath.loads == ["broken", "first", "a"]


def test_a_first_refresh_of_one_key_that_cannot_be_loaded_leaves_the_handlers_own_model():
    worker = make_worker(per_key_handler())
    update = mappings(k1="broken", k2="y", k3="z")
    assert keyed(worker.bundle(*[(e, update) for e in ELEMENTS])) == {
        "k1": "one",
        "k2": "y",
        "k3": "z",
    }


def test_the_error_of_the_refresh_is_raised_if_no_model_can_be_loaded():
    with pytest.raises(OSError, match="cannot read new-broken"):
        make_worker(FromPath("broken")).bundle((1, ModelMetadata("new-broken", "")))


class Key:
    """A key whose text says nothing."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __eq__(self, other) -> bool:
        return isinstance(other, Key) and self.number == other.number

    def __hash__(self) -> int:
        return 7

    def __repr__(self) -> str:
        return "key"


@pytest.mark.parametrize(
    "keys",
    [(Key(1), Key(2)), (1, "1"), ("a", b"a"), ((1, "2"), ("1", 2)), ("a", "a-b")],
    ids=["equal repr", "number and text", "text and bytes", "tuples", "texts that join"],
)
def test_keys_with_similar_texts_have_their_own_models_updates_and_counts(keys):
    handler = KeyedModelHandler(
        [KeyModelMapping([key], FromPath(f"m{i}")) for i, key in enumerate(keys)]
    )
    elements = [(key, i) for i, key in enumerate(keys)]
    assert handler.predict(elements) == [
        (key, PredictionResult(i, f"m{i}", f"m{i}")) for i, key in enumerate(keys)
    ]
    worker = make_worker(handler)
    engine = worker.do_fn._engine
    names = ("b", "") if keys == ("a", "a-b") else ("", "")
    one, other = (
        [KeyModelPathMapping([key], f"{v}{i}", names[i]) for i, key in enumerate(keys)]
        for v in "xy"
    )
    for update, start in ((None, "m"), (one, "x"), (other, "y")):
        results = worker.bundle(*[(element, update) for element in elements])
        assert keyed(results) == {key: f"{start}{i}" for i, key in enumerate(keys)}
        prefixes = [engine.router.route(element).prefix for element in elements]
        assert len(set(prefixes)) == 2


def test_accepts_the_metadata_class_of_beam():
    from apache_beam.ml.inference.base import ModelMetadata as OfBeam

    assert get_inferences(make_worker(FromPath("first")).bundle((1, OfBeam("a", "name")))) == ["a"]


def test_two_sources_of_new_models_raise():
    with pytest.raises(OptionError, match="pass only one of them"):
        RunInference(FromPath("x"), model_metadata_pcoll=no_updates(), watch_model_pattern="*")
    with pytest.raises(OptionError, match="are for watch_model_pattern"):
        RunInference(FromPath("x"), interval=3)


def test_a_pipeline_refreshes_its_model_from_a_side_input(tmp_path):
    new = linear_regression(tmp_path / "new.pickle", slope=5)
    handler = SklearnModelHandlerNumpy(linear_regression(tmp_path / "old.pickle"))
    caught = []
    pipeline = beam.Pipeline(runner=RUNNER)
    metadata = pipeline | "new" >> beam.Create([ModelMetadata(new, "new")])
    rows = pipeline | beam.Create([np.array([1.0])])
    _ = (
        rows
        | RunInference(handler, model_metadata_pcoll=metadata)
        | beam.ParDo(CollectElements(caught))
    )
    result = pipeline.run()
    result.wait_until_finish()
    [prediction] = CollectElements.take(caught)
    assert round(float(prediction.inference), 6) == 5
    assert prediction.model_id == new
    assert result.metrics().query(MetricsFilter().with_name("new_num_inferences"))["counters"]


def test_an_empty_side_input_keeps_the_model_of_the_handler(tmp_path):
    handler = SklearnModelHandlerNumpy(linear_regression(tmp_path / "old.pickle"))
    caught = []
    with beam.Pipeline(runner=RUNNER) as pipeline:
        metadata = pipeline | "none" >> beam.Create([])
        rows = pipeline | beam.Create([np.array([1.0])])
        _ = (
            rows
            | RunInference(handler, model_metadata_pcoll=metadata)
            | beam.ParDo(CollectElements(caught))
        )
    [prediction] = CollectElements.take(caught)
    assert round(float(prediction.inference), 6) == 2


def test_each_window_uses_the_model_of_its_own_refresh():
    caught = []
    with beam.Pipeline(runner=RUNNER) as pipeline:
        named = (
            pipeline
            | "names"
            >> beam.Create([window.TimestampedValue(n, t) for n, t in ((A, 1), (B, 12), (A, 21))])
            | "windows of names" >> beam.WindowInto(window.FixedWindows(10))
        )
        numbers = (
            pipeline
            | beam.Create([window.TimestampedValue(n, n) for n in range(30)])
            | beam.WindowInto(window.FixedWindows(10))
        )
        transform = RunInference(FromPath("first", max_batch_size=3), model_metadata_pcoll=named)
        _ = numbers | transform | beam.ParDo(CollectElements(caught))
    found = {result.example: result.inference for result in CollectElements.take(caught)}
    assert found == {n: "aba"[n // 10] for n in range(30)}
    assert sorted(FromPath.loads) == ["a", "b"]


class MoveNewModel(beam.DoFn):
    """Moves a new model under the watched pattern after the first result."""

    def __init__(self, hidden, shown) -> None:
        self.hidden, self.shown = hidden, shown

    def process(self, result):
        if os.path.exists(self.hidden):
            os.utime(self.hidden)
            os.rename(self.hidden, self.shown)
        yield result


def test_a_streaming_pipeline_uses_a_new_model_file_that_appears(tmp_path):
    old = linear_regression(tmp_path / "model-0.pickle")
    os.utime(old, (1, 1))
    hidden = linear_regression(tmp_path / "hidden", slope=5)
    new = str(tmp_path / "model-1.pickle")
    caught = []
    stop = Timestamp.now() + 8
    with beam.Pipeline(options=PipelineOptions(streaming=True)) as pipeline:
        ticks = pipeline | PeriodicImpulse(stop_timestamp=stop, fire_interval=0.5)
        rows = ticks | beam.Map(lambda _: np.array([1.0]))
        results = rows | RunInference(
            SklearnModelHandlerNumpy(old),
            watch_model_pattern=str(tmp_path / "model-*.pickle"),
            interval=0.5,
            stop_timestamp=stop,
        )
        _ = results | beam.ParDo(MoveNewModel(hidden, new)) | beam.ParDo(CollectElements(caught))
    found = [
        (round(float(result.inference)), result.model_id) for result in CollectElements.take(caught)
    ]
    assert found[0] == (2, old)
    assert found[-1] == (5, new)
    assert set(found) == {(2, old), (5, new)}
