"""Whatever a server does, its answer is read or the error says what it did, and never the key."""

from __future__ import annotations

import logging
import pickle
import traceback

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
    DropConnection,
    NoReply,
    Reply,
    SlowReply,
    TruncatedReply,
    scripted_server,
)

KEY = "sk-very-secret-0123456789"


def itself(answer):
    return answer


@pytest.fixture
def open_client(monkeypatch):
    monkeypatch.setenv("SOME_KEY", KEY)

    def open_client(url, key="SOME_KEY", **options):
        return Endpoint(url, key, **options).open()

    return open_client


def test_a_body_arrives_and_the_answer_is_parsed(open_client):
    with scripted_server() as server:
        client = open_client(server.url, headers={"X-Tenant": "me"})
        assert client.post("/v1/x", {"a": [1, None, "é"]}, itself) == {"a": [1, None, "é"]}
        [headers] = server.request_headers
    assert headers["Authorization"] == f"Bearer {KEY}"
    assert headers["Content-Type"] == "application/json"
    assert headers["X-Tenant"] == "me"


def test_without_a_key_no_authorization_is_sent(open_client):
    with scripted_server() as server:
        open_client(server.url, key=None).post("/", 1, itself)
        assert "Authorization" not in server.request_headers[0]


PAGE = (
    "<html><head><style>b {color: red}</style></head><body><h1>Sign in</h1><p>please</body></html>"
)


HTML = {"Content-Type": "text/html"}
FAULTS = [
    (Reply(400, {"error": {"message": "too long"}}), EndpointError, "400: too long", False),
    (Reply(422, {"detail": [{"msg": "bad"}]}), EndpointError, '422: [{"msg": "bad"', False),
    (Reply(400, {"error": "plain"}), EndpointError, "answered 400: plain", False),
    (Reply(400, {"code": 400, "message": "torch"}), EndpointError, "answered 400: torch", False),
    (Reply(400, ""), EndpointError, "answered 400: nothing else", False),
    (Reply(401, {"error": "bad key"}), EndpointRefusedError, "SOME_KEY (api_key_env)", False),
    (Reply(403, {"error": "flagged"}), EndpointError, "answered 403: flagged", False),
    (Reply(404, {"error": "no such model"}), EndpointRefusedError, "model. Check base_url", False),
    (Reply(413, PAGE), EndpointError, "Lower max_request_size", False),
    (Reply(429, {"error": "slow down"}), EndpointError, "Lower max_concurrent_requests", True),
    (Reply(500, PAGE), EndpointError, "500: Sign in please. The fault is the server's", True),
    (Reply(503, "busy"), EndpointError, "answered 503: busy", True),
    (Reply(307, "", {"Location": "http://b.c"}), EndpointRefusedError, "http://b.c. Redir", False),
    (Reply(200, PAGE, HTML), UnusableAnswerError, "for people, not with JSON: Sign in", False),
    (Reply(200, '{"choices": ['), EndpointError, 'only a part of it: {"choices": [', True),
    (Reply(200, ""), EndpointError, "only a part of it: nothing", True),
    (Reply(200, "\x00\xff garbage"), EndpointError, "garbage", True),
    (
        DropConnection(),
        EndpointDisconnectedError,
        "broke the connection before its answer was",
        True,
    ),
    (TruncatedReply(), EndpointDisconnectedError, "broke the connection", True),
]


@pytest.mark.parametrize(
    ("line", "kind", "said", "again"), FAULTS, ids=[said for _, _, said, _ in FAULTS]
)
def test_each_fault_has_its_error_and_what_may_pass_is_tried_again(
    open_client, line, kind, said, again
):
    with scripted_server(line) as server:
        with pytest.raises(EndpointError) as raised:
            open_client(server.url).post("/x", {}, itself)
        error = raised.value
        assert type(error) is kind
        assert said in str(error)
        assert f"{server.url}/x" in str(error)
        assert worth_retrying(error) is again
        assert error.status_code == (
            line.status if isinstance(line, Reply) and line.status >= 300 else None
        )


def test_a_server_that_is_down_is_told_with_its_address_and_may_come_back(open_client):
    with scripted_server() as server:
        url = server.url
    with pytest.raises(
        EndpointUnreachableError, match=f"No server answers at {url}/x .*Start it"
    ) as raised:
        open_client(url).post("/x", {}, itself)
    assert isinstance(raised.value, ConnectionError)
    assert worth_retrying(raised.value)
    assert is_transient(raised.value)


def test_a_server_that_does_not_encrypt_is_told_from_one_that_is_down(open_client):
    with (
        scripted_server() as server,
        pytest.raises(EndpointUnreachableError, match="begins with http; if its"),
    ):
        open_client(server.url.replace("http:", "https:")).post("/x", {}, itself)


@pytest.mark.parametrize("line", [NoReply(), SlowReply()], ids=["silent", "trickling"])
def test_a_server_that_takes_too_long_is_given_up(open_client, line):
    with (
        scripted_server(line) as server,
        pytest.raises(
            EndpointTimeoutError, match=r"did not answer within 0\.3 seconds \(timeout\)"
        ) as raised,
    ):
        open_client(server.url, timeout=0.3).post("/x", {}, itself)
    assert isinstance(raised.value, TimeoutError)
    assert worth_retrying(raised.value)


def test_what_the_server_says_of_when_to_ask_again_is_kept(open_client):
    with (
        scripted_server(Reply(429, "", {"Retry-After": "7"})) as server,
        pytest.raises(EndpointError) as raised,
    ):
        open_client(server.url).post("/", {}, itself)
    assert retry_after(raised.value) == 7


def test_of_a_long_complaint_a_part_is_read_and_less_is_quoted(open_client):
    with (
        scripted_server(Reply(400, "x" * 5_000_000)) as server,
        pytest.raises(EndpointError) as raised,
    ):
        open_client(server.url).post("/", {}, itself)
    assert 300 < len(str(raised.value)) < 500


def test_what_cannot_be_written_as_json_is_told(open_client):
    with scripted_server() as server:
        with pytest.raises(ElementError, match=r"cannot be written as JSON \(Object of type set"):
            open_client(server.url).post("/", {"a": {1}}, itself)
        assert not server.requests


@pytest.mark.parametrize("kind", [UnusableAnswerError, ResultMismatchError])
def test_what_is_wrong_with_an_answer_is_told_with_the_address_and_without_the_key(
    open_client, kind
):
    def read(answer):
        raise kind(f"It said {answer}.")

    with (
        scripted_server(default=lambda body: [KEY]) as server,
        pytest.raises(
            kind, match=f"{server.url}/x did not answer as expected. It said .'.the key.'."
        ),
    ):
        open_client(server.url).post("/x", {}, read)


# --- the key


def everything_said_by(error):
    """All that a log, a dead letter or a tool for errors could show of an error, our locals included."""
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
    "line", ECHOES, ids=lambda line: getattr(line, "status", type(line).__name__)
)
def test_no_error_and_no_log_tells_the_key_even_if_the_server_does(open_client, line, caplog):
    with (
        caplog.at_level(logging.DEBUG),
        scripted_server(line) as server,
        pytest.raises(EndpointError) as raised,
    ):
        open_client(server.url, timeout=0.3).post("/", {}, itself)
    logged = [
        text for text in caplog.messages if "receive_response_headers" not in text
    ]  # httpcore's
    assert logged
    for text in [*everything_said_by(raised.value), *logged]:
        assert KEY not in text
    assert raised.value.__context__ is None  # httpx's own error knows the request with its headers


def test_a_redirect_is_not_followed_so_that_the_key_goes_nowhere_else(open_client):
    with (
        scripted_server() as elsewhere,
        scripted_server(Reply(308, "", {"Location": elsewhere.url})) as server,
    ):
        with pytest.raises(EndpointRefusedError, match="set base_url to that address"):
            open_client(server.url).post("/", {}, itself)
        assert not elsewhere.requests


def test_a_proxy_of_the_environment_is_passed_by_for_this_machine(open_client, monkeypatch):
    with scripted_server() as proxy, scripted_server() as server:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url)
        assert open_client(server.url).post("/", 5, itself) == 5
        assert not proxy.requests


def test_a_proxy_of_the_environment_is_used_for_other_machines(open_client, monkeypatch):
    with scripted_server() as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        client = open_client("http://models.example.com", key=None)
        assert client.post("/", 5, itself) == 5
        assert proxy.requests == [5]


def test_an_answer_may_hold_what_looks_like_the_key(open_client):
    with scripted_server(default=lambda body: {"text": KEY}) as server:
        assert open_client(server.url).post("/", {}, itself) == {"text": KEY}


def test_without_httpx_the_extra_is_named(open_client, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "httpx", None)
    with pytest.raises(ImportError, match=r'pip install "runinference\[remote\]"'):
        open_client("http://localhost")
