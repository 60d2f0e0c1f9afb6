"""Calls of a model in other threads, while the pipeline's thread collects and emits other batches."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any, NamedTuple

from runinference.handlers.compute_turn import ComputeTurn, run_in_turn
from runinference.serving.call_thread import CallOutcome, CallThread

#: Calls of a session at a time: one computes, and one collates its batch or splits its output.
MAX_CALLS = 2


class StartedCall(NamedTuple):
    """A call that has started.

    Attributes:
        thread: The thread that makes the call.
        turn: Its turn to compute.
        users: Releases the model.
    """

    thread: CallThread
    turn: ComputeTurn
    users: ExitStack


class OverlappingCalls:
    """The calls of a session that have started, and whose outcomes are not retrieved yet. They compute in order.

    Args:
        timeout: Maximum seconds that ``wait`` waits for each call; None for no limit.
    """

    def __init__(self, timeout: float | None = None) -> None:
        self._timeout = timeout
        self._started: list[StartedCall] = []
        self._last_turn: ComputeTurn | None = None

    def start(self, handler: Any, run: Callable[[], CallOutcome], users: ExitStack) -> StartedCall:
        """Start a call of a handler's model. Closing ``users`` releases the model."""
        turn = self._last_turn = ComputeTurn(self._last_turn)
        thread = CallThread(partial(run_in_turn, turn, handler, run))
        started = StartedCall(thread, turn, users)
        self._started.append(started)
        thread.start()
        return started

    def remove(self, started: StartedCall) -> bool:
        """Remove a call before its outcome is retrieved. Return False if it was already removed."""
        found = any(each is started for each in self._started)
        self._started = [each for each in self._started if each is not started]
        return found

    def abandon(self, hanging: StartedCall) -> None:
        """Abandon a call that hangs, and cancel the calls that wait for it."""
        for started in self._started:
            started.turn.cancel()
        hanging.turn.abandon()
        self._last_turn = None

    def wait(self) -> None:
        """Wait for all started calls, without retrieving their outcomes."""
        for started in self._started:
            started.thread.join(self._timeout)

    def discard_all(self) -> None:
        """Wait for the calls of a bundle that failed, and release their models."""
        self.wait()
        while self._started:
            self._started.pop().users.close()
