"""Credentials that expire or sign requests are renewed, and are never in errors, logs or pickles."""

from __future__ import annotations

import base64
import logging
import os
import pickle
import subprocess
import sys
import urllib.parse
from datetime import datetime, timedelta, timezone
from types import SimpleNamespace

import httpx
import numpy as np
import pytest
from apache_beam.internal import pickler
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials, ReadOnlyCredentials

from common import run
from runinference import Backoff, KeyedModelHandler, RunInference
from runinference.errors import EndpointError, EndpointRefusedError, OptionError
from runinference.http_inference import AwsSigV4, HTTPModelHandler, TFServing
from runinference.openai_inference import OpenAIChatModelHandler
from scripted_server import Reply, scripted_server

SECRET = "very-secret/token-0123"
REJECTED = Reply(401, {"error": {"message": f"bad token {SECRET}"}})


def answer(body):
    return {"choices": [{"index": 0, "message": {"content": "hi"}, "finish_reason": "stop"}]}


def chat(url, auth, **options):
    if options.get("num_retries") != 0:
        options["backoff"] = Backoff(initial_secs=0)
    options["throttle_delay_secs"] = 0
    return OpenAIChatModelHandler(url, "m", auth=auth, **options)


def provider(*values):
    """Return a function that returns the values in order, the last one again and again, and its calls."""
    calls = []

    def provide():
        calls.append(1)
        value = values[min(len(calls), len(values)) - 1]
        if isinstance(value, Exception):
            raise value
        return value

    return provide, calls


def sent(server, name="Authorization"):
    return [headers.get(name) for headers in server.request_headers]


@pytest.mark.parametrize(
    ("value", "headers"),
    [
        (" token \n", {"Authorization": "Bearer token"}),
        ({"api-key": "k"}, {"api-key": "k"}),
        (("token", 3600), {"Authorization": "Bearer token"}),
        (({"api-key": "k"}, 3600.5), {"api-key": "k"}),
        (SimpleNamespace(token="t", expires_on=4_000_000_000), {"Authorization": "Bearer t"}),
        (SimpleNamespace(token="t", expires_on=None), {"Authorization": "Bearer t"}),
        (httpx.BasicAuth("me", "pw"), {"Authorization": "Basic bWU6cHc="}),
    ],
)
def test_sends_what_a_function_returns_and_calls_it_once(value, headers):
    provide, calls = provider(value)
    with scripted_server(default=answer) as server:
        results = run(["a", "b", "c"], RunInference(chat(server.url, provide)))
    assert len(results) == 3
    assert len(calls) <= 1  # the pipeline may have called its own copy
    for found in server.request_headers:
        assert headers.items() <= found.items()


def test_calls_the_function_again_after_a_401_and_sends_the_request_again():
    provide, calls = provider("old", "new")
    with scripted_server(answer(None), REJECTED, default=answer) as server:
        handler = chat(server.url, provide, num_retries=0)
        for text in "abc":
            assert handler.predict([text])[0].inference.text == "hi"
    assert sent(server) == ["Bearer old", "Bearer old", "Bearer new", "Bearer new"]
    assert len(calls) == 2


def test_a_request_is_not_repeated_with_credentials_that_were_rejected():
    provide, calls = provider(SECRET)
    with (
        scripted_server(REJECTED, default=answer) as server,
        pytest.raises(EndpointRefusedError, match="Check the credentials that auth provides"),
    ):
        chat(server.url, provide).predict(["a"])
    assert (len(server.requests), len(calls)) == (1, 2)


@pytest.mark.parametrize(
    "expired",
    [
        ("old", 0),
        SimpleNamespace(token="old", expires_on=1),
        SimpleNamespace(token="old", expires_on=datetime.now(timezone.utc) - timedelta(seconds=1)),
        SimpleNamespace(token="old", expires_on=datetime(2020, 1, 1)),
    ],
)
def test_calls_the_function_again_after_the_credentials_expire(expired):
    provide, _ = provider(expired, ("new", 3600))
    with scripted_server(default=answer) as server:
        handler = chat(server.url, provide, max_concurrent_requests=1)
        for text in "abc":
            handler.predict([text])
    assert sent(server) == ["Bearer old", "Bearer new", "Bearer new"]


async def provide_asynchronously():
    return "token"


def test_the_function_may_be_a_coroutine_function():
    with scripted_server(default=answer) as server:
        chat(server.url, provide_asynchronously).predict(["a"])
    assert sent(server) == ["Bearer token"]


@pytest.mark.parametrize("form", [str, lambda s: {"x-team": s}, lambda s: (s, 60)])
@pytest.mark.parametrize("quote", [str, lambda s: urllib.parse.quote(s, safe="")])
def test_errors_and_logs_do_not_contain_the_credentials(form, quote, caplog):
    provide, _ = provider(form(SECRET))
    error = Reply(500, {"error": {"message": f"bad {quote(SECRET)}"}})
    with (
        caplog.at_level(logging.DEBUG),
        scripted_server(error, default=answer) as server,
        pytest.raises(EndpointError, match=r"bad \[the key\]") as raised,
    ):
        chat(server.url, provide, num_retries=0).predict(["a"])
    for text in (repr(raised.value), caplog.text):
        assert SECRET not in text
        assert quote(SECRET) not in text


def test_an_httpx_auth_stays_in_this_process():
    with scripted_server(default=answer) as server:
        handler = chat(server.url, httpx.BasicAuth("me", SECRET))
        for pickled in (pickle.dumps(handler), pickler.dumps(handler), repr(handler).encode()):
            assert SECRET.encode() not in pickled
            assert base64.b64encode(f"me:{SECRET}".encode()) not in pickled
        pickle.loads(pickle.dumps(handler)).predict(["a"])
        program = "import pickle, sys; pickle.load(sys.stdin.buffer).predict(['a'])"
        other = subprocess.run(
            [sys.executable, "-c", program], input=pickle.dumps(handler), capture_output=True
        )
    assert sent(server) == [httpx.BasicAuth("me", SECRET)._auth_header]
    assert (
        b"OptionError: The httpx.Auth was given to the handler in another process" in other.stderr
    )


def test_an_httpx_auth_may_send_several_requests_and_read_compressed_responses():
    class Login(httpx.Auth):
        requires_response_body = True

        def auth_flow(self, request):
            login = yield httpx.Request("POST", request.url.join("/login"), json={"user": "me"})
            request.headers["Authorization"] = login.json()["token"]
            yield request

    def serve(body):
        return {"token": "t"} if body == {"user": "me"} else answer(body)

    with scripted_server(default=serve) as server:
        [result] = chat(server.url, lambda: Login()).predict(["a"])
    assert result.inference.text == "hi"
    assert sent(server) == [None, "t"]


def test_the_protocols_metadata_are_requested_with_credentials():
    with scripted_server(default=lambda body: {"predictions": [3]}) as server:
        handler = HTTPModelHandler(server.url, TFServing("m"), auth=lambda: "t", query={"v": 1})
        keyed = KeyedModelHandler(handler).predict([("k", np.zeros(2))])
    assert keyed[0][1].inference == 3
    assert sent(server) == ["Bearer t"]


# --- functions that fail


@pytest.mark.parametrize("error", [KeyError("TOKEN"), ValueError("no"), TypeError("x")])
def test_an_error_of_the_function_names_the_function(error):
    provide, _ = provider(error)
    with (
        scripted_server(default=answer) as server,
        pytest.raises(EndpointError, match=f"auth failed .{type(error).__name__}"),
    ):
        chat(server.url, provide, num_retries=0).predict(["a"])
    assert not server.requests


def test_a_function_that_fails_once_is_called_again():
    provide, calls = provider(TimeoutError("the token server is busy"), "token")
    with scripted_server(default=answer) as server:
        chat(server.url, provide, num_retries=1).predict(["a"])
    assert len(calls) == 2


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "returned a NoneType. It must return a key or token"),
        ("", "returned an empty string"),
        (b"key", "returned a bytes"),
        ({}, "returned a dict"),
        ({"a": 1}, "returned a dict"),
        (("key", "soon"), "second value is not a number of seconds"),
        (("key", float("nan")), "second value is not a number of seconds"),
        ("two\nlines", "contains a line break"),
        ({"a": "é\u0142"}, "contains a line break or other invalid characters"),
        ({"a b": SECRET}, "invalid characters"),
    ],
)
def test_invalid_credentials_are_an_error_that_does_not_show_them(value, message):
    provide, calls = provider(value)
    with (
        scripted_server(default=answer) as server,
        pytest.raises(EndpointRefusedError, match=message) as raised,
    ):
        chat(server.url, provide).predict(["a"])
    assert SECRET not in str(raised.value)
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("auth", "message"),
    [
        ("sk-key", "auth must be an httpx.Auth or a function"),
        (("me", "pw"), "auth must be an httpx.Auth or a function"),
        (httpx.BasicAuth, "auth must be an httpx.Auth or a function"),
        (lambda request: request, "called without arguments, but has parameters"),
    ],
)
def test_rejects_values_that_are_not_credentials(auth, message):
    with pytest.raises(OptionError, match=message):
        chat("https://a.example.com", auth)


def test_rejects_two_kinds_of_credentials_and_credentials_over_http():
    with pytest.raises(OptionError, match="api_key_env and auth are both set"):
        OpenAIChatModelHandler("https://a.example.com", "m", "OTHER_KEY", auth=lambda: "t")
    with pytest.raises(OptionError, match="could read the credentials of auth"):
        chat("http://a.example.com", lambda: "t")
    assert chat("http://a.example.com", lambda: "t", key_over_http=True)


class Bearer(httpx.Auth):
    def __init__(self, key):
        self.key = key

    def auth_flow(self, request):
        request.headers["Authorization"] = f"Bearer {self.key}"
        request.url = request.url.copy_add_param("key", self.key)
        yield request


def test_an_httpx_auth_from_a_function_is_renewed_if_it_is_rejected():
    provide, calls = provider(Bearer("old"), Bearer("new"))
    with scripted_server(REJECTED, default=answer) as server:
        chat(server.url, provide, max_concurrent_requests=1).predict(["a", "b"])
    assert len(calls) == 2
    assert sent(server) == ["Bearer old", "Bearer new", "Bearer new"]
    assert [path.partition("?")[2] for path in server.request_paths] == [
        "key=old",
        *["key=new"] * 2,
    ]


def test_an_httpx_auth_from_a_function_is_used_as_long_as_it_is_valid():
    always, calls = Bearer("x"), []

    def provide():
        calls.append(1)
        return always, 0

    with scripted_server(default=answer) as server:
        chat(server.url, provide).predict(["a", "b"])
    assert len(calls) == 2
    with (
        scripted_server(REJECTED) as server,
        pytest.raises(EndpointRefusedError, match="returned 401"),
    ):
        chat(server.url, lambda: always).predict(["a"])
    assert len(server.requests) == 1


def test_errors_do_not_contain_query_parameters_that_auth_adds():
    secret = "se cret/0123"
    reply = Reply(400, f"bad {urllib.parse.quote(secret, safe='')}, {secret}, a%20b, v=12345678")
    with scripted_server(reply) as server:
        handler = chat(server.url, Bearer(secret), query={"v": 12345678})
        with pytest.raises(EndpointError, match=r"bad \[the key\], \[the key\].*v=12345678"):
            handler.predict(["a"])


# --- query parameters


def test_spaces_in_queries_are_encoded_as_signatures_require():
    with scripted_server(default=answer) as server:
        chat(server.url, lambda: "t", query={"a": "b c+~ü"}).predict(["a"])
    assert server.request_paths[0].endswith("?a=b%20c%2B~%C3%BC")


def test_azure_urls_have_the_deployment_the_api_version_and_the_key(monkeypatch):
    monkeypatch.setenv("AZURE_KEY", SECRET)
    with scripted_server(default=answer) as server:
        chat(
            f"{server.url}/openai/deployments/my-chat",
            lambda: {"api-key": os.environ["AZURE_KEY"]},
            query={"api-version": "2024-10-21", "n n": 2},
        ).predict(["a"])
    [path] = server.request_paths
    assert path == "/openai/deployments/my-chat/chat/completions?api-version=2024-10-21&n%20n=2"
    assert (sent(server, "api-key"), sent(server)) == ([SECRET], [None])


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ({"key": "x"}, "has 'key', whose value would be stored in the pipeline"),
        ({"sig": "x"}, "has 'sig', whose value"),
        ({"code": "x"}, "has 'code', whose value"),
        ({"a": "sk-0123456789abcdef"}, "has 'a', whose value"),
        ({"a": None}, "must be a string or a number, but is of type NoneType"),
        ({"a": True}, "must be a string or a number, but is of type bool"),
        ([("a", "b")], "query must be a dictionary"),
    ],
)
def test_rejects_query_parameters_that_are_invalid_or_secret(query, message):
    with pytest.raises(OptionError, match=message):
        chat("https://a.example.com", lambda: "t", query=query)


# --- AWS


def sign(credentials, url, headers, content):
    """Return botocore's signature of a request as the server received it."""
    names = headers["Authorization"].split("SignedHeaders=")[1].split(",")[0].split(";")
    kept = {name: value for name, value in headers.items() if name.lower() in names}
    request = AWSRequest("POST", url, data=content, headers=kept)
    request.context["timestamp"] = headers["X-Amz-Date"]
    signer = SigV4Auth(credentials, "sagemaker", "eu-central-1")
    text = signer.string_to_sign(request, signer.canonical_request(request))
    return signer.signature(text, request)


def test_aws_requests_and_their_retries_have_the_signature_that_botocore_computes():
    credentials = Credentials("AKIDEXAMPLE", SECRET, "session-token")
    auth = AwsSigV4("sagemaker", "eu-central-1", credentials)
    with scripted_server(Reply(500, "busy"), default=answer) as server:
        handler = chat(f"{server.url}/m%3A1/x:y", auth, query={"b": "2 3", "a": 1})
        assert SECRET.encode() not in pickle.dumps(handler)
        handler.predict(["é"])
    assert len(server.request_headers) == 2
    for headers, content, path in zip(
        server.request_headers, server.request_contents, server.request_paths, strict=True
    ):
        signature = sign(credentials, server.url + path, headers, content)
        assert headers["Authorization"].endswith(f"Signature={signature}")
        assert (
            "SignedHeaders=content-type;host;x-amz-date;x-amz-security-token"
            in (headers["Authorization"])
        )
        assert headers["X-Amz-Security-Token"] == "session-token"


def test_aws_credentials_are_frozen_for_each_request():
    class Renewing:
        n = 0

        def get_frozen_credentials(self):
            self.n += 1
            return ReadOnlyCredentials(f"AKID{self.n}", SECRET, None)

    renewing = Renewing()
    with scripted_server(Reply(500, "busy"), default=answer) as server:
        chat(server.url, AwsSigV4("bedrock", "us-east-1", lambda: renewing)).predict(["a"])
    assert ["AKID1/" in sent(server)[0], "AKID2/" in sent(server)[1]] == [True, True]


def test_aws_credentials_come_from_the_environment_of_the_worker(monkeypatch, tmp_path):
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with scripted_server(default=answer) as server:
        handler = chat(server.url, AwsSigV4("bedrock", "us-east-1"))
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
            monkeypatch.delenv(name, raising=False)
        with pytest.raises(EndpointRefusedError, match="found no AWS credentials"):
            handler.predict(["a"])
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDENV")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        handler.predict(["a"])
    assert "AKIDENV/" in sent(server)[0]
    assert repr(AwsSigV4("a", "b", Credentials("k", SECRET))) == "AwsSigV4(service='a', region='b')"
    with pytest.raises(OptionError, match="region must be a non-empty string"):
        AwsSigV4("a", "")
