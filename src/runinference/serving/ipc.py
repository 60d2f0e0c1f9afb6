"""Serialization of values and exceptions that are sent to another process."""

from __future__ import annotations

import io
import pickle
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from apache_beam.internal import cloudpickle_pickler
from apache_beam.internal.cloudpickle import cloudpickle

#: Exceptions inside of exceptions are sent with their arguments down to this depth, also where they form a cycle.
_MAX_DEPTH = 3


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
    """An exception in a form that can always be serialized, with its formatted traceback.

    Attributes:
        pickled: The exception; empty if it does not survive pickling.
        types: Its type and the bases of that, each pickled; the nearest one that can be loaded is used.
        args: Its arguments, pickled; empty if they can't be.
        state: Its attributes that can be pickled, pickled.
        message: Its message.
        name: The name of its type.
        formatted: Its traceback; empty if it was not raised.
    """

    pickled: bytes
    types: tuple[bytes, ...]
    args: bytes
    state: bytes
    message: str
    name: str
    formatted: str

    @classmethod
    def from_error(cls, error: BaseException, depth: int = 0) -> RemoteException:
        message = _message(error)
        pickled = b"" if depth > _MAX_DEPTH else _dumps_if_it_survives(error, depth, message)
        args = state = b""
        if not pickled and depth <= _MAX_DEPTH:
            args = _try_dumps(error.args, depth)
            state = _try_dumps(
                {k: v for k, v in vars(error).items() if _try_dumps(v, depth)}, depth
            )
        return cls(
            pickled,
            tuple(map(_try_dumps, type(error).__mro__[:-1])),
            args,
            state,
            message,
            type(error).__name__,
            _format(error, message) if error.__traceback__ else "",
        )

    def restore(self) -> BaseException:
        """Return the exception, or one of the nearest base type that this process can create."""
        error = next(e for e in self._candidates() if isinstance(e, BaseException))
        if self.formatted:
            error.__cause__ = RemoteTraceback(self.formatted)
        return error

    def _candidates(self) -> Iterator[Any]:
        yield _load(self.pickled)
        args, state = _load(self.args, (self.message,)), _load(self.state, {})
        for pickled in self.types:
            yield _create(_load(pickled), args, state)
            args = (f"{self.name}: {self.message}",)  # of a base type
        yield RuntimeError(*args)


class RemoteTraceback(Exception):  # noqa: N818 - shown as the heading of a traceback
    """The traceback of an exception in the process that raised it."""

    def __str__(self) -> str:
        return f"in another process:\n{self.args[0]}"


class _Pickler(cloudpickle.CloudPickler):  # type: ignore[misc]
    """A pickler of one exception, which sends exceptions inside of it as `RemoteException`."""

    def __init__(self, file: io.BytesIO, outermost: Any, depth: int) -> None:
        super().__init__(file, config=cloudpickle_pickler.DEFAULT_CONFIG)
        self._outermost, self._depth = outermost, depth

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, BaseException) and value is not self._outermost:
            return RemoteException.restore, (RemoteException.from_error(value, self._depth + 1),)
        return super().reducer_override(value)


def _try_dumps(value: Any, depth: int = 0) -> bytes:
    """Serialize a value or exception; return no bytes if that fails."""
    try:
        with io.BytesIO() as file:
            _Pickler(file, value, depth).dump(value)
            return file.getvalue()
    except Exception:
        return b""


def _dumps_if_it_survives(error: BaseException, depth: int, message: str) -> bytes:
    """Serialize an exception, but return no bytes if it would be loaded as something else or not at all."""
    pickled = _try_dumps(error, depth)
    copy = _load(pickled)
    return pickled if type(copy) is type(error) and _message(copy) == message else b""


def _load(pickled: bytes, default: Any = None) -> Any:
    try:
        return pickle.loads(pickled) if pickled else default
    except Exception:
        return default


def _create(kind: Any, args: tuple[Any, ...], state: dict[str, Any]) -> BaseException | None:
    """Create an exception without the constructor of its class, which may take other arguments than ``args``."""
    if not (isinstance(kind, type) and issubclass(kind, BaseException)):
        return None
    builtin: Any = kind
    while builtin.__module__ != "builtins":
        builtin = builtin.__base__
    try:
        error: BaseException = builtin.__new__(kind, *args)
        builtin.__init__(error, *args)
        vars(error).update(state)
    except Exception:
        return None
    return error


def _format(error: BaseException, message: str) -> str:
    try:
        return "".join(traceback.format_exception(type(error), error, error.__traceback__))
    except Exception:
        return f"{type(error).__name__}: {message}"


def _message(error: BaseException) -> str:
    try:
        return str(error)
    except Exception as failure:
        return f"(its str() raises {type(failure).__name__})"
