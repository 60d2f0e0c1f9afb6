"""Adaptive batch size: minimize the measured cost per element, and back off when memory runs out."""

from __future__ import annotations

import threading
from math import inf

from runinference.batching.policy import BatchPolicy

_CALLS_PER_SIZE = 3
#: The cost per element, relative to smaller sizes, at which one call is enough to try the next size.
_CLEAR_GAIN = 0.7
_GAIN = 0.9
_NEAR_BEST = 1.05
_MAX_SIZES_WITHOUT_GAIN = 2
_FIRST_EXPLOIT_CALLS = 64
_MAX_EXPLOIT_CALLS = 8_192
_FIRST_BACKOFF_CALLS = 32
_MAX_BACKOFF_CALLS = 8_192


class AdaptiveSize:
    """The batch size of a model in this process, adapted to the measured cost per element and to memory.

    Exploring starts at the minimum size. The size doubles while this makes an element at least 10% cheaper.
    Each size is measured with three calls, of which the fastest counts, or with one call if it is much cheaper.
    The first call is not measured, because it warms up the model.

    Then the smallest size within 5% of the best cost is used. On a CPU, large models are often fastest in
    small batches. A slow call may have other reasons, so exploring restarts at half the size after 64 calls,
    then after twice as many calls, and so on.

    With ``max_padded_size``, nothing is explored: the padded size determines the batch.

    Attributes:
        current: The current maximum number of elements in a batch.
        max_padded_size: The current maximum padded size, or None if the policy has none.
        converged: Whether exploration has finished.
    """

    def __init__(self, policy: BatchPolicy) -> None:
        budget = policy.max_padded_size
        self._fixed = policy.min_batch_size == policy.max_batch_size or budget is not None
        self.converged = self._fixed
        self._min, self._max = policy.min_batch_size, policy.max_batch_size
        self._target = self._min if budget is None else self._max
        self._elements = _MemoryLimit(self._max)
        self._padded = None if budget is None else _MemoryLimit(budget)
        self._costs: dict[int, float] = {}  # seconds per element, by size
        self._calls = 0
        self._warmed_up = False
        self._sizes_without_gain = 0
        self._exploit_calls = self._exploit_calls_left = _FIRST_EXPLOIT_CALLS
        self._lock = threading.Lock()
        self._apply_limits()

    @property
    def max_size(self) -> int:
        """The maximum number of elements that the policy and memory allow, regardless of cost."""
        return min(self._max, self._elements.current)

    def record(self, n_elements: int, seconds: float) -> None:
        """Record a successful call with ``n_elements`` that took ``seconds``."""
        if self._fixed and not self._backed_off:
            return
        with self._lock:
            if self._backed_off:
                self._record_memory_sufficed(n_elements)
            if self._warmed_up and not self._fixed and n_elements == self._target:
                self._record_cost(seconds / n_elements)
            self._warmed_up = True
            self._apply_limits()

    def record_out_of_memory(self, n_elements: int, padded_size: int | None = None) -> None:
        """Record that a call with ``n_elements`` ran out of memory, and back off.

        The limit is halved, below ``min_batch_size`` if necessary. It doubles after 32 successful calls, up to
        the value of the options. Each time it proves too high again, twice as many calls are required.

        If ``padded_size`` is given, the maximum padded size is halved instead of the number of elements, so that
        batches of short elements keep their size.
        """
        with self._lock:
            if padded_size is None or self._padded is None:
                self._elements.back_off(n_elements)
            else:
                self._padded.back_off(padded_size)
            self._apply_limits()

    def _record_memory_sufficed(self, n_elements: int) -> None:
        if n_elements >= self.current:
            self._elements.record_success()
        if self._padded is not None:
            self._padded.record_success()

    def _apply_limits(self) -> None:
        self.current = min(self._target, self._elements.current)
        self.max_padded_size = None if self._padded is None else self._padded.current
        self._backed_off = self._elements.backed_off or (
            self._padded is not None and self._padded.backed_off
        )

    def _record_cost(self, cost: float) -> None:
        if self.converged:
            self._exploit_calls_left -= 1
            if self._exploit_calls_left == 0:
                self._explore_again()
            return
        self._costs[self._target] = min(cost, self._costs.get(self._target, cost))
        self._calls += 1
        clear = self._costs[self._target] < _CLEAR_GAIN * self._min_cost_of_smaller_sizes()
        if clear or self._calls >= _CALLS_PER_SIZE:
            self._explore_next_size()

    def _explore_again(self) -> None:
        self._exploit_calls = min(2 * self._exploit_calls, _MAX_EXPLOIT_CALLS)
        self._exploit_calls_left = self._exploit_calls
        self._costs.clear()
        self._calls = self._sizes_without_gain = 0
        self._target = max(self._min, self._target // 2)
        self.converged = False

    def _explore_next_size(self) -> None:
        self._calls = 0
        gained = self._costs[self._target] < _GAIN * self._min_cost_of_smaller_sizes()
        self._sizes_without_gain = 0 if gained else self._sizes_without_gain + 1
        if self._sizes_without_gain < _MAX_SIZES_WITHOUT_GAIN and self._target < self._max:
            self._target = min(2 * self._target, self._max)
        else:
            limit = _NEAR_BEST * min(self._costs.values())
            self._target = min(size for size, cost in self._costs.items() if cost <= limit)
            self.converged = True

    def _min_cost_of_smaller_sizes(self) -> float:
        return min((cost for size, cost in self._costs.items() if size < self._target), default=inf)


class _MemoryLimit:
    """A limit with exponential backoff: halved when memory runs out, doubled after successful calls."""

    def __init__(self, maximum: int) -> None:
        self.current = self._max = maximum
        self._successes = 0
        self._successes_needed = _FIRST_BACKOFF_CALLS
        self._raised = False

    @property
    def backed_off(self) -> bool:
        return self.current < self._max

    def back_off(self, amount: int) -> None:
        self.current = min(self.current, max(1, amount // 2))
        if self._raised:
            self._successes_needed = min(2 * self._successes_needed, _MAX_BACKOFF_CALLS)
        self._raised = False
        self._successes = 0

    def record_success(self) -> None:
        self._successes += 1
        if self._successes >= self._successes_needed:
            self.current = min(2 * self.current, self._max)
            self._raised = True
            self._successes = 0
