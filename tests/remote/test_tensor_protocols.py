"""Requests and responses follow the JSON protocol of each model server."""

from __future__ import annotations

import numpy as np
import pytest

from runinference.collate.named_inputs import InputSpec
from runinference.errors import BatchShapeError, ElementError, OptionError, UnusableAnswerError
from runinference.remote.tensor_protocols import KServeV2, TFServing, TFServingColumns, TorchServe

ROWS = [np.array([1.0, 2.0]), np.array([3.0, 4.0])]
NAMED = [{"a": np.array([1, 2]), "b": 5}, {"a": np.array([3, 4]), "b": 6}]


@pytest.mark.parametrize(
    ("protocol", "path"),
    [
        (KServeV2("m"), "/v2/models/m/infer"),
        (KServeV2("m", "2"), "/v2/models/m/versions/2/infer"),
        (TFServing("m"), "/v1/models/m:predict"),
        (TFServing("m", "2"), "/v1/models/m/versions/2:predict"),
        (TFServingColumns("m"), "/v1/models/m:predict"),
        (TorchServe("m"), "/predictions/m"),
        (TorchServe("m", "2"), "/predictions/m/2"),
    ],
)
def test_path_contains_the_model_and_version(protocol, path):
    assert protocol.path == path


@pytest.mark.parametrize("kind", [KServeV2, TFServing, TFServingColumns, TorchServe])
def test_renames_a_model_by_name_or_name_and_version(kind):
    assert kind("m", "1").renamed("n") == kind("n")
    assert kind("m").renamed("n/2") == kind("n", "2")
    assert kind("n", "2").model_id == "n/2"
    with pytest.raises(OptionError, match="is empty or has a slash"):
        kind("n/2")
    for arguments in ((".",), ("..",), ("n", "..")):
        with pytest.raises(OptionError, match="is a dot"):
            kind(*arguments)


# --- KServe


def test_kserve_uses_the_name_and_dtype_of_the_models_input():
    body = KServeV2("m").body(ROWS, [InputSpec("x", np.dtype("float32"), (None, 2))], {})
    assert body == {
        "inputs": [{"name": "x", "shape": [2, 2], "datatype": "FP32", "data": [1.0, 2.0, 3.0, 4.0]}]
    }


def test_kserve_uses_dictionary_keys_as_input_names():
    body = KServeV2("m").body(NAMED, [], {})
    assert [(one["name"], one["shape"]) for one in body["inputs"]] == [("a", [2, 2]), ("b", [2])]


def test_kserve_names_an_array_input_0_without_metadata():
    [one] = KServeV2("m").body(ROWS, [], {})["inputs"]
    assert (one["name"], one["datatype"]) == ("input-0", "FP64")


def test_kserve_sends_outputs_and_parameters():
    body = KServeV2("m", outputs=("p", "q")).body(ROWS, [], {"top": 3})
    assert body["outputs"] == [{"name": "p"}, {"name": "q"}]
    assert body["parameters"] == {"top": 3}


INPUTS = [InputSpec("a", np.dtype("float32"), (None, 2))]


@pytest.mark.parametrize(
    ("batch", "kind", "message"),
    [
        ([np.ones(2), np.ones(3)], BatchShapeError, r"Element 1 of the batch has shape \(3,\)"),
        (
            [np.ones(3)] * 2,
            BatchShapeError,
            r"have shape \(3,\), and the model's input 'a' takes \(2\)",
        ),
        ([np.array(["x", "y"])], ElementError, "another kind of number"),
        ([{"b": np.ones(2)}], ElementError, r"no input 'b'\."),
        ([{"a": np.ones(2)}, np.ones(2)], BatchShapeError, "same inputs"),
    ],
)
def test_kserve_rejects_invalid_inputs_before_sending(batch, kind, message):
    with pytest.raises(kind, match=message):
        KServeV2("m").body(batch, INPUTS, {})


def test_kserve_reads_inputs_from_metadata():
    metadata = {
        "inputs": [
            {"name": "a", "datatype": "FP32", "shape": [-1, 2]},
            {"name": "b", "datatype": "BYTES", "shape": [-1]},
        ]
    }
    assert KServeV2.inputs(metadata) == [*INPUTS, InputSpec("b", bytes, (None,))]
    assert KServeV2.inputs({"inputs": []}) == KServeV2.inputs({}) == []


def test_kserve_returns_an_array_or_a_dictionary_of_outputs():
    tensors = [
        {"name": "p", "shape": [2, 1], "datatype": "FP32", "data": [0.5, 1]},
        {"name": "q", "shape": [2], "datatype": "INT64", "data": [7, 8]},
    ]
    one = KServeV2("m").output({"outputs": tensors[:1]}, ROWS)
    assert (one.dtype, one.tolist()) == (np.float32, [[0.5], [1.0]])
    both = KServeV2("m").output({"outputs": tensors}, ROWS)
    assert list(both) == ["p", "q"]
    assert both["q"].tolist() == [7, 8]


# --- TensorFlow Serving


def test_tensorflow_serving_sends_rows():
    assert TFServing("m").body(ROWS, [], {}) == {"instances": [[1.0, 2.0], [3.0, 4.0]]}
    named = TFServing("m", signature_name="s").body(NAMED, [], {"top": 3})
    assert named["instances"] == [{"a": [1, 2], "b": 5}, {"a": [3, 4], "b": 6}]
    assert (named["signature_name"], named["top"]) == ("s", 3)
    assert TFServing("m").body([b"\x00"], [], {}) == {"instances": [{"b64": "AA=="}]}


def test_tensorflow_serving_sends_columns():
    columns = TFServingColumns("m")
    assert columns.body(ROWS, [], {}) == {"inputs": [[1.0, 2.0], [3.0, 4.0]]}
    assert columns.body(NAMED, [], {}) == {"inputs": {"a": [[1, 2], [3, 4]], "b": [5, 6]}}
    with pytest.raises(BatchShapeError, match="Element 1"):
        columns.body([np.ones(2), np.ones(3)], [], {})


def test_tensorflow_serving_returns_one_array_per_row():
    rows = TFServing("m").output({"predictions": [[1, 2], {"p": [3]}, 0.5]}, ROWS)
    assert rows[0].tolist() == [1, 2]
    assert rows[1]["p"].tolist() == [3]
    assert rows[2] == 0.5


def test_tensorflow_serving_returns_one_array_per_column():
    columns = TFServingColumns("m")
    assert columns.output({"outputs": [[1], [2]]}, ROWS).shape == (2, 1)
    assert columns.output({"outputs": {"p": [1, 2]}}, ROWS)["p"].tolist() == [1, 2]


# --- TorchServe


def test_torchserve_sends_one_example_and_returns_its_response():
    protocol = TorchServe("m")
    assert protocol.body(ROWS[:1], [], {}) == [1.0, 2.0]
    assert protocol.body(NAMED[:1], [], {}) == {"a": [1, 2], "b": 5}
    [result] = protocol.output([0.5, 1], ROWS[:1])
    assert result.tolist() == [0.5, 1]
    assert protocol.output({"cat": 0.9}, ROWS[:1]) == [{"cat": 0.9}]


def test_torchserve_rejects_several_examples_and_arguments():
    for batch, fields in ((ROWS, {}), (ROWS[:1], {"top": 3})):
        with pytest.raises(OptionError, match="contains one example only"):
            TorchServe("m").body(batch, [], fields)


@pytest.mark.parametrize("protocol", [KServeV2("m"), TFServing("m"), TFServingColumns("m")])
@pytest.mark.parametrize(
    "response", [None, [], {}, {"outputs": 5, "predictions": 5}, {"error": "gone"}]
)
def test_rejects_a_response_of_another_protocol(protocol, response):
    with pytest.raises(UnusableAnswerError, match="Is this the right protocol"):
        protocol.output(response, ROWS)
