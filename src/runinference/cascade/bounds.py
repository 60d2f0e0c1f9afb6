"""Exact statistics of a rate: lower bounds and tests from the number of successes in a sample.

References:
    Clopper, Pearson: The use of confidence or fiducial limits illustrated in the case of the binomial (1934).
    Angelopoulos, Bates, Candès, Jordan, Lei: Learn then Test: calibrating predictive algorithms to achieve risk
    control (2021), https://arxiv.org/abs/2110.01052, for tests of several thresholds.
    Wiens: A fixed sequence Bonferroni procedure for testing multiple endpoints (2003), for their levels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

#: Maximum number of thresholds that are tested.
MAX_CANDIDATES = 20


def tail_probability(n: int, n_successes: int, rate: float) -> float:
    """Return the probability of at least this many successes in ``n`` trials.

    >>> round(tail_probability(3, 2, 0.5), 6)
    0.5
    """
    if n_successes <= 0:
        return 1.0
    if n_successes > n or rate <= 0:
        return 0.0
    if rate >= 1:
        return 1.0
    failures = np.arange(n - n_successes + 1)
    steps = np.log((n - failures[:-1]) / (failures[:-1] + 1)) + math.log((1 - rate) / rate)
    logs = n * math.log(rate) + np.concatenate([[0.0], np.cumsum(steps)])
    return float(min(1.0, np.exp(logs - logs.max()).sum() * math.exp(logs.max())))


def lower_bound(n: int, n_successes: int, error_probability: float) -> float:
    """Return the lower bound of the Clopper-Pearson interval for the rate of successes.

    The probability that it is greater than the true rate is at most ``error_probability``.

    >>> round(lower_bound(59, 59, 0.05), 4), lower_bound(0, 0, 0.05)
    (0.9505, 0.0)
    """
    low, high = 0.0, 1.0
    while high - low > 1e-12:
        middle = (low + high) / 2
        if tail_probability(n, n_successes, middle) <= error_probability:
            low = middle
        else:
            high = middle
    return low


def sample_size(agreement: float, error_probability: float) -> int:
    """Return how many elements are needed to show a rate of agreement, if the models agree on all of them.

    >>> sample_size(0.95, 0.05)
    59
    """
    return math.ceil(math.log(error_probability) / math.log(agreement))


def choose_candidates(
    confidences: Sequence[float], n_tested: int, agreement: float, error_probability: float
) -> list[float]:
    """Return thresholds to test, the highest first. The last one accepts all confidences.

    They depend only on confidences of elements that the test doesn't use, as `find_lowest` requires.

    Args:
        confidences: The confidences of elements that aren't tested. NaN counts as the lowest.
        n_tested: The number of elements that the test uses.
        agreement: The requested share.
        error_probability: The error probability of the whole test.
    """
    size = sample_size(agreement, error_probability / 2)
    # With some more elements, the first threshold may pass although the models differ on a few of them.
    needed = (2 if 4 * size <= n_tested else 1.25) * size / n_tested
    shares = np.linspace(needed, 1, MAX_CANDIDATES) if needed < 1 else np.ones(1)
    descending = sorted((-math.inf if math.isnan(c) else c for c in confidences), reverse=True)
    ranks = np.ceil(shares * len(descending)).astype(int)
    found = {descending[rank] if rank < len(descending) else -math.inf for rank in ranks}
    return sorted(found | {-math.inf}, reverse=True)


def find_lowest(
    candidates: Sequence[float],
    confidences: Sequence[float],
    agreed: Sequence[bool],
    agreement: float,
    error_probability: float,
) -> tuple[float, float] | None:
    """Return the lowest threshold above which the agreement is shown, and the level of its test.

    For each threshold, the hypothesis is tested that the elements above it agree at a lower rate than requested.
    The fallback procedure of Wiens limits the probability that any of the hypotheses is rejected wrongly: the
    first test gets half of the error probability, and the others share the rest. A rejected hypothesis passes its
    level on to the next one.

    Args:
        candidates: The thresholds, the highest first. They mustn't depend on the tested elements.
        confidences: The confidence of each tested element.
        agreed: Whether the models agree on each of them.
        agreement: The requested share.
        error_probability: The probability of a wrong answer.
    """
    found, level = None, 0.0
    scores, successes = np.asarray(confidences, float), np.asarray(agreed, bool)
    n_others = len(candidates) - 1
    for number, threshold in enumerate(candidates):
        share = 0.5 if number == 0 else 0.5 / n_others
        level += error_probability * (share if n_others else 1)
        above = scores > threshold
        p_value = tail_probability(int(above.sum()), int(successes[above].sum()), agreement)
        if p_value <= level:
            found = threshold, level
        else:
            level = 0.0
    return found
