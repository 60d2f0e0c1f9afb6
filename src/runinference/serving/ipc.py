"""Serialization of values and exceptions that are sent to another process."""

from __future__ import annotations

import pickle
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from apache_beam.internal import cloudpickle_pickler
from apache_beam.internal.cloudpickle import cloudpickle


def dumps(value: Any) -> bytes:
    """Serialize a value, including instances of classes that are defined in ``__main__``."""
    # Beam's pickler.dumps compresses, which is about 100 times slower on arrays.
    return bytes(cloudpickle.dumps(value, config=cloudpickle_pickler.DEFAULT_CONFIG))


def dumps_outcome(call: Callable[[], Any], caught: type[BaseException] = Exception) -> bytes:
    """Call a function, and serialize its result or the exception that it raises."""
    try:
        return dumps((call(), None))
    except caught as error:
        return dumps((None, RemoteException.from_error(error)))


def loads(outcome: bytes) -> Any:
    """Return the result that ``dumps_outcome`` serialized, or raise the exception with its traceback as cause."""
    result, remote = pickle.loads(outcome)
    if remote is not None:
        raise remote.restore()
    return result


@dataclass(frozen=True)
class RemoteException:
    """An exception in a form that can always be serialized, with its formatted traceback."""

    pickled: bytes  # empty if the exception can't be pickled
    message: str
    formatted: str

    @classmethod
    def from_error(cls, error: BaseException) -> RemoteException:
        try:
            pickled = dumps(error)
        except Exception:
            pickled = b""
        lines = traceback.format_exception(type(error), error, error.__traceback__)
        return cls(pickled, f"{type(error).__name__}: {error}", "".join(lines))

    def restore(self) -> BaseException:
        """Return the original exception, or a RuntimeError with its message if it can't be unpickled."""
        try:
            error: BaseException = pickle.loads(self.pickled)
        except Exception:
            error = RuntimeError(self.message)
        error.__cause__ = RemoteTraceback(self.formatted)
        return error


class RemoteTraceback(Exception):  # noqa: N818 - shown as the heading of a traceback
    """The traceback of an exception in the process that raised it."""

    def __str__(self) -> str:
        return f"in another process:\n{self.args[0]}"
