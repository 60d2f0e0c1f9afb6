"""Calls of a model in other threads, while the pipeline's thread collects and emits other batches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from runinference.caching.model_cache import ModelUse
from runinference.errors import InferenceTimeoutError
from runinference.handlers.compute_turn import ComputeTurn, run_in_turn
from runinference.serving.call_thread import CallOutcome, CallThread


@dataclass(eq=False)
class StartedCall:
    """A call that has started.

    Attributes:
        thread: The thread that makes the call, and then releases the model.
        turn: Its turn to compute.
        wait: Waits for the thread, or abandons a call that hangs and raises `InferenceTimeoutError`.
        timeout_error: The error of a call that was abandoned.
    """

    thread: CallThread
    turn: ComputeTurn
    wait: Callable[[CallThread], None]
    timeout_error: InferenceTimeoutError | None = None


class OverlappingCalls:
    """The calls of a session that have started, and whose outcomes are not retrieved. They compute in order."""

    def __init__(self) -> None:
        self._started: list[StartedCall] = []
        self._last_turn: ComputeTurn | None = None

    def start(
        self,
        handler: Any,
        run: Callable[[], CallOutcome],
        use: ModelUse,
        wait: Callable[[CallThread], None],
    ) -> StartedCall:
        """Start a call of a handler's model. Its thread ends the use of the model."""
        turn = ComputeTurn(self._last_turn)

        def call() -> CallOutcome:
            with use:  # also if the turn is cancelled
                return run_in_turn(turn, handler, run)

        started = StartedCall(CallThread(call), turn, wait)
        try:
            started.thread.start()
        except BaseException:
            use.release()
            raise
        self._started.append(started)
        self._last_turn = turn
        return started

    def remove(self, started: StartedCall) -> bool:
        """Remove a call before its outcome is retrieved. Return False if it was already removed."""
        if started not in self._started:
            return False
        self._started.remove(started)
        return True

    def finish(self, started: StartedCall) -> None:
        """Wait for a call. If it hangs, cancel the calls that wait for it."""
        if started.timeout_error is not None:
            return
        try:
            started.wait(started.thread)
        except InferenceTimeoutError as error:
            started.timeout_error = error
            for other in self._started:
                other.turn.cancel()
            started.turn.abandon()
            self._last_turn = None

    def finish_all(self) -> None:
        """Wait for all started calls, without retrieving their outcomes."""
        for started in self._started:
            self.finish(started)

    def discard_all(self) -> None:
        """Wait for the calls of a bundle that failed."""
        self.finish_all()
        self._started.clear()
