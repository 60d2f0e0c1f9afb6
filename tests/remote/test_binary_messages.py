"""Binary tensors of KServe V2: exact values in both directions, and clear errors for contradictory sizes."""

from __future__ import annotations

import json
import struct

import httpx
import ml_dtypes
import numpy as np
import pytest

from common import run
from runinference import KeyedModelHandler, RunInference, samples
from runinference.errors import ElementError, EndpointError, OptionError
from runinference.http_inference import HTTPModelHandler, KServeV2
from runinference.samples import servers
from scripted_server import BytesReply, scripted_server

SIZE = "Inference-Header-Content-Length"


def message(tensors, *data, size=None):
    """Return the reply of a server with outputs and binary data."""
    text = json.dumps({"outputs": tensors}).encode()
    return BytesReply(b"".join([text, *data]), {SIZE: str(len(text) if size is None else size)})


def tensor(datatype, shape, n_bytes=None, name="y", **fields):
    parameters = {} if n_bytes is None else {"parameters": {"binary_data_size": n_bytes}}
    return {"name": name, "datatype": datatype, "shape": shape, **parameters, **fields}


def call(reply, examples=(np.zeros(2, np.float32),), inputs=(), **options):
    """Return the inferences for a reply, and the JSON and the binary data of the request."""
    metadata = BytesReply(json.dumps({"inputs": list(inputs)}).encode())
    with scripted_server(metadata, reply, parses=False) as server:
        protocol = KServeV2("m", binary=True, **options)
        results = HTTPModelHandler(server.url, protocol, num_retries=0).predict(list(examples))
    content = server.request_contents[1]
    size = int(server.request_headers[1][SIZE])
    return [result.inference for result in results], json.loads(content[:size]), content[size:]


def float_reply(n):
    return message([tensor("FP32", [n], 4 * n)], b"\0" * 4 * n)


def test_sends_little_endian_tensors_after_the_json():
    examples = [
        {"a": np.array([1, 2], ">f8"), "b": np.bool_(True), "c": "é"},
        {"a": np.array([3, np.nan], ">f8"), "b": np.bool_(False), "c": ""},
    ]
    _, body, data = call(float_reply(2), examples)
    assert body == {
        "inputs": [
            {
                "name": "a",
                "shape": [2, 2],
                "datatype": "FP64",
                "parameters": {"binary_data_size": 32},
            },
            {"name": "b", "shape": [2], "datatype": "BOOL", "parameters": {"binary_data_size": 2}},
            {
                "name": "c",
                "shape": [2],
                "datatype": "BYTES",
                "parameters": {"binary_data_size": 10},
            },
        ],
        "parameters": {"binary_data_output": True},
    }
    np.testing.assert_array_equal(np.frombuffer(data[:32], "<f8"), [1, 2, 3, np.nan])
    assert data[32:] == b"\1\0" + b"\2\0\0\0\xc3\xa9" + b"\0\0\0\0"


@pytest.mark.parametrize("value", [b"\xff\0", b"\0", b"", b"a\0b\0\0"])
def test_sends_bytes_as_they_are(value):
    _, _, data = call(float_reply(2), [value, b"longer" * 3])
    assert data.startswith(struct.pack("<I", len(value)) + value + b"\x12\0\0\0")


@pytest.mark.parametrize(
    "dtype", ["f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "?"]
)
def test_values_of_every_dtype_are_the_same_in_both_directions(dtype):
    array = np.array([[0, 1, 1], [1, 0, 1]], dtype)
    kind = {"f": "FP", "i": "INT", "u": "UINT", "b": "BOOL"}[array.dtype.kind]
    datatype = kind if kind == "BOOL" else f"{kind}{8 * array.dtype.itemsize}"
    reply = message([tensor(datatype, [2, 3], array.nbytes)], array.tobytes())
    found, body, data = call(reply, array)
    assert body["inputs"][0]["datatype"] == datatype
    assert data == array.tobytes()
    for row, expected in zip(found, array, strict=True):
        assert row.dtype == array.dtype
        np.testing.assert_array_equal(row, expected)
        row[0] = 0  # writable


def test_bf16_becomes_float32_and_bfloat16_arrays_are_bf16():
    array = np.array([[1.5, -2]], ml_dtypes.bfloat16)
    reply = message([tensor("BF16", [1, 2], 4)], array.tobytes())
    [found], body, data = call(reply, array)
    assert (body["inputs"][0]["datatype"], data) == ("BF16", array.tobytes())
    assert (found.dtype, found.tolist()) == (np.float32, [1.5, -2])


def test_converts_inputs_to_the_dtype_in_the_models_metadata():
    inputs = [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}]
    _, body, data = call(float_reply(1), [np.array([1.0, 2.0])], inputs)
    assert body["inputs"][0]["datatype"] == "FP32"
    assert data == np.array([1, 2], "<f4").tobytes()


def test_bytes_of_outputs_are_bytes():
    data = b"\1\0\0\0a" + b"\0\0\0\0" + b"\2\0\0\0\xff\0"
    found, _, _ = call(message([tensor("BYTES", [3], len(data))], data), [np.zeros(1)] * 3)
    assert found == [b"a", b"", b"\xff\0"]


def test_some_outputs_may_be_json_and_they_are_read_in_any_order():
    reply = message(
        [
            tensor("INT8", [1], 1, name="a"),
            tensor("BYTES", [1], name="b", data=["text"]),
            tensor("INT16", [1], 2, name="c"),
        ],
        b"\x07",
        b"\x08\0",
    )
    [found], body, _ = call(reply, outputs=("c", "b", "a"))
    assert found == {"c": 8, "b": "text", "a": 7}
    assert body["outputs"] == [{"name": name} for name in "cba"]


def test_a_response_without_binary_data_is_json():
    reply = BytesReply(json.dumps({"outputs": [tensor("INT8", [1], data=[5])]}).encode())
    assert call(reply)[0] == [5]


@pytest.mark.parametrize(
    ("reply", "text"),
    [
        (message([], size="x"), "Inference-Header-Content-Length is 'x', which is not a size"),
        (message([], size=-1), "Inference-Header-Content-Length is '-1', which is not a size"),
        (message([], size=10**6), "is '1000000', which is not a size in a message of 15 bytes"),
        (message([tensor("FP32", [1], 4)], b"\0" * 3), "of 4, but only 3 bytes are left"),
        (message([tensor("FP32", [1], 4)], b"\0" * 5), "has 1 bytes more than its tensors"),
        (
            message([tensor("FP32", [1], -4)], b"\0" * 4),
            "binary_data_size '-4', which is not a size",
        ),
        (
            message([tensor("FP32", [1], "4")], b"\0" * 4),
            "binary_data_size '4', which is not a size",
        ),
        (message([tensor("FP32", [1], True)], b"\0"), "binary_data_size 'True', which is not"),
        (message([tensor("FP32", [2], 4)], b"\0" * 4), "it has 4 bytes, not 8"),
        (message([tensor("FP32", [-1], 4)], b"\0" * 4), "the shape is not a list of sizes"),
        (message([tensor("FP32", None, 4)], b"\0" * 4), "the shape is not a list of sizes"),
        (message([tensor("FP8", [4], 4)], b"\0" * 4), "datatype FP8: 'FP8'"),
        (message([tensor("BOOL", [1], 1)], b"\2"), "a byte is neither 0 nor 1"),
        (message([tensor("BYTES", [1], 3)], b"\1\0\0"), "the length of a value is incomplete"),
        (message([tensor("BYTES", [1], 5)], b"\2\0\0\0a"), "a value of 2 bytes is incomplete"),
        (message([tensor("BYTES", [2], 5)], b"\1\0\0\0a"), "it has 1 values, not 2"),
        (message("none"), "no valid 'outputs'"),
        (message([3]), "An output is 3"),
    ],
)
def test_contradictory_sizes_are_an_error_with_their_values(reply, text):
    with pytest.raises((EndpointError, ValueError), match=text) as raised:
        call(reply)
    assert "\0" not in str(raised.value)


def test_an_input_without_a_datatype_of_the_protocol_is_an_error_of_the_element():
    with pytest.raises(ElementError, match="doesn't support complex128"):
        call(float_reply(1), [np.zeros(2, complex)])
    with pytest.raises(OptionError, match="binary must be True or False"):
        KServeV2("m", binary="yes")


def test_the_sample_server_returns_the_same_predictions_as_with_json():
    images, _ = samples.held_out_digits()
    outputs = ("label", "probabilities")
    with servers.digits() as url:
        json_handler, handler = (
            HTTPModelHandler(url, KServeV2("digits", outputs=outputs, binary=binary))
            for binary in (False, True)
        )
        keyed = [(n, image) for n, image in enumerate(images[:100])]
        results = dict(run(keyed, RunInference(KeyedModelHandler(handler))))
        for n, expected in enumerate(json_handler.predict(images[:100])):
            for name in outputs:
                found = results[n].inference[name]
                assert found.dtype == expected.inference[name].dtype
                np.testing.assert_array_equal(found, expected.inference[name])


def test_an_invalid_binary_request_is_an_error_of_the_sample_server():
    with servers.digits() as url:
        response = httpx.post(f"{url}/v2/models/digits/infer", content=b"{}", headers={SIZE: "9"})
    assert response.status_code == 400
    assert "is '9', which is not a size" in response.json()["error"]
