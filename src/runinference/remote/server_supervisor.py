"""The process that runs a local server: it starts, checks, restarts and stops the server.

It ends when the last process that uses the server has closed its connection, which the system also does for
processes that are killed. It is run as a script, and imports only the standard library.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import AuthenticationError
from multiprocessing.connection import Connection, Listener
from typing import Any

_EXEC = "--exec"  # the script replaces itself with the server
_FIRST_CONNECTION_SECS = 60
_STOP_SECS = 10  # between SIGTERM and SIGKILL
_PROBE_SECS = 5  # for a response of the health check
_ANSWER_SECS = 2  # that a state request waits for the server at most
_RESTART_PERIOD_SECS = 3_600
_MAX_OUTPUT = 4_000  # characters of the server's output that are kept
_MAX_PORTS = 3
_PORT_TAKEN = ("address already in use", "eaddrinuse", "address in use", "errno 98", "errno 48")


class Supervisor:
    """A server, and the number of connections of processes that use it."""

    def __init__(self, config: dict[str, Any]) -> None:
        self._config = config
        self._changed = threading.Condition()
        self._n_leases = 0
        self._ended = False
        self._state = "starting"
        self._error = ""
        self._url = ""
        self._output = ""
        self._was_healthy = False
        self._restarts: deque[float] = deque()
        self._server: subprocess.Popen[bytes] | None = None

    # --- connections

    @property
    def ended(self) -> bool:
        """Whether no process uses the server anymore. From then on, connections are closed."""
        return self._ended

    def serve(self, connection: Connection) -> None:
        """Respond to the requests of a process until it closes its connection."""
        with self._changed:
            if self._ended:
                connection.close()
                return
            self._n_leases += 1
        try:
            while question := connection.recv_bytes():
                connection.send_bytes(json.dumps(self._answer(question)).encode())
        except (EOFError, OSError):
            pass
        finally:
            connection.close()
            with self._changed:
                self._n_leases -= 1
                self._end_if_unused()

    def _answer(self, question: bytes) -> dict[str, Any]:
        """Return the state. Wait a moment for a server that isn't ready, or that isn't healthy anymore."""
        with self._changed:
            state, url = self._state, self._url
        healthy = state == "ready" and (question != b"check" or self._probe(url) is None)
        with self._changed:
            if state == "ready" and not healthy:
                self._changed.wait_for(lambda: self._state != "ready", _ANSWER_SECS)
            if question != b"hello":
                self._changed.wait_for(lambda: self._state != "starting", _ANSWER_SECS)
            return {
                "healthy": healthy or self._state != state,
                "state": self._state,
                "url": self._url,
                "error": self._error,
                "output": self._output,
            }

    # --- the server

    def run(self) -> None:
        """Run the server until no process uses it."""
        first = threading.Timer(_FIRST_CONNECTION_SECS, self._end_if_unused)
        first.daemon = True
        first.start()
        try:
            self._fail(self._supervise())
            with self._changed:
                self._changed.wait_for(lambda: self._ended)
        finally:
            self._stop()

    def _end_if_unused(self) -> None:
        with self._changed:
            self._ended = self._ended or self._n_leases == 0
            self._changed.notify_all()

    def _fail(self, error: str) -> None:
        self._stop()
        with self._changed:
            self._state, self._error = "failed", error
            self._changed.notify_all()

    def _supervise(self) -> str:
        """Start the server, and restart it when it ends. Return the reason why it can't be used anymore."""
        n_ports = 0
        while not self._ended:
            error = self._start()
            if error is None:
                self._was_healthy = True
                error = self._watch()
            if self._ended:
                break
            if self._was_healthy:
                if not self._may_restart():
                    n = self._config["max_restarts"]
                    return f"{error} It was restarted {n} times within an hour (max_restarts)."
            else:
                n_ports += 1
                output = self._output.lower()
                if n_ports == _MAX_PORTS or not any(words in output for words in _PORT_TAKEN):
                    return error
            self._stop()
        return ""

    def _may_restart(self) -> bool:
        now = time.monotonic()
        while self._restarts and self._restarts[0] < now - _RESTART_PERIOD_SECS:
            self._restarts.popleft()
        self._restarts.append(now)
        limit: int = self._config["max_restarts"]
        return len(self._restarts) <= limit

    def _start(self) -> str | None:
        """Start the server, and wait until it is healthy. Return the error if it doesn't become healthy."""
        port = str(_find_free_port())
        env = {**os.environ, **_fill(self._config["env"], port)}
        command = [part.replace("{port}", port) for part in self._config["command"]]
        if shutil.which(command[0], path=env.get("PATH")) is None:
            return (
                f"The command {command[0]!r} was not found. Install it on the workers, or pass its full "
                "path."
            )
        url = f"http://127.0.0.1:{port}"
        with self._changed:
            self._state, self._url, self._output = "starting", url, ""
            self._changed.notify_all()
        server = self._server = subprocess.Popen(
            [sys.executable, "-I", __file__, _EXEC, *command],
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        reader = _start_thread(self._read_output, server)
        _start_thread(self._wait_for_end, server)
        start, pause, problem = time.monotonic(), 0.02, "no request was sent yet"
        while time.monotonic() - start < self._config["start_secs"]:
            problem = self._probe(url) or ""
            if server.poll() is not None:
                reader.join(1)  # the last lines
                return f"{_describe_end(server)} before it was healthy."
            with self._changed:
                if not problem:
                    self._state = "ready"
                    self._changed.notify_all()
                    return None
                self._changed.wait_for(lambda: self._ended or server.poll() is not None, pause)
                if self._ended:
                    return ""
            pause = min(2 * pause, 1)
        return (
            f"The server did not become healthy within {self._config['start_secs']:g} seconds (start_secs): GET "
            f"{url}{self._config['health']}: {problem}. Check that the server listens at the port in the command, "
            "and that health is the path of its health check."
        )

    def _watch(self) -> str:
        """Wait until the server ends, or no process uses it."""
        server = self._server
        assert server is not None
        with self._changed:
            self._changed.wait_for(lambda: self._ended or server.poll() is not None)
            self._state = "starting"
        return f"{_describe_end(server)}."

    def _wait_for_end(self, server: subprocess.Popen[bytes]) -> None:
        server.wait()
        with self._changed:
            self._changed.notify_all()

    def _read_output(self, server: subprocess.Popen[bytes]) -> None:
        assert server.stdout is not None
        with suppress(OSError, ValueError):
            while chunk := os.read(server.stdout.fileno(), 4_096):
                text = chunk.decode(errors="replace").replace("\r", "\n")
                with self._changed:
                    if server is self._server:
                        self._output = (self._output + text)[-_MAX_OUTPUT:]

    def _probe(self, url: str) -> str | None:
        """Return why the server isn't healthy, or None if it is."""
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(f"{url}{self._config['health']}", timeout=_PROBE_SECS):
                return None
        except urllib.error.HTTPError as error:
            return f"status {error.code}"
        except Exception as error:
            return str(error) or type(error).__name__

    def _stop(self) -> None:
        """End the server with all processes that it started."""
        server, self._server = self._server, None
        if server is None:
            return
        _kill_group(server.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            server.wait(_STOP_SECS)
        _kill_group(server.pid, signal.SIGKILL)
        server.wait()


def _kill_group(group: int, number: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def _describe_end(server: subprocess.Popen[bytes]) -> str:
    code = server.returncode
    if code is not None and code < 0:
        return f"The server was killed by signal {-code}"
    return f"The server exited with status {code}"


def _fill(env: dict[str, str], port: str) -> dict[str, str]:
    return {name: value.replace("{port}", port) for name, value in env.items()}


def _find_free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _start_thread(target: Callable[..., None], *args: Any) -> threading.Thread:
    thread = threading.Thread(target=target, args=args, daemon=True)
    thread.start()
    return thread


def _accept(listener: Listener, supervisor: Supervisor) -> None:
    while not supervisor.ended:
        with suppress(EOFError, OSError, AuthenticationError):
            _start_thread(supervisor.serve, listener.accept())


def _exec(command: list[str]) -> None:
    """Become the server, which the system kills if the supervisor is killed (Linux)."""
    if sys.platform == "linux":
        import ctypes

        supervisor = os.getppid()
        ctypes.CDLL(None).prctl(1, int(signal.SIGKILL))  # PR_SET_PDEATHSIG
        if os.getppid() != supervisor:
            sys.exit("The supervisor ended.")
    os.execvp(command[0], command)


def _exit(*_: Any) -> None:
    sys.exit()


def main() -> None:
    """Read the configuration from the standard input, print the address, and run the server."""
    import fcntl

    config = json.loads(sys.stdin.readline())
    signal.signal(signal.SIGTERM, _exit)
    supervisor = Supervisor(config)
    # An abstract socket (Linux only) leaves no file behind, even if the process is killed.
    address = f"\0runinference-{uuid.uuid4().hex}" if sys.platform == "linux" else None
    authkey = bytes.fromhex(config["authkey"])
    listener = Listener(address, "AF_UNIX", backlog=64, authkey=authkey)
    _start_thread(_accept, listener, supervisor)
    print(json.dumps(os.fsdecode(listener.address)), flush=True)
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nothing, descriptor)
    # The server before this one may need a moment to stop, and to free its memory.
    with open(config["lock"], "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        supervisor.run()


if __name__ == "__main__":
    if sys.argv[1:2] == [_EXEC]:
        _exec(sys.argv[2:])
    main()
