"""Dynamic batching: combine small batches of several threads into one model call."""

from __future__ import annotations

import threading
import time
from collections import deque
from itertools import islice
from math import inf
from typing import Any

from runinference.batching.element_size import batch_size_in_bytes
from runinference.batching.measured_switch import MeasuredSwitch
from runinference.batching.policy import BatchPolicy
from runinference.errors import is_out_of_memory
from runinference.handlers.error_policy import Call
from runinference.handlers.repeatable_batch import combine_batches, get_elements

#: Number of calls to measure without waiting. It is higher than the default, because the number of threads in a
#: combined call varies.
_N_CALLS_WITHOUT_WAITING = 4
#: Maximum time from the end of one combined call to the end of the next, as a multiple of the call time. In a
#: longer one, the model was idle because no elements arrived.
_MAX_GAP_IN_CALLS = 4
#: Maximum time that a call waits for the threads of the last one.
_MAX_WAIT_SECS = 0.05


class DynamicBatcher:
    """Dynamic batching of one model for all threads of a process, one call at a time.

    A thread that finds the model idle calls it at once, so a single thread has no overhead. Batches that arrive
    during the call are queued, except for those that fill more than half of a combined batch. When it ends, the
    first thread in the queue calls the model with as many queued batches as fit into one. If a combined call
    fails, each thread calls the model with its own batch and gets its own error. If it runs out of memory, it is
    repeated in halves first.

    If measuring shows that this is faster, the next call waits for the threads of the last call to return with
    their next batches. It waits at most as long as the last call took, and at most 50 ms. Combined batches are
    then larger, and fewer threads compete for the interpreter lock while the model computes.

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
        self._waiting = MeasuredSwitch(_N_CALLS_WITHOUT_WAITING)
        self._n_returning = 0
        self._n_called_alone = 0
        self._last_secs, self._last_end = 0.0, -inf

    def call(self, batch: list[Any], max_size: int, call: Call) -> list[Any]:
        """Return the results of ``call`` for a batch, alone or in a combined batch of at most ``max_size``."""
        if 2 * len(batch) > max_size:
            return call(batch)
        with self._lock:
            is_alone = not (self._busy or self._n_returning)
            self._busy = self._busy or is_alone
        if is_alone:
            try:
                return call(batch)
            finally:
                self._start_next(len(batch))
        queued = _QueuedBatch(batch)
        if 2 * queued.n_bytes > self._max_bytes:
            return call(batch)
        if not self._enqueue(queued):
            queued.ready.acquire()
        if queued.is_first:
            arrived = time.monotonic()
            group = self._next_group(max_size)
            start = time.monotonic()
            try:
                if len(group) == 1:
                    return call(batch)
                _call_combined(group, call)
                if queued.results is not None:
                    self._measure(group, arrived, start)
            finally:
                for other in group[1:]:
                    other.ready.release()
                self._start_next(len(batch) if len(group) == 1 else 0)
        return call(batch) if queued.results is None else queued.results

    def _enqueue(self, queued: _QueuedBatch) -> bool:
        """Add a batch to the queue, and return whether it is the first one and the model is idle."""
        with self._lock:
            queued.is_first = not self._busy
            self._busy = True
            self._queue.append(queued)
            if self._n_returning:
                self._n_returning -= 1
                self._arrived.notify()
            return queued.is_first

    def _start_next(self, n_called_alone: int) -> None:
        """Wake the first thread in the queue to call the model for itself and for others."""
        with self._lock:
            self._n_called_alone += n_called_alone
            self._busy = bool(self._queue)
            if self._queue:
                self._queue[0].is_first = True
                self._queue[0].ready.release()

    def _next_group(self, max_size: int) -> list[_QueuedBatch]:
        """Wait for the batches of returning threads, and take the next combined batch from the queue."""
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
        n_elements = sum(len(queued.batch) for queued in self._queue)
        n_bytes = sum(queued.n_bytes for queued in self._queue)
        return n_elements >= max_size or n_bytes >= self._max_bytes

    def _measure(self, group: list[_QueuedBatch], arrived: float, start: float) -> None:
        """Record a combined call, and choose whether the next call waits for its threads.

        The recorded time and elements include calls of single batches since the last combined call. After a time
        without elements, only the call and the wait before it count.
        """
        end = time.monotonic()
        self._last_secs = end - start
        n_elements, seconds = sum(len(queued.batch) for queued in group), end - self._last_end
        with self._lock:
            if seconds > _MAX_GAP_IN_CALLS * self._last_secs:
                seconds = end - arrived
            else:
                n_elements += self._n_called_alone
            self._last_end, self._n_called_alone = end, 0
            self._waiting.record(n_elements, seconds)
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
