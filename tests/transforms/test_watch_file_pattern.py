"""A new model takes over while elements flow; a broken one does not."""

from __future__ import annotations

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

from common import RUNNER, CollectElements, linear_regression
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
from runinference.transforms.watch_file_pattern import AsLatest, _Newest

GLOBAL = window.GlobalWindow()


class Named:
    """A model that knows where it came from, and can be watched."""

    alive: weakref.WeakSet[Named] = weakref.WeakSet()

    def __init__(self, path: str) -> None:
        self.path = path
        self.alive.add(self)


class FromPath(ModelHandler):
    """Loads models by name; a path with "broken" in it cannot be loaded."""

    loads: list[str] = []

    def __init__(self, path: str, **options) -> None:
        super().__init__(**options)
        self._path = path

    def load_model(self):
        self.loads.append(self._path)
        if "broken" in self._path:
            raise OSError(f"cannot read {self._path}")
        return Named(self._path)

    def update_model_path(self, model_path=None):
        self._path = model_path or self._path

    def run_inference(self, batch, model, inference_args=None):
        assert model.path == self._path, "a handler called another model than its own"
        return [PredictionResult(x, model.path, self._path) for x in batch]


@pytest.fixture(autouse=True)
def _fresh():
    FromPath.loads.clear()
    gc.collect()
    Named.alive.clear()


class Worker:
    """A thread of a worker: drives the DoFn of a step as a runner does."""

    def __init__(self, transform: RunInference) -> None:
        self.do_fn = InferDoFn(transform._config())
        self.do_fn.setup()

    def bundle(self, *elements_and_updates):
        self.do_fn.start_bundle()
        outputs = []
        for element, update in elements_and_updates:
            origin = WindowedValue(element, 0, (GLOBAL,))
            outputs += self.do_fn.process(element, origin, update) or []
        outputs += self.do_fn.finish_bundle()
        return [output.value for output in outputs]


def worker(handler, **options) -> Worker:
    transform = RunInference(handler, model_metadata_pcoll=object(), **options)
    return Worker(transform)


A, B = ModelMetadata("a", "model-a"), ModelMetadata("b", "model-b")


def spoken(results):
    return [result.inference for result in results]


def test_a_refresh_swaps_the_model_and_the_results_say_so():
    one = worker(FromPath("first"))
    assert spoken(one.bundle((1, None))) == ["first"]
    [result] = one.bundle((2, A))
    assert (result.inference, result.model_id) == ("a", "a")
    assert FromPath.loads == ["first", "a"]


def test_elements_before_and_after_a_refresh_in_one_bundle_get_their_own_model():
    results = worker(FromPath("first")).bundle((1, A), (2, A), (3, B), (4, A))
    assert {result.example: result.inference for result in results} == {
        1: "a",
        2: "a",
        3: "b",
        4: "a",
    }


def test_an_element_whose_window_names_no_model_is_for_the_one_that_serves():
    """Beam does so too: an empty window of the side input says nothing, rather than "the first model"."""
    one = worker(FromPath("first"))
    results = [*one.bundle((1, None), (2, A), (3, None)), *one.bundle((4, None), (5, B), (6, None))]
    spoke = {result.example: result.inference for result in results}
    assert spoke == {1: "first", 2: "a", 3: "a", 4: "a", 5: "b", 6: "b"}


def test_the_old_model_is_freed_after_its_last_lease():
    one = worker(FromPath("first"))
    for n in range(6):
        one.bundle((n, ModelMetadata(f"update-{n}", "")))
    gc.collect()
    assert [model.path for model in Named.alive] == ["update-5"]


def test_going_back_and_forth_in_a_bundle_loads_each_model_once():
    one = worker(FromPath("first", max_batch_size=1))
    results = one.bundle(*[(n, (A, B)[n % 2]) for n in range(10)])
    assert sorted(spoken(results)) == ["a"] * 5 + ["b"] * 5
    assert FromPath.loads == ["a", "b"]


def test_an_unchanged_refresh_loads_nothing():
    one = worker(FromPath("first"))
    for n in range(5):
        one.bundle((n, ModelMetadata("a", "model-a")))
    assert FromPath.loads == ["a"]


def test_a_broken_new_model_leaves_the_old_one_serving(caplog):
    one = worker(FromPath("first"))
    one.bundle((1, A))
    assert spoken(one.bundle((2, ModelMetadata("broken", "")))) == ["a"]
    assert "the old one serves on" in caplog.text
    assert spoken(one.bundle((3, ModelMetadata("broken", "")))) == ["a"]
    assert FromPath.loads == ["a", "broken"]
    assert spoken(one.bundle((4, B))) == ["b"]


def test_a_broken_first_model_is_an_error():
    with pytest.raises(OSError, match="cannot read broken"):
        worker(FromPath("broken")).bundle((1, None))


@pytest.mark.parametrize(
    "update", ["a path", 7, {"model_id": "x"}, [KeyModelPathMapping(["k"], "x")]]
)
def test_metadata_of_the_wrong_shape_is_an_error_that_says_the_right_one(update):
    with pytest.raises(OptionError, match=r"ModelMetadata\(model_id, model_name\)"):
        worker(FromPath("first")).bundle((1, update))


def test_all_threads_of_a_process_share_the_new_model():
    step = RunInference(FromPath("first"), model_metadata_pcoll=object())
    workers = [Worker(step) for _ in range(4)]
    for update in (A, B):
        threads = [threading.Thread(target=w.bundle, args=((1, update),)) for w in workers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(set(FromPath.loads)) == ["a", "b"]


def per_key(**options):
    mappings = [
        KeyModelMapping(["k1", "k2"], FromPath("one")),
        KeyModelMapping(["k3"], FromPath("two")),
    ]
    return KeyedModelHandler(mappings, **options)


def paths(**by_key):
    return [KeyModelPathMapping([key], path, f"id-{path}") for key, path in by_key.items()]


def keyed(results):
    return {key: result.inference for key, result in results}


EACH = [("k1", 1), ("k2", 2), ("k3", 3)]


def test_models_per_key_are_refreshed_per_key():
    one = worker(per_key())
    assert keyed(one.bundle(*[(e, None) for e in EACH])) == {"k1": "one", "k2": "one", "k3": "two"}
    update = paths(k1="x", k2="y", k3="two")
    assert keyed(one.bundle(*[(e, update) for e in EACH])) == {"k1": "x", "k2": "y", "k3": "two"}
    again = paths(k1="x", k2="y", k3="two")
    FromPath.loads.clear()
    one.bundle(*[(e, again) for e in EACH])
    assert FromPath.loads == []


def test_keys_that_are_given_one_path_share_the_new_model():
    one = worker(per_key())
    update = [KeyModelPathMapping(["k1", "k2"], "x"), KeyModelPathMapping(["k3"], "z")]
    assert keyed(one.bundle(*[(e, update) for e in EACH])) == {"k1": "x", "k2": "x", "k3": "z"}
    assert sorted(FromPath.loads) == ["x", "z"]


def test_old_models_of_keys_are_freed():
    one = worker(per_key())
    for n in range(4):
        one.bundle(*[(e, paths(k1=f"x{n}", k2=f"x{n}", k3=f"z{n}")) for e in EACH])
    gc.collect()
    assert sorted(model.path for model in Named.alive) == ["x3", "z3"]


def test_a_broken_model_of_one_key_leaves_its_old_one_and_the_others_alone():
    one = worker(per_key(max_models_per_worker_hint=2))
    one.bundle(*[(e, None) for e in EACH])
    update = paths(k1="broken", k2="y", k3="z")
    assert keyed(one.bundle(*[(e, update) for e in EACH])) == {"k1": "one", "k2": "y", "k3": "z"}


@pytest.mark.parametrize(
    ("update", "message"),
    [
        (paths(k1="x"), "Missing: 'k2', 'k3'"),
        (paths(k1="x", k2="x", k3="x", k4="x"), "Not mapped to a model: 'k4'"),
        ([*paths(k1="x", k2="x", k3="x"), *paths(k1="y")], "names the key 'k1' twice"),
        (paths(k1="", k2="x", k3="x"), "empty path"),
        (ModelMetadata("x", ""), "list of KeyModelPathMapping"),
    ],
)
def test_a_refresh_of_keys_that_does_not_fit_is_an_error(update, message):
    with pytest.raises(OptionError, match=message):
        worker(per_key()).bundle((EACH[0], update))


def test_metadata_may_come_from_beams_own_classes():
    from apache_beam.ml.inference.base import ModelMetadata as OfBeam

    assert spoken(worker(FromPath("first")).bundle((1, OfBeam("a", "name")))) == ["a"]


def test_two_sources_of_new_models_are_refused():
    with pytest.raises(OptionError, match="give one of them"):
        RunInference(FromPath("x"), model_metadata_pcoll=object(), watch_model_pattern="*")
    with pytest.raises(OptionError, match="are for watch_model_pattern"):
        RunInference(FromPath("x"), interval=3)


def test_a_pipeline_takes_its_model_from_a_side_input(tmp_path):
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


def test_an_empty_side_input_leaves_the_handlers_own_model(tmp_path):
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


def test_each_window_has_the_model_that_was_named_in_it():
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
    spoke = {result.example: result.inference for result in CollectElements.take(caught)}
    assert spoke == {n: "aba"[n // 10] for n in range(30)}
    assert sorted(FromPath.loads) == ["a", "b"]


def test_the_latest_of_several_refreshes_counts_and_two_at_one_time_are_an_error():
    assert AsLatest._from_runtime_iterable([], {}) is None
    assert AsLatest._from_runtime_iterable([(1, A), (3, B), (2, A)], {}) == B
    assert AsLatest._from_runtime_iterable([(1, A), (1, A)], {}) == A
    with pytest.raises(OptionError, match="2 model refreshes have the same timestamp"):
        AsLatest._from_runtime_iterable([(1, A), (1, B)], {})


class Switch(beam.DoFn):
    """Moves a new model under the watched pattern once the old one has spoken."""

    def __init__(self, hidden, shown) -> None:
        self.hidden, self.shown = hidden, shown

    def process(self, result):
        if os.path.exists(self.hidden):
            os.utime(self.hidden)
            os.rename(self.hidden, self.shown)
        yield result


def test_a_file_changes_while_a_stream_flows_and_the_new_model_speaks(tmp_path):
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
        _ = results | beam.ParDo(Switch(hidden, new)) | beam.ParDo(CollectElements(caught))
    spoke = [
        (round(float(result.inference)), result.model_id) for result in CollectElements.take(caught)
    ]
    assert spoke[0] == (2, old)
    assert spoke[-1] == (5, new)
    assert set(spoke) == {(2, old), (5, new)}


def test_the_newest_file_is_named_and_old_ones_are_not():
    class File:
        def __init__(self, path, stamp):
            self.path, self.last_updated_in_seconds = path, stamp

    class State:
        value = None

        def read(self):
            return self.value

        def write(self, value):
            self.value = value

    newest, state = _Newest(Timestamp(100)), State()

    def see(path, stamp):
        return list(newest.process(("", File(path, stamp)), state))

    assert see("/m/before.pt", 99) == []
    assert see("/m/one.pt", 101) == [("/m/one.pt", "one")]
    assert see("/m/one.pt", 101) == []
    assert see("/m/late.pt", 100.5) == []
    assert see("/m/two.pt", 102) == [("/m/two.pt", "two")]
