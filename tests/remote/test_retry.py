"""Waits grow and are scattered, a server's own wish is read from any error, and hopeless errors are told."""

from __future__ import annotations

import email.utils
import io
import time
import urllib.error
from datetime import timedelta
from email.message import Message

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runinference.errors import OptionError
from runinference.remote.retry import Backoff, retry_after, worth_retrying

ERROR = ConnectionError("no answer")


class BusyError(Exception):
    def __init__(self, retry_after):
        super().__init__("busy")
        self.retry_after = retry_after


def of_httpx(status, **headers):
    request = httpx.Request("POST", "http://localhost/")
    response = httpx.Response(status, headers=headers, request=request)
    return httpx.HTTPStatusError("refused", request=request, response=response)


def of_urllib(status, **headers):
    message = Message()
    for name, value in headers.items():
        message[name] = value
    return urllib.error.HTTPError("http://localhost/", status, "refused", message, io.BytesIO())


def test_waits_are_multiplied_up_to_the_longest():
    assert [Backoff(jitter=0).seconds(n, ERROR) for n in range(1, 7)] == [0.5, 2, 8, 32, 120, 120]
    own = Backoff(initial_secs=1, multiplier=2, max_secs=5, jitter=0)
    assert [own.seconds(n, ERROR) for n in range(1, 6)] == [1, 2, 4, 5, 5]


def test_all_retries_together_are_as_patient_as_beams():
    in_beam = sum(5 * 2**n for n in range(5))
    assert sum(Backoff(jitter=0).seconds(n, ERROR) for n in range(1, 6)) >= in_beam


@given(
    st.integers(1, 10_000),
    st.floats(0, 1e6),
    st.floats(1, 1e3),
    st.floats(0, 1e6),
    st.floats(0, 1),
)
def test_a_wait_is_never_longer_than_the_longest_nor_shorter_than_jitter_allows(
    retry, initial, multiplier, longest, jitter
):
    waits = Backoff(initial, multiplier, longest, jitter)
    firm = Backoff(initial, multiplier, longest, jitter=0).seconds(retry, ERROR)
    assert firm <= longest
    assert firm * (1 - jitter) <= waits.seconds(retry, ERROR) <= firm


def test_requests_that_failed_together_are_not_tried_again_together():
    assert len({Backoff().seconds(1, ERROR) for _ in range(100)}) > 90
    assert len({Backoff().seconds(1, BusyError(3)) for _ in range(100)}) > 90


def test_a_wait_is_no_shorter_than_the_server_asks():
    assert Backoff(jitter=0).seconds(1, BusyError(3)) == 3
    assert all(3 <= Backoff().seconds(5, BusyError(3)) <= 3.25 for _ in range(100))


@pytest.mark.parametrize(
    "options",
    [{"initial_secs": -1}, {"multiplier": 0.5}, {"max_secs": -1}, {"jitter": 1.1}, {"jitter": -1}],
)
def test_values_out_of_range_are_told(options):
    with pytest.raises(OptionError, match=next(iter(options))):
        Backoff(**options)


@pytest.mark.parametrize("said", [2, 2.0, "2", " 2 ", timedelta(seconds=2)])
def test_an_error_may_say_when_to_come_back(said):
    assert retry_after(BusyError(said)) == 2.0


@pytest.mark.parametrize("of_client", [of_httpx, of_urllib])
@pytest.mark.parametrize("header", ["Retry-After", "retry-after"])
def test_the_header_is_read_from_the_errors_of_clients(of_client, header):
    assert retry_after(of_client(429, **{header: "7"})) == 7.0
    assert retry_after(of_client(429)) is None


def test_the_header_may_be_a_date():
    for zone in ({"usegmt": True}, {}):  # "GMT", or "-0000": UTC too
        at = email.utils.formatdate(time.time() + 60, **zone)
        assert 57 < retry_after(of_httpx(503, **{"Retry-After": at})) <= 60
    past = email.utils.formatdate(time.time() - 60, usegmt=True)
    assert retry_after(of_httpx(503, **{"Retry-After": past})) == 0.0


@pytest.mark.parametrize(
    "said", ["soon", "", "nan", "inf", "-inf", 10**400, None, object(), [], b"2 s"]
)
def test_what_is_no_time_is_not_heeded(said):
    assert retry_after(BusyError(said)) is None


def test_a_negative_time_is_now():
    assert retry_after(BusyError(-3)) == 0.0


@given(st.text() | st.binary() | st.integers() | st.floats())
def test_whatever_a_server_says_is_a_time_or_nothing(said):
    seconds = retry_after(BusyError(said))
    assert seconds is None or 0 <= seconds < float("inf")


@pytest.mark.parametrize("of_client", [of_httpx, of_urllib])
@pytest.mark.parametrize("status", [408, 409, 425, 429, 500, 502, 503, 504, 529])
def test_what_a_server_may_answer_otherwise_is_worth_another_try(of_client, status):
    assert worth_retrying(of_client(status))


@pytest.mark.parametrize("of_client", [of_httpx, of_urllib])
@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 422])
def test_what_a_server_refuses_is_not(of_client, status):
    assert not worth_retrying(of_client(status))


def test_a_broken_connection_and_a_broken_answer_are_worth_another_try():
    for error in (
        ConnectionResetError(),
        TimeoutError(),
        ValueError("no JSON"),
        KeyError("answer"),
    ):
        assert worth_retrying(error)


def test_a_fault_of_the_program_is_not():
    for error in (TypeError(), NameError(), AttributeError(), ImportError(), NotImplementedError()):
        assert not worth_retrying(error)


def test_an_error_may_carry_a_code_that_is_no_status():
    error = ConnectionError()
    error.code = "ECONNRESET"
    assert worth_retrying(error)
    error.code = 7
    assert worth_retrying(error)
