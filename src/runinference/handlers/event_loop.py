"""Run the coroutines of handlers in an event loop that all threads of the process share.

Clients such as ``httpx.AsyncClient`` keep connections that belong to one event loop, so calls of all threads and
bundles must use the same one.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import os
import threading
import types
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    Awaitable,
    Callable,
    Coroutine,
    Generator,
    Iterator,
)
from typing import Any

from apache_beam.runners.worker.statesampler import get_current_tracker, set_current_tracker

#: Seconds for the event loop to start a call. If it takes longer, another call blocks the loop.
_BLOCKED_SECS = 1.0


def resolve(output: Any) -> Any:
    """Return the result of an awaitable, the items of an async iterator as a list, or other values unchanged.

    This blocks the calling thread, while calls of other threads run concurrently in the same event loop.

    >>> async def double(numbers):
    ...     return [2 * n for n in numbers]
    >>> resolve(double([1, 2])), resolve([2, 4])
    ([2, 4], [2, 4])

    Raises:
        Exception: The error of the coroutine.
    """
    if inspect.isawaitable(output):
        return _run(_await(output))
    if isinstance(output, AsyncIterable):
        return _run(_collect(output))
    return output


def iterable_without_await(method: Callable[..., Any]) -> Callable[..., Any]:
    """Return a method whose output, if it is asynchronous, can be awaited or iterated over like a list.

    Beam's transforms and handlers iterate over what ``run_inference`` of a handler returns.

    >>> async def double(numbers):
    ...     return [2 * n for n in numbers]
    >>> list(iterable_without_await(double)([1, 2]))
    [2, 4]
    """
    if not (inspect.iscoroutinefunction(method) or inspect.isasyncgenfunction(method)):
        return method

    @functools.wraps(method)
    def run(*args: Any, **kwargs: Any) -> Any:
        output = method(*args, **kwargs)
        is_coroutine = isinstance(output, Coroutine)
        return _IterableCoroutine(output) if is_coroutine else _IterableGenerator(output)

    return run


class _IterableCoroutine(Coroutine[Any, Any, Any]):
    """A coroutine whose result can also be iterated over without ``await``."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        self._coroutine = coroutine

    def send(self, value: Any) -> Any:
        return self._coroutine.send(value)

    def throw(self, *error: Any) -> Any:
        return self._coroutine.throw(*error)

    def close(self) -> None:
        self._coroutine.close()

    def __await__(self) -> Generator[Any, Any, Any]:
        return self._coroutine.__await__()

    def __iter__(self) -> Iterator[Any]:
        return iter(resolve(self._coroutine))


class _IterableGenerator(AsyncGenerator[Any, Any]):
    """An async generator that can also be iterated over without ``async for``."""

    def __init__(self, generator: AsyncGenerator[Any, Any]) -> None:
        self._generator = generator

    def asend(self, value: Any) -> Any:
        return self._generator.asend(value)

    def athrow(self, *error: Any) -> Any:
        return self._generator.athrow(*error)

    def __iter__(self) -> Iterator[Any]:
        return iter(resolve(self._generator))


async def _await(awaitable: Awaitable[Any]) -> Any:
    # A coroutine may return an async iterator, as functions do that are wrapped by a decorator.
    result = await awaitable
    return await _collect(result) if isinstance(result, AsyncIterable) else result


async def _collect(items: AsyncIterable[Any]) -> list[Any]:
    return [item async for item in items]


class _LoopThread:
    """An event loop that runs in a daemon thread."""

    def __init__(self) -> None:
        self.process_id = os.getpid()  # the thread doesn't survive a fork
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._run_forever, daemon=True, name="runinference-event-loop"
        )
        self._thread.start()

    @property
    def runs_this_thread(self) -> bool:
        return threading.current_thread() is self._thread

    def submit(self, call: _Call) -> None:
        call.future = asyncio.run_coroutine_threadsafe(call.run(), self._loop)

    def retire(self) -> None:
        """End the thread once the calls that it has started are complete."""
        asyncio.run_coroutine_threadsafe(self._stop_when_idle(), self._loop)

    async def _stop_when_idle(self) -> None:
        while len(asyncio.all_tasks()) > 1:
            await asyncio.sleep(1)
        self._loop.stop()

    def _run_forever(self) -> None:
        try:
            self._loop.run_forever()
        finally:
            self._loop.close()


class _Call:
    """A coroutine that is submitted to an event loop, and can be withdrawn until the loop starts it."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        self.future: Any = None
        self._coroutine: Any = _with_tracker(coroutine, get_current_tracker())
        self._started = threading.Event()
        self._claim = threading.Lock()  # acquired once, to start the call or to withdraw it

    async def run(self) -> Any:
        if not self._claim.acquire(blocking=False):
            return None
        self._started.set()
        return await self._coroutine

    def withdraw(self) -> bool:
        """Return whether the event loop is blocked. If it is, it never starts the call."""
        return not self._started.wait(_BLOCKED_SECS) and self._claim.acquire(blocking=False)


_lock = threading.Lock()
_current: _LoopThread | None = None


def _run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    loop = _get_loop(None)
    if loop.runs_this_thread:  # a coroutine called a function that waits for another coroutine
        loop = _get_loop(replaced=loop)
    call = _Call(coroutine)
    loop.submit(call)
    while call.withdraw():
        # A coroutine that blocks, such as one that computes, must not stop the calls of other threads.
        call = _Call(coroutine)
        loop = _get_loop(replaced=loop)
        loop.submit(call)
    try:
        return call.future.result()
    except BaseException:
        call.future.cancel()
        raise


def _get_loop(replaced: _LoopThread | None) -> _LoopThread:
    """Return the event loop of this process, or another one than ``replaced``."""
    global _current
    with _lock:
        loop = _current
        if loop is None or loop.process_id != os.getpid() or loop is replaced:
            if loop is not None and loop is replaced:
                loop.retire()
            loop = _current = _LoopThread()
        return loop


@types.coroutine
def _with_tracker(coroutine: Coroutine[Any, Any, Any], tracker: Any) -> Generator[Any, Any, Any]:
    """Run a coroutine so that its metrics count for the step of the calling thread."""
    value: Any = None
    error: BaseException | None = None
    while True:
        previous = get_current_tracker()
        set_current_tracker(tracker)
        try:
            yielded = coroutine.send(value) if error is None else coroutine.throw(error)
        except StopIteration as stop:
            return stop.value
        finally:
            set_current_tracker(previous)
        value = error = None
        try:
            value = yield yielded
        except GeneratorExit:
            coroutine.close()
            raise
        except BaseException as thrown:
            error = thrown
