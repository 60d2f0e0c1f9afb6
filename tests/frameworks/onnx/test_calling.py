"""Calls of ONNX models: unsupported types, errors of onnxruntime, and outputs that don't follow the batch."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper

from onnx_models import make_model, make_value, write_model
from runinference.errors import ModelInputError, ModelLoadError, ResultMismatchError
from runinference.onnx_inference import OnnxModelHandlerNumpy

BFLOAT16, FLOAT = TensorProto.BFLOAT16, TensorProto.FLOAT


def save(folder, nodes, inputs, outputs, initializers=()):
    return write_model(folder / "m.onnx", make_model(nodes, inputs, outputs, initializers))


def save_cast(folder, source, target):
    node = helper.make_node("Cast", ["x"], ["y"], to=target)
    return save(
        folder, [node], [make_value("x", ["n", 2], source)], [make_value("y", ["n", 2], target)]
    )


@pytest.mark.parametrize(
    ("types", "name"), [((BFLOAT16, FLOAT), "'x'"), ((FLOAT, BFLOAT16), "'y'")]
)
def test_bfloat16_is_an_error_that_names_the_fix(tmp_path, types, name):
    handler = OnnxModelHandlerNumpy(save_cast(tmp_path, *types))
    with pytest.raises(ModelLoadError, match=f"{name} has the type .*bfloat16.*float32 .*Cast"):
        handler.predict([np.zeros(2, np.float32)])


def test_an_output_that_is_not_asked_for_may_have_any_type(tmp_path):
    nodes = [
        helper.make_node("Cast", ["x"], ["half"], to=BFLOAT16),
        helper.make_node("Identity", ["x"], ["y"]),
    ]
    outputs = [make_value("half", ["n", 2], BFLOAT16), make_value("y", ["n", 2])]
    path = save(tmp_path, nodes, [make_value("x", ["n", 2])], outputs)
    [result] = OnnxModelHandlerNumpy(path, output_names="y").predict([np.ones(2, np.float32)])
    assert result.inference.tolist() == [1, 1]
    own = OnnxModelHandlerNumpy(
        path, inference_fn=lambda session, batch, args: np.zeros(len(batch))
    )
    assert own.predict([np.ones(2)])[0].inference == 0


def test_an_error_of_onnxruntime_names_the_elements_and_the_fix(tmp_path):
    weights = helper.make_tensor("w", FLOAT, [3, 2], [0.0] * 6)
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    unknown = helper.make_tensor_value_info("x", FLOAT, None)
    path = save(tmp_path, [node], [unknown], [make_value("y", ["n", 2])], [weights])
    with pytest.raises(ModelInputError, match=r"'x': float32 \(4,\) .*MatMul.*reshape") as raised:
        OnnxModelHandlerNumpy(path).predict([np.zeros(4, np.float32)])
    assert "onnxruntime" in type(raised.value.__cause__).__module__


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("declared", [[2, "n", 3], None, ["directions", "n", 3]])
def test_states_of_an_lstm_are_an_error_for_each_batch_size(tmp_path, size, declared):
    weights = [
        helper.make_tensor(n, FLOAT, [2, 12, k], [0.0] * (24 * k)) for n, k in (("W", 2), ("R", 3))
    ]
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[1, 0, 2]),
        helper.make_node(
            "LSTM", ["t", "W", "R"], ["", "h"], hidden_size=3, direction="bidirectional"
        ),
    ]
    output = helper.make_tensor_value_info("h", FLOAT, declared)
    path = save(tmp_path, nodes, [make_value("x", ["n", 4, 2])], [output], weights)
    handler = OnnxModelHandlerNumpy(path, min_batch_size=size)
    with pytest.raises(ResultMismatchError):
        handler.predict(np.zeros((size, 4, 2), np.float32))


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("declared", [["n", 2, 2], [2, 2, 2], None])
def test_an_output_that_follows_the_batch_is_split_whatever_it_is_declared_as(
    tmp_path, size, declared
):
    output = helper.make_tensor_value_info("y", FLOAT, declared)
    node = helper.make_node("Identity", ["x"], ["y"])
    path = save(tmp_path, [node], [make_value("x", ["n", 2, 2])], [output])
    handler = OnnxModelHandlerNumpy(path, min_batch_size=size)
    assert len(handler.predict(np.zeros((size, 2, 2), np.float32))) == size


@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_sequence_is_split_as_the_handler_declares(tmp_path, size):
    node = helper.make_node("SplitToSequence", ["x"], ["y"], axis=1, keepdims=0)
    output = helper.make_tensor_sequence_value_info("y", FLOAT, None)
    path = save(tmp_path, [node], [make_value("x", ["n", 2])], [output])
    rows = np.arange(2.0 * size, dtype=np.float32).reshape(size, 2)
    with pytest.raises(ResultMismatchError, match="list_output='multi_output'"):
        OnnxModelHandlerNumpy(path, min_batch_size=size).predict(rows)
    results = OnnxModelHandlerNumpy(path, list_output="multi_output").predict(rows)
    assert [result.inference for result in results] == rows.tolist()
