"""Dynamic batching: combine small batches of several threads into one model call."""

from __future__ import annotations

import threading
import time
from collections import deque
from itertools import islice
from typing import Any

from runinference.batching.element_size import batch_size_in_bytes
from runinference.batching.measured_switch import MeasuredSwitch
from runinference.batching.policy import BatchPolicy
from runinference.errors import is_out_of_memory
from runinference.handlers.error_policy import Call
from runinference.handlers.repeatable_batch import combine_batches, get_elements

#: The number of threads in a combined call varies, so more calls are measured than for one thread.
_CALLS_WITHOUT = 4
#: The longest time between calls that is measured, in calls. In a longer one, no elements have arrived.
_MAX_MEASURED_CALLS = 4
_MAX_WAIT_SECS = 0.05


class DynamicBatcher:
    """Dynamic batching of one model for all threads of a process, one call at a time.

    A thread that finds the model idle calls it at once, so a single thread has no overhead. Batches that arrive
    during the call are queued, except for those that fill more than half of a combined batch. When it ends, the
    first thread in the queue calls the model with as many queued batches as fit into one. If a combined call
    fails, each thread calls the model with its own batch and gets its own error. If it runs out of memory, it is
    repeated in halves first.

    If it is faster, which is measured, a call waits for the threads of the last one to return with their next
    batches, for at most as long as the last call took. Combined batches are then larger, and fewer threads compete
    for the interpreter lock while the model computes.

    >>> dynamic_batcher = DynamicBatcher(BatchPolicy(max_batch_size=64))
    >>> dynamic_batcher.call([1, 2], 64, lambda numbers: [2 * n for n in numbers])
    [2, 4]
    """

    def __init__(self, policy: BatchPolicy) -> None:
        self._max_bytes = policy.max_batch_bytes
        self._lock = threading.Lock()
        self._arrived = threading.Condition(self._lock)
        self._queue: deque[_QueuedBatch] = deque()
        self._busy = False
        self._waiting = MeasuredSwitch(_CALLS_WITHOUT)
        self._n_returning = 0
        self._last_secs = self._last_end = 0.0

    def call(self, batch: list[Any], max_size: int, call: Call) -> list[Any]:
        """Return the results of ``call`` for a batch, alone or in a combined batch of at most ``max_size``."""
        with self._lock:
            is_idle = not self._busy
            queued = None if is_idle and not self._n_returning else _QueuedBatch(batch)
            is_large = 2 * len(batch) > max_size or (
                queued is not None and 2 * queued.n_bytes > self._max_bytes
            )
            if not is_large:
                self._busy = True
                if queued is not None:
                    self._enqueue(queued)
        if is_large:
            return call(batch)
        if queued is None:
            try:
                return call(batch)
            finally:
                self._start_next()
        if not is_idle:
            queued.ready.acquire()
        if is_idle or queued.is_first:
            group = self._next_group(max_size)
            start = time.monotonic()
            try:
                if len(group) == 1:
                    return call(batch)
                _call_combined(group, call)
                if queued.results is not None:
                    self._measure(group, start)
            finally:
                for other in group[1:]:
                    other.ready.release()
                self._start_next()
        return call(batch) if queued.results is None else queued.results

    def _enqueue(self, queued: _QueuedBatch) -> None:
        self._queue.append(queued)
        if self._n_returning:
            self._n_returning -= 1
            self._arrived.notify()

    def _start_next(self) -> None:
        """Wake the first thread in the queue to call the model for itself and for others."""
        with self._lock:
            self._busy = bool(self._queue)
            if self._queue:
                self._queue[0].is_first = True
                self._queue[0].ready.release()

    def _next_group(self, max_size: int) -> list[_QueuedBatch]:
        """Remove the first batches from the queue, after those of returning threads have arrived."""
        with self._lock:
            wait_secs = min(self._last_secs, _MAX_WAIT_SECS)
            self._arrived.wait_for(lambda: self._is_complete(max_size), wait_secs)
            self._n_returning = 0
            group: list[_QueuedBatch] = []
            n_elements = n_bytes = 0
            while self._queue:
                n_elements += len(self._queue[0].batch)
                n_bytes += self._queue[0].n_bytes
                if group and (n_elements > max_size or n_bytes > self._max_bytes):
                    break
                group.append(self._queue.popleft())
            return group

    def _is_complete(self, max_size: int) -> bool:
        if not self._n_returning:
            return True
        return sum(len(queued.batch) for queued in self._queue) >= max_size

    def _measure(self, group: list[_QueuedBatch], start: float) -> None:
        """Record a combined call, and choose whether the next call waits for its threads."""
        end = time.monotonic()
        self._last_secs = end - start
        seconds = min(end - self._last_end, _MAX_MEASURED_CALLS * self._last_secs)
        self._last_end = end
        with self._lock:
            self._waiting.record(sum(len(queued.batch) for queued in group), seconds)
            self._n_returning = len(group) if self._waiting.is_on else 0


class _QueuedBatch:
    """A batch in the queue, and the thread that waits for its results."""

    def __init__(self, batch: list[Any]) -> None:
        self.batch = batch
        self.n_bytes = batch_size_in_bytes(get_elements(batch))
        self.is_first = False
        self.results: list[Any] | None = None
        self.ready = threading.Lock()
        self.ready.acquire()


def _call_combined(group: list[_QueuedBatch], call: Call) -> None:
    """Call the model once for a group of batches. Split the group in half if memory runs out."""
    try:
        results = iter(call(combine_batches([queued.batch for queued in group])))
    except Exception as error:
        if len(group) > 1 and is_out_of_memory(error):
            middle = (len(group) + 1) // 2
            _call_combined(group[:middle], call)
            _call_combined(group[middle:], call)
        return
    for queued in group:
        queued.results = list(islice(results, len(queued.batch)))
