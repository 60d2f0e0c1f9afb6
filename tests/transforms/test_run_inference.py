"""RunInference in a pipeline: each element gets one result, with its window, timestamp and key."""

from __future__ import annotations

import threading
from typing import Any

import apache_beam as beam
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
from apache_beam.internal import pickler
from apache_beam.metrics import MetricsFilter
from apache_beam.ml.inference import base as beam_base
from apache_beam.transforms import window
from apache_beam.typehints import typehints

from common import RUNNER, CollectElements, Doubler, FunctionHandler, linear_regression, run
from runinference import KeyedModelHandler, PredictionResult, RunInference
from runinference.errors import OptionError, ResultMismatchError, UnknownOptionError
from runinference.sklearn_inference import SklearnModelHandlerNumpy
from runinference.transforms.infer_dofn import InferDoFn


def test_every_element_gets_one_result():
    results = run(range(1000), RunInference(Doubler("all")))
    assert sorted(results) == [(n, 2 * n, "all") for n in range(1000)]


def test_a_fixed_batch_size_is_used():
    handler = Doubler("sized", min_batch_size=16, max_batch_size=16)
    run(range(100), RunInference(handler))
    assert max(handler.sizes) == 16
    assert sum(handler.sizes) == 100


def test_each_result_keeps_its_own_timestamp_and_window():
    caught = []
    with beam.Pipeline(runner=RUNNER) as pipeline:
        _ = (
            pipeline
            | beam.Create(range(20), reshuffle=False)
            | beam.Map(lambda n: window.TimestampedValue(n, n))
            | beam.WindowInto(window.FixedWindows(5))
            | RunInference(Doubler("windows", min_batch_size=8, max_batch_size=8))
            | beam.ParDo(CollectElements(caught))
        )
    CollectElements.take(caught)
    assert len(caught) == 20
    for result, timestamp, its_window in caught:
        assert timestamp == result.example
        assert its_window.start == result.example // 5 * 5


def test_an_element_in_several_windows_has_a_result_in_each():
    caught = []
    with beam.Pipeline(runner=RUNNER) as pipeline:
        _ = (
            pipeline
            | beam.Create([window.TimestampedValue("x", 7)], reshuffle=False)
            | beam.WindowInto(window.SlidingWindows(10, 5))
            | RunInference(Doubler("sliding"))
            | beam.ParDo(CollectElements(caught))
        )
    CollectElements.take(caught)
    assert sorted(w.start for _, _, w in caught) == [0, 5]


def _double_in_place(batch):
    for array in batch:
        array *= 2
    return [array.copy() for array in batch]


@pytest.mark.parametrize(
    "options",
    [
        {"max_batch_size": 1},
        {"max_batch_size": 4},
        {"max_batch_size": 100},
        {"max_batch_duration_secs": 1},
        {"max_batch_duration_secs": 1, "max_batch_size": 1},
    ],
)
def test_a_model_that_works_in_place_sees_an_element_unchanged_in_each_of_its_windows(options):
    """A full batch runs between two windows of an element."""
    handler = FunctionHandler(_double_in_place, **options)
    caught = []
    with beam.Pipeline(runner=RUNNER) as pipeline:
        arrays = pipeline | beam.Create(
            [window.TimestampedValue(np.array([n]), n) for n in range(3)]
        )
        windows = arrays | beam.WindowInto(window.SlidingWindows(10, 5))
        results = windows | RunInference(handler)
        _ = results | beam.Map(lambda result: int(result[0])) | beam.ParDo(CollectElements(caught))
    assert sorted(CollectElements.take(caught)) == [0, 0, 2, 2, 4, 4]


def test_prebatched_elements_are_passed_to_the_model_unchanged():
    handler = Doubler("given").with_no_batching()
    results = run([[1, 2, 3], [4]], RunInference(handler))
    assert sorted(result.inference for result in results) == [2, 4, 6, 8]
    assert sorted(handler.sizes) == [1, 3]


def test_preprocess_and_postprocess_functions_run():
    handler = (
        Doubler("functions").with_preprocess_fn(int).with_postprocess_fn(lambda r: r.inference)
    )
    assert sorted(run(["1", "2"], RunInference(handler))) == [2, 4]


def test_all_threads_of_a_process_share_one_model():
    together = threading.Barrier(4, timeout=30)

    class Meeting(Doubler):
        def run_inference(self, batch, model, inference_args=None):
            together.wait()
            return super().run_inference(batch, model, inference_args)

    do_fn = InferDoFn(RunInference(Meeting("meeting"))._config())
    twins = [pickled_copy(do_fn) for _ in range(4)]
    threads = [threading.Thread(target=drive, args=(twin,)) for twin in twins]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Doubler.loads["meeting"] == 1
    assert sorted(Doubler.batches["meeting"]) == [[5]] * 4


def pickled_copy(do_fn):
    return pickler.loads(pickler.dumps(do_fn))


def drive(do_fn):
    do_fn.setup()
    do_fn.start_bundle()
    origin = window.WindowedValue(5, 0, (window.GlobalWindow(),))
    list(do_fn.process(5, origin) or ())
    list(do_fn.finish_bundle())


def test_too_few_results_raise_an_error_with_both_lengths():
    with pytest.raises(ResultMismatchError, match="returned 1 result for a batch of 8"):
        run(range(8), RunInference(FunctionHandler(lambda batch: [0], min_batch_size=8)))


def test_an_unknown_keyword_raises_an_error_with_the_closest_one():
    with pytest.raises(UnknownOptionError, match="Did you mean 'inference_args'"):
        RunInference(Doubler("misspelt"), inference_arg={})


def test_inference_args_are_validated():
    class Choosy(Doubler):
        def validate_inference_args(self, inference_args):
            if inference_args:
                raise ValueError("takes none")

    with pytest.raises(ValueError, match="takes none"):
        run([1], RunInference(Choosy("choosy"), inference_args={"x": 1}))


def test_an_error_in_a_lazy_result_is_raised():
    def lazily(batch):
        yield from batch[:1]
        raise RuntimeError("failed while it was read")

    pipeline = beam.Pipeline(runner=RUNNER)
    _ = pipeline | beam.Create([1, 2]) | RunInference(FunctionHandler(lazily))
    with pytest.raises(RuntimeError, match="failed while it was read"):
        pipeline.run().wait_until_finish()


def counted(result, name):
    found = result.metrics().query(MetricsFilter().with_name(name))
    return [metric.committed for metric in (*found["counters"], *found["distributions"])]


def test_metrics_have_the_names_of_beam_and_correct_values(tmp_path):
    handler = SklearnModelHandlerNumpy(
        linear_regression(tmp_path / "m.pkl"), min_batch_size=4, max_batch_size=4
    )
    pipeline = beam.Pipeline(runner=RUNNER)
    rows = [np.array([float(n)]) for n in range(8)]
    _ = (
        pipeline
        | beam.Create(rows, reshuffle=False)
        | RunInference(handler, metrics_namespace="mine")
    )
    result = pipeline.run()
    result.wait_until_finish()
    assert counted(result, "num_inferences") == [8]
    [sizes] = counted(result, "inference_request_batch_size")
    assert (sizes.sum, sizes.max) == (8, 4)
    [n_bytes] = counted(result, "inference_request_batch_byte_size")
    assert n_bytes.sum == 8 * 8
    [latency] = counted(result, "inference_batch_latency_micro_secs")
    assert latency.count == sizes.count
    [load] = counted(result, "load_model_latency_milli_secs")
    assert load.count == 1
    assert len(counted(result, "model_byte_size")) == 1
    found = result.metrics().query(MetricsFilter().with_name("num_inferences"))["counters"]
    assert found[0].key.metric.namespace == "mine"


def test_the_declared_element_type_is_the_type_of_the_results(tmp_path):
    handler = SklearnModelHandlerNumpy(linear_regression(tmp_path / "m.pkl"))
    pipeline = beam.Pipeline(runner=RUNNER)
    rows = pipeline | beam.Create([np.ones(1)])
    assert (rows | "plain" >> RunInference(handler)).element_type is PredictionResult
    keyed = rows | beam.Map(lambda row: ("key", row)).with_output_types(tuple[str, np.ndarray])
    declared = (keyed | "keyed" >> RunInference(KeyedModelHandler(handler))).element_type
    assert declared == typehints.Tuple[str, PredictionResult]


def test_a_handler_written_for_beam_works():
    class OfBeam(beam_base.ModelHandler):
        def load_model(self):
            return 3

        def run_inference(self, batch, model, inference_args=None):
            return [beam_base.PredictionResult(x, x * model) for x in batch]

    handler = OfBeam(max_batch_size=2).with_preprocess_fn(int)
    assert sorted(run(["1", "2"], RunInference(handler))) == [(1, 3, None), (2, 6, None)]


def test_our_handler_works_in_the_transform_of_beam(tmp_path):
    handler = SklearnModelHandlerNumpy(linear_regression(tmp_path / "m.pkl")).with_postprocess_fn(
        lambda result: round(float(result.inference), 6)
    )
    rows = [np.array([float(n)]) for n in range(4)]
    assert sorted(run(rows, beam_base.RunInference(handler))) == [0, 2, 4, 6]


def test_annotations_are_equal_in_each_run():
    def annotations():
        return RunInference(Doubler("noted"), model_identifier="the-model").annotations()

    assert annotations() == annotations()
    assert annotations()["model_handler_type"] == "common.Doubler"
    assert annotations()["model_identifier"] == "the-model"
    assert "0x" not in str(annotations())


def test_from_callable_creates_a_transform():
    transform = RunInference.from_callable(Doubler, name="made", max_batch_size=2)
    assert sorted(result.inference for result in run([1, 2], transform)) == [2, 4]


def test_a_monitoring_transform_gets_predictions_before_postprocessing():
    seen, results = [], []
    handler = Doubler("monitored").with_postprocess_fn(lambda result: result.inference)
    with beam.Pipeline(runner=RUNNER) as pipeline:
        numbers = pipeline | beam.Create([1, 2])
        plain = RunInference(handler)
        monitored = plain.with_monitoring_transform(beam.ParDo(CollectElements(seen)))
        assert monitored is not plain
        _ = numbers | monitored | beam.ParDo(CollectElements(results))
    assert sorted(CollectElements.take(seen)) == [(1, 2, "monitored"), (2, 4, "monitored")]
    assert sorted(CollectElements.take(results)) == [2, 4]


def test_a_monitoring_transform_can_be_passed_to_the_constructor():
    seen = []
    run(
        [1],
        RunInference(Doubler("at-once"), monitoring_transform=beam.ParDo(CollectElements(seen))),
    )
    assert CollectElements.take(seen) == [(1, 2, "at-once")]


class Hinting(Doubler):
    def get_resource_hints(self):
        return {"min_ram": "1GB"}


def test_resource_hints_of_the_handler_reach_the_step():
    pipeline = beam.Pipeline(runner=RUNNER)
    _ = pipeline | beam.Create([1]) | RunInference(KeyedModelHandler(Hinting("hinting")))
    environments = pipeline.to_runner_api().components.environments.values()
    hints = [dict(environment.resource_hints) for environment in environments]
    assert {"beam:resources:min_ram_bytes:v1": b"1000000000"} in hints


@pytest.mark.parametrize(
    ("handler", "message"),
    [
        (Doubler, r"is the class Doubler\. .* Doubler\(\.\.\.\)"),
        ("a path", "str without load_model and run_inference"),
    ],
)
def test_an_object_that_is_not_a_handler_raises_at_construction(handler, message):
    with pytest.raises(OptionError, match=message):
        RunInference(handler)


@pytest.mark.parametrize("options", [{"model_identifier": "one"}, {"use_model_manager": True}])
def test_steps_that_share_models_or_memory_keep_their_own_batch_sizes(options):
    two = Doubler("by two", min_batch_size=2, max_batch_size=2)
    five = Doubler("by five", min_batch_size=5, max_batch_size=5)
    with beam.Pipeline(runner=RUNNER) as pipeline:
        numbers = pipeline | beam.Create(range(10), reshuffle=False)
        _ = numbers | "two" >> RunInference(two, **options)
        _ = numbers | "five" >> RunInference(five, **options)
    assert set(two.sizes) == {2}
    assert set(five.sizes) == {5}


def test_annotations_that_cannot_be_resolved_are_ignored():
    class Row:
        pass

    class Annotated(FunctionHandler):
        def run_inference(self, batch: list[Row], model: Any, inference_args: Any = None) -> Any:
            return model(batch)

    assert run([1, 2], RunInference(Annotated(list))) == [1, 2]


def test_a_data_frame_can_be_a_batch_of_its_rows():
    def predict(frame):
        if (frame["number"] < 0).any():
            raise ValueError("a negative number")
        return list(2 * frame["number"])

    frame = pd.DataFrame({"number": [1, -2, 3], "name": list("abc")})
    handler = FunctionHandler(predict).with_no_batching()
    assert run([frame[:1], frame[2:]], RunInference(handler)) == [2, 6]
    good, bad = [], []
    with beam.Pipeline(runner=RUNNER) as pipeline:
        frames = pipeline | beam.Create([frame], reshuffle=False)
        results, letters = frames | RunInference(handler).with_exception_handling()
        _ = results | "good" >> beam.ParDo(CollectElements(good))
        _ = letters.failed_inferences | "bad" >> beam.ParDo(CollectElements(bad))
    assert CollectElements.take(good) == [2, 6]
    [(row, _)] = CollectElements.take(bad)
    assert row.to_dict("list") == {"number": [-2], "name": ["b"]}


def test_a_sparse_matrix_can_be_a_batch():
    handler = FunctionHandler(lambda matrix: matrix.sum(axis=1).A1).with_no_batching()
    matrix = scipy.sparse.csr_matrix(np.eye(3))
    assert run([matrix], RunInference(handler)) == [1, 1, 1]
    good = []
    with beam.Pipeline(runner=RUNNER) as pipeline:
        matrices = pipeline | beam.Create([matrix], reshuffle=False)
        results, _ = matrices | RunInference(handler).with_exception_handling()
        _ = results | beam.ParDo(CollectElements(good))
    assert CollectElements.take(good) == [1, 1, 1]
