"""Adaptive batch size: minimize the measured cost per element, and back off when memory runs out."""

from __future__ import annotations

import threading
from bisect import insort
from math import exp, log, sqrt
from statistics import fmean

from runinference.batching.policy import BatchPolicy

_MIN_CALLS_PER_SIZE = 3
_MAX_CALLS_PER_SIZE = 8
#: Costs are compared as logarithms: a size is a gain if it makes an element 10% cheaper.
_GAIN = -log(0.9)
#: The gain at which one call is enough to try the next size.
_CLEAR_GAIN = -log(0.7)
#: How many standard errors a gain must differ from ``_GAIN`` before it is decided.
_CONFIDENCE = 2.0
#: The share of the error of a gain that is added to it, if the calls of a size are used up.
_BENEFIT_OF_DOUBT = 0.25
_NEAR_BEST = log(1.05)
#: The factor by which the size grows. Small sizes cost most, and a small factor is hard to tell from noise.
_GROWTH = 8
#: The factor is smaller if a call of the next size could take longer than this.
_LONG_CALL_SECS = 0.4
#: The factor is larger as long as a call of the next size takes less than this.
_SHORT_CALL_SECS = 2e-3
_FIRST_EXPLOIT_CALLS = 64
_MAX_EXPLOIT_CALLS = 8_192
_FIRST_BACKOFF_CALLS = 32
_MAX_BACKOFF_CALLS = 8_192


class AdaptiveSize:
    """The batch size of a model in this process, adapted to the measured cost per element and to memory.

    Exploring starts at the minimum size. The size grows by a factor of 8, less if a call could take 0.4 s then,
    and more while calls take less than 2 ms. If the larger size isn't much cheaper per element, the sizes between
    are measured: the size doubles while this makes an element at least 10% cheaper. The first call is not
    measured, because it warms up the model. If calls of the same size take equally long, each size is measured
    with three calls, or with one call if it is much cheaper. The more these times vary, the more calls are made,
    up to 8, alternately of the new size and of the best smaller one.

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
        self._costs: dict[int, _Cost] = {}
        self._warmed_up = False
        self._may_skip_sizes = True
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
        self._costs.setdefault(self._target, _Cost()).add(log(max(cost, 1e-12)))
        self._target = self._next_target()

    def _explore_again(self) -> None:
        self._exploit_calls = min(2 * self._exploit_calls, _MAX_EXPLOIT_CALLS)
        self._exploit_calls_left = self._exploit_calls
        self._costs.clear()
        self._may_skip_sizes = True
        self._target = max(self._min, self._target // 2)
        self.converged = False

    def _next_target(self) -> int:
        """Return the size to measure next: the largest so far, the best smaller one, or a larger one."""
        largest = max(self._costs)
        smaller = [size for size in self._costs if size < largest]
        if not smaller:
            return self._explore_larger_size(largest)
        best = min(smaller, key=lambda size: self._costs[size].mean)
        new, old = self._costs[largest], self._costs[best]
        gain = old.mean - new.mean
        error = _CONFIDENCE * self._deviation() * sqrt(1 / new.n + 1 / old.n)
        if gain - error > _CLEAR_GAIN:
            return self._explore_larger_size(largest)
        if 2 * best < largest and 2 * best not in self._costs:
            del self._costs[largest]
            self._may_skip_sizes = False
            return 2 * best
        if new.n < _MIN_CALLS_PER_SIZE:
            return largest
        if abs(gain - _GAIN) < error and min(new.n, old.n) < _MAX_CALLS_PER_SIZE:
            return largest if new.n <= old.n else best
        # In doubt, try the larger size: its calls cost little more, and stopping at a small one costs much more.
        may_gain = gain + _BENEFIT_OF_DOUBT * error > _GAIN
        return self._explore_larger_size(largest) if may_gain else self._converge()

    def _explore_larger_size(self, size: int) -> int:
        if size >= self._max:
            return self._converge()
        factor = 2.0
        if self._may_skip_sizes:
            seconds = size * exp(self._costs[size].mean)
            factor = max(
                factor, min(_GROWTH, _LONG_CALL_SECS / seconds), _SHORT_CALL_SECS / seconds
            )
        power_of_2 = 1 << int(factor).bit_length() >> 1
        return min(size * power_of_2, self._max)

    def _converge(self) -> int:
        self.converged = True
        limit = min(cost.mean for cost in self._costs.values()) + _NEAR_BEST
        return min(size for size, cost in self._costs.items() if cost.mean <= limit)

    def _deviation(self) -> float:
        """Return the standard deviation of calls of the same size, larger while there are few of them."""
        freedom = sum(cost.n - 1 for cost in self._costs.values())
        squares = sum(cost.squares for cost in self._costs.values())
        return sqrt(squares / freedom) * (1 + 2 / freedom) if freedom else 0.0


class _Cost:
    """The measured costs of one size: logarithms of seconds per element.

    Attributes:
        n: The number of calls.
        mean: The mean of the middle half, which a few slow calls don't change.
        squares: The sum of the squared deviations from the mean.
    """

    def __init__(self) -> None:
        self.n, self.mean, self.squares = 0, 0.0, 0.0
        self._sorted: list[float] = []

    def add(self, cost: float) -> None:
        insort(self._sorted, cost)
        self.n += 1
        cut = (self.n + 1) // 4
        self.mean = fmean(self._sorted[cut : self.n - cut])
        self.squares = sum((each - self.mean) ** 2 for each in self._sorted)


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
