"""Decide by measuring whether batches run faster with an optimization or without it."""

from __future__ import annotations

from math import inf
from statistics import fmean

#: Number of batches to measure without the optimization. Twice as many are measured with it. If the result is
#: close, both phases are repeated.
_BATCHES_WITHOUT = 2
#: Minimum share of the time per element that the optimization must save.
_MIN_GAIN = 0.05
#: The first two phases are enough if the gain differs from `_MIN_GAIN` by more than this.
_CLEAR_MARGIN = 0.15
_FIRST_EXPLOIT_BATCHES = 64
_MAX_EXPLOIT_BATCHES = 8_192


class MeasuredSwitch:
    """Decides by measuring whether to use an optimization that makes some models faster and others slower.

    Batches are measured in two phases, without and with the optimization, and measured again after 64 batches,
    then after twice as many, and so on.

    >>> switch = MeasuredSwitch()
    >>> while not switch.is_decided:
    ...     switch.record(n_elements=10, seconds=0.01 if switch.is_on else 0.02)
    >>> switch.is_on
    True

    Args:
        batches_without: The number of batches in the phase without the optimization. The phase with it has
            twice as many, because an optimization usually helps.
        min_secs: Minimum time in seconds. If a batch or a call is shorter, the optimization isn't tried.

    Attributes:
        is_on: Whether the next batch should use the optimization.
        is_decided: Whether measuring has finished.
    """

    _fastest: float

    def __init__(self, batches_without: int = _BATCHES_WITHOUT, min_secs: float = 0) -> None:
        self._batches_without = batches_without
        self._min_secs = min_secs
        self._exploit_batches = _FIRST_EXPLOIT_BATCHES
        self._start_measuring()

    def record(self, n_elements: int, seconds: float) -> None:
        """Record the time from one batch to the next. The batch ran with the current value of ``is_on``."""
        if self.is_decided:
            self._batches_left -= 1
            if not self._batches_left:
                self._exploit_batches = min(2 * self._exploit_batches, _MAX_EXPLOIT_BATCHES)
                self._start_measuring()
            return
        self._measured[self.is_on].append(seconds / n_elements)
        self._fastest = min(self._fastest, seconds)  # noise only makes a batch slower
        phase = self._batches_without * (2 if self.is_on else 1)
        if len(self._measured[self.is_on]) % phase == 0:
            self._end_phase()

    def record_call(self, seconds: float) -> None:
        """Record the time of a model call, which is the most that the optimization can save per batch."""
        self._fastest = min(self._fastest, seconds)

    def _start_measuring(self) -> None:
        self.is_on = self.is_decided = False
        self._measured: dict[bool, list[float]] = {False: [], True: []}
        self._fastest = inf

    def _end_phase(self) -> None:
        if not self.is_on:
            if self._fastest < self._min_secs:
                self._decide(False)
            else:
                self.is_on = True
            return
        without, with_it = fmean(self._measured[False]), fmean(self._measured[True])
        gain = 1 - with_it / without if without else 0.0
        is_last = len(self._measured[False]) > self._batches_without
        if is_last or abs(gain - _MIN_GAIN) > _CLEAR_MARGIN:
            self._decide(gain > _MIN_GAIN)
        else:
            self.is_on = False

    def _decide(self, is_on: bool) -> None:
        self.is_on, self.is_decided = is_on, True
        self._batches_left = self._exploit_batches
