"""Calls of a model in other threads, while the thread of the pipeline collects and emits other batches."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from typing import Any

from apache_beam.runners.worker.statesampler import get_current_tracker, set_current_tracker

from runinference.handlers.compute_turn import ComputeTurn, run_in_turn
from runinference.serving.call_thread import CallOutcome

#: Calls of a session at a time: one computes, and one collates its batch or splits its output.
MAX_CALLS = 2


class StartedCall:
    """A call that has begun. Its model stays in use until the outcome is taken.

    Args:
        future: The results of the call.
        get_outcome: Returns the outcome of the future.
        users: Releases the model.
    """

    def __init__(
        self,
        future: Future[list[Any]],
        get_outcome: Callable[[Future[list[Any]]], CallOutcome],
        users: ExitStack,
    ) -> None:
        self._future, self._get_outcome, self._users = future, get_outcome, users

    def take(self) -> CallOutcome:
        """Wait for the call, and return its outcome or raise its error."""
        with self._users:
            return self._get_outcome(self._future)

    def wait(self) -> None:
        """Wait for the call, whose model stays in use."""
        wait([self._future])

    def discard(self) -> None:
        """Wait for the call, without its outcome."""
        with self._users:
            self.wait()


class OverlappingCalls:
    """The threads that run the calls of one session. The calls compute one at a time, in order."""

    def __init__(self) -> None:
        self._threads: ThreadPoolExecutor | None = None
        self._last_turn: ComputeTurn | None = None
        self._started: list[StartedCall] = []

    def start(
        self,
        handler: Any,
        run: Callable[[], list[Any]],
        get_outcome: Callable[[Future[list[Any]]], CallOutcome],
        users: ExitStack,
    ) -> StartedCall:
        """Begin a call of a handler's model; see `StartedCall`."""
        if self._threads is None:
            self._threads = ThreadPoolExecutor(MAX_CALLS, thread_name_prefix="runinference")
        turn = self._last_turn = ComputeTurn(self._last_turn)
        future = self._threads.submit(_run, get_current_tracker(), turn, handler, run)
        self._started.append(StartedCall(future, get_outcome, users))
        return self._started[-1]

    def take(self, started: StartedCall) -> CallOutcome | None:
        """Return the outcome of a call, or None if it was taken before."""
        if started not in self._started:
            return None
        self._started.remove(started)
        return started.take()

    def wait(self) -> None:
        """Wait for all calls that have begun, without their outcomes."""
        for started in self._started:
            started.wait()

    def discard_all(self) -> None:
        """Wait for the calls of a bundle that failed."""
        while self._started:
            self._started.pop(0).discard()

    def close(self) -> None:
        """End the threads."""
        self.discard_all()
        if self._threads is not None:
            self._threads.shutdown()


def _run(tracker: Any, turn: ComputeTurn, handler: Any, run: Callable[[], list[Any]]) -> list[Any]:
    set_current_tracker(tracker)  # so that metrics of the handler count for the step
    return run_in_turn(turn, handler, run)
