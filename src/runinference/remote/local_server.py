"""A server that runs on the worker and is shared by all processes of the machine."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import secrets
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection
from pathlib import Path
from typing import Any

from runinference.checks import (
    check_env_vars,
    check_int,
    check_seconds,
    is_secret_value,
)
from runinference.errors import (
    EndpointDisconnectedError,
    EndpointRefusedError,
    EndpointUnreachableError,
    OptionError,
    shorten_text,
)
from runinference.handlers.private_directory import private_directory
from runinference.remote import server_supervisor
from runinference.remote.http_client import HttpClient

_logger = logging.getLogger(__name__)
_DISCONNECTED = (EOFError, OSError, AuthenticationError)
_VERSION = 1  # of the messages between this process and the supervisor
_LOG_SECS = 10  # between log messages while a server starts
_MAX_OUTPUT = 1_500  # characters of the server's output in an error
_MAX_SUPERVISORS = 3  # that may end in a row before an error is raised
_CHECK_SECS = (
    10  # that a server whose health check fails may take to end, before the request is retried
)


class LocalServer:
    """A command that starts a server with an OpenAI-compatible API on the worker. Pass it as ``base_url``.

    The first process of a machine that needs the server starts it on a free port of 127.0.0.1. Other processes
    with an equal ``LocalServer`` use the same server. If the server crashes, it is restarted, and requests in
    flight are retried. It is stopped when no process uses it anymore, even if the processes are killed.

    >>> import sys
    >>> from runinference.openai_inference import LocalServer, OpenAIChatModelHandler
    >>> server = LocalServer([sys.executable, "-m", "runinference.samples.servers", "llm", "--port", "{port}"])
    >>> handler = OpenAIChatModelHandler(server, model="shout")
    >>> handler.predict(["hello"])[0].inference.text
    'HELLO'

    Args:
        command: The command and its arguments, such as ``["vllm", "serve", "MODEL", "--port", "{port}"]``. In
            each of them, ``{port}`` is replaced with the port.
        health: Path of the health check, which returns status 200 once the server accepts requests.
        path: Path of the API.
        start_secs: Maximum time in seconds until the server is healthy, including downloads of the model.
        max_restarts: Maximum number of restarts within an hour.
        env: Additional environment variables of the server. ``{port}`` is replaced in their values. They must not
            contain secrets, because they are stored in the pipeline. The server also gets the variables of the
            worker.

    Raises:
        OptionError: A value is invalid, or neither the command nor the environment contains ``{port}``.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        health: str = "/health",
        path: str = "/v1",
        start_secs: float = 600,
        max_restarts: int = 3,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.command = _check_command(command)
        self.env = dict(env or {})
        check_env_vars(self.env)
        for name, value in (("health", health), ("path", path)):
            _check_path(name, value, may_be_empty=name == "path")
        check_seconds("start_secs", start_secs)
        check_int("max_restarts", max_restarts, 0)
        if not any("{port}" in text for text in (*self.command, *self.env.values())):
            raise OptionError(
                "command has no '{port}', which is replaced with a free port. To fix this, add it, for example "
                "[..., '--port', '{port}']."
            )
        self.health = health
        self.path = path.rstrip("/")
        self.start_secs = start_secs
        self.max_restarts = max_restarts

    def __repr__(self) -> str:
        return f"LocalServer({shorten_text(repr(list(self.command)), 200)})"

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, LocalServer) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash(self.command)

    @property
    def key(self) -> str:
        """A hash of the command, the environment and the health check. Servers with equal keys are shared."""
        what = json.dumps([_VERSION, self.command, sorted(self.env.items()), self.health])
        return hashlib.sha256(what.encode()).hexdigest()[:32]


def _check_command(command: Any) -> tuple[str, ...]:
    is_list = isinstance(command, Sequence) and not isinstance(command, (str, bytes))
    if not is_list or not command or not all(isinstance(part, str) for part in command):
        raise OptionError(
            "command must be a list of strings, such as ['vllm', 'serve', 'MODEL', '--port', '{port}'], but is "
            f"{shorten_text(repr(command), 60)}."
        )
    for part in command:
        if "\0" in part:
            raise OptionError(f"command has {part!r}, which contains a null character.")
        if is_secret_value(part.rpartition("=")[2]) or is_secret_value(part):
            raise OptionError(
                "command contains what looks like a secret, which would be stored in the pipeline. To fix this, "
                "set an environment variable on the workers that the server reads."
            )
    return tuple(command)


def _check_path(name: str, value: Any, may_be_empty: bool) -> None:
    is_path = isinstance(value, str) and value.startswith("/") and value.isprintable()
    if not (is_path and " " not in value) and not (may_be_empty and value == ""):
        raise OptionError(f"{name} must be a path such as '/health', but is {value!r}.")


class LocalServerClient:
    """A client of a local server, which it starts if it doesn't run. Several threads may share it.

    Args:
        server: The server.
        open_client: Returns a client for a URL.

    Raises:
        EndpointRefusedError: The server can't be started.
    """

    def __init__(self, server: LocalServer, open_client: Callable[[str], HttpClient]) -> None:
        self._server = server
        self._open_client = open_client
        self._lock = threading.Lock()
        self._connection = _acquire(server)
        self._url = ""
        self._client: HttpClient
        try:
            self._wait(check=False)
        except BaseException:
            # If the error is kept, so is this object, but it must not keep the server running.
            del self._connection
            raise

    def post(self, *args: Any) -> Any:
        """Send a request; see ``HttpClient.post``. If the server has ended, wait until it was restarted."""
        return self._call(lambda client: client.post(*args))

    def get(self, path: str) -> Any:
        """Return the JSON response for a path; see ``HttpClient.get``."""
        return self._call(lambda client: client.get(path))

    def redact_key(self, text: str) -> str:
        """Return a text without the key of this client."""
        return self._client.redact_key(text)

    def _call(self, send: Callable[[HttpClient], Any]) -> Any:
        try:
            return send(self._client)
        except (EndpointUnreachableError, EndpointDisconnectedError):
            self._wait(check=True)
            raise  # the request is retried

    def _wait(self, check: bool) -> None:
        """Wait until the server is ready, and open a client for its URL."""
        with self._lock:
            state = self._wait_for_state(check)
            if state["state"] == "failed":
                output = state["output"].strip()[-_MAX_OUTPUT:]
                raise EndpointRefusedError(
                    f"The local server can't be used ({self._server!r}). {state['error']}"
                    + (f" Its last output:\n{output}" if output else " It has no output.")
                )
            url = state["url"] + self._server.path
            if url != self._url:
                self._client, self._url = self._open_client(url), url

    def _wait_for_state(self, check: bool) -> dict[str, Any]:
        start = logged = time.monotonic()
        n_supervisors = 1
        while True:
            try:
                state = self._connection.request_state(check)
            except _DISCONNECTED as error:
                if n_supervisors == _MAX_SUPERVISORS:
                    raise EndpointUnreachableError(
                        f"The process that runs the local server ended {n_supervisors} times ({self._server!r})."
                    ) from error
                n_supervisors += 1
                self._connection = _acquire(self._server, instead_of=self._connection)
                continue
            now = time.monotonic()
            if state["state"] == "ready":
                if not check or state["healthy"] or now - start > _CHECK_SECS:
                    if now - start > 1 or not self._url:
                        _logger.info("The local server is ready at %s.", state["url"])
                    return state
            elif state["state"] == "failed":
                return state
            if logged == start or now - logged > _LOG_SECS:
                logged = now
                lines = state["output"].split("\n")
                last = next((line for line in reversed(lines) if line.strip()), "no output yet")
                _logger.info(
                    "Waiting for the local server (%d s): %s", now - start, shorten_text(last, 200)
                )


class _ServerConnection:
    """A connection to the process that runs a server. The server runs as long as there are connections."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._lock = threading.Lock()

    def request_state(self, check: bool) -> dict[str, Any]:
        """Return the state of the server."""
        with self._lock:
            try:
                self._connection.send_bytes(b"check" if check else b"state")
                state: dict[str, Any] = json.loads(self._connection.recv_bytes())
            except BaseException:
                # After a KeyboardInterrupt, the response would be read as the response to the next request.
                self.close()
                raise
            return state

    def close(self) -> None:
        self._connection.close()


#: The connections of this process by the keys of the servers. They end with the last client that uses them.
_connections: weakref.WeakValueDictionary[str, _ServerConnection] = weakref.WeakValueDictionary()
_connections_lock = threading.Lock()


def _acquire(server: LocalServer, instead_of: _ServerConnection | None = None) -> _ServerConnection:
    """Return the connection of this process, or a new one if the process that runs the server ended."""
    with _connections_lock:
        connection = _connections.get(server.key)
        if connection is None or connection is instead_of:
            connection = _connections[server.key] = _ServerConnection(_connect(server))
        return connection


def _connect(server: LocalServer) -> Connection:
    """Connect to the process that runs a server, and start it if there is none."""
    if sys.platform == "win32":
        raise OptionError("LocalServer needs Linux or macOS.")
    directory = private_directory("runinference-servers")
    path = directory / server.key
    with _locked(directory / f"{server.key}.lock"):
        with suppress(
            *_DISCONNECTED, ValueError, KeyError, TypeError
        ):  # gone, or not written completely
            found = json.loads(path.read_text())
            return _open(found["address"], found["authkey"])
        _logger.info("Starting the local server: %r", server)
        authkey = secrets.token_hex(32)
        config = {
            "command": server.command,
            "env": server.env,
            "health": server.health,
            "start_secs": server.start_secs,
            "max_restarts": server.max_restarts,
            "authkey": authkey,
            "lock": str(directory / f"{server.key}.running"),
        }
        address = _start_supervisor(config)
        path.touch(0o600)
        path.write_text(json.dumps({"address": address, "authkey": authkey}))
        return _open(address, authkey)


def _open(address: str, authkey: str) -> Connection:
    """Open a connection, and check that the supervisor isn't about to end."""
    connection = Client(address, authkey=bytes.fromhex(authkey))
    try:
        connection.send_bytes(b"hello")
        connection.recv_bytes()
    except BaseException:
        connection.close()
        raise
    return connection


def _start_supervisor(config: dict[str, Any]) -> str:
    """Start the process that runs a server, and return its address."""
    process = subprocess.Popen(
        [sys.executable, "-I", server_supervisor.__file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    threading.Thread(target=process.wait, daemon=True).start()  # leave no zombie
    with process.stdin, process.stdout:
        with suppress(BrokenPipeError):
            process.stdin.write(json.dumps(config) + "\n")
            process.stdin.flush()
        line = process.stdout.readline()
        try:
            address: str = json.loads(line)
        except ValueError:
            output = line + process.stdout.read()
            raise EndpointUnreachableError(
                f"The process that runs the local server can't be started: {shorten_text(output, 500)}"
            ) from None
    return address


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    import fcntl  # not on Windows

    with open(path, "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            # Closing the file isn't enough if another thread has forked a process, which inherits it.
            fcntl.flock(file, fcntl.LOCK_UN)


def _close_inherited_connections() -> None:
    """Close the connections that a process inherits when it is forked: they would keep the server running."""
    global _connections_lock
    _connections_lock = threading.Lock()
    for connection in list(_connections.values()):
        connection.close()
    _connections.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_inherited_connections)
