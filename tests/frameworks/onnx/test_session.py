"""ONNX files become sessions on the first provider that works, and errors say what is wrong with a file."""

from __future__ import annotations

import gzip
import logging
import pickle

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from common import run
from in_memory_file_system import InMemory
from onnx_models import SMALL, doubling, make_model, make_value, save_iris_models, write_model
from runinference import RunInference
from runinference.errors import ModelLoadError, ModelNotFoundError, OptionError
from runinference.onnx_inference import OnnxModelHandlerNumpy


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_iris_models(tmp_path_factory.mktemp("models"))


def make_options():
    made = onnxruntime.SessionOptions()
    made.intra_op_num_threads = 1
    return made


def test_session_options_are_made_by_a_function(folder):
    path = str(folder / "iris.onnx")
    handler = OnnxModelHandlerNumpy(path, session_options=make_options)
    assert handler.load_model().get_session_options().intra_op_num_threads == 1
    assert len(run(list(SMALL[:3]), RunInference(handler))) == 3
    with pytest.raises(
        OptionError, match="a function that returns the options, but is a SessionOptions"
    ):
        OnnxModelHandlerNumpy(path, session_options=make_options())


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
def test_skips_providers_that_are_not_available(folder, recwarn, chosen):
    session = OnnxModelHandlerNumpy(str(folder / "iris.onnx"), **chosen).load_model()
    assert session.get_providers() == ["CPUExecutionProvider"]
    assert not [w for w in recwarn if "ExecutionProvider" in str(w.message)]


def test_warns_and_runs_on_the_cpu_if_no_provider_is_available(folder, caplog):
    handler = OnnxModelHandlerNumpy(str(folder / "iris.onnx"), providers=["CUDAExecutionProvider"])
    with caplog.at_level(logging.WARNING):
        assert handler.load_model().get_providers() == ["CPUExecutionProvider"]
    assert "runs on the CPU: none of ['CUDAExecutionProvider'] is available" in caplog.text


def test_warns_and_runs_on_the_cpu_if_a_provider_fails(
    folder, tmp_path, caplog, capfd, monkeypatch
):
    original = onnxruntime.InferenceSession

    def without_cuda(source, providers, **options):
        if providers != ["CPUExecutionProvider"]:
            raise RuntimeError("no CUDA-capable device is detected")
        return original(source, providers=providers, **options)

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


def test_rejects_provider_options_that_do_not_match_the_providers():
    both = [("CUDAExecutionProvider", {"device_id": 1}), "CPUExecutionProvider"]
    with pytest.raises(OptionError, match="Pass them in one place"):
        OnnxModelHandlerNumpy("m.onnx", providers=both, provider_options=[{}, {}])
    with pytest.raises(OptionError, match="has 1 entries, and providers has 2"):
        OnnxModelHandlerNumpy("m.onnx", provider_options=[{"device_id": 1}])


def test_rejects_a_misspelled_provider_in_the_constructor():
    with pytest.raises(OptionError, match="'CudaExecutionProvider'. Did you mean 'CUDAExecution"):
        OnnxModelHandlerNumpy("m.onnx", providers=["CudaExecutionProvider"])


def test_suggests_a_similar_name_for_a_missing_file(folder):
    with pytest.raises(ModelNotFoundError, match=r"Did you mean '.*iris.onnx'"):
        OnnxModelHandlerNumpy(str(folder / "iris.onn")).predict(SMALL)


@pytest.mark.parametrize("content", [b"", b"<!DOCTYPE html>", pickle.dumps({"a": 1}), b"{}"])
def test_rejects_files_that_are_not_models(tmp_path, content):
    (tmp_path / "junk").write_bytes(content)
    with pytest.raises(ModelLoadError, match="junk.* cannot be loaded .* truncated, or may not be"):
        OnnxModelHandlerNumpy(str(tmp_path / "junk")).predict(SMALL)


@pytest.mark.parametrize("length", [10, 300, -1])
def test_rejects_a_truncated_file(folder, tmp_path, length):
    content = (folder / "iris.onnx").read_bytes()
    (tmp_path / "half.onnx").write_bytes(content[:length])
    with pytest.raises(ModelLoadError, match="half.onnx.* may be truncated"):
        OnnxModelHandlerNumpy(str(tmp_path / "half.onnx")).predict(SMALL)


def test_rejects_a_later_opset_with_a_hint(tmp_path):
    model = doubling(TensorProto.FLOAT)
    model.opset_import[0].version = 999
    with pytest.raises(
        ModelLoadError,
        match=r"\(ONNX Runtime only .* Opset 999 .* Export it for an earlier opset, or install a later",
    ):
        OnnxModelHandlerNumpy(write_model(tmp_path / "m.onnx", model)).predict(SMALL)


def test_rejects_a_later_ir_version_with_a_hint(tmp_path):
    model = doubling(TensorProto.FLOAT)
    model.ir_version = 999
    with pytest.raises(
        ModelLoadError,
        match=r"\(Unsupported model IR version: 999.* or install a later onnxruntime than",
    ):
        OnnxModelHandlerNumpy(write_model(tmp_path / "m.onnx", model)).predict(SMALL)


def test_reads_models_from_any_beam_file_system_and_decompresses_them(folder, tmp_path):
    content = (folder / "iris.onnx").read_bytes()
    InMemory.files["inmemory://bucket/iris.onnx"] = content
    (tmp_path / "iris.onnx.gz").write_bytes(gzip.compress(content))
    for path in ("inmemory://bucket/iris.onnx", str(tmp_path / "iris.onnx.gz")):
        assert OnnxModelHandlerNumpy(path).predict(SMALL[:1])[0].inference == 0


def test_loads_external_weights_beside_the_model(tmp_path):
    weights = onnx.numpy_helper.from_array(np.full((2,), 3, np.float32), "w")
    model = make_model(
        [helper.make_node("Mul", ["x", "w"], ["y"])],
        [make_value("x", ["n", 2])],
        [make_value("y", ["n", 2])],
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
    with pytest.raises(ModelLoadError, match="put them next to the model"):
        OnnxModelHandlerNumpy(str(tmp_path / "m.onnx")).load_model()
