"""A process that holds one model and answers batches, and the program that runs in it."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

from apache_beam.internal import pickler

from runinference.errors import ChildDiedError
from runinference.serving.ipc import dumps, dumps_outcome, loads
from runinference.serving.placement import InProcessModel
from runinference.serving.routing import ModelVersion


class SubprocessModel:
    """A model in a process of its own, which may crash or hang without harm."""

    abandoned = False

    def __init__(self, version: ModelVersion) -> None:
        self._child = ModelProcess(pickler.dumps(version.handler))
        self.n_bytes = self._child.n_bytes

    def run(self, handler: Any, batch: Any, inference_args: dict[str, Any] | None) -> list[Any]:
        results: list[Any] = self._child.ask(dumps((batch, inference_args)))
        return results

    def close(self) -> None:
        self._child.stop()

    def abandon(self) -> None:
        self.abandoned = True
        self._child.kill()

    def works_for(self, thread: int | None) -> bool:
        return self._child.answers == thread


class ModelProcess:
    """Starts a process, loads a model in it, and sends it batches.

    Args:
        handler: The pickled handler.
    """

    def __init__(self, handler: bytes) -> None:
        theirs_in, ours_out = os.pipe()
        ours_in, theirs_out = os.pipe()
        self._process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, str(theirs_in), str(theirs_out)],
            pass_fds=(theirs_in, theirs_out),
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self._in = Connection(ours_in, writable=False)
        self._out = Connection(ours_out, readable=False)
        self._turn = threading.Lock()
        self.answers: int | None = None  # the thread whose question it works on
        try:
            self.n_bytes = int(self.ask(handler))
        except BaseException:
            self.stop()
            raise

    def ask(self, question: bytes) -> Any:
        """Sends one message, and waits for the answer to it.

        Raises:
            ChildDiedError: The process ended before it answered.
            Exception: What the model's call raised.
        """
        with self._turn:
            self.answers = threading.get_ident()
            try:
                self._out.send_bytes(question)
                answer = self._in.recv_bytes()
            except (EOFError, OSError) as error:
                raise self._died() from error
        return loads(answer)

    def kill(self) -> None:
        """Ends the process at once, also one that hangs; who waits for its answer gets an error."""
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        """Ends the process, and closes what leads to it."""
        self.kill()
        self._in.close()
        self._out.close()

    def _died(self) -> ChildDiedError:
        try:
            code = self._process.wait(_TO_END_SECS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        how = f"by signal {-code}" if code < 0 else f"with exit code {code}"
        return ChildDiedError(
            f"The subprocess that held the model ended {how} while it worked on a batch. An element may have "
            "crashed the framework below Python."
        )


#: How long a process that has stopped to answer may take to end, before it is ended.
_TO_END_SECS = 5

_PROGRAM = "from runinference.serving.subprocess_model import serve; serve()"


def serve() -> None:
    """What the child does until its parent goes: loads the model, and answers batches."""
    questions = Connection(int(sys.argv[1]), writable=False)
    answers = Connection(int(sys.argv[2]), readable=False)
    handler: Any = None
    model: Any = None

    def load() -> int:
        nonlocal handler, model
        handler = pickler.loads(questions.recv_bytes())
        model = InProcessModel(ModelVersion("", handler, None))  # type: ignore[arg-type]
        return int(model.n_bytes)

    def predict(question: bytes) -> list[Any]:
        batch, inference_args = pickle.loads(question)
        return list(model.run(handler, batch, inference_args))

    answers.send_bytes(dumps_outcome(load))
    while model is not None:
        try:
            question = questions.recv_bytes()
        except EOFError:
            return
        answers.send_bytes(dumps_outcome(partial(predict, question)))
