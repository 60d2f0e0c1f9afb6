"""A process that holds one model and answers batches, and the program that runs in it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from multiprocessing.connection import Connection
from typing import Any

from apache_beam.internal import pickler

from runinference.errors import ChildDiedError


class Child:
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
        try:
            self.n_bytes = int(pickler.loads(self.ask(handler)))
        except BaseException:
            self.stop()
            raise

    def ask(self, question: bytes) -> bytes:
        """Sends one message, and waits for the answer to it.

        Raises:
            ChildDiedError: The process ended before it answered.
            Exception: What the model's call raised.
        """
        with self._turn:
            try:
                self._out.send_bytes(question)
                failed, answer = pickler.loads(self._in.recv_bytes())
            except (EOFError, OSError) as error:
                raise self._died() from error
        if failed:
            raise answer
        return bytes(answer)

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
        self._process.kill()
        code = self._process.wait()
        how = f"by signal {-code}" if code < 0 else f"with exit code {code}"
        return ChildDiedError(
            f"The subprocess that held the model ended {how} while it worked on a batch. An element may have "
            "crashed the framework below Python."
        )


_PROGRAM = "from runinference.child import serve; serve()"


def serve() -> None:
    """What the child does until its parent goes: loads the model, and answers batches."""
    from runinference.routing import Edition
    from runinference.sharing import InThisProcess

    questions = Connection(int(sys.argv[1]), writable=False)
    answers = Connection(int(sys.argv[2]), readable=False)
    handler = pickler.loads(questions.recv_bytes())
    model: Any = None
    while True:
        try:
            if model is None:
                model = InThisProcess(Edition("", handler, None))  # type: ignore[arg-type]
                answer: Any = pickler.dumps(model.n_bytes)
            else:
                batch, inference_args = pickler.loads(questions.recv_bytes())
                answer = pickler.dumps(model.run(handler, batch, inference_args))
            failed = False
        except EOFError:
            return
        except BaseException as error:
            failed, answer = True, error
        answers.send_bytes(pickler.dumps((failed, answer)))
        if model is None:
            return
