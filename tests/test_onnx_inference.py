"""ONNX models take several inputs and return several outputs by name, with the dtypes and shapes they declare."""

from __future__ import annotations

import subprocess
import sys

import apache_beam as beam
import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper

from common import RUNNER, CollectElements, run
from defects.packages import BEAM, OURS
from model_updates import run_with_model_update
from onnx_models import (
    LABELS,
    ROWS,
    SMALL,
    arithmetic,
    doubling,
    fit_pipeline,
    make_model,
    make_value,
    save_iris_models,
    write_model,
)
from runinference import PredictionResult, RunInference
from runinference.errors import BatchShapeError, ElementError, OptionError
from runinference.onnx_inference import OnnxModelHandlerNumpy, default_numpy_inference_fn


@pytest.fixture(scope="module")
def classifier():
    return fit_pipeline(LABELS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_iris_models(tmp_path_factory.mktemp("models"))


def test_an_exported_pipeline_predicts_what_the_original_predicts(folder, classifier):
    path = str(folder / "iris.onnx")
    handler = OnnxModelHandlerNumpy(path, output_names=["label", "probabilities"])
    results = run(list(ROWS), RunInference(handler))
    found = {result.example.tobytes(): result.inference for result in results}
    assert len(results) == len(ROWS)
    assert {result.model_id for result in results} == {path}
    found_rows = [found[row.tobytes()] for row in ROWS]
    assert [one["label"] for one in found_rows] == classifier.predict(ROWS).tolist()
    np.testing.assert_allclose(
        [one["probabilities"] for one in found_rows], classifier.predict_proba(ROWS), atol=1e-5
    )


def test_returns_the_first_output_by_default_as_in_beam(folder):
    path = str(folder / "iris.onnx")
    ours = OnnxModelHandlerNumpy(path)
    beams = BEAM.module("onnx_inference").OnnxModelHandlerNumpy(path)
    batch = list(SMALL)
    for here, original in zip(
        ours.run_inference(batch, ours.load_model()),
        beams.run_inference(batch, beams.load_model()),
        strict=True,
    ):
        assert here.inference == original.inference


def test_returns_the_rows_of_a_named_output(folder, classifier):
    handler = OnnxModelHandlerNumpy(str(folder / "iris.onnx"), output_names="probabilities")
    found = [result.inference for result in handler.predict(SMALL)]
    np.testing.assert_allclose(found, classifier.predict_proba(ROWS), atol=1e-5)
    assert all(row.base is None for row in found)


def test_splits_outputs_that_are_lists_of_maps(folder, classifier):
    handler = OnnxModelHandlerNumpy(str(folder / "zipmap.onnx"), output_names="output_probability")
    [first, _] = handler.predict(SMALL[:2])
    assert first.inference == pytest.approx(
        dict(enumerate(classifier.predict_proba(ROWS[:1])[0])), abs=1e-5
    )


def test_rejects_an_unknown_output_name_with_a_suggestion(folder):
    handler = OnnxModelHandlerNumpy(str(folder / "iris.onnx"), output_names=["lable"])
    with pytest.raises(OptionError, match="'lable'.* Did you mean 'label'.* label, probabilities"):
        handler.predict(SMALL)


def test_binds_several_inputs_by_name(tmp_path):
    path = write_model(tmp_path / "m.onnx", arithmetic())
    handler = OnnxModelHandlerNumpy(path, output_names=["difference", "sum"], min_batch_size=3)
    a, b = np.arange(6.0).reshape(3, 2), np.ones((3, 2))
    results = run([{"a": x, "b": y} for x, y in zip(a, b, strict=True)], RunInference(handler))
    for result in results:
        np.testing.assert_array_equal(result.inference["sum"], result.example["a"] + 1)
        np.testing.assert_array_equal(result.inference["difference"], result.example["a"] - 1)


def test_inference_args_are_more_inputs(tmp_path):
    handler = OnnxModelHandlerNumpy(write_model(tmp_path / "m.onnx", arithmetic()))
    example = {"a": np.ones(2), "b": np.ones(2)}
    assert handler.predict([example], {"factor": 5})[0].inference.tolist() == [10, 10]
    for_a = handler.predict([np.ones(2)], {"b": np.zeros((1, 2))})
    assert for_a[0].inference.tolist() == [1, 1]


def test_names_a_missing_or_unknown_input(tmp_path):
    handler = OnnxModelHandlerNumpy(write_model(tmp_path / "m.onnx", arithmetic()))
    with pytest.raises(
        ElementError, match=r"input 'b' is missing. .* dictionary .* \(a, b, factor\)"
    ):
        handler.predict([np.ones(2)])
    with pytest.raises(ElementError, match="no input 'factr'. Did you mean 'factor'"):
        handler.predict([{"a": np.ones(2), "b": np.ones(2)}], {"factr": 5})
    with pytest.raises(ElementError, match="no input 'c'. Its inputs are a, b, factor"):
        handler.predict([{"a": np.ones(2), "c": np.ones(2)}])


def test_rejects_examples_with_different_inputs(tmp_path):
    handler = OnnxModelHandlerNumpy(
        write_model(tmp_path / "m.onnx", arithmetic()), min_batch_size=2
    )
    with pytest.raises(
        BatchShapeError, match=r"Element 1 .* \['a'\], and element 0 has \['a', 'b'"
    ):
        handler.predict([{"a": np.ones(2), "b": np.ones(2)}, {"a": np.ones(2)}])
    with pytest.raises(BatchShapeError, match="Element 1 .* has the inputs ndarray"):
        handler.predict([{"a": np.ones(2), "b": np.ones(2)}, np.ones(2)])


@pytest.mark.parametrize(
    ("kind", "given", "expected"),
    [
        (TensorProto.FLOAT, np.array([0.5, 1]), np.float32),
        (TensorProto.FLOAT, np.array([1, 2]), np.float32),
        (TensorProto.FLOAT, np.array([np.nan, np.inf]), np.float32),
        (TensorProto.DOUBLE, np.array([0.5, 1], np.float32), np.float64),
        (TensorProto.INT32, np.array([1, 2]), np.int32),
        (TensorProto.INT64, [1, 2], np.int64),
    ],
)
def test_converts_numbers_within_their_kind(tmp_path, kind, given, expected):
    handler = OnnxModelHandlerNumpy(write_model(tmp_path / "m.onnx", doubling(kind)))
    [result] = handler.predict([given])
    assert result.inference.dtype == expected
    np.testing.assert_array_equal(result.inference, 2 * np.asarray(given))


@pytest.mark.parametrize(
    ("kind", "given", "message"),
    [
        (TensorProto.INT64, np.array([0.5]), "'x' takes int64, .* are float64.*astype..int64"),
        (TensorProto.FLOAT, np.array(["a"]), "'x' takes float32, and the elements are <U1"),
        (TensorProto.FLOAT, np.array([1e300]), "'x' takes float32, .* too large"),
        (TensorProto.INT32, np.array([2**40]), "'x' takes int32, .* too large"),
    ],
)
def test_rejects_numbers_that_the_dtype_cannot_hold(tmp_path, kind, given, message):
    handler = OnnxModelHandlerNumpy(write_model(tmp_path / "m.onnx", doubling(kind)))
    with pytest.raises(ElementError, match=message):
        handler.predict([given])


def test_rejects_a_wrong_shape_and_names_both(folder, tmp_path):
    handler = OnnxModelHandlerNumpy(str(folder / "iris.onnx"))
    with pytest.raises(BatchShapeError, match=r"have shape \(3,\), .* input 'X' takes \(4\)"):
        handler.predict(SMALL[:, :3])
    with pytest.raises(BatchShapeError, match=r"have shape \(1, 4\), .* input 'X' takes \(4\)"):
        handler.predict(SMALL[:, None])
    picture = doubling(TensorProto.FLOAT, ["n", 3, "height", "width"])
    handler = OnnxModelHandlerNumpy(write_model(tmp_path / "m.onnx", picture))
    with pytest.raises(BatchShapeError, match=r"'x' takes \(3, any, any\)"):
        handler.predict([np.zeros((8, 8, 3))])


def test_rejects_examples_with_different_shapes(tmp_path):
    handler = OnnxModelHandlerNumpy(
        write_model(tmp_path / "m.onnx", arithmetic()), min_batch_size=3
    )
    with pytest.raises(BatchShapeError, match=r"Element 1 of the batch's 'b' has shape \(3,\)"):
        handler.predict([{"a": np.ones(2), "b": np.ones(n)} for n in (2, 3, 2)])


def test_rejects_other_batch_sizes_than_the_model_was_exported_for(tmp_path):
    path = write_model(tmp_path / "m.onnx", arithmetic(batch=1))
    examples = [{"a": np.ones(2), "b": np.ones(2)}] * 2
    with pytest.raises(BatchShapeError, match="exactly 1. .* set min_batch_size=1 and max_batch_s"):
        OnnxModelHandlerNumpy(path, min_batch_size=2).predict(examples)
    handler = OnnxModelHandlerNumpy(path, min_batch_size=1, max_batch_size=1)
    assert len(handler.predict(examples)) == 2


def test_passes_strings_to_the_model(tmp_path):
    same = make_model(
        [helper.make_node("Identity", ["x"], ["y"])],
        [make_value("x", ["n"], TensorProto.STRING)],
        [make_value("y", ["n"], TensorProto.STRING)],
    )
    handler = OnnxModelHandlerNumpy(write_model(tmp_path / "m.onnx", same))
    assert [result.inference for result in handler.predict(["cat", "dog"])] == ["cat", "dog"]


def test_inference_fn_runs_the_session(folder):
    path = str(folder / "iris.onnx")

    def max_probability(session, batch, inference_args):
        [chances] = session.run(["probabilities"], {"X": np.stack(batch)})
        return chances.max(axis=1)

    handler = OnnxModelHandlerNumpy(path, inference_fn=max_probability)
    assert all(0.4 < result.inference <= 1 for result in handler.predict(SMALL))
    with pytest.raises(OptionError, match="no effect on your own inference_fn"):
        OnnxModelHandlerNumpy(path, inference_fn=max_probability, output_names="label")


def test_the_default_inference_fn_can_be_called_directly(folder):
    session = onnxruntime.InferenceSession(folder / "iris.onnx")
    assert default_numpy_inference_fn(session, SMALL[:2]).tolist() == [0, 0]


def test_a_subclass_can_skip_the_constructor(folder):
    class Own(OnnxModelHandlerNumpy):
        def __init__(self):
            self._model_uri = str(folder / "iris.onnx")
            self._session_options = None
            self._providers = ["CPUExecutionProvider"]
            self._provider_options = None
            self._model_inference_fn = default_numpy_inference_fn

    assert Own().predict(SMALL[:1])[0].inference == 0


def test_only_the_invalid_element_becomes_a_dead_letter(folder):
    handler = OnnxModelHandlerNumpy(str(folder / "iris.onnx"))
    good, bad = [], []
    with beam.Pipeline(runner=RUNNER) as pipeline:
        rows = pipeline | beam.Create([*SMALL, np.zeros(5)], reshuffle=False)
        results, failed = rows | RunInference(handler).with_exception_handling()
        _ = results | "good" >> beam.ParDo(CollectElements(good))
        _ = failed.failed_inferences | "bad" >> beam.ParDo(CollectElements(bad))
    assert (len(CollectElements.take(good)), len(CollectElements.take(bad))) == (150, 1)


def test_processes_can_share_a_model(folder):
    handler = OnnxModelHandlerNumpy(str(folder / "iris.onnx"), large_model=True)
    results = run(list(SMALL), RunInference(handler))
    assert sorted(int(result.inference) for result in results).count(2) > 40


def test_accepts_arrays_of_rows_as_batches(folder):
    handler = OnnxModelHandlerNumpy(str(folder / "iris.onnx")).with_no_batching()
    assert len(run([ROWS[:100], ROWS[100:]], RunInference(handler))) == 150


def test_measures_the_bytes_of_a_batch_and_reports_beams_metrics_namespace():
    handler = OnnxModelHandlerNumpy("m.onnx")
    assert handler.get_num_bytes(list(SMALL)) == SMALL.nbytes
    assert handler.get_metrics_namespace() == "BeamML_Onnx"


def test_names_the_extra_if_onnxruntime_is_missing():
    program = "import sys; sys.modules['onnxruntime'] = None; import runinference.onnx_inference"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert 'pip install "runinference[onnx]"' in ended.stderr


def test_a_new_model_replaces_the_old_one_which_beam_ignores(folder):
    old, new = str(folder / "iris.onnx"), str(folder / "backwards.onnx")

    def labels(package):
        handler = package.module("onnx_inference").OnnxModelHandlerNumpy(old)
        results: list[PredictionResult] = run_with_model_update(
            package, handler, new, [SMALL[0], SMALL[149]]
        )
        return sorted((round(float(r.example[0]), 1), r.inference, r.model_id) for r in results)

    assert labels(BEAM) == [(5.1, 0, None), (5.9, 2, None)]
    assert labels(OURS) == [(5.1, 2, new), (5.9, 0, new)]
