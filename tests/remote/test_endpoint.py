"""URLs are checked before anything is sent, and keys stay in the environment."""

from __future__ import annotations

import pickle

import pytest

from runinference.errors import OptionError, UnknownOptionError
from runinference.remote.endpoint import Endpoint, EndpointModelHandler
from scripted_server import scripted_server

KEY = "sk-very-secret-0123456789"


@pytest.mark.parametrize(
    "url",
    ["https://api.example.com/v1", "http://localhost:1/v1", "http://127.3.2.1:1", "http://[::1]:1"],
)
def test_allows_a_key_over_https_or_to_this_machine(url):
    assert Endpoint(url, "KEY").base_url == url


@pytest.mark.parametrize(
    "url",
    [
        "http://api.example.com/v1",
        "http://10.0.0.1",
        "HTTP://models.example.com",
        "http://[2001:db8::1]:80",
        "http://localhost.example.com",
    ],
)
def test_rejects_a_key_over_http_to_another_machine_with_three_hints(url):
    with pytest.raises(
        OptionError, match="others on the network could read the key of KEY"
    ) as raised:
        Endpoint(url, "KEY")
    for hint in ("https", "api_key_env=None", "key_over_http=True"):
        assert hint in str(raised.value)
    assert Endpoint(url, None).base_url == url
    assert Endpoint(url, "KEY", key_over_http=True).base_url == url


@pytest.mark.parametrize(
    ("url", "message"),
    [
        (f"https://me:{KEY}@api.example.com", "has a user name, a password"),
        (f"https://{KEY}@api.example.com", "has a user name, a password"),
        (f"https://api.example.com/v1?key={KEY}", "a query or a fragment"),
        (f"https://api.example.com/v1#{KEY}", "fragment"),
        ("https://api.example.com/v1?", "a query or a fragment"),
        ("https://api.example.com/v1#", "fragment"),
        ("api.example.com/v1", "must be a URL such as http://localhost:8000"),
        ("localhost:8000", "must be a URL"),
        ("ftp://api.example.com", "must be a URL"),
        ("http://localhost:99999", "must be a URL"),
        (f"http://[{KEY}", "must be a URL"),
        (f"me:{KEY}@api.example.com/v1", "has a user name"),
        (f"ftp://me:{KEY}@api.example.com/v1", "has a user name"),
        ("http://api.example.com/v1\r\nX-Other: 1", "must be a URL"),
        ("http://api.example.com/a b", "must be a URL"),
        (None, "must be a URL"),
        ("", "must be a URL"),
    ],
)
def test_rejects_an_invalid_url_or_one_with_a_secret_without_showing_it(url, message):
    with pytest.raises(OptionError, match=message) as raised:
        Endpoint(url)
    assert KEY not in str(raised.value)


def test_ignores_a_trailing_slash_in_the_url():
    assert Endpoint("https://a.example.com/v1/") == Endpoint("https://a.example.com/v1")


@pytest.mark.parametrize("name", ["Authorization", "api-key", "X-Auth-Token", "Cookie"])
def test_rejects_headers_with_secrets_without_showing_them(name):
    with pytest.raises(OptionError, match="environment variable") as raised:
        Endpoint("https://a.example.com", headers={name: KEY})
    assert KEY not in str(raised.value)
    assert Endpoint("https://a.example.com", headers={"Host": "b"}).headers == {"Host": "b"}


def test_rejects_a_timeout_of_zero():
    with pytest.raises(OptionError, match="timeout must be greater than 0"):
        Endpoint("https://a.example.com", timeout=0)


@pytest.mark.parametrize(
    "headers",
    [
        {"X-Trace": "a\r\nX-Other: 1"},
        {"X-Trace": "a\n"},
        {"X-Trace": "a\0"},
        {"X-Trace": "\u20ac"},
        {"X-Trace": b"a"},
        {"X-Trace": 5},
        {"X-Trace": None},
        {"X Trace": "a"},
        {"X-Trace\r\n": "a"},
        {"X-Tr\xe4ce": "a"},
        {"": "a"},
        {"X-Trace:": "a"},
        {"Content-Length": "5"},
        {"transfer-encoding": "chunked"},
        {"X-Trace": "a", "x-trace": "b"},
        {"X-Trace": f"Bearer {KEY}"},
        {"X-Trace": KEY},
        {"X-Password": "a"},
    ],
    ids=repr,
)
def test_rejects_headers_that_http_cannot_send_or_that_are_secrets(headers):
    with pytest.raises(OptionError, match="headers") as raised:
        Endpoint("https://a.example.com", headers=headers)
    assert KEY not in str(raised.value)


def test_sends_headers_as_given_and_lets_them_replace_the_defaults():
    headers = {
        "X-Name": "J\xfcrgen",
        "content-type": "application/json; v=2",
        "Host": "model.example.com",
    }
    with scripted_server() as server:
        Endpoint(server.url, headers=headers).create_client().post("/", 1, lambda answer: answer)
        [sent] = server.request_headers
    assert {**headers, **sent} == sent


@pytest.mark.parametrize("value", [KEY, "hf_abcdefghijklmnopqrst", "a key", "", "A=B", 5])
def test_rejects_a_key_in_place_of_the_name_of_a_variable(value):
    with pytest.raises(OptionError, match="name of an environment variable") as raised:
        Endpoint("https://a.example.com", value)
    assert str(value) == "" or str(value) not in str(raised.value)


@pytest.mark.parametrize("size", [0, -1, 1.5, None])
def test_rejects_an_invalid_maximum_of_a_response(size):
    with pytest.raises(OptionError, match="max_response_bytes"):
        Endpoint("https://a.example.com", max_response_bytes=size)


@pytest.mark.parametrize("value", [None, "", "  "])
def test_names_the_variable_of_a_missing_key(monkeypatch, value):
    monkeypatch.delenv("SOME_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("SOME_KEY", value)
    with pytest.raises(
        OptionError, match=r"SOME_KEY \(api_key_env\) is not set here.*api_key_env=None"
    ):
        Endpoint("https://a.example.com", "SOME_KEY").create_client()


@pytest.mark.parametrize("value", [f"{KEY}\nHost: evil", f"{KEY}\x00", f"{KEY}é"])
def test_rejects_an_invalid_key_without_showing_it(monkeypatch, value):
    monkeypatch.setattr("os.environ", {"SOME_KEY": value})
    with pytest.raises(OptionError, match="contains a line break or other invalid") as raised:
        Endpoint("https://a.example.com", "SOME_KEY").create_client()
    assert KEY not in str(raised.value)


def test_ignores_a_line_break_after_the_key(monkeypatch):
    monkeypatch.setenv("SOME_KEY", f"{KEY}\n")
    with scripted_server() as server:
        Endpoint(server.url, "SOME_KEY").create_client().get("/")
        assert server.request_headers[0]["Authorization"] == f"Bearer {KEY}"


class ExampleHandler(EndpointModelHandler):
    def request(self, batch, model, inference_args=None):
        return model.post("/", batch, list)


def test_a_handler_does_not_contain_the_key(monkeypatch):
    monkeypatch.setenv("SOME_KEY", KEY)
    handler = ExampleHandler("https://a.example.com", "SOME_KEY")
    client = handler.create_client()
    for text in (repr(handler), repr(vars(handler)), repr(client)):
        assert KEY not in text
    assert KEY.encode() not in pickle.dumps(handler)


def test_allows_one_connection_per_concurrent_request():
    handler = ExampleHandler("https://a.example.com", max_concurrent_requests=200)
    assert handler._endpoint.max_connections == 200


def test_suggests_the_closest_option_for_a_misspelled_one():
    for misspelled, expected in (
        ("time_out", "timeout"),
        ("num_retry", "num_retries"),
        ("bas_url", "base_url"),
    ):
        with pytest.raises(UnknownOptionError, match=f"Did you mean '{expected}'"):
            ExampleHandler(**{"base_url": "https://a.example.com", misspelled: 1})
