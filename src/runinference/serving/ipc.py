"""How values and errors cross from one process to another."""

from __future__ import annotations

import pickle
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from apache_beam.internal import cloudpickle_pickler
from apache_beam.internal.cloudpickle import cloudpickle


def dumps(value: Any) -> bytes:
    """A value for another process, classes of the main program included.

    Beam's pickler would do as well, but compresses: on arrays it is some hundred times slower.
    """
    return bytes(cloudpickle.dumps(value, config=cloudpickle_pickler.DEFAULT_CONFIG))


def dumps_outcome(call: Callable[[], Any], caught: type[BaseException] = Exception) -> bytes:
    """What a call returns or raises, for another process to [open][runinference.serving.ipc.opened]."""
    try:
        return dumps((call(), None))
    except caught as error:
        return dumps((None, RemoteException.of(error)))


def loads(answer: bytes) -> Any:
    """What the call returned.

    Raises:
        Exception: What it raised, with the traceback of the other process as its cause.
    """
    value, told = pickle.loads(answer)
    if told is not None:
        raise told.again()
    return value


@dataclass(frozen=True)
class RemoteException:
    """An error on its way: itself where it can be pickled, and in any case its words."""

    pickled: bytes
    words: str
    lines: str

    @classmethod
    def of(cls, error: BaseException) -> RemoteException:
        try:
            pickled = dumps(error)
        except Exception:
            pickled = b""
        words = f"{type(error).__name__}: {error}"
        return cls(
            pickled,
            words,
            "".join(traceback.format_exception(type(error), error, error.__traceback__)),
        )

    def again(self) -> BaseException:
        try:
            error: BaseException = pickle.loads(self.pickled)
        except Exception:  # its class takes other arguments than it keeps, or holds a lock
            error = RuntimeError(self.words)
        error.__cause__ = _Elsewhere(self.lines)
        return error


class _Elsewhere(Exception):  # noqa: N818 - the heading of a traceback
    """The traceback of an error in the process where it was raised."""

    def __str__(self) -> str:
        return f"in another process:\n{self.args[0]}"
