"""HTTPModelHandler returns one result per element with each protocol."""

from __future__ import annotations

import pickle
import threading
import urllib.parse

import apache_beam as beam
import numpy as np
import onnxruntime
import pytest
from skl2onnx import to_onnx

from common import run
from runinference import Backoff, KeyedModelHandler, RunInference, samples
from runinference.errors import (
    BatchShapeError,
    ElementError,
    EndpointError,
    EndpointRefusedError,
    EndpointUnreachableError,
    OptionError,
    ResultMismatchError,
    UnusableAnswerError,
)
from runinference.http_inference import (
    HTTPModelHandler,
    KServeV2,
    TFServing,
    TFServingColumns,
    TorchServe,
)
from runinference.samples import servers
from runinference.samples.local_server import ErrorResponse, serving
from runinference.testing import check_handler
from scripted_server import DropConnection, Reply, TruncatedReply, scripted_server

NO_DELAY = {"backoff": Backoff(initial_secs=0), "throttle_delay_secs": 0}
PROTOCOLS = pytest.mark.parametrize("kind", [KServeV2, TFServing, TFServingColumns, TorchServe])


def make_handler(url, protocol, **options):
    return HTTPModelHandler(url, protocol, **{**NO_DELAY, **options})


@pytest.fixture(scope="module")
def digits():
    with servers.digits() as url:
        yield url


@pytest.fixture(scope="module")
def labels():
    with open(samples.digits_classifier(), "rb") as file:
        model = pickle.load(file)
    return model.predict(samples.held_out_digits()[0])


@PROTOCOLS
def test_returns_the_models_predictions_with_each_protocol(kind, digits, labels):
    images, _ = samples.held_out_digits()
    results = make_handler(digits, kind("digits")).predict(images[:100])
    assert [int(result.inference) for result in results] == labels[:100].tolist()
    assert {result.model_id for result in results} == {"digits"}
    np.testing.assert_array_equal(results[7].example, images[7])


def test_several_outputs_are_a_dictionary(digits):
    images, _ = samples.held_out_digits()
    handler = make_handler(digits, KServeV2("digits", outputs=("label", "probabilities")))
    first, *_ = handler.predict([{"pixels": image} for image in images[:3]])
    assert first.inference["probabilities"].shape == (10,)
    assert first.inference["probabilities"].argmax() == first.inference["label"] == 1


# --- an ONNX model behind KServe V2, with strict inputs and several outputs


def onnx_server():
    """Serve an ONNX model with strict input names, dtypes and shapes, and at most eight rows per request."""
    rows, _ = samples.held_out_digits()
    with open(samples.digits_classifier(), "rb") as file:
        model = pickle.load(file)
    onnx_model = to_onnx(model, rows[:1].astype(np.float32), options={id(model): {"zipmap": False}})
    session = onnxruntime.InferenceSession(onnx_model.SerializeToString())
    names = {"float32": "FP32", "int64": "INT64"}

    def answer(path, headers, body):
        if path == "/v2/models/digits":
            return {"inputs": [{"name": "X", "datatype": "FP32", "shape": [-1, 64]}]}
        if path != "/v2/models/digits/infer":
            raise ErrorResponse(400, {"error": f"Request for unknown model: {path}"})
        [one] = body["inputs"]
        if (one["name"], one["datatype"], one["shape"][1:]) != ("X", "FP32", [64]) or one["shape"][
            0
        ] > 8:
            raise ErrorResponse(400, {"error": f"unexpected input {one['name']} {one['shape']}"})
        array = np.array(one["data"], np.float32).reshape(one["shape"])
        if (array < 0).any():
            raise ErrorResponse(400, {"error": "a pixel is negative"})
        found = zip(session.get_outputs(), session.run(None, {"X": array}), strict=True)
        return {
            "model_name": "digits",
            "outputs": [
                {
                    "name": node.name,
                    "shape": list(array.shape),
                    "datatype": names[array.dtype.name],
                    "data": array.ravel().tolist(),
                }
                for node, array in found
            ],
        }

    return answer, model, rows


@pytest.fixture(scope="module")
def triton():
    answer, model, rows = onnx_server()
    with serving(answer) as url:
        yield url, model, rows


def test_returns_the_predictions_of_an_onnx_model_over_kserve(triton):
    url, model, rows = triton
    results = make_handler(url, KServeV2("digits"), max_request_size=8).predict(rows[:200])
    np.testing.assert_allclose(
        [result.inference["probabilities"] for result in results],
        model.predict_proba(rows[:200]),
        atol=1e-4,
    )
    assert results[0].inference["probabilities"].dtype == np.float32


@pytest.mark.parametrize(
    ("element", "kind", "message"),
    [
        (
            np.ones(63),
            BatchShapeError,
            r"have shape \(63,\), and the model's input 'X' takes \(64\)",
        ),
        (np.array(["a"] * 64), ElementError, "input 'X' takes float32"),
        (
            {"x": np.ones(64)},
            ElementError,
            "no input 'x'. Did you mean|no input 'x'. Its inputs are X",
        ),
        (np.full(64, np.nan), ElementError, r"contains nan \(at inputs\[0\].data\[0\]\)"),
        (np.full(64, -1.0), EndpointError, "returned 400: a pixel is negative"),
    ],
    ids=["shape", "dtype", "name", "NaN", "refused by the server"],
)
def test_rejects_an_element_that_the_model_does_not_accept(triton, element, kind, message):
    url, _, _ = triton
    with pytest.raises(kind, match=message):
        make_handler(url, KServeV2("digits")).predict([element])


def test_an_unknown_model_is_an_error(triton, digits):
    with pytest.raises(EndpointError, match="unknown model"):
        make_handler(triton[0], KServeV2("other")).predict(np.ones((1, 64)))
    with pytest.raises(EndpointRefusedError, match="the model is 'digits'. Check base_url"):
        make_handler(digits, TFServing("other")).predict(np.ones((1, 64)))


def test_one_bad_element_becomes_a_dead_letter_and_the_others_get_results(triton):
    url, _, rows = triton
    bad = np.full(64, -1.0)
    transform = RunInference(make_handler(url, KServeV2("digits"), max_request_size=8))

    class Both(beam.PTransform):
        def expand(self, pcoll):
            good, dead_letters = pcoll | transform.with_exception_handling()
            letters = dead_letters.failed_inferences | beam.Map(lambda letter: letter[1][1])
            return (good | beam.Map(lambda result: result.example), letters) | beam.Flatten()

    found = run([*rows[:50], bad, *rows[50:60]], Both())
    messages = [each for each in found if isinstance(each, str)]
    assert len(found) == 61
    assert len(messages) == 1
    assert "a pixel is negative" in messages[0]


# --- responses of the server


def doubled(body):
    if body is None:
        return Reply(404, {"error": "no description here"})
    if isinstance(body, list):
        return [2 * x for x in body]
    if "instances" in body:
        return {"predictions": [[2 * x for x in row] for row in body["instances"]]}
    if isinstance(body["inputs"], list) and isinstance(body["inputs"][0], dict):
        [one] = body["inputs"]
        return {"outputs": [{**one, "name": "y", "data": [2 * x for x in one["data"]]}]}
    return {"outputs": [[2 * x for x in row] for row in body["inputs"]]}


@PROTOCOLS
def test_concurrent_requests_return_results_in_order(kind):
    rows = np.arange(200.0).reshape(100, 2)
    with scripted_server(default=doubled) as server:
        results = make_handler(server.url, kind("m")).predict(rows)
        n = sum(body is not None for body in server.requests)
    np.testing.assert_array_equal([result.inference for result in results], 2 * rows)
    assert n == (100 if kind is TorchServe else 4)


@PROTOCOLS
def test_retries_until_the_server_answers(kind):
    script = [
        Reply(500, ""),
        DropConnection(),
        TruncatedReply(),
        Reply(503, "<html>"),
        Reply(200, "[garbage"),
    ]
    with scripted_server(*script, default=doubled) as server:
        [result] = make_handler(server.url, kind("m")).predict(np.ones((1, 2)))
        assert result.inference.tolist() == [2, 2]
        assert not server.script


@PROTOCOLS
def test_an_unreachable_server_is_an_error_with_its_url(kind):
    with scripted_server() as server:
        url = server.url
    with pytest.raises(
        EndpointUnreachableError, match=f"No server answers at {url}/.*Start the server"
    ):
        make_handler(url, kind("m"), num_retries=1).predict(np.ones((1, 2)))


@pytest.mark.parametrize(
    ("protocol", "answer", "kind", "message"),
    [
        (
            TFServing("m"),
            {"predictions": [1, 2]},
            ResultMismatchError,
            "2 results for a batch of 3",
        ),
        (TFServing("m"), {"outputs": [1, 2, 3]}, UnusableAnswerError, "no valid 'predictions'"),
        (
            TFServingColumns("m"),
            {"outputs": {"p": [1]}},
            ResultMismatchError,
            "1 result for a batch of 3",
        ),
        (KServeV2("m"), {"outputs": []}, UnusableAnswerError, "has no outputs"),
        (KServeV2("m"), {"predictions": []}, UnusableAnswerError, "no valid 'outputs'"),
        (
            KServeV2("m"),
            {"outputs": [{"name": "p", "shape": [3], "datatype": "FP32", "data": [1, 2]}]},
            UnusableAnswerError,
            "'p' is not a tensor of shape",
        ),
        (
            KServeV2("m"),
            {"outputs": [{"name": "p", "shape": [2], "datatype": "FP32", "data": [1, 2]}]},
            ResultMismatchError,
            "2 results for a batch of 3",
        ),
    ],
)
def test_does_not_retry_an_invalid_response(protocol, answer, kind, message):
    with scripted_server(default=lambda body: answer) as server:
        with pytest.raises(
            kind, match=f"{server.url}/.* returned an unexpected response.*{message}"
        ):
            make_handler(server.url, protocol).predict(np.ones((3, 2)))
        assert len([body for body in server.requests if body is not None]) == 1


def test_requests_metadata_once_and_works_without_it(triton):
    gets = []

    def answer(path, headers, body):
        if body is None:
            with lock:
                gets.append(path)
        return triton_answer(path, headers, body)

    lock = threading.Lock()
    triton_answer, _, rows = onnx_server()
    with serving(answer) as url:
        make_handler(url, KServeV2("digits"), max_request_size=4).predict(rows[:200])
    assert gets == ["/v2/models/digits"]

    with scripted_server(
        default=lambda body: doubled(body) if body else {"inputs": "what?"}
    ) as server:
        results = make_handler(server.url, KServeV2("m")).predict([{"x": np.ones(2)}])
        assert results[0].inference.tolist() == [2, 2]


class RestartedServer:
    """A KServe server that describes its input anew after a restart, and rejects other inputs."""

    def __init__(self, *statuses):
        self.name, self.datatype = "pixels", "FP32"
        self.statuses = list(statuses)  # of the first requests
        self.n_descriptions = 0
        self._lock = threading.Lock()

    def __call__(self, path, headers, body):
        with self._lock:
            self.n_descriptions += body is None
            if self.statuses:
                raise ErrorResponse(self.statuses.pop(0), {"error": "loading"})
        if body is None:
            tensor = {"name": self.name, "datatype": self.datatype, "shape": [-1, 2]}
            return {"inputs": [tensor]}
        [one] = body["inputs"]
        if (one["name"], one["datatype"]) != (self.name, self.datatype):
            raise ErrorResponse(400, {"error": f"the input is {self.name}"})
        return {"outputs": [{**one, "name": "y"}]}


ROW = np.array([1, 2], np.int64)


@pytest.mark.parametrize("status", [404, 405, 401, 500, 503])
def test_asks_for_the_metadata_again_after_an_error(status):
    with serving(RestartedServer(status, status)) as url:
        handler = HTTPModelHandler(url, KServeV2("m"), num_retries=0)
        with pytest.raises(EndpointError, match=str(status)):
            handler.predict([ROW])
        if status not in (404, 405):  # the request was not sent
            with pytest.raises(EndpointError, match=str(status)):
                handler.predict([ROW])
        assert handler.predict([ROW])[0].inference.tolist() == [1, 2]


@pytest.mark.parametrize(
    ("name", "datatype"), [("image", "FP32"), ("pixels", "INT64"), ("image", "INT64")]
)
def test_asks_for_the_metadata_again_if_the_server_rejects_a_request(name, datatype):
    server = RestartedServer()
    with serving(server) as url:
        handler = HTTPModelHandler(url, KServeV2("m"), num_retries=0)
        handler.predict([ROW])
        server.name, server.datatype = name, datatype
        assert handler.predict([ROW])[0].inference.tolist() == [1, 2]
        assert handler.predict([ROW])[0].inference.tolist() == [1, 2]
    assert server.n_descriptions == 2


def test_asks_for_the_metadata_again_if_they_do_not_fit_the_elements():
    server = RestartedServer()
    server.datatype = "INT64"
    with serving(server) as url:
        handler = HTTPModelHandler(url, KServeV2("m"), num_retries=0)
        handler.predict([ROW])
        with pytest.raises(ElementError, match="int64"):
            handler.predict([np.array([0.5, 1])])
        server.datatype = "FP32"
        assert handler.predict([np.array([0.5, 1])])[0].inference.tolist() == [0.5, 1]


def test_does_not_ask_for_metadata_more_often_because_requests_are_limited():
    server = RestartedServer()
    with serving(server) as url:
        handler = HTTPModelHandler(url, KServeV2("m"), num_retries=0)
        handler.predict([ROW])
        server.statuses = [429]
        with pytest.raises(EndpointError, match="429"):
            handler.predict([ROW])
        handler.predict([ROW])
    assert server.n_descriptions == 1


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@PROTOCOLS
def test_sends_no_number_that_json_cannot_represent(kind, value):
    with scripted_server(default=doubled) as server:
        handler = make_handler(server.url, kind("m"))
        with pytest.raises(ElementError, match=f"contains {float(value)!r}"):
            handler.predict([np.array([1.0, value])])
        assert not any(server.requests)
        if kind is not TorchServe:
            with pytest.raises(OptionError, match="inference_args cannot be written as JSON"):
                handler.predict([np.ones(2)], {"x": value})


def test_returns_nan_that_a_server_sends():
    reply = Reply(200, '{"predictions": [NaN, [1.0, Infinity]]}')
    with scripted_server(reply) as server:
        first, second = make_handler(server.url, TFServing("m")).predict(np.ones((2, 1)))
    assert np.isnan(first.inference)
    assert second.inference.tolist() == [1, np.inf]


def test_decodes_the_bytes_of_tensorflow_serving():
    answer = {"predictions": [{"image": {"b64": "AAE="}, "score": [0.5]}]}
    with scripted_server(default=lambda body: answer) as server:
        [result] = make_handler(server.url, TFServing("m")).predict([b"\0\1"])
        assert server.requests == [{"instances": [{"b64": "AAE="}]}]
    assert result.inference["image"] == b"\0\1"


def tensor(name, *data):
    return {"name": name, "datatype": "FP32", "shape": [len(data)], "data": list(data)}


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        ([tensor("a", 1.0), tensor("a", 2.0)], "two outputs 'a'"),
        ([tensor("b", 1.0)], "no output 'a'"),
        ([tensor("a", 1.0), None], "An output is None"),
    ],
)
def test_rejects_ambiguous_and_missing_outputs(outputs, message):
    with (
        scripted_server(default=lambda body: {"outputs": outputs}) as server,
        pytest.raises(UnusableAnswerError, match=message),
    ):
        make_handler(server.url, KServeV2("m", outputs=("a",))).predict([{"x": ROW}])


def test_selects_the_requested_outputs_if_the_server_sends_all():
    outputs = [tensor("b", 2.0), tensor("a", 1.0)]
    with scripted_server(default=lambda body: {"outputs": outputs}) as server:
        [result] = make_handler(server.url, KServeV2("m", outputs=("a",))).predict([{"x": ROW}])
    assert float(result.inference) == 1


@pytest.mark.parametrize("name", ["a b", "a?b=c", "a#b", "ä", "a%2Fb", "a\r\nb"])
@PROTOCOLS
def test_escapes_the_name_of_the_model(kind, name):
    paths = []

    def answer(path, headers, body):
        paths.append(path)
        raise ErrorResponse(404, {"error": "no such model"})

    with serving(answer) as url, pytest.raises(EndpointRefusedError):
        make_handler(url, kind(name)).predict([ROW])
    quoted = urllib.parse.quote(name, safe="")
    assert paths
    for path in paths:
        assert path.removesuffix("/infer").removesuffix(":predict").endswith(f"/{quoted}")


@pytest.mark.parametrize("error", [{"code": 503, "message": "x"}, "the model is overloaded"])
def test_retries_after_a_transient_error_inside_a_response(error):
    with scripted_server(Reply(200, {"error": error}), default=doubled) as server:
        [result] = make_handler(server.url, TFServing("m")).predict([ROW])
    assert result.inference.tolist() == [2, 4]


# --- the handler


def test_sends_the_key_with_each_request(monkeypatch):
    monkeypatch.setenv("SOME_KEY", "sk-secret-1")
    with scripted_server(default=doubled) as server:
        make_handler(server.url, KServeV2("m"), api_key_env="SOME_KEY").predict(np.ones((1, 2)))
        sent = {headers["Authorization"] for headers in server.request_headers}
    assert sent == {"Bearer sk-secret-1"}


def test_inference_args_are_fields_of_the_request():
    with scripted_server(default=doubled) as server:
        make_handler(server.url, TFServing("m")).predict(np.ones((1, 2)), {"signature_name": "s"})
        assert server.requests == [{"signature_name": "s", "instances": [[1, 1]]}]
    handler = make_handler("http://localhost:1", TorchServe("m"))
    with pytest.raises(OptionError, match="Remove inference_args"):
        handler.predict([5], {"top": 1})
    with pytest.raises(OptionError, match="Remove .*max_request_size"):
        make_handler("http://localhost:1", TorchServe("m"), max_request_size=2)


def test_model_refresh_changes_the_version():
    with scripted_server(default=doubled) as server:
        handler = make_handler(server.url, TFServing("m", "1"))
        handler.update_model_path("m/2")
        [result] = handler.predict(np.ones((1, 2)))
    assert result.model_id == "m/2"


@PROTOCOLS
def test_passes_the_conformance_kit(kind):
    def answer(path, headers, body):
        if body is None:
            raise ErrorResponse(404, {"error": "no description here"})
        times = 3 if "another" in path else 2
        if "not a number" in str(body):
            raise ErrorResponse(400, {"error": "not a number"})
        if isinstance(body, list):
            return [times * x for x in body]
        if "instances" in body:
            return {"predictions": [[times * x for x in row] for row in body["instances"]]}
        if isinstance(body["inputs"][0], dict):
            [one] = body["inputs"]
            return {"outputs": [{**one, "data": [times * x for x in one["data"]]}]}
        return {"outputs": [[times * x for x in row] for row in body["inputs"]]}

    with serving(answer) as url:
        report = check_handler(
            make_handler(url, kind("m")),
            [np.array([1.0, 2.0]), np.array([5.0, 3.0]), np.array([4.0, 0.0])],
            inference_args=None if kind is TorchServe else {"top": 1},
            bad_example=np.array(["not a number"] * 2),
            updated_path="another",
        )
    assert report.skipped == {}


def test_works_with_keys_and_without_batching(digits, labels):
    images, _ = samples.held_out_digits()
    handler = make_handler(digits, KServeV2("digits"))
    keyed = run(list(enumerate(images[:20])), RunInference(KeyedModelHandler(handler)))
    assert {key: int(result.inference) for key, result in keyed} == dict(enumerate(labels[:20]))
    whole = handler.with_no_batching().predict([images[:50], images[50:60]])
    assert [int(result.inference) for result in whole] == labels[:60].tolist()
