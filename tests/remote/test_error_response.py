"""Errors of servers are understood in the formats of common servers and gateways."""

from __future__ import annotations

import json

import pytest

from runinference.remote.error_response import (
    find_error,
    hide_secrets,
    read_error_body,
    shorten,
    strip_tags,
)

ERRORS = [
    ({"error": {"message": "slow down", "code": 429}}, "slow down", 429),
    ({"error": {"message": "slow down", "code": "429"}}, "slow down", 429),
    ({"error": {"message": "x", "code": "rate_limit_exceeded", "type": "tokens"}}, "x", 429),
    ({"error": {"message": "x", "type": "invalid_request_error", "code": 429}}, "x", 429),
    ([{"error": {"code": 503, "message": "x", "status": "UNAVAILABLE"}}], "x", 503),
    ({"error": {"status": "RESOURCE_EXHAUSTED", "message": "x"}}, "x", 429),
    ({"type": "error", "error": {"type": "overloaded_error", "message": "x"}}, "x", 503),
    ({"error": "Model is overloaded", "error_type": "overloaded"}, "Model is overloaded", 503),
    ({"error": "Too Many Requests"}, "Too Many Requests", 429),
    (
        {"error": {"message": "Provider returned error", "code": 502}},
        "Provider returned error",
        502,
    ),
    ({"error": {"type": "server_error", "message": "x"}}, "x", 500),
    ({"error": {"type": "timeout", "message": "x"}}, "x", 504),
    ({"choices": [{"error": {"code": 502, "message": "x"}, "finish_reason": "error"}]}, "x", 502),
    (
        {"success": False, "errors": [{"code": 10000, "message": "Authentication error"}]},
        None,
        None,
    ),
    ({"object": "error", "message": "x", "type": "BadRequestError", "code": 400}, "x", 400),
    ({"error": {"code": "content_filter", "message": "x"}}, "x", 400),
    ({"error": {"code": "context_length_exceeded", "message": "x"}}, "x", 400),
    ({"error": {"code": "model_not_found", "message": "x"}}, "x", 404),
    ({"error": {"code": "invalid_api_key", "message": "x"}}, "x", 401),
    ({"error": {"type": "insufficient_quota", "code": 429, "message": "x"}}, "x", 402),
    ({"detail": "Rate limit exceeded"}, "Rate limit exceeded", 429),
    ({"error": "full"}, "full", None),
    ({"error": {"message": "x", "code": 1302}}, "x", None),
]


@pytest.mark.parametrize(("answer", "message", "status"), ERRORS)
def test_finds_the_error_inside_a_response_and_its_status(answer, message, status):
    found = find_error(answer)
    assert found.status == status
    assert message is None or found.message == message


@pytest.mark.parametrize(
    "answer",
    [
        {},
        [],
        None,
        5,
        "error",
        {"error": None},
        {"error": False},
        {"choices": [{"error": None}]},
        {"outputs": []},
    ],
)
def test_a_response_without_an_error_has_none(answer):
    assert find_error(answer) is None


def test_a_quota_is_told_apart_from_a_rate_limit():
    quota = {"error": {"message": "pay", "code": "insufficient_quota"}}
    assert read_error_body(json.dumps(quota).encode()).is_quota
    assert not find_error({"error": {"message": "quota of today", "code": 429}}).is_quota


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"error": {"message": "too long"}}', "too long"),
        (b'{"detail": [{"msg": "bad"}]}', '[{"msg": "bad"}]'),
        (b"busy", "busy"),
        (b"\xff\xfe", "\ufffd\ufffd"),
        (b"[" * 50_000, "[" * 50_000),
        (b'{"error":' * 50_000, '{"error":' * 50_000),
    ],
)
def test_reads_any_error_body(body, message):
    assert read_error_body(body).message == message


# Each of these would take hours if its time were quadratic in its length.
HOSTILE = [
    "<script>",
    "<style",
    "<a",
    "<",
    "</script",
    "<!",
    "<script></style>",
    "a>",
    "<script></script",
]


@pytest.mark.parametrize("part", HOSTILE)
def test_strips_tags_in_linear_time(part):
    strip_tags(part * 1_000_000)


@pytest.mark.parametrize(
    ("html", "text"),
    [
        ("<html><STYLE>b {}</style ><b>Sign</b> in<br/>now", "Sign in now"),
        ("<script>if (a < b) x('</p>')</script>ok<!-- c -->", "ok"),
        ("1 < 2 and 3 > 2", "1 < 2 and 3 > 2"),
        ("a <b", "a <b"),
        ("no tags", "no tags"),
        ("", ""),
    ],
)
def test_keeps_the_text_of_a_page(html, text):
    assert " ".join(strip_tags(html).split()) == text


def test_shortens_a_text_to_one_line():
    assert shorten("a\n b .") == "a b"
    assert shorten("x" * 500, 10) == "xxxxxxxxxx ..."


@pytest.mark.parametrize(
    ("location", "shown"),
    [
        ("https://me:secret@b.c:8443/d?key=secret#secret", "https://b.c:8443/d?[hidden]"),
        ("/login?next=secret", "/login?[hidden]"),
        ("http://b.c", "http://b.c"),
        ("http://[secret", "an invalid location"),
    ],
)
def test_shows_a_location_without_its_secrets(location, shown):
    assert hide_secrets(location) == shown
