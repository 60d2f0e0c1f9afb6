"""Small ONNX models for tests."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, helper
from skl2onnx import to_onnx
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

ROWS, LABELS = load_iris(return_X_y=True)
SMALL = ROWS.astype(np.float32)


def write_model(path, model):
    path.write_bytes(model.SerializeToString())
    return str(path)


def fit_pipeline(labels):
    return make_pipeline(StandardScaler(), LogisticRegression()).fit(ROWS, labels)


def make_value(name, shape, kind=TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


def make_model(nodes, inputs, outputs, initializers=()):
    graph = helper.make_graph(nodes, "graph", inputs, outputs, list(initializers))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def arithmetic(batch="n"):
    """Compute (a + b) * factor, where factor is optional, and a - b."""
    one = helper.make_tensor("factor", TensorProto.FLOAT, [], [1.0])
    return make_model(
        [
            helper.make_node("Add", ["a", "b"], ["plain"]),
            helper.make_node("Mul", ["plain", "factor"], ["sum"]),
            helper.make_node("Sub", ["a", "b"], ["difference"]),
        ],
        [make_value("a", [batch, 2]), make_value("b", [batch, 2]), make_value("factor", [])],
        [make_value("sum", [batch, 2]), make_value("difference", [batch, 2])],
        [one],
    )


def doubling(kind, shape=("n", "m")):
    return make_model(
        [helper.make_node("Add", ["x", "x"], ["y"])],
        [make_value("x", shape, kind)],
        [make_value("y", shape, kind)],
    )


def save_iris_models(folder):
    """Save models of the iris data as iris.onnx, zipmap.onnx and, trained on reversed labels, backwards.onnx."""
    classifier, backwards = fit_pipeline(LABELS), fit_pipeline(LABELS[::-1])
    no_zipmap = {"zipmap": False}
    write_model(folder / "iris.onnx", to_onnx(classifier, SMALL[:1], options=no_zipmap))
    write_model(folder / "zipmap.onnx", to_onnx(classifier, SMALL[:1]))
    write_model(folder / "backwards.onnx", to_onnx(backwards, SMALL[:1], options=no_zipmap))
    return folder
