"""Values and exceptions are serialized for another process."""

from __future__ import annotations

import json
import subprocess
import sys
import threading

import numpy as np
import pytest

from runinference.errors import PartialBatchError, PartialResult
from runinference.serving.ipc import dumps, dumps_outcome, loads


def test_serializes_arrays_without_compression():
    array = np.random.default_rng(0).random(1000)
    assert array.tobytes() in dumps([array])


def test_a_result_that_cannot_be_pickled_raises():
    with pytest.raises(Exception, match="pickle"):
        loads(dumps_outcome(lambda: (number for number in range(3))))


class TwoArgumentError(Exception):
    def __init__(self, code, text) -> None:
        super().__init__(f"{code}: {text}")
        self.code = code


class KeywordOnlyError(ValueError):
    def __init__(self, *, row) -> None:
        self.row = row


class AddsToItsMessageError(LookupError):
    def __init__(self, name) -> None:
        super().__init__(f"no model named {name}")


class HoldsALockError(RuntimeError):
    def __init__(self, text) -> None:
        super().__init__(text, threading.Lock())
        self.lock, self.status_code = threading.Lock(), 503


class FailsToPickleError(OSError):
    def __reduce__(self):
        raise TypeError("not this one")


class BecomesATextError(Exception):
    def __reduce__(self):
        return str, ("text",)


class FailsToPrintError(Exception):
    def __str__(self) -> str:
        raise AttributeError("row")

    __repr__ = __str__


class CircularError(Exception):
    def __init__(self, text) -> None:
        super().__init__(text)
        self.myself = self.args = (text, [self])


ERRORS = [
    KeyError("a"),
    OSError(2, "no such file", "model.pkl"),
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
    StopIteration(7),
    SystemExit(3),
    TwoArgumentError(7, "three"),
    KeywordOnlyError(row=3),
    AddsToItsMessageError("x"),
    HoldsALockError("locked"),
    FailsToPickleError(28, "disk full"),
    BecomesATextError("one"),
    FailsToPrintError("hidden"),
    CircularError("round"),
    json.JSONDecodeError("bad", "{", 1),
    subprocess.CalledProcessError(3, "ls", b"out"),
]


def sent(error: BaseException) -> BaseException:
    def fail():
        raise error

    with pytest.raises(BaseException) as caught:  # noqa: PT011 - any type
        loads(dumps_outcome(fail, BaseException))
    return caught.value


def text(error: BaseException) -> str:
    return "" if isinstance(error, FailsToPrintError) else str(error)[:20]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_an_exception_keeps_its_type_message_and_attributes(error):
    """A class whose constructor takes something else than ``args`` used to become a RuntimeError."""
    received = sent(error)
    assert type(received) is type(error)
    if not isinstance(error, HoldsALockError):
        assert text(received) == text(error)
    simple = {k: v for k, v in vars(error).items() if isinstance(v, (int, str))}
    assert simple.items() <= vars(received).items()
    assert "in another process" in str(received.__cause__)
    assert getattr(received, "errno", None) == getattr(error, "errno", None)


def test_parts_of_a_batch_survive_an_error_that_cannot_be_pickled():
    parts = [PartialResult(2, [1, 2], None), PartialResult(1, None, TwoArgumentError(7, "three"))]
    received = sent(PartialBatchError(parts))
    assert isinstance(received, PartialBatchError)
    assert received.parts[0] == parts[0]
    assert type(received.first_error) is TwoArgumentError
    assert received.first_error.code == 7


def test_an_exception_whose_type_exists_in_the_other_process_only_becomes_one_of_its_base_type():
    program = (
        "import sys, types; from runinference.serving.ipc import dumps_outcome\n"
        "client = sys.modules['client_made_at_run_time'] = types.ModuleType('client_made_at_run_time')\n"
        "client.NoSuchKey = type('NoSuchKey', (KeyError,), {'__module__': client.__name__})\n"
        "def fail(): raise client.NoSuchKey('three')\n"
        "sys.stdout.buffer.write(dumps_outcome(fail))"
    )
    outcome = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, check=True)
    with pytest.raises(KeyError, match="NoSuchKey: 'three'"):
        loads(outcome.stdout)
