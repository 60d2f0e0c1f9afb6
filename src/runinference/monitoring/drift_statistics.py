"""The population stability index and the Kolmogorov-Smirnov statistic, from counts.

References:
    Lewis: An introduction to credit scoring (1994), and Siddiqi: Intelligent credit scoring (2017), for the index
    and its thresholds of 0.1 and 0.25.
    Yurdakul, Naranjo: Statistical properties of the population stability index, Journal of Risk Model Validation
    14 (2020), for its distribution without drift.
    Stephens: Use of the Kolmogorov-Smirnov, Cramér-von Mises and related statistics without extensive tables,
    Journal of the Royal Statistical Society B 32 (1970), for the p-value.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

#: Added to each count, so that empty bins have a finite index.
_SMOOTHING = 0.5


def population_stability_index(reference: Sequence[int], observed: Sequence[int]) -> float:
    """Return the sum of ``(p - q) * ln(p / q)`` over the bins, for the shares p and q of both samples.

    Bins that are empty in both samples are left out. 0.5 is added to each other count, so that the index is finite
    if a bin is empty in one sample.

    >>> population_stability_index([500, 500], [500, 500])
    0.0
    >>> round(population_stability_index([500, 500], [800, 200]), 2)
    0.41

    Args:
        reference: The number of values in each bin.
        observed: The number of values in the same bins.
    """
    counts = np.array([reference, observed], float)
    smoothed = counts[:, counts.any(axis=0)] + _SMOOTHING
    p, q = smoothed / smoothed.sum(axis=1, keepdims=True)
    return float(((q - p) * np.log(q / p)).sum())


def kolmogorov_smirnov(
    reference: Sequence[int], observed: Sequence[int]
) -> tuple[float, float] | None:
    """Return the largest difference of two cumulative distributions at the edges of bins, and its p-value.

    The p-value is the asymptotic one, with the correction of Stephens for small samples.

    >>> statistic, p_value = kolmogorov_smirnov([500, 500], [800, 200])
    >>> round(statistic, 3), p_value < 1e-6
    (0.3, True)

    Args:
        reference: The number of values in each bin, in the order of the values.
        observed: The number of values in the same bins.

    Returns:
        None if one of the samples is empty.
    """
    n_reference, n_observed = sum(reference), sum(observed)
    if not n_reference or not n_observed:
        return None
    shares = np.cumsum(reference) / n_reference - np.cumsum(observed) / n_observed
    statistic = float(np.abs(shares).max())
    root = math.sqrt(n_reference * n_observed / (n_reference + n_observed))
    return statistic, _survival((root + 0.12 + 0.11 / root) * statistic)


def _survival(x: float) -> float:
    """Return the probability that a value of Kolmogorov's distribution is greater than ``x``."""
    if (
        x < 0.2
    ):  # the series converges slowly, and the probability differs from 1 by less than 1e-10
        return 1.0
    terms = np.arange(1, 101)
    series = 2 * ((-1.0) ** (terms - 1) * np.exp(-2 * (terms * x) ** 2)).sum()
    return float(min(1.0, max(0.0, series)))
