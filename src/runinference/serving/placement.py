"""Where a model lives: in this process, or in one process of the machine for all."""

from __future__ import annotations

import gc
import hashlib
import itertools
import os
import pickle
import socket
import sys
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from types import BuiltinFunctionType, FunctionType, MethodDescriptorType, ModuleType
from typing import Any, Protocol

from apache_beam.internal import pickler
from apache_beam.utils.multi_process_shared import MultiProcessShared

from runinference.caching.memory_budget import resident_bytes
from runinference.handlers.call import run_batch_in_parts
from runinference.serving.ipc import dumps, dumps_outcome, loads
from runinference.serving.routing import ModelVersion


class Model(Protocol):
    """A loaded model, wherever it lives."""

    n_bytes: int
    abandoned: bool

    def run(self, handler: Any, batch: Any, inference_args: dict[str, Any] | None) -> list[Any]:
        """One result for each element of a batch."""

    def close(self) -> None:
        """Frees it after its last call."""

    def abandon(self) -> None:
        """Frees what can be freed while a call hangs in it."""

    def works_for(self, thread: int | None) -> bool:
        """Whether it works on the call of a thread, which otherwise waits for its turn."""


Placement = Callable[[ModelVersion], Model]


class InProcessModel:
    """A model that all threads of this process share."""

    abandoned = False

    def __init__(self, version: ModelVersion) -> None:
        version.handler.set_environment_vars()
        before = resident_bytes()
        self._model = version.handler.load_model()
        self.n_bytes = max(model_bytes(self._model), resident_bytes() - before)

    def run(self, handler: Any, batch: Any, inference_args: dict[str, Any] | None) -> list[Any]:
        return run_batch_in_parts(handler, batch, self._model, inference_args)

    def close(self) -> None:
        self._model = None

    def abandon(self) -> None:
        """Its thread cannot be ended, and holds the model until it returns."""

    def works_for(self, thread: int | None) -> bool:
        return True


class SharedProcessModel:
    """One model, or so many copies, that all processes of this machine share.

    The process that asks first holds it; the others send it their batches, and wait for the results. Each
    call costs the pickling of both.
    """

    abandoned = False  # who calls it then finds it again by itself

    def __init__(self, version: ModelVersion, tag: str) -> None:
        name = hashlib.sha256(f"{tag}/{version.name}".encode()).hexdigest()[:32]
        handler = pickler.dumps(version.handler)
        copies = range(version.handler.model_copies())
        self._copies = [_Copy(f"runinference-{name}-{number}", handler) for number in copies]
        self._turns = itertools.cycle(self._copies)
        self.n_bytes = sum(copy.n_bytes for copy in self._copies)

    def run(self, handler: Any, batch: Any, inference_args: dict[str, Any] | None) -> list[Any]:
        return next(self._turns).run(batch, inference_args)

    def close(self) -> None:
        for copy in self._copies:
            copy.release()

    def abandon(self) -> None:
        for copy in self._copies:
            copy.delete()

    def works_for(self, thread: int | None) -> bool:
        return True


def default_placement(version: ModelVersion, tag: str) -> Model:
    """A model for this process, or, where its handler says so, one for all processes of this machine."""
    if version.handler.share_model_across_processes():
        return SharedProcessModel(version, tag)
    return InProcessModel(version)


class _Copy:
    """A model in one process of the machine, which may be this one; in another one when that has ended."""

    def __init__(self, tag: str, handler: bytes) -> None:
        self._tag = tag
        self._handler = handler
        self._handler_name = hashlib.sha256(handler).hexdigest()
        self._lock = threading.Lock()
        self._held = self._acquired()
        self.n_bytes = int(self._held[1].size())

    def run(self, batch: Any, inference_args: dict[str, Any] | None) -> list[Any]:
        question = dumps((self._handler_name, batch, inference_args))
        held = self._held
        try:
            answer = held[1].answer(question)
        except (
            Exception
        ):  # what the model raises is in the answer: its process has ended, or gave it up
            answer = self._found_again(held)[1].answer(question)
        results: list[Any] = loads(answer)
        return results

    def release(self) -> None:
        share, proxy = self._held
        with suppress(ConnectionError, EOFError):  # its process has ended, and freed it
            share.release(proxy)

    def delete(self) -> None:
        with suppress(ConnectionError, EOFError):
            self._held[0].unsafe_hard_delete()

    def _acquired(self) -> tuple[Any, Any]:
        share = MultiProcessShared(_Host(self._handler), tag=self._tag, always_proxy=True)
        proxy = share.acquire()
        if (server := getattr(share, "_server", None)) is not None:  # this process holds it
            send_at_once(server.listener._listener._socket.fileno())
        if (own := getattr(proxy, "_proxyObject", None)) is not None:
            own._Client = _AtOnce(own._Client)
        proxy.learn(self._handler_name, self._handler)
        return share, proxy

    def _found_again(self, lost: tuple[Any, Any]) -> tuple[Any, Any]:
        with self._lock:
            if self._held is lost:
                self._held = self._acquired()
            return self._held


def send_at_once(socket_number: int) -> None:
    """Says that a connection, or those that a listener will accept, shall not hold data back.

    A message of 16 to 64 kB is otherwise held back for 40 ms: ``multiprocessing`` writes its length first, and
    the system waits with the rest until the other side has confirmed that.
    """
    with socket.socket(fileno=os.dup(socket_number)) as twin:
        twin.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


class _AtOnce:
    """Makes connections that hold nothing back."""

    def __init__(self, connect: Callable[..., Any]) -> None:
        self._connect = connect

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        connection = self._connect(*arguments, **options)
        send_at_once(connection.fileno())
        return connection


class _Host:
    """Makes, in the process that holds it, the model that others share."""

    def __init__(self, handler: bytes) -> None:
        self._handler = handler

    def __call__(self) -> _Hosted:
        return _Hosted(self._handler)


class _Hosted:
    """A model with the handlers that call it: those of all steps that share it."""

    def __init__(self, handler: bytes) -> None:
        self._model = InProcessModel(ModelVersion("", pickler.loads(handler), None))  # type: ignore[arg-type]
        self._handlers: dict[str, Any] = {}
        self.learn = _Weakly(self._learn)
        self.size = _Weakly(self._size)
        self.answer = _Weakly(self._answer)

    def _learn(self, name: str, handler: bytes) -> None:
        if name not in self._handlers:
            self._handlers[name] = pickler.loads(handler)

    def _size(self) -> int:
        return self._model.n_bytes

    def _answer(self, question: bytes) -> bytes:
        name, batch, inference_args = pickle.loads(question)
        handler = self._handlers[name]
        return dumps_outcome(
            lambda: self._model.run(handler, batch, inference_args), caught=BaseException
        )


class _Weakly:
    """A method that does not keep its object alive: each connection remembers what it called last."""

    def __init__(self, method: Callable[..., Any]) -> None:
        self._method = weakref.WeakMethod(method)

    def __call__(self, *arguments: Any) -> Any:
        method = self._method()
        if method is None:
            raise ReferenceError("The model was freed.")
        return method(*arguments)


def model_bytes(model: Any) -> int:
    """The bytes that a model holds, as far as Python can see them: its parameters, arrays and objects.

    >>> model_bytes({"weights": np.zeros(1000)}) // 1000
    8
    """
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(model, torch.nn.Module):
        return sum(map(_nbytes, itertools.chain(model.parameters(), model.buffers())))
    seen: set[int] = set()
    total, found = 0, [model]
    while found and len(seen) < _MOST_OBJECTS:
        new = {
            id(x): x
            for x in found
            if id(x) not in seen and not issubclass(type(x), _NOT_OF_A_MODEL)
        }
        few = list(new.values())[: _MOST_OBJECTS - len(seen)]
        seen.update(map(id, few))
        total += sum(max(_sizeof(x), _nbytes(x)) for x in few) * len(new) // max(len(few), 1)
        found = gc.get_referents(*few)
    return total


_NOT_OF_A_MODEL = (type, ModuleType, FunctionType, BuiltinFunctionType)
_MOST_OBJECTS = 100_000


def _sizeof(value: Any) -> int:
    """Python's size, from C code alone: what is written in Python may ask a server, or note the question."""
    method = type(value).__sizeof__
    return (method if isinstance(method, MethodDescriptorType) else object.__sizeof__)(value)


def _nbytes(value: Any) -> int:
    if not hasattr(type(value), "nbytes"):
        return 0
    try:
        return int(value.nbytes)
    except Exception:  # such as that of a sparse tensor
        return 0
