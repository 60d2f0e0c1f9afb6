"""How many elements to put in a batch: found by measuring, and by what did not fit into memory."""

from __future__ import annotations

import threading
from math import inf

from runinference.batching.policy import BatchPolicy


class AdaptiveSize:
    """How many elements to put in a batch, found by measuring; one for each model of a process.

    Sizes double from the smallest allowed while a larger one makes an element at least a tenth cheaper: after
    one call where it is much cheaper, else after three, of which the fastest counts. The size settles on the
    smallest that is within a twentieth of the best seen: on a processor, a large model is often fastest in
    small batches. The first call of a model is not counted: it warms caches up. As a call may have been slow
    for reasons of its own, the search begins anew after 64 calls, from half the size, then after twice as
    many, and so on.

    A policy with a budget on padded size needs no search: the budget decides, up to the most elements.

    Attributes:
        now: The elements that a batch may have now.
        budget: The padded size that a batch may have now; None where the policy has no budget.
        settled: Whether the search is over, for now.
    """

    def __init__(self, policy: BatchPolicy) -> None:
        self._fixed = (
            policy.min_batch_size == policy.max_batch_size or policy.max_padded_size is not None
        )
        self.converged = self._fixed
        self._least, self._most = policy.min_batch_size, policy.max_batch_size
        self._wanted = (
            policy.min_batch_size if policy.max_padded_size is None else policy.max_batch_size
        )
        self._elements = _Limit(policy.max_batch_size)
        self._padded = None if policy.max_padded_size is None else _Limit(policy.max_padded_size)
        self._cost: dict[int, float] = {}
        self._calls = 0
        self._warm = False
        self._worse = 0
        self._rest = self._next_rest = _FIRST_REST
        self._lock = threading.Lock()
        self._put_in_force()

    @property
    def max_size(self) -> int:
        """The elements that a batch may have at most, whatever is cheapest."""
        return min(self._most, self._elements.current)

    def record(self, n_elements: int, seconds: float) -> None:
        """Learns from one call of the model with ``n_elements`` that took ``seconds`` and went well."""
        if self._fixed and not self._limited:
            return
        with self._lock:
            if self._limited:
                self._went_well(n_elements)
            if self._warm and not self._fixed and n_elements == self._wanted:
                self._learn(seconds / n_elements)
            self._warm = True
            self._put_in_force()

    def record_out_of_memory(self, n_elements: int, padded_size: int | None = None) -> None:
        """Learns that a call with ``n_elements`` did not fit into memory.

        From now on a batch has at most half as many elements, if need be fewer than ``min_batch_size``. With
        ``padded_size``, as the policy's ``padded_size(batch)`` gives it, the budget is halved instead, so that
        batches of short elements stay as large as they were. After 32 calls that went well the limit doubles,
        until it is what the options say; each time that it proves too high, it waits twice as long before
        it doubles again. The limit is that of this process, and as old as the model.
        """
        with self._lock:
            if padded_size is None or self._padded is None:
                self._elements.halve(n_elements)
            else:
                self._padded.halve(padded_size)
            self._put_in_force()

    def _went_well(self, n_elements: int) -> None:
        if n_elements >= self.current:
            self._elements.went_well()
        if self._padded is not None:
            self._padded.went_well()

    def _put_in_force(self) -> None:
        self.current = min(self._wanted, self._elements.current)
        self.max_padded_size = None if self._padded is None else self._padded.current
        self._limited = self._elements.below or (self._padded is not None and self._padded.below)

    def _learn(self, cost: float) -> None:
        if self.converged:
            self._rest -= 1
            if self._rest == 0:
                self._search_again()
            return
        self._cost[self._wanted] = min(cost, self._cost.get(self._wanted, cost))
        self._calls += 1
        if (
            self._calls >= _CALLS_PER_SIZE
            or self._cost[self._wanted] < _MUCH * self._best_smaller()
        ):
            self._grow()

    def _search_again(self) -> None:
        self._next_rest = min(2 * self._next_rest, _LONGEST_REST)
        self._rest = self._next_rest
        self._cost.clear()
        self._calls = self._worse = 0
        self._wanted = max(self._least, self._wanted // 2)
        self.converged = False

    def _grow(self) -> None:
        self._calls = 0
        gained = self._cost[self._wanted] < 0.9 * self._best_smaller()
        self._worse = 0 if gained else self._worse + 1
        if self._worse == _WORSE_IN_A_ROW or self._wanted >= self._most:
            best = min(self._cost.values())
            self._wanted = min(size for size, cost in self._cost.items() if cost <= 1.05 * best)
            self.converged = True
        else:
            self._wanted = min(2 * self._wanted, self._most)

    def _best_smaller(self) -> float:
        """The least cost of an element in smaller batches; infinite for the smallest size."""
        return min((cost for size, cost in self._cost.items() if size < self._wanted), default=inf)


class _Limit:
    """What fits into memory: halved where it did not, doubled again after calls that went well."""

    def __init__(self, most: int) -> None:
        self.current = self._most = most
        self._well = 0
        self._grown = False
        self._patience = _PATIENCE

    @property
    def below(self) -> bool:
        return self.current < self._most

    def halve(self, amount: int) -> None:
        self.current = min(self.current, max(1, amount // 2))
        if self._grown:
            self._patience = min(2 * self._patience, _MOST_PATIENCE)
        self._grown = False
        self._well = 0

    def went_well(self) -> None:
        self._well += 1
        if self._well >= self._patience:
            self.current = min(2 * self.current, self._most)
            self._grown = True
            self._well = 0


_CALLS_PER_SIZE = 3
_MUCH = 0.7
_FIRST_REST = 64
_LONGEST_REST = 8_192
_WORSE_IN_A_ROW = 2
_PATIENCE = 32
_MOST_PATIENCE = 8_192
