"""Tracebacks of many errors are formatted like those of the standard library."""

from __future__ import annotations

import sys
import traceback

import pytest

from runinference.errors import ElementError
from runinference.handlers.traceback_lines import format_traceback


class UnreadableError(Exception):
    def __str__(self):
        raise RuntimeError("no text")


def fail(error):
    raise error


def fail_from(error, cause):
    try:
        raise cause
    except Exception as caught:
        raise error from caught


def fail_during(error, context):
    try:
        raise context
    except Exception:
        raise error  # noqa: B904 - the context is under test


def fail_instead(error, hidden):
    try:
        raise hidden
    except Exception:
        raise error from None


def fail_deeply(depth):
    if depth:
        fail_deeply(depth - 1)
    raise ValueError("deep")


def with_notes(error):
    error.__notes__ = ["a note"]
    raise error


def in_a_circle(error, other):
    error.__cause__, other.__cause__ = other, error
    raise error


@pytest.mark.parametrize(
    "call",
    [
        lambda: fail(ValueError("bad\nrow")),
        lambda: fail(KeyError()),
        lambda: fail(ElementError("bad", index=3)),
        lambda: fail(UnreadableError()),
        lambda: fail_from(ElementError("bad"), ValueError("NaN")),
        lambda: fail_during(TypeError("bad"), ZeroDivisionError("0")),
        lambda: fail_instead(TypeError("bad"), ZeroDivisionError("0")),
        lambda: fail_from(TypeError("bad"), ImportError("nothing", name="x")),
        lambda: fail_deeply(100),
        lambda: with_notes(ValueError("bad")),
        lambda: in_a_circle(ValueError("a"), ValueError("b")),
        lambda: None.missing,
        lambda: compile("1 +", "file", "eval"),
        lambda: sys.no_such_name,
    ],
)
def test_equals_the_format_of_the_standard_library(call):
    for _ in range(2):
        with pytest.raises(Exception) as raised:  # noqa: PT011
            call()
        error = raised.value
        expected = traceback.format_exception(type(error), error, error.__traceback__, limit=-50)
        assert "".join(format_traceback(error, 50)) == "".join(expected)


def test_equal_code_in_two_files_keeps_its_file():
    reports = []
    for file in ("one.py", "two.py"):
        names: dict = {}
        exec(compile("def fail():\n    raise ValueError('bad')", file, "exec"), names)
        with pytest.raises(ValueError, match="bad") as raised:
            names["fail"]()
        reports.append("".join(format_traceback(raised.value, 1)))
    assert ["one.py" in report for report in reports] == [True, False]


def test_equal_frames_keep_their_own_messages():
    reports = []
    for message in ("one", "two"):
        with pytest.raises(ValueError, match=message) as raised:
            fail(ValueError(message))
        reports.append(format_traceback(raised.value, 50))
    assert reports[0][:-1] == reports[1][:-1]
    assert [report[-1] for report in reports] == ["ValueError: one\n", "ValueError: two\n"]
