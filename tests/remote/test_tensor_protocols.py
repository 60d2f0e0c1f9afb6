"""Requests are what each kind of server takes, and answers are read as it gives them."""

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
def test_requests_go_where_the_protocol_has_the_model(protocol, path):
    assert protocol.path == path


@pytest.mark.parametrize("kind", [KServeV2, TFServing, TFServingColumns, TorchServe])
def test_a_model_is_renamed_by_its_name_or_its_name_and_version(kind):
    assert kind("m", "1").renamed("n") == kind("n")
    assert kind("m").renamed("n/2") == kind("n", "2")
    assert kind("n", "2").model_id == "n/2"
    with pytest.raises(OptionError, match="without slashes"):
        kind("n/2")


# --- KServe


def test_kserve_gets_the_type_and_the_name_that_the_model_takes():
    body = KServeV2("m").body(ROWS, [InputSpec("x", np.dtype("float32"), (None, 2))], {})
    assert body == {
        "inputs": [{"name": "x", "shape": [2, 2], "datatype": "FP32", "data": [1.0, 2.0, 3.0, 4.0]}]
    }


def test_kserve_gets_the_names_of_a_dictionary():
    body = KServeV2("m").body(NAMED, [], {})
    assert [(one["name"], one["shape"]) for one in body["inputs"]] == [("a", [2, 2]), ("b", [2])]


def test_where_the_server_tells_no_names_an_array_has_the_name_of_a_first_input():
    [one] = KServeV2("m").body(ROWS, [], {})["inputs"]
    assert (one["name"], one["datatype"]) == ("input-0", "FP64")


def test_kserve_is_asked_for_some_outputs_and_with_parameters():
    body = KServeV2("m", outputs=("p", "q")).body(ROWS, [], {"top": 3})
    assert body["outputs"] == [{"name": "p"}, {"name": "q"}]
    assert body["parameters"] == {"top": 3}


TAKES = [InputSpec("a", np.dtype("float32"), (None, 2))]


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
def test_what_the_model_does_not_take_is_told_before_it_is_sent(batch, kind, message):
    with pytest.raises(kind, match=message):
        KServeV2("m").body(batch, TAKES, {})


def test_what_a_server_tells_of_its_inputs_is_understood():
    told = {
        "inputs": [
            {"name": "a", "datatype": "FP32", "shape": [-1, 2]},
            {"name": "b", "datatype": "BYTES", "shape": [-1]},
        ]
    }
    assert KServeV2.inputs(told) == [*TAKES, InputSpec("b", None, (None,))]
    assert KServeV2.inputs({"inputs": []}) == KServeV2.inputs({}) == []


def test_one_output_is_an_array_and_several_are_a_dictionary():
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


def test_tensorflow_serving_gets_rows():
    assert TFServing("m").body(ROWS, [], {}) == {"instances": [[1.0, 2.0], [3.0, 4.0]]}
    named = TFServing("m", signature_name="s").body(NAMED, [], {"top": 3})
    assert named["instances"] == [{"a": [1, 2], "b": 5}, {"a": [3, 4], "b": 6}]
    assert (named["signature_name"], named["top"]) == ("s", 3)
    assert TFServing("m").body([b"\x00"], [], {}) == {"instances": [{"b64": "AA=="}]}


def test_tensorflow_serving_gets_columns():
    columns = TFServingColumns("m")
    assert columns.body(ROWS, [], {}) == {"inputs": [[1.0, 2.0], [3.0, 4.0]]}
    assert columns.body(NAMED, [], {}) == {"inputs": {"a": [[1, 2], [3, 4]], "b": [5, 6]}}
    with pytest.raises(BatchShapeError, match="Element 1"):
        columns.body([np.ones(2), np.ones(3)], [], {})


def test_predictions_come_as_arrays_row_by_row():
    rows = TFServing("m").output({"predictions": [[1, 2], {"p": [3]}, 0.5]}, ROWS)
    assert rows[0].tolist() == [1, 2]
    assert rows[1]["p"].tolist() == [3]
    assert rows[2] == 0.5


def test_outputs_come_as_arrays_column_by_column():
    columns = TFServingColumns("m")
    assert columns.output({"outputs": [[1], [2]]}, ROWS).shape == (2, 1)
    assert columns.output({"outputs": {"p": [1, 2]}}, ROWS)["p"].tolist() == [1, 2]


# --- TorchServe


def test_torchserve_gets_one_example_and_its_answer_is_the_result():
    serve = TorchServe("m")
    assert serve.body(ROWS[:1], [], {}) == [1.0, 2.0]
    assert serve.body(NAMED[:1], [], {}) == {"a": [1, 2], "b": 5}
    [result] = serve.output([0.5, 1], ROWS[:1])
    assert result.tolist() == [0.5, 1]
    assert serve.output({"cat": 0.9}, ROWS[:1]) == [{"cat": 0.9}]


def test_torchserve_takes_neither_several_examples_nor_arguments():
    for batch, fields in ((ROWS, {}), (ROWS[:1], {"top": 3})):
        with pytest.raises(OptionError, match="holds one example and nothing else"):
            TorchServe("m").body(batch, [], fields)


@pytest.mark.parametrize("protocol", [KServeV2("m"), TFServing("m"), TFServingColumns("m")])
@pytest.mark.parametrize(
    "answer", [None, [], {}, {"outputs": 5, "predictions": 5}, {"error": "gone"}]
)
def test_an_answer_of_another_protocol_is_told(protocol, answer):
    with pytest.raises(UnusableAnswerError, match="Is it the right protocol"):
        protocol.output(answer, ROWS)
