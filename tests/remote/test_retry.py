"""Exponential backoff with jitter, the Retry-After header, and the errors that are retried."""

from __future__ import annotations

import email.utils
import http.client
import io
import logging
import sys
import time
import urllib.error
from datetime import timedelta
from email.message import Message

import httpx
import pytest
from apache_beam.ml.inference import base as beam_base
from hypothesis import given
from hypothesis import strategies as st

from remote.fakes import FunctionEndpoint, ScriptedModel, StatusError, double
from runinference.errors import OptionError, ResultMismatchError
from runinference.remote.retry import Backoff, retry_after, worth_retrying

ERROR = ConnectionError("no answer")


class BusyError(Exception):
    def __init__(self, retry_after):
        super().__init__("busy")
        self.retry_after = retry_after


def httpx_error(status, **headers):
    request = httpx.Request("POST", "http://localhost/")
    response = httpx.Response(status, headers=headers, request=request)
    return httpx.HTTPStatusError("refused", request=request, response=response)


def urllib_error(status, **headers):
    message = Message()
    for name, value in headers.items():
        message[name] = value
    return urllib.error.HTTPError("http://localhost/", status, "refused", message, io.BytesIO())


def test_waits_grow_exponentially_up_to_a_maximum():
    assert [Backoff(jitter=0).seconds(n, ERROR) for n in range(1, 7)] == [0.5, 2, 8, 32, 120, 120]
    custom = Backoff(initial_secs=1, multiplier=2, max_secs=5, jitter=0)
    assert [custom.seconds(n, ERROR) for n in range(1, 6)] == [1, 2, 4, 5, 5]


def test_total_wait_is_at_least_as_long_as_in_beam():
    in_beam = sum(5 * 2**n for n in range(5))
    assert sum(Backoff(jitter=0).seconds(n, ERROR) for n in range(1, 6)) >= in_beam


@given(
    st.integers(1, 10_000),
    st.floats(0, 1e6),
    st.floats(1, 1e3),
    st.floats(0, 1e6),
    st.floats(0, 1),
)
def test_waits_are_between_the_jittered_minimum_and_the_maximum(
    retry, initial, multiplier, max_secs, jitter
):
    backoff = Backoff(initial, multiplier, max_secs, jitter)
    maximum = Backoff(initial, multiplier, max_secs, jitter=0).seconds(retry, ERROR)
    assert maximum <= max_secs
    assert maximum * (1 - jitter) <= backoff.seconds(retry, ERROR) <= maximum


def test_jitter_spreads_retries():
    assert len({Backoff().seconds(1, ERROR) for _ in range(100)}) > 90
    assert len({Backoff().seconds(1, BusyError(3)) for _ in range(100)}) > 90


def test_waits_at_least_as_long_as_retry_after():
    assert Backoff(jitter=0).seconds(1, BusyError(3)) == 3
    assert all(3 <= Backoff().seconds(5, BusyError(3)) <= 3.25 for _ in range(100))


@pytest.mark.parametrize(
    "options",
    [{"initial_secs": -1}, {"multiplier": 0.5}, {"max_secs": -1}, {"jitter": 1.1}, {"jitter": -1}],
)
def test_rejects_values_out_of_range(options):
    with pytest.raises(OptionError, match=next(iter(options))):
        Backoff(**options)


@pytest.mark.parametrize("value", [2, 2.0, "2", " 2 ", timedelta(seconds=2)])
def test_reads_retry_after_from_the_attribute(value):
    assert retry_after(BusyError(value)) == 2.0


@pytest.mark.parametrize("make_error", [httpx_error, urllib_error])
@pytest.mark.parametrize("header", ["Retry-After", "retry-after"])
def test_reads_the_retry_after_header_of_client_errors(make_error, header):
    assert retry_after(make_error(429, **{header: "7"})) == 7.0
    assert retry_after(make_error(429)) is None


def test_reads_a_date_in_the_retry_after_header():
    for zone in ({"usegmt": True}, {}):  # "GMT", or "-0000": UTC too
        date = email.utils.formatdate(time.time() + 60, **zone)
        assert 57 < retry_after(httpx_error(503, **{"Retry-After": date})) <= 60
    past = email.utils.formatdate(time.time() - 60, usegmt=True)
    assert retry_after(httpx_error(503, **{"Retry-After": past})) == 0.0


@pytest.mark.parametrize(
    "value", ["soon", "", "nan", "inf", "-inf", 10**400, None, object(), [], b"2 s"]
)
def test_ignores_an_invalid_retry_after(value):
    assert retry_after(BusyError(value)) is None


def test_a_negative_retry_after_is_zero():
    assert retry_after(BusyError(-3)) == 0.0


@given(st.text() | st.binary() | st.integers() | st.floats())
def test_retry_after_is_a_finite_number_or_none_for_any_value(value):
    seconds = retry_after(BusyError(value))
    assert seconds is None or 0 <= seconds < float("inf")


@pytest.mark.parametrize("make_error", [httpx_error, urllib_error])
@pytest.mark.parametrize("status", [408, 409, 425, 429, 500, 502, 503, 504, 529])
def test_retries_transient_statuses(make_error, status):
    assert worth_retrying(make_error(status))


@pytest.mark.parametrize("make_error", [httpx_error, urllib_error])
@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 422])
def test_does_not_retry_rejected_requests(make_error, status):
    assert not worth_retrying(make_error(status))


def test_retries_broken_connections_and_responses():
    for error in (
        ConnectionResetError(),
        TimeoutError(),
        ValueError("no JSON"),
        KeyError("answer"),
    ):
        assert worth_retrying(error)


def test_does_not_retry_bugs():
    for error in (TypeError(), NameError(), AttributeError(), ImportError(), NotImplementedError()):
        assert not worth_retrying(error)


def test_ignores_a_code_that_is_not_a_status():
    error = ConnectionError()
    error.code = "ECONNRESET"
    assert worth_retrying(error)
    error.code = 7
    assert worth_retrying(error)


# --- retries of a handler


def test_retries_a_request_until_it_succeeds():
    model = ScriptedModel(ConnectionResetError(), StatusError(503), TimeoutError())
    handler = FunctionEndpoint(model, backoff=Backoff(jitter=0))
    assert handler.call([1]) == [2]
    assert model.calls == 4
    assert handler.sleeps == [0.5, 2, 8]


def test_raises_the_last_error_unchanged():
    errors = [ConnectionError(str(n)) for n in range(3)]
    model = ScriptedModel(*errors)
    with pytest.raises(ConnectionError) as raised:
        FunctionEndpoint(model, num_retries=2).call([1])
    assert raised.value is errors[2]
    assert model.calls == 3


def test_num_retries_means_the_same_in_beam(monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda secs: None)
    script = ScriptedModel(*[ConnectionError() for _ in range(9)])

    class InBeam(beam_base.RemoteModelHandler):
        def create_client(self):
            return None

        def request(self, batch, model, inference_args=None):
            return script(batch)

    with pytest.raises(ConnectionError):
        InBeam("beam", num_retries=2).run_inference([1], None)
    assert script.calls == 3


def test_needs_no_tenacity_without_retries(monkeypatch):
    monkeypatch.setitem(sys.modules, "tenacity", None)
    model = ScriptedModel(ConnectionError())
    handler = FunctionEndpoint(model, num_retries=0)
    with pytest.raises(ConnectionError):
        handler.call([1])
    assert handler.call([1]) == [2]


def test_names_the_extra_if_tenacity_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "tenacity", None)
    with pytest.raises(ImportError, match=r'pip install "runinference\[remote\]"'):
        FunctionEndpoint(double)


@pytest.mark.parametrize(
    "error", [TypeError("bug"), StatusError(400), ResultMismatchError("short")]
)
def test_raises_a_non_retryable_error_immediately(error):
    model = ScriptedModel(error)
    with pytest.raises(type(error)):
        FunctionEndpoint(model).call([1])
    assert model.calls == 1


def test_retry_filter_decides_what_is_retried():
    model = ScriptedModel(StatusError(400), KeyError())
    handler = FunctionEndpoint(model, retry_filter=lambda error: isinstance(error, StatusError))
    with pytest.raises(KeyError):
        handler.call([1])
    assert model.calls == 2


def test_never_retries_a_base_exception():
    model = ScriptedModel(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        FunctionEndpoint(model, retry_filter=lambda error: True).call([1])
    assert model.calls == 1


def test_retries_errors_of_http_client():
    model = ScriptedModel(http.client.RemoteDisconnected("gone"), http.client.IncompleteRead(b""))
    assert FunctionEndpoint(model).call([1]) == [2]


def test_retries_a_request_that_fails_in_a_generator():
    model = ScriptedModel()

    def generate(batch, args):
        results = model(batch)
        yield results[0]
        if model.calls == 1:
            raise ConnectionResetError
        yield from results[1:]

    assert FunctionEndpoint(generate).call([1, 2]) == [2, 4]
    assert model.calls == 2


def test_a_retry_waits_for_retry_after():
    handler = FunctionEndpoint(
        ScriptedModel(StatusError(429, retry_after=7), StatusError(429, retry_after="11")),
        backoff=Backoff(jitter=0),
    )
    assert handler.call([1]) == [2]
    assert handler.sleeps == [7, 11]


def test_does_not_retry_if_retry_after_exceeds_the_maximum():
    model = ScriptedModel(StatusError(429, retry_after=86_400))
    handler = FunctionEndpoint(model)
    with pytest.raises(StatusError, match="429"):
        handler.call([1])
    assert model.calls == 1
    assert handler.sleeps == []


def test_logs_each_retry_and_the_final_error(caplog):
    handler = FunctionEndpoint(
        ScriptedModel(StatusError(503), StatusError(503)),
        namespace="my_model",
        num_retries=1,
        backoff=Backoff(jitter=0),
    )
    with caplog.at_level(logging.WARNING, "my_model"), pytest.raises(StatusError):
        handler.call([1, 2])
    assert caplog.messages == [
        "A request failed; retry 1 of 1 in 0.50 s: StatusError('status 503')",
        "A request of 2 examples failed and won't be retried: StatusError('status 503')",
    ]
