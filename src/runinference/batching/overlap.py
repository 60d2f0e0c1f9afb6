"""Decide by measuring whether the calls of successive batches overlap."""

from __future__ import annotations

from math import inf

#: Batches are measured in two phases, without and with overlap. If the result is close, both are repeated.
_BATCHES_PER_PHASE = 4
#: Overlap must save this share of the time.
_GAIN = 0.05
#: The first two phases are enough if the gain differs from `_GAIN` by more than this.
_CLEAR_GAIN = 0.15
#: Seconds below which handing a call to another thread costs more than overlap can save: while the pipeline
#: computes, the other thread waits up to 5 ms for the interpreter lock.
_MIN_SECS = 0.002
_FIRST_EXPLOIT_BATCHES = 64
_MAX_EXPLOIT_BATCHES = 8_192


class OverlapDecision:
    """Whether the calls of a model should overlap with what its pipeline does before and after them.

    While one batch computes, the next one can be collated, and the results of the one before can be emitted. This
    is faster if the model leaves the interpreter lock to other threads, as on a GPU. It is slower if the model
    holds the lock, or if a batch takes microseconds. Therefore, batches are measured both ways, and measured again
    after 64 batches, then after twice as many, and so on.

    >>> decision = OverlapDecision()
    >>> while not decision.is_made:
    ...     decision.record(n_elements=10, seconds=0.01 if decision.overlaps else 0.02)
    >>> decision.overlaps
    True

    Attributes:
        overlaps: Whether the next batch should overlap.
        is_made: Whether measuring has finished.
    """

    def __init__(self) -> None:
        self._fastest = inf
        self._exploit_batches = _FIRST_EXPLOIT_BATCHES
        self._start_measuring()

    def record(self, n_elements: int, seconds: float) -> None:
        """Record the time from one batch to the next. The batch ran with the current value of ``overlaps``."""
        if self.is_made:
            self._batches_left -= 1
            if not self._batches_left:
                self._exploit_batches = min(2 * self._exploit_batches, _MAX_EXPLOIT_BATCHES)
                self._start_measuring()
            return
        self._measured[self.overlaps].append(seconds / n_elements)
        self._fastest = min(self._fastest, seconds)  # noise only makes a batch slower
        if len(self._measured[self.overlaps]) % _BATCHES_PER_PHASE == 0:
            self._end_phase()

    def record_call(self, seconds: float) -> None:
        """Record the time of a call, which is the most that overlap can save per batch."""
        self._fastest = min(self._fastest, seconds)

    def _start_measuring(self) -> None:
        self.overlaps = self.is_made = False
        self._measured: dict[bool, list[float]] = {False: [], True: []}
        self._fastest = inf

    def _end_phase(self) -> None:
        if not self.overlaps:
            if self._fastest < _MIN_SECS:
                self._decide(False)
            else:
                self.overlaps = True
            return
        sequential, overlapping = (sum(self._measured[overlaps]) for overlaps in (False, True))
        gain = 1 - overlapping / sequential if sequential else 0.0
        is_last = len(self._measured[True]) > _BATCHES_PER_PHASE
        if is_last or abs(gain - _GAIN) > _CLEAR_GAIN:
            self._decide(gain > _GAIN)
        else:
            self.overlaps = False

    def _decide(self, overlaps: bool) -> None:
        self.overlaps, self.is_made = overlaps, True
        self._batches_left = self._exploit_batches
