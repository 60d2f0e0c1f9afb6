"""A model that all processes of a machine share. The process that acquires it first hosts it."""

from __future__ import annotations

import hashlib
import itertools
import os
import pickle
import secrets
import sys
import threading
import uuid
import weakref
from contextlib import suppress
from functools import cache, partial
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection, Listener
from typing import Any

from apache_beam.internal import pickler
from apache_beam.utils.multi_process_shared import MultiProcessShared

from runinference.serving.ipc import dumps, dumps_outcome, loads
from runinference.serving.placement import InProcessModel, Model
from runinference.serving.routing import ModelVersion


class SharedProcessModel:
    """One or more replicas of a model that all processes of a machine share.

    Calls go to the replicas in turn. Each call pickles the batch and the results.
    """

    # A call that fails because its server was terminated is repeated by the replica.
    terminated = False

    def __init__(self, version: ModelVersion, tag: str) -> None:
        name = hashlib.sha256(f"{tag}/{version.name}".encode()).hexdigest()[:32]
        handler = pickler.dumps(version.handler)
        numbers = range(version.handler.model_copies())
        self._replicas = [_Replica(f"runinference-{name}-{n}", handler) for n in numbers]
        self._turns = itertools.cycle(self._replicas)
        self.n_bytes = sum(replica.n_bytes for replica in self._replicas)

    def run(self, handler: Any, batch: Any, inference_args: dict[str, Any] | None) -> list[Any]:
        return next(self._turns).run(batch, inference_args)

    def close(self) -> None:
        for replica in self._replicas:
            replica.client.release()

    def terminate(self) -> None:
        for replica in self._replicas:
            replica.client.delete()

    def is_running(self, thread_id: int | None) -> bool:
        return True


def default_placement(version: ModelVersion, tag: str) -> Model:
    """Load a model in this process or, if its handler asks for it, in one that all processes share."""
    if version.handler.share_model_across_processes():
        return SharedProcessModel(version, tag)
    return InProcessModel(version.handler)


class _Replica:
    """A replica of a model, reloaded in another process if the one that hosts it ends."""

    def __init__(self, tag: str, handler: bytes) -> None:
        self._acquire = partial(ModelClient, tag, handler)
        self._lock = threading.Lock()
        self.client = self._acquire()
        self.n_bytes = self.client.n_bytes

    def run(self, batch: Any, inference_args: dict[str, Any] | None) -> list[Any]:
        request = dumps((batch, inference_args))
        client = self.client
        try:
            outcome = client.send(request)
        except _DISCONNECTED:
            outcome = self._reconnected(client).send(request)
        results: list[Any] = loads(outcome)
        return results

    def _reconnected(self, lost: ModelClient) -> ModelClient:
        with self._lock:
            if self.client is lost:
                self.client = self._acquire()
            return self.client


class ModelClient:
    """A client of the process that hosts the model of a tag.

    Beam's MultiProcessShared decides which process hosts the model, and counts its users. Batches use separate
    connections, one for each thread at a time. Beam's proxies use TCP, where Nagle's algorithm delays messages of
    16 to 64 kB by 40 ms. Neither Beam 2.77 nor ``multiprocessing.managers`` has a public option to prevent that.
    """

    def __init__(self, tag: str, handler: bytes) -> None:
        self._handler = handler
        self._share = MultiProcessShared(partial(ModelServer, handler), tag=tag, always_proxy=True)
        self._proxy = self._share.acquire()
        # A model that is still cached when the pipeline ends is released with the last reference to this client.
        self._finalizer = weakref.finalize(self, _release_in_thread, self._share, self._proxy)
        self._finalizer.atexit = False
        self._idle: list[Connection] = []
        try:
            self._address, self._authkey, self._server_id = self._proxy()
            connection, self.n_bytes = self._connect()
        except BaseException:
            self.release()
            raise
        self._idle.append(connection)

    def send(self, request: bytes) -> bytes:
        """Return the serialized outcome; raise EOFError or OSError if the process no longer hosts the model."""
        try:
            connection = self._idle.pop()
        except IndexError:
            connection, _ = self._connect()
        try:
            connection.send_bytes(request)
            outcome = connection.recv_bytes()
        except BaseException:
            connection.close()
            raise
        self._idle.append(connection)
        return outcome

    def release(self) -> None:
        while self._idle:
            self._idle.pop().close()
        if self._finalizer.detach():
            _release(self._share, self._proxy)

    def delete(self) -> None:
        """Delete the model for all processes, which then load it again."""
        with suppress(ConnectionError, EOFError):
            self._share.unsafe_hard_delete()

    def _connect(self) -> tuple[Connection, int]:
        """Open a connection, and return it with the size of the model in bytes."""
        connection = Client(self._address, authkey=self._authkey)
        try:
            connection.send_bytes(dumps((self._server_id, self._handler)))
            return connection, loads(connection.recv_bytes())
        except BaseException:
            connection.close()
            raise


def _release(share: Any, proxy: Any) -> None:
    with suppress(ConnectionError, EOFError):  # the process ended, which freed the model
        share.release(proxy)


def _release_in_thread(share: Any, proxy: Any) -> None:
    # The garbage collector may run while this thread holds a lock that the release needs, so don't wait forever.
    thread = threading.Thread(target=_release, args=(share, proxy), daemon=True)
    thread.start()
    thread.join(5)


_DISCONNECTED = (EOFError, OSError, AuthenticationError)


class ModelServer:
    """A model that this process serves to others until this object is deleted.

    Only Beam keeps a reference to this object. Threads that serve connections find it by its ID.
    """

    def __init__(self, handler: bytes) -> None:
        self.model = InProcessModel(pickler.loads(handler))
        self.handlers: dict[bytes, Any] = {}
        self._id = uuid.uuid4().hex
        _SERVERS[self._id] = self

    def __call__(self) -> tuple[Any, bytes, str]:
        """Return the address and the authentication key of this process, and the ID of this server."""
        return *_listen(os.getpid()), self._id

    def add_handler(self, pickled: bytes) -> int:
        """Add the handler of a step, and return the size of the model. Steps may have different handlers."""
        if pickled not in self.handlers:
            self.handlers[pickled] = pickler.loads(pickled)
        return self.model.n_bytes


_SERVERS: weakref.WeakValueDictionary[str, ModelServer] = weakref.WeakValueDictionary()


@cache
def _listen(process_id: int) -> tuple[Any, bytes]:
    """Accept connections from now on, at one address for all models of this process."""
    authkey = secrets.token_bytes(32)
    # An abstract socket (Linux only) leaves no file behind, even if the process is killed.
    address = f"\0runinference-{uuid.uuid4().hex}" if sys.platform == "linux" else None
    listener = Listener(address, backlog=64, authkey=authkey)
    threading.Thread(
        target=_accept, args=(listener,), daemon=True, name="runinference-listener"
    ).start()
    return listener.address, authkey


def _accept(listener: Listener) -> None:
    while True:
        with suppress(*_DISCONNECTED):
            connection = listener.accept()
            threading.Thread(
                target=_serve, args=(connection,), daemon=True, name="runinference-server"
            ).start()


def _serve(connection: Connection) -> None:
    """Answer the requests of one connection until the client closes it, or the model is deleted."""
    with connection, suppress(EOFError, OSError, KeyError):  # KeyError: no such server
        server_id, handler = pickle.loads(connection.recv_bytes())
        connection.send_bytes(dumps_outcome(partial(_SERVERS[server_id].add_handler, handler)))
        while True:
            connection.send_bytes(_answer(server_id, handler, connection.recv_bytes()))


def _answer(server_id: str, pickled: bytes, request: bytes) -> bytes:
    server = _SERVERS[server_id]
    model, handler = server.model, server.handlers[pickled]
    del server  # a call that hangs must not keep a deleted server alive

    def run() -> list[Any]:
        batch, inference_args = pickle.loads(request)
        return model.run(handler, batch, inference_args)

    return dumps_outcome(run, caught=BaseException)
