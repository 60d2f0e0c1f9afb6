"""Where a model lives: in this process, in one process of the machine for all, or in a child of its own."""

from __future__ import annotations

import gc
import hashlib
import itertools
import sys
import threading
import uuid
from collections.abc import Callable
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any, Protocol

from apache_beam.internal import pickler
from apache_beam.utils.multi_process_shared import MultiProcessShared
from apache_beam.utils.shared import Shared

from runinference.batching import AdaptiveSize
from runinference.child import Child
from runinference.metrics import resident_bytes
from runinference.routing import Edition
from runinference.shelf import Room, Shelf
from runinference.splitting import run_batch


class Model(Protocol):
    """A loaded model, wherever it lives."""

    n_bytes: int

    def run(self, handler: Any, batch: Any, inference_args: dict[str, Any] | None) -> list[Any]:
        """One result for each element of a batch."""

    def close(self) -> None:
        """Frees it after its last call."""

    def abandon(self) -> None:
        """Frees what can be freed while a call hangs in it."""


Place = Callable[[Edition], Model]


class InThisProcess:
    """A model that all threads of this process share."""

    def __init__(self, edition: Edition) -> None:
        edition.handler.set_environment_vars()
        before = resident_bytes()
        self._model = edition.handler.load_model()
        self.n_bytes = max(bytes_of(self._model), resident_bytes() - before)

    def run(self, handler: Any, batch: Any, inference_args: dict[str, Any] | None) -> list[Any]:
        return run_batch(handler, batch, self._model, inference_args)

    def close(self) -> None:
        self._model = None

    def abandon(self) -> None:
        """Its thread cannot be ended, and holds the model until it returns."""


class OnThisMachine:
    """One model, or so many copies, that all processes of this machine share.

    The process that asks first holds it; the others send it their batches, and wait for the results. Each
    call costs the pickling of both.
    """

    def __init__(self, edition: Edition, tag: str) -> None:
        name = hashlib.sha256(f"{tag}/{edition.name}".encode()).hexdigest()[:32]
        self._handler_name = hashlib.sha256(handler := pickler.dumps(edition.handler)).hexdigest()
        self._shares = [
            MultiProcessShared(_Host(handler), tag=f"runinference-{name}-{copy}", always_proxy=True)
            for copy in range(edition.handler.model_copies())
        ]
        self._proxies = [share.acquire() for share in self._shares]
        for proxy in self._proxies:
            proxy.learn(self._handler_name, handler)
        self._turns = itertools.cycle(range(len(self._proxies)))
        self.n_bytes = sum(proxy.size() for proxy in self._proxies)

    def run(self, handler: Any, batch: Any, inference_args: dict[str, Any] | None) -> list[Any]:
        proxy = self._proxies[next(self._turns)]
        results: list[Any] = proxy.run(self._handler_name, batch, inference_args)
        return results

    def close(self) -> None:
        for share, proxy in zip(self._shares, self._proxies, strict=True):
            share.release(proxy)

    def abandon(self) -> None:
        for share in self._shares:
            share.unsafe_hard_delete()


class _Host:
    """Makes, in the process that holds it, the model that others share."""

    def __init__(self, handler: bytes) -> None:
        self._handler = handler

    def __call__(self) -> _Hosted:
        return _Hosted(self._handler)


class _Hosted:
    """A model with the handlers that call it: those of all steps that share it."""

    def __init__(self, handler: bytes) -> None:
        self._model = InThisProcess(Edition("", pickler.loads(handler), None))  # type: ignore[arg-type]
        self._handlers: dict[str, Any] = {}

    def learn(self, name: str, handler: bytes) -> None:
        if name not in self._handlers:
            self._handlers[name] = pickler.loads(handler)

    def size(self) -> int:
        return self._model.n_bytes

    def run(self, name: str, batch: Any, inference_args: dict[str, Any] | None) -> list[Any]:
        return self._model.run(self._handlers[name], batch, inference_args)


class InAChild:
    """A model in a process of its own, which may crash or hang without harm."""

    def __init__(self, edition: Edition) -> None:
        self._child = Child(pickler.dumps(edition.handler))
        self.n_bytes = self._child.n_bytes

    def run(self, handler: Any, batch: Any, inference_args: dict[str, Any] | None) -> list[Any]:
        results: list[Any] = pickler.loads(self._child.ask(pickler.dumps((batch, inference_args))))
        return results

    def close(self) -> None:
        self._child.stop()

    def abandon(self) -> None:
        self._child.kill()


class ModelsOfProcess:
    """What this process knows of the models of a step: the shelf they lie on, and their batch sizes."""

    def __init__(self, room: Room) -> None:
        self.shelf = Shelf(room)
        self._sizes: dict[str, AdaptiveSize] = {}
        self._lock = threading.Lock()

    def size_for(self, name: str, edition: Edition) -> AdaptiveSize:
        """The batch size of a model, learnt by all threads together; kept while the model is not."""
        with self._lock:
            if name not in self._sizes:
                self._sizes[name] = AdaptiveSize(edition.policy)
            return self._sizes[name]


class FoundAgain:
    """Finds the same models in whatever thread of a process asks.

    Made with the transform, and sent to the workers with it.

    Args:
        room: How much the process may hold.
        identifier: Shared by all steps that give the same one; None for this step alone.
    """

    def __init__(self, room: Room, identifier: str | None = None) -> None:
        self.name = uuid.uuid4().hex
        self._room = room
        self._identifier = identifier
        self._shared = Shared()

    def open(self) -> ModelsOfProcess:
        """The models; they live as long as somebody holds them."""
        shared = self._shared
        if self._identifier is not None:
            shared = _BY_IDENTIFIER.setdefault(self._identifier, shared)
        models: ModelsOfProcess = shared.acquire(lambda: ModelsOfProcess(self._room))
        return models


_BY_IDENTIFIER: dict[str, Shared] = {}


def bytes_of(model: Any) -> int:
    """The bytes that a model holds, as far as Python can see them: its parameters, arrays and objects.

    >>> bytes_of({"weights": np.zeros(1000)}) // 1000
    8
    """
    parameters, buffers = getattr(model, "parameters", None), getattr(model, "buffers", None)
    if callable(parameters) and callable(buffers):
        return sum(tensor.nbytes for tensor in itertools.chain(parameters(), buffers()))
    seen: set[int] = set()
    total, found = 0, [model]
    while found and len(seen) < _MOST_OBJECTS:
        new = [x for x in found if id(x) not in seen and not isinstance(x, _NOT_OF_A_MODEL)]
        seen.update(map(id, new))
        total += sum(max(sys.getsizeof(x, 0), _nbytes(x)) for x in new)
        found = gc.get_referents(*new)
    return total


_NOT_OF_A_MODEL = (type, ModuleType, FunctionType, BuiltinFunctionType)
_MOST_OBJECTS = 100_000


def _nbytes(value: Any) -> int:
    n_bytes = getattr(value, "nbytes", 0)
    return n_bytes if isinstance(n_bytes, int) else 0
