"""ONNX models: several inputs and outputs by name, of the types and shapes that they take."""

from __future__ import annotations

import gzip
import logging
import pickle
import subprocess
import sys

import apache_beam as beam
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper
from skl2onnx import to_onnx
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from common import RUNNER, CollectElements, run
from defects.packages import BEAM, OURS
from model_updates import run_with_model_update
from runinference import PredictionResult, RunInference
from runinference.errors import (
    BatchShapeError,
    ElementError,
    ModelLoadError,
    ModelNotFoundError,
    OptionError,
)
from runinference.onnx_inference import OnnxModelHandlerNumpy, default_numpy_inference_fn
from test_sklearn_inference import InMemory

ROWS, LABELS = load_iris(return_X_y=True)
SMALL = ROWS.astype(np.float32)


def written(path, model):
    path.write_bytes(model.SerializeToString())
    return str(path)


def pipeline_of(labels):
    return make_pipeline(StandardScaler(), LogisticRegression()).fit(ROWS, labels)


@pytest.fixture(scope="module")
def classifier():
    return pipeline_of(LABELS)


@pytest.fixture(scope="module")
def folder(classifier, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    written(folder / "iris.onnx", to_onnx(classifier, SMALL[:1], options={"zipmap": False}))
    written(folder / "zipmap.onnx", to_onnx(classifier, SMALL[:1]))
    backwards = pipeline_of(LABELS[::-1])
    written(folder / "backwards.onnx", to_onnx(backwards, SMALL[:1], options={"zipmap": False}))
    return folder


def value(name, shape, kind=TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


def model_of(nodes, inputs, outputs, initializers=()):
    graph = helper.make_graph(nodes, "graph", inputs, outputs, list(initializers))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def arithmetic(batch="n"):
    """Of a, b and an optional factor: (a + b) * factor, and a - b."""
    one = helper.make_tensor("factor", TensorProto.FLOAT, [], [1.0])
    return model_of(
        [
            helper.make_node("Add", ["a", "b"], ["plain"]),
            helper.make_node("Mul", ["plain", "factor"], ["sum"]),
            helper.make_node("Sub", ["a", "b"], ["difference"]),
        ],
        [value("a", [batch, 2]), value("b", [batch, 2]), value("factor", [])],
        [value("sum", [batch, 2]), value("difference", [batch, 2])],
        [one],
    )


def doubling(kind, shape=("n", "m")):
    return model_of(
        [helper.make_node("Add", ["x", "x"], ["y"])],
        [value("x", shape, kind)],
        [value("y", shape, kind)],
    )


def test_an_exported_pipeline_gives_the_answers_of_the_original(folder, classifier):
    path = str(folder / "iris.onnx")
    handler = OnnxModelHandlerNumpy(path, output_names=["label", "probabilities"])
    results = run(list(ROWS), RunInference(handler))
    found = {result.example.tobytes(): result.inference for result in results}
    assert len(results) == len(ROWS)
    assert {result.model_id for result in results} == {path}
    said = [found[row.tobytes()] for row in ROWS]
    assert [one["label"] for one in said] == classifier.predict(ROWS).tolist()
    np.testing.assert_allclose(
        [one["probabilities"] for one in said], classifier.predict_proba(ROWS), atol=1e-5
    )


def test_without_names_of_outputs_the_first_is_given_as_in_beam(folder):
    path = str(folder / "iris.onnx")
    ours = OnnxModelHandlerNumpy(path)
    beams = BEAM.module("onnx_inference").OnnxModelHandlerNumpy(path)
    batch = list(SMALL)
    for here, there in zip(
        ours.run_inference(batch, ours.load_model()),
        beams.run_inference(batch, beams.load_model()),
        strict=True,
    ):
        assert here.inference == there.inference


def test_one_name_gives_its_rows(folder, classifier):
    handler = OnnxModelHandlerNumpy(str(folder / "iris.onnx"), output_names="probabilities")
    found = [result.inference for result in handler.predict(SMALL)]
    np.testing.assert_allclose(found, classifier.predict_proba(ROWS), atol=1e-5)
    assert all(row.base is None for row in found)


def test_outputs_that_are_lists_of_maps_are_dealt_out(folder, classifier):
    handler = OnnxModelHandlerNumpy(str(folder / "zipmap.onnx"), output_names="output_probability")
    [first, _] = handler.predict(SMALL[:2])
    assert first.inference == pytest.approx(
        dict(enumerate(classifier.predict_proba(ROWS[:1])[0])), abs=1e-5
    )


def test_an_unknown_name_of_an_output_is_told(folder):
    handler = OnnxModelHandlerNumpy(str(folder / "iris.onnx"), output_names=["lable"])
    with pytest.raises(OptionError, match="'lable'.* Did you mean 'label'.* label, probabilities"):
        handler.predict(SMALL)


def test_several_inputs_come_by_name(tmp_path):
    path = written(tmp_path / "m.onnx", arithmetic())
    handler = OnnxModelHandlerNumpy(path, output_names=["difference", "sum"], min_batch_size=3)
    a, b = np.arange(6.0).reshape(3, 2), np.ones((3, 2))
    results = run([{"a": x, "b": y} for x, y in zip(a, b, strict=True)], RunInference(handler))
    for result in results:
        np.testing.assert_array_equal(result.inference["sum"], result.example["a"] + 1)
        np.testing.assert_array_equal(result.inference["difference"], result.example["a"] - 1)


def test_inference_args_are_further_inputs(tmp_path):
    handler = OnnxModelHandlerNumpy(written(tmp_path / "m.onnx", arithmetic()))
    example = {"a": np.ones(2), "b": np.ones(2)}
    assert handler.predict([example], {"factor": 5})[0].inference.tolist() == [10, 10]
    for_a = handler.predict([np.ones(2)], {"b": np.zeros((1, 2))})
    assert for_a[0].inference.tolist() == [1, 1]


def test_a_missing_or_unknown_input_is_named(tmp_path):
    handler = OnnxModelHandlerNumpy(written(tmp_path / "m.onnx", arithmetic()))
    with pytest.raises(ElementError, match="input 'b' is missing. .* dictionary .*: a, b, factor"):
        handler.predict([np.ones(2)])
    with pytest.raises(ElementError, match="no input 'factr'. Did you mean 'factor'"):
        handler.predict([{"a": np.ones(2), "b": np.ones(2)}], {"factr": 5})
    with pytest.raises(ElementError, match="no input 'c'. Its inputs are a, b, factor"):
        handler.predict([{"a": np.ones(2), "c": np.ones(2)}])


def test_examples_with_other_inputs_than_the_first_are_named(tmp_path):
    handler = OnnxModelHandlerNumpy(written(tmp_path / "m.onnx", arithmetic()), min_batch_size=2)
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
def test_numbers_are_converted_within_their_kind(tmp_path, kind, given, expected):
    handler = OnnxModelHandlerNumpy(written(tmp_path / "m.onnx", doubling(kind)))
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
def test_numbers_that_do_not_fit_are_an_error_that_says_what_does(tmp_path, kind, given, message):
    handler = OnnxModelHandlerNumpy(written(tmp_path / "m.onnx", doubling(kind)))
    with pytest.raises(ElementError, match=message):
        handler.predict([given])


def test_another_shape_than_the_model_takes_is_named_with_both(folder, tmp_path):
    handler = OnnxModelHandlerNumpy(str(folder / "iris.onnx"))
    with pytest.raises(BatchShapeError, match=r"have shape \(3,\), .* input 'X' takes \(4\)"):
        handler.predict(SMALL[:, :3])
    with pytest.raises(BatchShapeError, match=r"have shape \(1, 4\), .* input 'X' takes \(4\)"):
        handler.predict(SMALL[:, None])
    picture = doubling(TensorProto.FLOAT, ["n", 3, "height", "width"])
    handler = OnnxModelHandlerNumpy(written(tmp_path / "m.onnx", picture))
    with pytest.raises(BatchShapeError, match=r"'x' takes \(3, any, any\)"):
        handler.predict([np.zeros((8, 8, 3))])


def test_examples_of_several_shapes_are_named(tmp_path):
    handler = OnnxModelHandlerNumpy(written(tmp_path / "m.onnx", arithmetic()), min_batch_size=3)
    with pytest.raises(BatchShapeError, match=r"Element 1 of the batch's 'b' has shape \(3,\)"):
        handler.predict([{"a": np.ones(2), "b": np.ones(n)} for n in (2, 3, 2)])


def test_a_model_exported_for_one_size_of_batch_says_so(tmp_path):
    path = written(tmp_path / "m.onnx", arithmetic(batch=1))
    examples = [{"a": np.ones(2), "b": np.ones(2)}] * 2
    with pytest.raises(BatchShapeError, match="exactly 1. .* set min_batch_size=1 and max_batch_s"):
        OnnxModelHandlerNumpy(path, min_batch_size=2).predict(examples)
    handler = OnnxModelHandlerNumpy(path, min_batch_size=1, max_batch_size=1)
    assert len(handler.predict(examples)) == 2


def test_text_goes_in_as_text(tmp_path):
    same = model_of(
        [helper.make_node("Identity", ["x"], ["y"])],
        [value("x", ["n"], TensorProto.STRING)],
        [value("y", ["n"], TensorProto.STRING)],
    )
    handler = OnnxModelHandlerNumpy(written(tmp_path / "m.onnx", same))
    assert [result.inference for result in handler.predict(["cat", "dog"])] == ["cat", "dog"]


def test_inference_fn_runs_the_session_itself(folder):
    path = str(folder / "iris.onnx")

    def certainty(session, batch, inference_args):
        [chances] = session.run(["probabilities"], {"X": np.stack(batch)})
        return chances.max(axis=1)

    handler = OnnxModelHandlerNumpy(path, inference_fn=certainty)
    assert all(0.4 < result.inference <= 1 for result in handler.predict(SMALL))
    with pytest.raises(OptionError, match="no effect on an inference_fn of your own"):
        OnnxModelHandlerNumpy(path, inference_fn=certainty, output_names="label")


def test_the_default_function_may_be_called_on_its_own(folder):
    session = onnxruntime.InferenceSession(folder / "iris.onnx")
    assert default_numpy_inference_fn(session, SMALL[:2]).tolist() == [0, 0]


def test_a_subclass_need_not_call_the_constructor(folder):
    class Own(OnnxModelHandlerNumpy):
        def __init__(self):
            self._model_uri = str(folder / "iris.onnx")
            self._session_options = None
            self._providers = ["CPUExecutionProvider"]
            self._provider_options = None
            self._model_inference_fn = default_numpy_inference_fn

    assert Own().predict(SMALL[:1])[0].inference == 0


def options():
    made = onnxruntime.SessionOptions()
    made.intra_op_num_threads = 1
    return made


def test_session_options_come_from_a_function(folder):
    path = str(folder / "iris.onnx")
    handler = OnnxModelHandlerNumpy(path, session_options=options)
    assert handler.load_model().get_session_options().intra_op_num_threads == 1
    assert len(run(list(SMALL[:3]), RunInference(handler))) == 3
    with pytest.raises(OptionError, match="a function that makes them, and is a SessionOptions"):
        OnnxModelHandlerNumpy(path, session_options=options())


@pytest.mark.parametrize(
    "chosen",
    [
        {},
        {"providers": ["CUDAExecutionProvider", ("CPUExecutionProvider", {"use_arena": "0"})]},
        {
            "providers": ["CUDAExecutionProvider", "CPUExecutionProvider"],
            "provider_options": [{"device_id": 1}, {}],
        },
    ],
)
def test_providers_that_are_not_here_are_passed_over(folder, recwarn, chosen):
    session = OnnxModelHandlerNumpy(str(folder / "iris.onnx"), **chosen).load_model()
    assert session.get_providers() == ["CPUExecutionProvider"]
    assert not [w for w in recwarn if "ExecutionProvider" in str(w.message)]


def test_where_no_provider_is_here_the_model_runs_on_the_cpu_with_a_warning(folder, caplog):
    handler = OnnxModelHandlerNumpy(str(folder / "iris.onnx"), providers=["CUDAExecutionProvider"])
    with caplog.at_level(logging.WARNING):
        assert handler.load_model().get_providers() == ["CPUExecutionProvider"]
    assert "runs on the CPU: of ['CUDAExecutionProvider'] there is none" in caplog.text


def test_where_a_provider_fails_the_model_runs_on_the_cpu_with_a_warning(
    folder, tmp_path, caplog, capfd, monkeypatch
):
    there = onnxruntime.InferenceSession

    def without_cuda(source, providers, **options):
        if providers != ["CPUExecutionProvider"]:
            raise RuntimeError("no CUDA-capable device is detected")
        return there(source, providers=providers, **options)

    monkeypatch.setattr(onnxruntime, "InferenceSession", without_cuda)
    monkeypatch.setattr(
        onnxruntime,
        "get_available_providers",
        lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"],
    )
    with caplog.at_level(logging.WARNING):
        [result] = OnnxModelHandlerNumpy(str(folder / "iris.onnx")).predict(SMALL[:1])
    assert result.inference == 0
    assert "cannot be used (no CUDA-capable device is detected)" in caplog.text
    assert capfd.readouterr().out == ""
    (tmp_path / "junk.onnx").write_bytes(b"junk")
    with pytest.raises(ModelLoadError, match=r"junk\.onnx"):
        OnnxModelHandlerNumpy(str(tmp_path / "junk.onnx")).predict(SMALL)


def test_options_of_providers_are_given_once_and_for_each():
    both = [("CUDAExecutionProvider", {"device_id": 1}), "CPUExecutionProvider"]
    with pytest.raises(OptionError, match="Give them in one place"):
        OnnxModelHandlerNumpy("m.onnx", providers=both, provider_options=[{}, {}])
    with pytest.raises(OptionError, match="has 1 entries, and providers has 2"):
        OnnxModelHandlerNumpy("m.onnx", provider_options=[{"device_id": 1}])


def test_a_misspelt_provider_is_refused_at_once():
    with pytest.raises(OptionError, match="'CudaExecutionProvider'. Did you mean 'CUDAExecution"):
        OnnxModelHandlerNumpy("m.onnx", providers=["CudaExecutionProvider"])


def test_a_missing_file_is_named_with_its_nearest_neighbour(folder):
    with pytest.raises(ModelNotFoundError, match=r"Did you mean '.*iris.onnx'"):
        OnnxModelHandlerNumpy(str(folder / "iris.onn")).predict(SMALL)


@pytest.mark.parametrize("content", [b"", b"<!DOCTYPE html>", pickle.dumps({"a": 1}), b"{}"])
def test_junk_in_place_of_a_model_is_named(tmp_path, content):
    (tmp_path / "junk").write_bytes(content)
    with pytest.raises(ModelLoadError, match="junk.* cannot be loaded .* truncated, or of another"):
        OnnxModelHandlerNumpy(str(tmp_path / "junk")).predict(SMALL)


@pytest.mark.parametrize("length", [10, 300, -1])
def test_a_truncated_file_is_named(folder, tmp_path, length):
    whole = (folder / "iris.onnx").read_bytes()
    (tmp_path / "half.onnx").write_bytes(whole[:length])
    with pytest.raises(ModelLoadError, match="half.onnx.* may be truncated"):
        OnnxModelHandlerNumpy(str(tmp_path / "half.onnx")).predict(SMALL)


def test_a_model_of_a_later_opset_is_told_of_it(tmp_path):
    model = doubling(TensorProto.FLOAT)
    model.opset_import[0].version = 999
    with pytest.raises(
        ModelLoadError,
        match=r"\(ONNX Runtime only .* Opset 999 .* Export it for an earlier opset, or install a later",
    ):
        OnnxModelHandlerNumpy(written(tmp_path / "m.onnx", model)).predict(SMALL)


def test_a_model_of_a_later_format_is_told_of_it(tmp_path):
    model = doubling(TensorProto.FLOAT)
    model.ir_version = 999
    with pytest.raises(
        ModelLoadError,
        match=r"\(Unsupported model IR version: 999.* or install a later onnxruntime than",
    ):
        OnnxModelHandlerNumpy(written(tmp_path / "m.onnx", model)).predict(SMALL)


def test_a_model_is_read_from_any_file_system_of_beams_and_compressed(folder, tmp_path):
    whole = (folder / "iris.onnx").read_bytes()
    InMemory.files["inmemory://bucket/iris.onnx"] = whole
    (tmp_path / "iris.onnx.gz").write_bytes(gzip.compress(whole))
    for path in ("inmemory://bucket/iris.onnx", str(tmp_path / "iris.onnx.gz")):
        assert OnnxModelHandlerNumpy(path).predict(SMALL[:1])[0].inference == 0


def test_weights_may_lie_in_a_file_beside_the_model(tmp_path):
    weights = onnx.numpy_helper.from_array(np.full((2,), 3, np.float32), "w")
    model = model_of(
        [helper.make_node("Mul", ["x", "w"], ["y"])],
        [value("x", ["n", 2])],
        [value("y", ["n", 2])],
        [weights],
    )
    onnx.save(
        model,
        tmp_path / "m.onnx",
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=0,
    )
    [result] = OnnxModelHandlerNumpy(str(tmp_path / "m.onnx")).predict([np.ones(2)])
    assert result.inference.tolist() == [3, 3]
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(ModelLoadError, match="put them beside it"):
        OnnxModelHandlerNumpy(str(tmp_path / "m.onnx")).load_model()


def test_one_bad_element_is_set_aside_alone(folder):
    handler = OnnxModelHandlerNumpy(str(folder / "iris.onnx"))
    good, bad = [], []
    with beam.Pipeline(runner=RUNNER) as pipeline:
        rows = pipeline | beam.Create([*SMALL, np.zeros(5)], reshuffle=False)
        results, failed = rows | RunInference(handler).with_exception_handling()
        _ = results | "good" >> beam.ParDo(CollectElements(good))
        _ = failed.failed_inferences | "bad" >> beam.ParDo(CollectElements(bad))
    assert (len(CollectElements.take(good)), len(CollectElements.take(bad))) == (150, 1)


def test_a_model_may_be_shared_by_processes(folder):
    handler = OnnxModelHandlerNumpy(str(folder / "iris.onnx"), large_model=True)
    results = run(list(SMALL), RunInference(handler))
    assert sorted(int(result.inference) for result in results).count(2) > 40


def test_batches_may_be_arrays_of_rows(folder):
    handler = OnnxModelHandlerNumpy(str(folder / "iris.onnx")).with_no_batching()
    assert len(run([ROWS[:100], ROWS[100:]], RunInference(handler))) == 150


def test_the_bytes_of_a_batch_are_those_of_its_data():
    handler = OnnxModelHandlerNumpy("m.onnx")
    assert handler.get_num_bytes(list(SMALL)) == SMALL.nbytes
    assert handler.get_metrics_namespace() == "BeamML_Onnx"


def test_without_onnxruntime_the_error_names_the_extra():
    program = "import sys; sys.modules['onnxruntime'] = None; import runinference.onnx_inference"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert 'pip install "runinference[onnx]"' in ended.stderr


def test_beam_ignores_a_new_model_and_here_it_takes_over(folder):
    old, new = str(folder / "iris.onnx"), str(folder / "backwards.onnx")

    def labels(package):
        handler = package.module("onnx_inference").OnnxModelHandlerNumpy(old)
        results: list[PredictionResult] = run_with_model_update(
            package, handler, new, [SMALL[0], SMALL[149]]
        )
        return sorted((round(float(r.example[0]), 1), r.inference, r.model_id) for r in results)

    assert labels(BEAM) == [(5.1, 0, None), (5.9, 2, None)]
    assert labels(OURS) == [(5.1, 2, new), (5.9, 0, new)]
