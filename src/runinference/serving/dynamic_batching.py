"""Dynamic batching: combine small batches of several threads into one model call."""

from __future__ import annotations

import threading
from collections import deque
from itertools import islice
from typing import Any

from runinference.batching.element_size import batch_size_in_bytes
from runinference.batching.policy import BatchPolicy
from runinference.errors import is_out_of_memory
from runinference.handlers.error_policy import Call
from runinference.handlers.repeatable_batch import combine_batches, get_elements


class DynamicBatcher:
    """Dynamic batching of one model for all threads of a process, one call at a time.

    A thread that finds the model idle calls it at once, so a single thread has no overhead. Batches that arrive
    during the call are queued. When it ends, the first thread in the queue calls the model with as many queued
    batches as fit into one. If a combined call fails, each thread calls the model with its own batch and gets its
    own error. If it runs out of memory, it is repeated in halves first.

    >>> dynamic_batcher = DynamicBatcher(BatchPolicy(max_batch_size=64))
    >>> dynamic_batcher.call([1, 2], 64, lambda numbers: [2 * n for n in numbers])
    [2, 4]
    """

    def __init__(self, policy: BatchPolicy) -> None:
        self._max_bytes = policy.max_batch_bytes
        self._lock = threading.Lock()
        self._queue: deque[_QueuedBatch] = deque()
        self._busy = False

    def call(self, batch: list[Any], max_size: int, call: Call) -> list[Any]:
        """Return the results of ``call`` for a batch, alone or in a combined batch of at most ``max_size``."""
        with self._lock:
            queued = _QueuedBatch(batch) if self._busy else None
            if queued is None:
                self._busy = True
            else:
                self._queue.append(queued)
        if queued is None:
            try:
                return call(batch)
            finally:
                self._start_next(max_size)
        queued.ready.acquire()
        if queued.group:
            try:
                if len(queued.group) == 1:
                    return call(batch)
                _call_combined(queued.group, call)
            finally:
                for other in queued.group[1:]:
                    other.ready.release()
                self._start_next(max_size)
        return call(batch) if queued.results is None else queued.results

    def _start_next(self, max_size: int) -> None:
        """Wake the first thread in the queue to call the model for itself and for others."""
        with self._lock:
            group = self._next_group(max_size)
            self._busy = bool(group)
        if group:
            group[0].group = group
            group[0].ready.release()

    def _next_group(self, max_size: int) -> list[_QueuedBatch]:
        group: list[_QueuedBatch] = []
        n_elements = n_bytes = 0
        while self._queue:
            n_elements += len(self._queue[0].batch)
            n_bytes += self._queue[0].n_bytes
            if group and (n_elements > max_size or n_bytes > self._max_bytes):
                break
            group.append(self._queue.popleft())
        return group


class _QueuedBatch:
    """A batch in the queue, and the thread that waits for its results."""

    def __init__(self, batch: list[Any]) -> None:
        self.batch = batch
        self.n_bytes = batch_size_in_bytes(get_elements(batch))
        self.group: list[_QueuedBatch] = []
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
