"""A model that all processes of a machine share. The process that acquires it first hosts it."""

from __future__ import annotations

import hashlib
import itertools
import time
import uuid
from collections.abc import Callable
from contextlib import ExitStack, suppress
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection
from typing import Any

from apache_beam.internal import pickler

from runinference.errors import ModelHostDiedError
from runinference.handlers.compute_turn import compute_turn
from runinference.serving.ipc import dumps, loads
from runinference.serving.model_host import DELETE, GONE, LOADING, Host, find_host, find_or_host
from runinference.serving.placement import InProcessModel, Model, ModelGoneError
from runinference.serving.routing import ModelVersion

_DISCONNECTED = (EOFError, OSError, AuthenticationError)

#: The time to find or become the process that hosts a model, not including the time to load it.
_CONNECT_TIMEOUT_SECS = 30

#: Processes that may turn out to no longer host the model, one after the other, before a call fails.
_MAX_HOSTS = 3


class SharedProcessModel:
    """One or more replicas of a model that all processes of a machine share.

    Calls go to the replicas in turn. Each call pickles the batch and the results.
    """

    ends_on_terminate = False

    def __init__(self, version: ModelVersion, tag: str) -> None:
        name = hashlib.sha256(f"{tag}/{version.name}".encode()).hexdigest()[:32]
        handler = pickler.dumps(version.handler)
        self._replicas: list[ModelClient] = []
        try:
            for n in range(version.handler.model_copies()):
                self._replicas.append(ModelClient(f"{name}-{n}", handler))
        except BaseException:
            self.close()
            raise
        self._turns = itertools.cycle(self._replicas)
        self.n_bytes = sum(replica.n_bytes for replica in self._replicas)

    def run(self, handler: Any, batch: Any, inference_args: dict[str, Any] | None) -> list[Any]:
        return next(self._turns).run(batch, inference_args)

    def close(self) -> None:
        for replica in self._replicas:
            replica.release()

    def terminate(self) -> None:
        """Delete the model for all processes, which then load it again."""
        for replica in self._replicas:
            replica.delete()

    def is_running(self, thread_id: int | None) -> bool:
        return True


def default_placement(
    version: ModelVersion, on_start: Callable[[Model], None] = lambda model: None, *, tag: str
) -> Model:
    """Load a model in this process or, if its handler asks for it, in one that all processes share."""
    if version.handler.share_model_across_processes():
        return SharedProcessModel(version, tag)
    return InProcessModel(version.handler)


class ModelClient:
    """A client of the process that hosts a replica of a model, with one connection for each thread at a time.

    If that process ends between calls, the next call finds or becomes another one. If it ends during a call, the
    call may be the reason, so it fails: repeated elsewhere, it could end one process after the other.
    """

    def __init__(self, name: str, handler: bytes) -> None:
        self._name, self._handler, self._id = name, handler, uuid.uuid4().hex
        self._server_id = ""
        self._idle: list[Connection] = []
        connection, self.n_bytes = self._connect()
        self._idle.append(connection)

    def run(self, batch: Any, inference_args: dict[str, Any] | None) -> list[Any]:
        request = dumps((batch, inference_args))
        for _ in range(_MAX_HOSTS):
            with compute_turn():
                outcome = self._ask(self._take_connection(), request)
            if outcome != GONE:
                results: list[Any] = loads(outcome)
                return results
        raise ModelGoneError("The shared model was deleted again and again before a call.")

    def release(self) -> None:
        """Stop using the model, which is freed before this returns if no other process uses it."""
        connections = list(iter(self._pop_idle, None))
        for connection in connections[1:]:
            connection.close()
        for connection in connections[:1]:
            with connection, suppress(*_DISCONNECTED):  # the process ended, which freed the model
                connection.send_bytes(b"")
                connection.recv_bytes()

    def delete(self) -> None:
        """Delete the model for all processes, unless it was already replaced."""
        with suppress(*_DISCONNECTED):
            host = find_host(self._name)
            if host is not None and host.server_id == self._server_id:
                with _open(host) as connection:
                    connection.send_bytes(dumps((host.server_id, self._id, DELETE)))
                    connection.recv_bytes()

    def _pop_idle(self) -> Connection | None:
        try:
            return self._idle.pop()
        except IndexError:
            return None

    def _take_connection(self) -> Connection:
        while (connection := self._pop_idle()) is not None:
            if not connection.poll():
                return connection
            connection.close()  # the other process closed it
        try:
            connection, _ = self._connect()
        except Exception as error:
            raise ModelGoneError("The process that hosted the shared model ended.") from error
        return connection

    def _ask(self, connection: Connection, request: bytes) -> bytes:
        """Return the serialized outcome of a call, or ``GONE`` if the model was deleted before the call began."""
        try:
            connection.send_bytes(request)
            outcome = connection.recv_bytes()
        except BaseException as error:
            connection.close()
            if isinstance(error, (EOFError, OSError)):
                raise _died("during a call") from error
            raise
        if outcome == GONE:
            connection.close()
        else:
            self._idle.append(connection)
        return outcome

    def _connect(self) -> tuple[Connection, int]:
        """Open a connection, and return it with the bytes of the model. Host the model if no process does."""
        deadline = time.monotonic() + _CONNECT_TIMEOUT_SECS
        while True:
            connected = self._try_to_connect(find_or_host(self._name))
            if connected is not None:
                connection, size = connected
                try:
                    return connection, loads(size)
                except BaseException:
                    connection.close()
                    raise
            if time.monotonic() > deadline:
                raise TimeoutError("Can't connect to the process that hosts the shared model.")
            time.sleep(0.01)  # that process is ending

    def _try_to_connect(self, host: Host) -> tuple[Connection, bytes] | None:
        """Return a connection and the serialized size of the model, or None if it is not hosted there any more."""
        state = GONE
        try:
            connection = _open(host)
            with ExitStack() as on_error:
                on_error.callback(connection.close)
                connection.send_bytes(dumps((host.server_id, self._id, self._handler)))
                state = connection.recv_bytes()
                if state == GONE:
                    return None
                self._server_id = host.server_id
                size = connection.recv_bytes()
                on_error.pop_all()
                return connection, size
        except _DISCONNECTED as error:
            if state == LOADING:
                raise _died("while it loaded the model") from error
            return None


def _open(host: Host) -> Connection:
    return Client(host.address, authkey=host.authkey)


def _died(when: str) -> ModelHostDiedError:
    return ModelHostDiedError(
        f"The process that hosts the shared model ended {when}. An element may have crashed native code of the "
        "framework, or the system may have ended it to free memory. The call is not repeated, because it "
        "could end the next process that hosts the model."
    )
