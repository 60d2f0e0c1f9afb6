"""An address is checked before anything is sent, and a key never leaves the environment by accident."""

from __future__ import annotations

import pickle

import pytest

from runinference.errors import OptionError, UnknownOptionError
from runinference.remote.endpoint import Endpoint, EndpointModelHandler

KEY = "sk-very-secret-0123456789"


@pytest.mark.parametrize(
    "url",
    ["https://api.example.com/v1", "http://localhost:1/v1", "http://127.3.2.1:1", "http://[::1]:1"],
)
def test_a_key_goes_over_https_or_stays_on_this_machine(url):
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
def test_a_key_over_plain_http_to_another_machine_is_refused_with_three_cures(url):
    with pytest.raises(OptionError, match="anyone on the way could read the key of KEY") as raised:
        Endpoint(url, "KEY")
    for cure in ("https", "api_key_env=None", "key_over_http=True"):
        assert cure in str(raised.value)
    assert Endpoint(url, None).base_url == url
    assert Endpoint(url, "KEY", key_over_http=True).base_url == url


@pytest.mark.parametrize(
    ("url", "message"),
    [
        (f"https://me:{KEY}@api.example.com", "holds a user name or a password"),
        (f"https://{KEY}@api.example.com", "holds a user name or a password"),
        (f"https://api.example.com/v1?key={KEY}", "has a query"),
        (f"https://api.example.com/v1#{KEY}", "fragment"),
        ("api.example.com/v1", "must be an address such as http://localhost:8000"),
        ("localhost:8000", "must be an address"),
        ("ftp://api.example.com", "must be an address"),
        ("http://localhost:99999", "must be an address"),
        (f"http://[{KEY}", "must be an address"),
        (None, "must be an address"),
        ("", "must be an address"),
    ],
)
def test_an_address_that_is_none_or_holds_a_secret_is_refused_without_telling_it(url, message):
    with pytest.raises(OptionError, match=message) as raised:
        Endpoint(url)
    assert KEY not in str(raised.value)


def test_a_slash_at_the_end_of_the_address_makes_no_difference():
    assert Endpoint("https://a.example.com/v1/") == Endpoint("https://a.example.com/v1")


@pytest.mark.parametrize("name", ["Authorization", "api-key", "X-Auth-Token", "Cookie"])
def test_headers_that_hold_secrets_are_refused_without_telling_them(name):
    with pytest.raises(OptionError, match="environment variable") as raised:
        Endpoint("https://a.example.com", headers={name: KEY})
    assert KEY not in str(raised.value)
    assert Endpoint("https://a.example.com", headers={"Host": "b"}).headers == {"Host": "b"}


def test_a_timeout_is_more_than_nothing():
    with pytest.raises(OptionError, match="timeout must be greater than 0"):
        Endpoint("https://a.example.com", timeout=0)


@pytest.mark.parametrize("held", [None, "", "  "])
def test_a_key_that_is_missing_is_told_by_the_name_of_its_variable(monkeypatch, held):
    monkeypatch.delenv("SOME_KEY", raising=False)
    if held is not None:
        monkeypatch.setenv("SOME_KEY", held)
    with pytest.raises(
        OptionError, match=r"SOME_KEY \(api_key_env\) is not set here.*api_key_env=None"
    ):
        Endpoint("https://a.example.com", "SOME_KEY").open()


@pytest.mark.parametrize("held", [f"{KEY}\nHost: evil", f"{KEY}\x00", f"{KEY}é"])
def test_a_key_that_cannot_be_sent_is_refused_without_telling_it(monkeypatch, held):
    monkeypatch.setattr("os.environ", {"SOME_KEY": held})
    with pytest.raises(OptionError, match="holds a line break or other characters") as raised:
        Endpoint("https://a.example.com", "SOME_KEY").open()
    assert KEY not in str(raised.value)


def test_a_line_break_after_the_key_does_no_harm(monkeypatch):
    monkeypatch.setenv("SOME_KEY", f"{KEY}\n")
    client = Endpoint("https://a.example.com", "SOME_KEY").open()
    assert client._http.headers["Authorization"] == f"Bearer {KEY}"


class Own(EndpointModelHandler):
    def request(self, batch, model, inference_args=None):
        return model.post("/", batch, list)


def test_a_handler_holds_the_name_of_the_key_and_not_the_key(monkeypatch):
    monkeypatch.setenv("SOME_KEY", KEY)
    handler = Own("https://a.example.com", "SOME_KEY")
    client = handler.create_client()
    for text in (repr(handler), repr(vars(handler)), repr(client), repr(client._http.headers)):
        assert KEY not in text
    assert KEY.encode() not in pickle.dumps(handler)


def test_connections_are_as_many_as_requests_at_a_time():
    handler = Own("https://a.example.com", max_concurrent_requests=200)
    assert handler._endpoint.connections == 200


def test_a_misspelt_option_is_told_with_the_nearest_of_all_that_the_handler_takes():
    for wrong, right in (
        ("time_out", "timeout"),
        ("num_retry", "num_retries"),
        ("bas_url", "base_url"),
    ):
        with pytest.raises(UnknownOptionError, match=f"Did you mean '{right}'"):
            Own(**{"base_url": "https://a.example.com", wrong: 1})
