"""Order the calls of a model that overlap: one computes while the next one collates its batch."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

_T = TypeVar("_T")


class CancelledTurnError(Exception):
    """The turn of a call was cancelled before it computed."""


class ComputeTurn:
    """The turn of a call to compute. It begins when the turn of the previous call has ended.

    Args:
        previous: The turn of the previous call; None for the first call.
    """

    def __init__(self, previous: ComputeTurn | None = None) -> None:
        self._previous = previous
        self._ended = threading.Event()
        self._depth = 0
        self._is_cancelled = False

    def __enter__(self) -> None:
        self._wait_for_previous()
        if self._is_cancelled:
            raise CancelledTurnError
        self._depth += 1

    def __exit__(self, *_: Any) -> None:
        self._depth -= 1
        if not self._depth:
            self._ended.set()

    def end(self) -> None:
        """End the turn of a call that has returned or failed, even if the call never computed."""
        self._wait_for_previous()
        self._ended.set()

    def abandon(self) -> None:
        """Let the next turn begin although the call of this turn hangs."""
        self._ended.set()

    def cancel(self) -> None:
        """Raise `CancelledTurnError` in the call when it begins to compute."""
        self._is_cancelled = True

    def _wait_for_previous(self) -> None:
        if self._previous is not None:
            self._previous._ended.wait()
            self._previous = None


class _ThreadState(threading.local):
    turn: ComputeTurn | None = None
    waited_ns = 0


_thread = _ThreadState()


@contextmanager
def compute_turn() -> Iterator[None]:
    """Compute in a ``with`` block, which calls that overlap enter in order and one at a time.

    A handler with ``CallOverlap(uses_turn=True)`` calls its model in this block. It collates the batch before
    the block and splits the output after it, while other calls compute. Without overlap, the block has no effect.
    """
    if _thread.turn is None:
        yield
        return
    start = time.perf_counter_ns()
    with _thread.turn:
        _thread.waited_ns += time.perf_counter_ns() - start
        yield


def get_waited_ns() -> int:
    """Return the nanoseconds that the current call of this thread has waited for its turn."""
    return _thread.waited_ns


def run_in_turn(turn: ComputeTurn, handler: Any, run: Callable[[], _T]) -> _T:
    """Return ``run()``. What the handler does outside of `compute_turn` may overlap with other calls."""
    try:
        if not get_call_overlap(handler).uses_turn:
            with turn:
                return run()
        _thread.turn, _thread.waited_ns = turn, 0
        return run()
    finally:
        _thread.turn, _thread.waited_ns = None, 0
        turn.end()  # a call that failed before it computed must not let the next one compute too early


class CallOverlap(NamedTuple):
    """How the calls of a handler overlap within a bundle.

    Attributes:
        max_calls: The maximum number of calls in flight. With 1, calls don't overlap.
        uses_turn: Whether the handler calls its model within `compute_turn`, and may do everything else while
            other calls run. Otherwise, whole calls run one at a time.
        is_measured: Whether calls only overlap if measuring shows that this is faster.
    """

    max_calls: int = 2
    uses_turn: bool = False
    is_measured: bool = True


def get_call_overlap(handler: Any) -> CallOverlap:
    """Return how the calls of a handler overlap."""
    overlap: CallOverlap = getattr(handler, "call_overlap", CallOverlap)()
    return overlap
