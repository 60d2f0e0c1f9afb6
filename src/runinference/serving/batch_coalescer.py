"""Small batches of several threads share a call of the model: who finds it busy waits, and is taken along."""

from __future__ import annotations

import threading
from collections import deque
from itertools import islice
from typing import Any

from runinference.batching.policy import BatchPolicy, size_in_bytes
from runinference.errors import is_out_of_memory
from runinference.handlers.error_policy import Call


class BatchCoalescer:
    """Calls one model for the threads of a process, one call at a time.

    A thread that finds the model free calls it at once, so that a single thread loses nothing. Those that come
    meanwhile stand in a line; when the call ends, the first of them calls the model for as many of the line as
    one batch may hold. So each thread makes at most one call for others. If a call for several fails, each
    calls for itself, and meets its own error; if it ran out of memory, it is made again in halves.

    >>> coalescer = BatchCoalescer(BatchPolicy(max_batch_size=64))
    >>> coalescer.call([1, 2], 64, lambda numbers: [2 * n for n in numbers])
    [2, 4]
    """

    def __init__(self, policy: BatchPolicy) -> None:
        self._max_bytes = policy.max_batch_bytes
        self._lock = threading.Lock()
        self._line: deque[_Waiting] = deque()
        self._busy = False

    def call(self, batch: list[Any], most: int, call: Call) -> list[Any]:
        """The results of a batch.

        Args:
            batch: The elements of this thread.
            most: The most elements that a call may have.
            call: Calls the model, for this thread or for several.
        """
        with self._lock:
            own = None if not self._busy else _Waiting(batch)
            if own is None:
                self._busy = True
            else:
                self._line.append(own)
        if own is None:
            try:
                return call(batch)
            finally:
                self._pass_on(most)
        own.ready.acquire()
        if own.group:
            try:
                if len(own.group) == 1:
                    return call(batch)
                _call_for(own.group, call)
            finally:
                for waiting in own.group[1:]:
                    waiting.ready.release()
                self._pass_on(most)
        return call(batch) if own.outcome is None else own.outcome

    def _pass_on(self, most: int) -> None:
        """Lets the first of the line call the model, for itself and for as many as fit."""
        with self._lock:
            group = self._next_group(most)
            self._busy = bool(group)
        if group:
            group[0].group = group
            group[0].ready.release()

    def _next_group(self, most: int) -> list[_Waiting]:
        group: list[_Waiting] = []
        n_elements = n_bytes = 0
        while self._line:
            n_elements += len(self._line[0].batch)
            n_bytes += self._line[0].n_bytes
            if group and (n_elements > most or n_bytes > self._max_bytes):
                break
            group.append(self._line.popleft())
        return group


class _Waiting:
    """A batch in the line."""

    def __init__(self, batch: list[Any]) -> None:
        self.batch = batch
        self.n_bytes = size_in_bytes(batch)
        self.group: list[_Waiting] = []
        self.outcome: list[Any] | None = None
        self.ready = threading.Lock()
        self.ready.acquire()


def _call_for(group: list[_Waiting], call: Call) -> None:
    """Calls the model once for a group; in halves where memory does not suffice for more."""
    joined = [element for waiting in group for element in waiting.batch]
    try:
        results = iter(call(joined))
    except Exception as error:
        if len(group) > 1 and is_out_of_memory(error):
            middle = (len(group) + 1) // 2
            _call_for(group[:middle], call)
            _call_for(group[middle:], call)
        return
    for waiting in group:
        waiting.outcome = list(islice(results, len(waiting.batch)))
