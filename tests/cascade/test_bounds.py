"""The bounds are those of Clopper and Pearson, and a learned threshold has the guaranteed agreement."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from runinference.cascade.bounds import (
    choose_candidates,
    find_lowest,
    lower_bound,
    sample_size,
    tail_probability,
)


@pytest.mark.parametrize("n", [1, 7, 59, 300, 5_000])
@pytest.mark.parametrize("share", [0, 0.5, 0.97, 1])
def test_tail_probabilities_and_lower_bounds_equal_those_of_scipy(n, share):
    k = round(share * n)
    for rate in (1e-6, 0.3, 0.95, 0.9999):
        assert tail_probability(n, k, rate) == pytest.approx(stats.binom.sf(k - 1, n, rate), 1e-6)
    expected = stats.binomtest(k, n, alternative="greater").proportion_ci(0.98, "exact").low
    assert lower_bound(n, k, 0.02) == pytest.approx(expected, abs=1e-9)


def test_the_sample_size_is_the_smallest_that_can_show_the_agreement():
    n = sample_size(0.95, 0.05)
    assert lower_bound(n, n, 0.05) >= 0.95 > lower_bound(n - 1, n - 1, 0.05)


def test_a_learned_threshold_misses_the_agreement_with_at_most_the_error_probability():
    """At the confidence c, the models agree with the probability c: above t, at the rate (1 + t) / 2."""
    generator = np.random.default_rng(0)
    n_wrong, n_found, n_runs = 0, 0, 300
    for _ in range(n_runs):
        confidences = generator.random(400)
        agreed = generator.random(400) < confidences
        candidates = choose_candidates(confidences[:80], 320, 0.8, 0.1)
        found = find_lowest(candidates, confidences[80:], agreed[80:], 0.8, 0.1)
        n_found += found is not None
        n_wrong += found is not None and (1 + max(found[0], 0)) / 2 < 0.8
    assert stats.binomtest(n_wrong, n_runs, 0.1, "greater").pvalue > 0.001
    assert n_found > 0.6 * n_runs


def test_candidates_accept_more_and_more_confidences_up_to_all():
    candidates = choose_candidates([0.1, 0.2, math.nan, 0.3, 0.3] * 20, 1_000, 0.9, 0.05)
    assert candidates == [0.3, 0.2, 0.1, -math.inf]


def test_a_lower_threshold_is_found_after_one_that_fails():
    confidences, agreed = np.arange(1_000)[::-1], np.ones(1_000, bool)
    agreed[:100] = False
    assert find_lowest([899, -math.inf], confidences, agreed, 0.8, 0.05)[0] == -math.inf
