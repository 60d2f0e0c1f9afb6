"""Responses are parsed, errors state what the server did, and nothing contains the key."""

from __future__ import annotations

import json
import logging
import pickle
import socket
import threading
import traceback
import zlib

import pytest

from runinference.errors import (
    ElementError,
    EndpointDisconnectedError,
    EndpointError,
    EndpointRefusedError,
    EndpointTimeoutError,
    EndpointUnreachableError,
    ResultMismatchError,
    UnusableAnswerError,
)
from runinference.handlers.error_policy import is_transient
from runinference.remote.endpoint import Endpoint
from runinference.remote.retry import retry_after, worth_retrying
from scripted_server import (
    BytesReply,
    DropConnection,
    NoReply,
    Reply,
    TrickledReply,
    TruncatedReply,
    scripted_server,
)

KEY = "sk-very-secret-0123456789"


def identity(response):
    return response


@pytest.fixture
def open_client(monkeypatch):
    monkeypatch.setenv("SOME_KEY", KEY)

    def open_client(url, key="SOME_KEY", **options):
        return Endpoint(url, key, **options).create_client()

    return open_client


def test_sends_the_body_and_parses_the_response(open_client):
    with scripted_server() as server:
        client = open_client(server.url, headers={"X-Tenant": "me"})
        assert client.post("/v1/x", {"a": [1, None, "é"]}, identity) == {"a": [1, None, "é"]}
        [headers] = server.request_headers
    assert headers["Authorization"] == f"Bearer {KEY}"
    assert headers["Content-Type"] == "application/json"
    assert headers["X-Tenant"] == "me"


def test_sends_no_authorization_without_a_key(open_client):
    with scripted_server() as server:
        open_client(server.url, key=None).post("/", 1, identity)
        assert "Authorization" not in server.request_headers[0]


PAGE = (
    "<html><head><style>b {color: red}</style></head><body><h1>Sign in</h1><p>please</body></html>"
)


HTML = {"Content-Type": "text/html"}
FAULTS = [
    (Reply(400, {"error": {"message": "too long"}}), EndpointError, "400: too long", False),
    (Reply(422, {"detail": [{"msg": "bad"}]}), EndpointError, '422: [{"msg": "bad"', False),
    (Reply(400, {"error": "plain"}), EndpointError, "returned 400: plain", False),
    (Reply(400, {"code": 400, "message": "torch"}), EndpointError, "returned 400: torch", False),
    (Reply(400, ""), EndpointError, "returned 400: no message", False),
    (Reply(401, {"error": "bad key"}), EndpointRefusedError, "SOME_KEY (api_key_env)", False),
    (Reply(403, {"error": "flagged"}), EndpointError, "returned 403: flagged", False),
    (Reply(404, {"error": "no such model"}), EndpointRefusedError, "model. Check base_url", False),
    (Reply(413, PAGE), EndpointError, "Lower max_request_size", False),
    (Reply(429, {"error": "slow down"}), EndpointError, "Lower max_concurrent_requests", True),
    (Reply(500, PAGE), EndpointError, "500: Sign in please. Check the server's log", True),
    (Reply(503, "busy"), EndpointError, "returned 503: busy", True),
    (Reply(307, "", {"Location": "http://b.c"}), EndpointRefusedError, "http://b.c. Redir", False),
    (Reply(200, PAGE, HTML), UnusableAnswerError, "an HTML page instead of JSON: Sign in", False),
    (Reply(200, '{"choices": ['), EndpointError, 'incomplete JSON: {"choices": [', True),
    (Reply(200, ""), EndpointError, "incomplete JSON: an empty body", True),
    (Reply(200, "\x00\xff garbage"), EndpointError, "garbage", True),
    (
        DropConnection(),
        EndpointDisconnectedError,
        "closed the connection before the response was",
        True,
    ),
    (TruncatedReply(), EndpointDisconnectedError, "closed the connection", True),
]


@pytest.mark.parametrize(
    ("reply", "kind", "message", "retryable"), FAULTS, ids=[message for _, _, message, _ in FAULTS]
)
def test_raises_a_specific_error_for_each_fault_and_retries_transient_ones(
    open_client, reply, kind, message, retryable
):
    with scripted_server(reply) as server:
        with pytest.raises(EndpointError) as raised:
            open_client(server.url).post("/x", {}, identity)
        error = raised.value
        assert type(error) is kind
        assert message in str(error)
        assert f"{server.url}/x" in str(error)
        assert worth_retrying(error) is retryable
        assert error.status_code == (
            reply.status if isinstance(reply, Reply) and reply.status >= 300 else None
        )


def test_an_unreachable_server_is_a_transient_error_that_names_the_url(open_client):
    with scripted_server() as server:
        url = server.url
    with pytest.raises(
        EndpointUnreachableError, match=f"No server answers at {url}/x .*Start the server"
    ) as raised:
        open_client(url).post("/x", {}, identity)
    assert isinstance(raised.value, ConnectionError)
    assert worth_retrying(raised.value)
    assert is_transient(raised.value)


def test_distinguishes_a_server_without_tls_from_an_unreachable_one(open_client):
    with (
        scripted_server() as server,
        pytest.raises(EndpointUnreachableError, match="use http:// in base_url. If its"),
    ):
        open_client(server.url.replace("http:", "https:")).post("/x", {}, identity)


SLOW = {
    "silent": NoReply(),
    "status line": TrickledReply(b"HTTP/1.1 2", b"0"),
    "headers": TrickledReply(b"HTTP/1.1 200 OK\r\nX-Slow: ", b"x"),
    "many responses": TrickledReply(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "body": TrickledReply(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n"),
    "chunks": TrickledReply(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"
    ),
    "body without an end": TrickledReply(b"HTTP/1.0 200 OK\r\n\r\n"),
    "error": TrickledReply(b"HTTP/1.1 503 Busy\r\nContent-Length: 100000\r\n\r\n"),
    "compressed": TrickledReply(
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 100000\r\n\r\n"
        b"\x1f\x8b\x08\x08\0\0\0\0\0\0",
        b"x",  # of the name of the compressed file
    ),
}


@pytest.mark.parametrize("reply", SLOW.values(), ids=SLOW)
def test_times_out_when_the_server_is_too_slow(open_client, reply):
    with (
        scripted_server(reply) as server,
        pytest.raises(
            EndpointTimeoutError, match=r"did not answer within 0\.3 seconds\. .* increase timeout"
        ) as raised,
    ):
        open_client(server.url, timeout=0.3).post("/x", {}, identity)
    assert isinstance(raised.value, TimeoutError)
    assert worth_retrying(raised.value)


@pytest.mark.parametrize(
    "headers", [{}, {"Content-Encoding": "gzip"}, {"Content-Encoding": "deflate"}]
)
def test_limits_the_size_of_a_response_after_decompression(open_client, headers):
    def pack(text):
        return (
            zlib.compress(text, wbits=31)
            if headers.get("Content-Encoding") == "gzip"
            else (zlib.compress(text) if headers else text)
        )

    replies = [BytesReply(pack(json.dumps(["x" * n]).encode()), headers) for n in (996, 997)]
    with scripted_server(*replies) as server:
        client = open_client(server.url, max_response_bytes=1_000)
        assert len(client.post("/", {}, identity)[0]) == 996
        with pytest.raises(UnusableAnswerError, match="than 1,000 bytes.*max_response_bytes"):
            client.post("/", {}, identity)


@pytest.mark.parametrize(
    ("reply", "kind", "message"),
    [
        (BytesReply(b"[1]", {"Content-Encoding": "br"}), UnusableAnswerError, "encoding 'br'"),
        (BytesReply(b"[1]", {"Content-Encoding": "gzip"}), EndpointError, "can't be read"),
        (BytesReply(b"[" * 200_000), UnusableAnswerError, "nested too deeply"),
        (BytesReply(b'{"a": 1, "a": 2}'), UnusableAnswerError, "two values for 'a'"),
        (BytesReply(b'["\xff"]'), EndpointError, "invalid or incomplete JSON"),
        (
            BytesReply(b'data: {"a": 1}', {"Content-Type": "text/event-stream"}),
            UnusableAnswerError,
            "an event stream",
        ),
    ],
)
def test_rejects_a_body_that_it_cannot_read(open_client, reply, kind, message):
    with scripted_server(reply) as server, pytest.raises(kind, match=message) as raised:
        open_client(server.url).post("/", {}, identity)
    assert type(raised.value) is kind


@pytest.mark.parametrize(
    "reply",
    [
        BytesReply(b"\xef\xbb\xbf[1]", {"Content-Type": "text/plain"}),
        BytesReply("[1]".encode("utf-16")),
        BytesReply(b"[1]", {"Content-Type": "text/html"}),
    ],
    ids=["byte order mark", "UTF-16", "another content type"],
)
def test_reads_json_in_any_encoding_and_of_any_content_type(open_client, reply):
    with scripted_server(reply) as server:
        assert open_client(server.url).post("/", {}, identity) == [1]


def test_reads_what_a_failing_server_says_even_if_it_is_endless_or_unreadable(open_client):
    page = b"HTTP/1.1 500 X\r\nContent-Length: 100000000\r\n\r\n" + b"<a" * 100_000
    broken = b"HTTP/1.1 500 X\r\nContent-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc"
    with scripted_server(TrickledReply(page), TrickledReply(broken)) as server:
        for message in ("returned 500: <a<a", "returned 500: no message"):
            with pytest.raises(EndpointError, match=message):
                open_client(server.url).post("/", {}, identity)


def test_tries_all_addresses_of_a_host(open_client, monkeypatch):
    with scripted_server() as server:
        port = int(server.url.rpartition(":")[2])
        addresses = [(0, 0, 0, "", (host, port)) for host in ("127.0.0.2", "127.0.0.1")]
        look_up = socket.getaddrinfo
        monkeypatch.setattr(
            "socket.getaddrinfo",
            lambda host, *args, **options: (
                addresses if host == "model.localhost" else look_up(host, *args, **options)
            ),
        )
        client = open_client(f"http://model.localhost:{port}")
        assert client.post("/", 5, identity) == 5
        assert server.request_headers[0]["Host"] == f"model.localhost:{port}"


def test_a_host_that_is_not_found_in_time_is_unreachable(open_client, monkeypatch):
    stopped = threading.Event()
    monkeypatch.setattr("socket.getaddrinfo", lambda *args, **options: stopped.wait(30))
    with pytest.raises(EndpointUnreachableError, match="address of model.localhost was not found"):
        open_client("http://model.localhost:1", timeout=0.1).post("/", 5, identity)
    stopped.set()


def test_a_redirect_is_quoted_without_its_secrets(open_client):
    reply = Reply(302, "", {"Location": "https://me:pass@b.c/d?token=pass"})
    with scripted_server(reply) as server, pytest.raises(EndpointRefusedError) as raised:
        open_client(server.url).post("/", {}, identity)
    assert "https://b.c/d" in str(raised.value)
    assert "pass" not in str(raised.value)


def test_keeps_the_retry_after_header_on_the_error(open_client):
    with (
        scripted_server(Reply(429, "", {"Retry-After": "7"})) as server,
        pytest.raises(EndpointError) as raised,
    ):
        open_client(server.url).post("/", {}, identity)
    assert retry_after(raised.value) == 7


def test_truncates_a_long_error_response(open_client):
    with (
        scripted_server(Reply(400, "x" * 5_000_000)) as server,
        pytest.raises(EndpointError) as raised,
    ):
        open_client(server.url).post("/", {}, identity)
    assert 300 < len(str(raised.value)) < 500


def test_rejects_a_body_that_is_not_json_serializable(open_client):
    with scripted_server() as server:
        with pytest.raises(ElementError, match=r"can't be serialized to JSON \(Object of type set"):
            open_client(server.url).post("/", {"a": {1}}, identity)
        assert not server.requests


@pytest.mark.parametrize("kind", [UnusableAnswerError, ResultMismatchError])
def test_names_the_url_of_an_invalid_response_and_redacts_the_key(open_client, kind):
    def parse(response):
        raise kind(f"It contains {response}.")

    with (
        scripted_server(default=lambda body: [KEY]) as server,
        pytest.raises(
            kind, match=f"{server.url}/x returned an unexpected response. It contains .'.the key.'."
        ),
    ):
        open_client(server.url).post("/x", {}, parse)


# --- the key


def collect_text(error):
    """Return all text that a log, a dead letter or an error tracker could show, including local variables."""
    chain = [error]
    while (last := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(last)
    ours = [
        frame.f_locals
        for frame, _ in traceback.walk_tb(error.__traceback__)
        if frame.f_globals["__name__"].startswith("runinference")
    ]
    assert ours
    return [
        "".join(traceback.format_exception(error)),
        repr(ours),
        *(f"{each!r} {each} {vars(each)} {each.args}" for each in chain),
        pickle.dumps(error).decode("latin1"),
    ]


ECHOES = [
    Reply(400, {"error": {"message": f"you sent Bearer {KEY}"}}),
    Reply(401, f"Incorrect API key provided: {KEY}"),
    Reply(500, f"<pre>headers: Authorization: Bearer {KEY}</pre>"),
    Reply(302, "", {"Location": f"http://evil.example/?key={KEY}"}),
    Reply(200, f"not JSON, {KEY}"),
    Reply(200, f"<html>{KEY}</html>", {"Content-Type": "text/html"}),
    DropConnection(),
    TruncatedReply(),
    NoReply(),
]


@pytest.mark.parametrize(
    "reply", ECHOES, ids=lambda reply: getattr(reply, "status", type(reply).__name__)
)
def test_no_error_or_log_contains_the_key_even_if_the_response_does(open_client, reply, caplog):
    with (
        caplog.at_level(logging.DEBUG),
        scripted_server(reply) as server,
        pytest.raises(EndpointError) as raised,
    ):
        open_client(server.url, timeout=0.3).post("/", {}, identity)
    logged = [
        text for text in caplog.messages if "receive_response_headers" not in text
    ]  # httpcore's
    assert logged
    for text in [*collect_text(raised.value), *logged]:
        assert KEY not in text
    assert raised.value.__context__ is None  # httpx's error holds the request headers


def test_does_not_follow_redirects_with_the_key(open_client):
    with (
        scripted_server() as elsewhere,
        scripted_server(Reply(308, "", {"Location": elsewhere.url})) as server,
    ):
        with pytest.raises(EndpointRefusedError, match="If you trust that URL, set base_url to it"):
            open_client(server.url).post("/", {}, identity)
        assert not elsewhere.requests


def test_bypasses_the_proxy_for_this_machine(open_client, monkeypatch):
    with scripted_server() as proxy, scripted_server() as server:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url)
        assert open_client(server.url).post("/", 5, identity) == 5
        assert not proxy.requests


def test_uses_the_proxy_for_other_machines(open_client, monkeypatch):
    with scripted_server() as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        client = open_client("http://models.example.com", key=None)
        assert client.post("/", 5, identity) == 5
        assert proxy.requests == [5]


def test_does_not_redact_valid_responses(open_client):
    with scripted_server(default=lambda body: {"text": KEY}) as server:
        assert open_client(server.url).post("/", {}, identity) == {"text": KEY}


def test_without_httpx_the_extra_is_named(open_client, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "httpx", None)
    with pytest.raises(ImportError, match=r'pip install "runinference\[remote\]"'):
        open_client("http://localhost")
