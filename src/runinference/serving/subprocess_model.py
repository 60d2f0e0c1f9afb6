"""A model in a subprocess, which can crash or hang without affecting the worker."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

from apache_beam.internal import pickler
from apache_beam.io.filesystems import FileSystems

from runinference.download import get_file_system_options
from runinference.errors import ChildDiedError
from runinference.handlers.compute_turn import compute_turn
from runinference.serving.ipc import dumps, dumps_outcome, loads
from runinference.serving.placement import InProcessModel, Model, ModelGoneError
from runinference.serving.routing import ModelVersion

#: The time to wait for the exit code of a process that closed its connection.
_EXIT_TIMEOUT_SECS = 5

_PROGRAM = "from runinference.serving.subprocess_model import serve; serve()"


class SubprocessModel:
    """A model in a subprocess, which runs one call at a time.

    The subprocess ends when this object is closed or freed, and when this process ends, for any reason.

    Args:
        version: The model.
        on_start: Called with this object before the model is loaded.
    """

    ends_on_terminate = True

    def __init__(
        self, version: ModelVersion, on_start: Callable[[Model], None] = lambda model: None
    ) -> None:
        self._connection, child = Pipe()
        with child:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _PROGRAM, str(child.fileno())],
                stdin=subprocess.PIPE,  # closed by the system when this process ends
                pass_fds=[child.fileno()],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                start_new_session=True,  # so that what the model starts ends with it
            )
        self._kill = weakref.finalize(self, _kill, self._process, os.getpid())
        self._lock = threading.Lock()
        self._running_thread_id: int | None = None
        self._ended = ""
        on_start(self)
        try:
            self.n_bytes = int(
                self._ask(
                    pickler.dumps((version.handler, get_file_system_options())),
                    "while it loaded the model",
                )
            )
        except BaseException:
            self.close()
            raise

    def run(self, handler: Any, batch: Any, inference_args: dict[str, Any] | None) -> list[Any]:
        results: list[Any] = self._ask(dumps((batch, inference_args)), "during a call of the model")
        return results

    def close(self) -> None:
        self._kill()
        self._connection.close()

    def terminate(self) -> None:
        """End the process. The thread whose call is running gets a ``ChildDiedError``."""
        self._kill()

    def is_running(self, thread_id: int | None) -> bool:
        return self._running_thread_id == thread_id

    def _ask(self, request: bytes, when: str) -> Any:
        with compute_turn(), self._lock:
            if self._ended:
                gone = ModelGoneError(self._ended)
                gone.ended_in_call = True
                raise gone
            if self._process.poll() is not None:
                raise ModelGoneError(self._describe_end("before a call of the model"))
            self._running_thread_id = threading.get_ident()
            try:
                self._connection.send_bytes(request)
                outcome = self._connection.recv_bytes()
            except (EOFError, OSError) as error:
                self._ended = self._describe_end(when)
                raise ChildDiedError(self._ended) from error
            finally:
                self._running_thread_id = None
        return loads(outcome)

    def _describe_end(self, when: str) -> str:
        try:
            code = self._process.wait(_EXIT_TIMEOUT_SECS)
        except subprocess.TimeoutExpired:
            self._kill()
            code = self._process.wait()
        _kill_group(self._process.pid)
        reason = f"by signal {-code}" if code < 0 else f"with exit code {code}"
        return (
            f"The subprocess ended {reason} {when}. An element may have crashed native code of the framework, or "
            "the system may have ended it to free memory."
        )


def _kill(process: subprocess.Popen[bytes], owner: int) -> None:
    """End a subprocess and the processes that it started, unless called in a process that ``owner`` forked."""
    if os.getpid() != owner:
        return
    if process.returncode is None:
        _kill_group(process.pid)
    process.wait()
    if process.stdin is not None:
        process.stdin.close()


def _kill_group(leader: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)


def serve() -> None:
    """Load a model, and answer batches until the parent process closes the connection. Runs in the subprocess."""
    _end_with_parent()
    connection = Connection(int(sys.argv[1]))
    handler: Any = None
    model: InProcessModel | None = None

    def load() -> int:
        nonlocal handler, model
        handler, options = pickler.loads(connection.recv_bytes())
        FileSystems.set_options(options)
        model = InProcessModel(handler)
        return model.n_bytes

    def run(model: InProcessModel, request: bytes) -> list[Any]:
        batch, inference_args = pickle.loads(request)
        return list(model.run(handler, batch, inference_args))

    connection.send_bytes(dumps_outcome(load))
    while model is not None:
        try:
            request = connection.recv_bytes()
        except (EOFError, OSError):
            return
        connection.send_bytes(dumps_outcome(partial(run, model, request)))


def _end_with_parent() -> None:
    """End this process and those that it starts when the parent process ends, also during a call."""
    import fcntl

    with suppress(OSError, AttributeError):
        # SIGIO, which ends a process by default, when the parent's end of standard input is closed. This also
        # works while native code holds the lock of the interpreter, but not on every system.
        fcntl.fcntl(0, fcntl.F_SETOWN, -os.getpgrp())
        fcntl.fcntl(0, fcntl.F_SETFL, fcntl.fcntl(0, fcntl.F_GETFL) | os.O_ASYNC)
    threading.Thread(target=_wait_for_parent, args=(os.getppid(),), daemon=True).start()


def _wait_for_parent(parent: int) -> None:
    # A process that the parent forked may keep the pipe open, so also check whether the parent is still the same.
    with Connection(os.dup(0), writable=False) as stdin:
        while not stdin.poll(1) and os.getppid() == parent:
            pass
    os.killpg(0, signal.SIGKILL)
