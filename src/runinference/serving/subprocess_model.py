"""A model in a subprocess, which can crash or hang without affecting the worker."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
from functools import partial
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

from apache_beam.internal import pickler

from runinference.errors import ChildDiedError
from runinference.serving.ipc import dumps, dumps_outcome, loads
from runinference.serving.placement import InProcessModel
from runinference.serving.routing import ModelVersion

#: The time to wait for the exit code of a process that closed its connection.
_EXIT_TIMEOUT_SECS = 5

_PROGRAM = "from runinference.serving.subprocess_model import serve; serve()"


class SubprocessModel:
    """A model in a subprocess, which runs one call at a time."""

    terminated = False

    def __init__(self, version: ModelVersion) -> None:
        self._connection, child = Pipe()
        with child:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _PROGRAM, str(child.fileno())],
                pass_fds=[child.fileno()],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )
        self._lock = threading.Lock()
        self._running_thread_id: int | None = None
        try:
            self.n_bytes = int(self._ask(pickler.dumps(version.handler)))
        except BaseException:
            self.close()
            raise

    def run(self, handler: Any, batch: Any, inference_args: dict[str, Any] | None) -> list[Any]:
        """Return the results of a batch, or raise `ChildDiedError` if the process ends before it answers."""
        results: list[Any] = self._ask(dumps((batch, inference_args)))
        return results

    def close(self) -> None:
        self._kill()
        self._connection.close()

    def terminate(self) -> None:
        """End the process. Threads that wait for results get a ``ChildDiedError``."""
        self.terminated = True
        self._kill()

    def is_running(self, thread_id: int | None) -> bool:
        return self._running_thread_id == thread_id

    def _ask(self, request: bytes) -> Any:
        with self._lock:
            self._running_thread_id = threading.get_ident()
            try:
                self._connection.send_bytes(request)
                outcome = self._connection.recv_bytes()
            except (EOFError, OSError) as error:
                raise self._died() from error
        return loads(outcome)

    def _kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def _died(self) -> ChildDiedError:
        try:
            code = self._process.wait(_EXIT_TIMEOUT_SECS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        reason = f"by signal {-code}" if code < 0 else f"with exit code {code}"
        return ChildDiedError(
            f"The subprocess that held the model ended {reason} during a batch. An element may have crashed "
            "native code of the framework."
        )


def serve() -> None:
    """Load a model, and answer batches until the parent process closes the connection. Runs in the subprocess."""
    connection = Connection(int(sys.argv[1]))
    handler: Any = None
    model: InProcessModel | None = None

    def load() -> int:
        nonlocal handler, model
        handler = pickler.loads(connection.recv_bytes())
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
