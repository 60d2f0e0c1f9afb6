"""Search for the best value of an option, within a time limit."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from operator import attrgetter

from runinference.errors import (
    ModelUnavailableError,
    TuningError,
    describe,
    is_out_of_memory,
)
from runinference.tuning.candidate import BatchFailedError, Candidate
from runinference.tuning.sample import element_error

#: A value is better if it is this much faster.
_GAIN = 1.05
#: Growing stops after this many values without a gain.
_MAX_WITHOUT_GAIN = 2


class Search:
    """Measures the candidates of an option, and chooses one.

    Args:
        seconds: The time limit.
        rounds: The number of rounds in which candidates take turns.
        progress: Called with a line of text after each step.
        notes: The list to add notes to, such as why a value wasn't measured.
    """

    def __init__(
        self, seconds: float, rounds: int, progress: Callable[[str], None], notes: list[str]
    ) -> None:
        self._start = time.monotonic()
        self._seconds = seconds
        self._rounds = rounds
        self._progress = progress
        self._notes = notes

    def grow(self, candidates: Iterable[Candidate], until: float = 0.5) -> list[Candidate]:
        """Measure candidates of ascending cost as long as they get faster, and return those that were measured.

        Args:
            candidates: The candidates, which can be created lazily.
            until: The share of the time limit after which no further candidate is measured.
        """
        measured: list[Candidate] = []
        for candidate in candidates:
            if measured and self._elapsed() > until * self._seconds:
                self._note(f"The time limit ended the search before {candidate.label}.")
                break
            if not self._measure(candidate, measured, 1):
                break
            measured.append(candidate)
            if not self._still_gains(measured):
                break
        return measured

    def measure_all(self, candidates: Iterable[Candidate]) -> list[Candidate]:
        """Measure all candidates, and return those that could be measured."""
        measured: list[Candidate] = []
        for candidate in candidates:
            # Warm up with all batches, because a compiled model may be compiled again for each shape.
            if self._measure(candidate, measured, len(candidate.batches)):
                measured.append(candidate)
        return measured

    def choose(self, candidates: Sequence[Candidate]) -> Candidate:
        """Measure candidates in alternating rounds, and return the first one within 5% of the best."""
        remaining = list(candidates)
        for number in range(1, self._rounds + 1):
            expected = sum(each.costs[-1] * each.n_elements for each in remaining)
            if self._elapsed() + expected > self._seconds:
                self._note(f"The time limit allowed {number - 1} of {self._rounds} rounds.")
                break
            self._progress(f"round {number} of {self._rounds}")
            for candidate in remaining[:: -1 if number % 2 else 1]:
                others = [each for each in remaining if each is not candidate]
                if not self._try(candidate, candidate.run, others):
                    remaining = others
        limit = min(each.cost for each in remaining) * _GAIN
        return next(each for each in remaining if each.cost <= limit)

    def _measure(self, candidate: Candidate, others: Sequence[Candidate], n_warm_up: int) -> bool:
        """Return whether a candidate could be measured."""
        self._progress(candidate.label)
        if not self._try(candidate, partial(candidate.run_first, n_warm_up), others):
            return False
        self._progress(f"{candidate.label}: {1 / candidate.cost:,.0f} elements/s")
        return True

    def _still_gains(self, measured: Sequence[Candidate]) -> bool:
        """Return whether one of the last values is faster than all earlier ones. In doubt, measure them again."""
        earlier, latest = measured[:-_MAX_WITHOUT_GAIN], measured[-_MAX_WITHOUT_GAIN:]
        if not earlier:
            return True
        best = min(earlier, key=attrgetter("cost"))
        if _is_faster(latest, best):
            return True
        runs = [self._try(each, each.run, earlier) for each in (best, *latest)]
        return all(runs) and _is_faster(latest, best)

    def _try(
        self, candidate: Candidate, run: Callable[[], None], others: Sequence[Candidate]
    ) -> bool:
        """Return whether a measurement succeeded; see `handle_failure`."""
        try:
            run()
        except BatchFailedError as failed:
            self.handle_failure(candidate, failed, others)
            return False
        return True

    def handle_failure(
        self, candidate: Candidate, failed: BatchFailedError, others: Sequence[Candidate]
    ) -> None:
        """Add a note about a candidate that failed; raise `TuningError` if nothing can be measured."""
        error = failed.__cause__ or failed
        if others and is_out_of_memory(error):
            self._note(f"Memory ran out with {candidate.label}.")
            return
        if isinstance(error, ModelUnavailableError):
            raise TuningError(f"The model can't be called: {describe(error, 2_000)}") from error
        _check_elements(candidate, failed)
        n, message = len(failed.batch), describe(error, 2_000)
        if not others:
            raise TuningError(
                f"The handler fails on a batch of {n} elements, but not on each of them alone: {message}\n"
                "To fix this, correct the handler. runinference.testing.check_handler finds such errors."
            ) from error
        self._note(f"{candidate.label} fails, although each element succeeds alone: {message}")

    def _note(self, text: str) -> None:
        if text not in self._notes:
            self._notes.append(text)
        self._progress(text)

    def _elapsed(self) -> float:
        return time.monotonic() - self._start


def _check_elements(candidate: Candidate, failed: BatchFailedError) -> None:
    """Call the model on each element of a batch that failed; raise `TuningError` for the first one that fails."""
    for index, element in dict(failed.batch).items():
        try:
            candidate.call([(index, element)])
        except BatchFailedError as alone:
            error = alone.__cause__ or alone
            raise element_error(index, element, error, "The handler fails on") from error


def _is_faster(latest: Sequence[Candidate], best: Candidate) -> bool:
    return min(min(each.costs) for each in latest) * _GAIN < min(best.costs)
