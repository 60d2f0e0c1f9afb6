"""The process that hosts a shared model: how others find it, and what it answers.

A process that hosts a model holds a lock on a file in a directory of the user, which contains its address and a
random key. The system releases the lock when the process ends, for any reason. The next process that locks it
hosts the model.
"""

from __future__ import annotations

import atexit
import json
import os
import pickle
import secrets
import sys
import threading
import time
import uuid
from collections import Counter
from contextlib import suppress
from functools import partial
from multiprocessing import AuthenticationError
from multiprocessing.connection import Connection, Listener
from pathlib import Path
from typing import Any, NamedTuple

from apache_beam.internal import pickler

from runinference.handlers.private_directory import private_directory
from runinference.serving.ipc import dumps_outcome
from runinference.serving.placement import InProcessModel

#: Sent instead of a handler, to delete the model.
DELETE = None
#: Answers: this process does not host the model any more; it will load the model; it has loaded it.
GONE, LOADING, LOADED = b"gone", b"loading", b"loaded"

#: The time that a process which ends normally waits for the calls of other processes.
_DRAIN_SECS = 2


class Host(NamedTuple):
    """Where a process serves a model."""

    address: str
    authkey: bytes
    server_id: str


def find_host(name: str) -> Host | None:
    """Return where a model is hosted, or None if no process hosts it."""
    descriptor = _lock(private_directory("runinference") / name)
    if isinstance(descriptor, Host):
        return descriptor
    os.unlink(private_directory("runinference") / name)
    os.close(descriptor)
    return None


def find_or_host(name: str) -> Host:
    """Return where a model is hosted. If no process hosts it, this process does from now on."""
    path = private_directory("runinference") / name
    found = _lock(path)
    if isinstance(found, Host):
        return found
    try:
        _remove_stale_files(path.parent)
        server = ModelServer(path, found)
        host = Host(*_listen(os.getpid()), server.id)
        _SERVERS[server.id] = server
        os.ftruncate(found, 0)
        content = {**host._asdict(), "authkey": host.authkey.hex()}
        os.pwrite(found, json.dumps(content).encode(), 0)
    except BaseException:
        os.close(found)
        raise
    return host


def _lock(path: Path) -> Host | int:
    """Lock a file and return its descriptor, or return the host that has locked it."""
    import fcntl  # not on Windows, where models can't be shared

    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(path, descriptor):
                return descriptor
        except BlockingIOError:
            if host := _read_host(descriptor):
                os.close(descriptor)
                return host
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        time.sleep(0.005)  # another process has just locked the file, or removed it


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _read_host(descriptor: int) -> Host | None:
    try:
        content = json.loads(os.pread(descriptor, 10_000, 0))
        return Host(content["address"], bytes.fromhex(content["authkey"]), content["server_id"])
    except ValueError:  # not written yet
        return None


def _remove_stale_files(directory: Path) -> None:
    """Remove the files of processes that were killed."""
    import fcntl

    for path in directory.iterdir():
        with suppress(OSError), path.open("rb+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(path, file.fileno()):
                path.unlink()


class ModelServer:
    """A model that this process serves until the last client has left, or it is deleted."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.id = uuid.uuid4().hex
        self.descriptor = descriptor
        self.n_running = 0
        self._path = path
        self._clients: Counter[str] = Counter()  # with the number of their connections
        self._handlers: dict[bytes, Any] = {}
        self._model: InProcessModel | None = None
        self._ended = False
        self._lock = threading.RLock()
        self._load_lock = threading.Lock()

    def add_connection(self, client: str) -> bytes:
        """Count a connection, and return ``GONE``, ``LOADING`` or ``LOADED``."""
        with self._lock:
            if self._ended:
                return GONE
            self._clients[client] += 1
            return LOADING if self._model is None else LOADED

    def remove_connection(self, client: str) -> None:
        """Stop counting a connection, also if its process was killed. The last one ends the server."""
        with self._lock:
            self._clients[client] -= 1
            if self._clients[client] <= 0:
                self.remove_client(client)

    def remove_client(self, client: str) -> None:
        """Remove a client with all of its connections. The last one ends the server."""
        with self._lock:
            self._clients.pop(client, None)
            if not self._clients:
                self.end()

    def end(self) -> None:
        """Free the model after its running calls, and let another process host it."""
        with self._lock:
            if not self._ended:
                self._ended = True
                self._model = None
                _SERVERS.pop(self.id, None)
                with suppress(FileNotFoundError):
                    self._path.unlink()
                os.close(self.descriptor)

    def load(self, pickled: bytes) -> int:
        """Add the handler of a step, and return the size of the model. Steps may have different handlers."""
        with self._load_lock:
            if pickled not in self._handlers:
                self._handlers[pickled] = pickler.loads(pickled)
            model = self._model or InProcessModel(self._handlers[pickled])
        with self._lock:
            if not self._ended:
                self._model = model
        return model.n_bytes

    def answer(self, pickled: bytes, request: bytes) -> bytes:
        """Return the serialized outcome of a call, or ``GONE``."""
        with self._lock:
            model, handler = self._model, self._handlers.get(pickled)
            if model is None:
                return GONE
            self.n_running += 1

        def run() -> list[Any]:
            batch, inference_args = pickle.loads(request)
            return model.run(handler, batch, inference_args)

        try:
            return dumps_outcome(run, caught=BaseException)
        finally:
            with self._lock:
                self.n_running -= 1


_SERVERS: dict[str, ModelServer] = {}
_LISTENERS: dict[int, tuple[Listener, bytes]] = {}
_LISTENERS_LOCK = threading.Lock()


def _listen(process_id: int) -> tuple[str, bytes]:
    """Accept connections from now on, at one address for all models of this process."""
    with _LISTENERS_LOCK:
        if process_id not in _LISTENERS:
            authkey = secrets.token_bytes(32)
            # An abstract socket (Linux only) leaves no file behind, even if the process is killed.
            address = f"\0runinference-{uuid.uuid4().hex}" if sys.platform == "linux" else None
            listener = Listener(address, backlog=64, authkey=authkey)
            _LISTENERS[process_id] = listener, authkey
            threading.Thread(
                target=_accept, args=(listener,), daemon=True, name="runinference-listener"
            ).start()
        listener, authkey = _LISTENERS[process_id]
        return os.fsdecode(listener.address), authkey


def _accept(listener: Listener) -> None:
    while True:
        with suppress(EOFError, OSError, AuthenticationError):
            connection = listener.accept()
            threading.Thread(
                target=_serve, args=(connection,), daemon=True, name="runinference-server"
            ).start()


def _serve(connection: Connection) -> None:
    """Answer the requests of one connection until the client closes it, or the model is deleted."""
    with connection, suppress(EOFError, OSError):
        server_id, client, handler = pickle.loads(connection.recv_bytes())
        server = _SERVERS.get(server_id)
        if server is not None and handler is DELETE:
            server.end()
        state = GONE if server is None or handler is DELETE else server.add_connection(client)
        connection.send_bytes(state)
        if server is None or state == GONE:
            return
        try:
            connection.send_bytes(dumps_outcome(partial(server.load, handler), BaseException))
            while request := connection.recv_bytes():
                connection.send_bytes(server.answer(handler, request))
            server.remove_client(client)
            connection.send_bytes(GONE)
        finally:
            server.remove_connection(client)


@atexit.register
def _end_all() -> None:
    """Let other processes host the models, and wait a moment for their calls that are running."""
    servers = list(_SERVERS.values())
    for server in servers:
        server.end()
    deadline = time.monotonic() + _DRAIN_SECS
    while any(server.n_running for server in servers) and time.monotonic() < deadline:
        time.sleep(0.01)


def _forget_servers() -> None:
    """Close what a process inherits when it is forked: locks and sockets that belong to the parent."""
    global _LISTENERS_LOCK
    _LISTENERS_LOCK = threading.Lock()
    for listener, _ in _LISTENERS.values():
        listener.close()
    for server in _SERVERS.values():
        os.close(server.descriptor)
    _LISTENERS.clear()
    _SERVERS.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_servers)
