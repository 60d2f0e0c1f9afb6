"""A reference summary has a bounded size, and its statistics are those of SciPy within the documented error."""

from __future__ import annotations

import json
import math
from collections import namedtuple
from dataclasses import dataclass
from decimal import Decimal

import apache_beam as beam
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from runinference import PredictionResult
from runinference.errors import ElementError, OptionError
from runinference.monitoring import FeatureSummary, ReferenceSummary
from runinference.monitoring.drift_statistics import (
    kolmogorov_smirnov,
    population_stability_index,
)
from runinference.monitoring.reference import BinCounter


def summarize(values, n_bins=10, categorical=False):
    return FeatureSummary.from_values("x", values, n_bins, categorical)


def count(summary, values):
    counter, counts = BinCounter("x", summary), [0] * len(summary.counts)
    for value in values:
        counts[counter.find_bin(value)] += 1
    return counts


def compare(reference, values, **options):
    summary = summarize(reference, **options)
    return summary.compare(count(summary, values))


@pytest.mark.parametrize("shift", [0, 0.1, 1])
@pytest.mark.parametrize("n", [60, 250, 5_000])
def test_the_ks_statistic_is_at_most_one_quantile_below_that_of_scipy(shift, n):
    generator = np.random.default_rng(n)
    reference, values = generator.normal(size=n), generator.normal(shift, size=400)
    values[::50] = np.round(values[::50])
    _, (statistic, p_value) = compare(reference, values)
    exact = stats.ks_2samp(reference, values, method="asymp")
    assert exact.statistic - 1 / 256 <= statistic <= exact.statistic + 1e-12
    assert p_value >= exact.pvalue / 2 - 1e-3
    if n <= 256:  # each value is an edge
        assert statistic == pytest.approx(exact.statistic)
        assert p_value == pytest.approx(exact.pvalue, abs=0.02)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.integers(-9, 9), min_size=20, max_size=80),
    st.lists(st.integers(-12, 12), min_size=1, max_size=40),
)
def test_the_ks_statistic_of_values_with_ties_is_exact(reference, values):
    _, (statistic, _) = compare(reference, values)
    assert statistic == pytest.approx(stats.ks_2samp(reference, values, method="asymp").statistic)


def test_the_ks_statistic_of_a_rare_value_is_exact():
    _, (statistic, _) = compare([0, *[5] * 5_000, 9], [0] * 100)
    assert statistic == pytest.approx(1 - 1 / 5_002)


def test_the_index_is_the_sum_over_the_bins():
    reference, observed = np.array([100, 300, 600]), np.array([300, 300, 400])
    p, q = (reference + 0.5) / 1001.5, (observed + 0.5) / 1001.5
    expected = np.sum((q - p) * np.log(q / p))
    assert population_stability_index(reference, observed) == pytest.approx(expected)
    assert population_stability_index([*reference, 0], [*observed, 0]) == pytest.approx(expected)
    assert 1 < population_stability_index([500, 0], [0, 500]) < 20


def test_without_drift_the_index_is_close_to_its_expected_value():
    """The expected value is (bins - 1) * (1 / n + 1 / m), see Yurdakul and Naranjo (2020)."""
    generator = np.random.default_rng(1)
    found = [
        compare(generator.normal(size=2_000), generator.normal(size=500))[0] for _ in range(50)
    ]
    assert np.mean(found) == pytest.approx(9 * (1 / 2_000 + 1 / 500), rel=0.2)


def test_bins_of_the_index_have_equal_shares_of_the_reference():
    summary = summarize(range(1_000))
    assert len(summary.psi_edges) == 9
    assert np.allclose(np.diff([0, *summary.psi_edges]), 100, atol=1)
    assert len(summary.counts) <= 541


@pytest.mark.parametrize("other", [4.9, 5.1, -math.inf, math.inf, None])
def test_a_constant_feature_that_changes_has_drifted(other):
    psi, test = compare([5.0] * 100, [other] * 300)
    assert psi > 1
    assert test is None if other is None else test[0] == 1
    assert compare([5.0] * 100, [5] * 300)[0] == 0


def test_missing_values_are_a_category_and_left_out_of_the_ks_statistic():
    values = [*range(500), *[math.nan, None, pd.NA, np.float32("nan")] * 125]
    psi, (statistic, _) = compare(range(500), values)
    assert psi > 1
    assert statistic == 0


@pytest.mark.parametrize("missing", [[None] * 60, [math.nan] * 60])
def test_a_feature_that_is_always_missing_drifts_if_it_has_values(missing):
    psi, test = compare(missing, [1.0] * 60)
    assert psi > 1
    assert test is None
    assert compare(missing, missing)[0] == 0


def test_infinite_values_are_in_the_outer_bins():
    summary = summarize([-math.inf, *range(100), math.inf])
    counts = count(summary, [-math.inf, math.inf, 1e300, -1e300, 10**400, -(10**400)])
    assert (counts[1], counts[-1]) == (2, 2)
    infinite = [math.inf] * 100
    assert compare(infinite, infinite) == (0, (0, 1))
    for others in ([-math.inf] * 100, range(100), [None] * 100):
        assert compare(infinite, others)[0] > 5
    assert json.loads(ReferenceSummary({"x": summary}).to_json())


def test_categories_that_the_reference_lacks_are_counted_together():
    reference = ["a"] * 50 + ["b"] * 50
    assert compare(reference, reference) == (0, None)
    psi, _ = compare(reference, [f"new {n}" for n in range(100)])
    assert psi > 5
    assert count(summarize(reference), ["new", "a", None, True]) == [1, 2, 1, 0]


def test_only_the_most_frequent_categories_are_kept():
    values = [f"id {n}" for n in range(5_000)] + ["common"] * 50
    summary = summarize(values)
    assert len(summary.categories) == 100
    assert "common" in summary.categories
    assert summary.counts[1] == 5_000 - 99
    assert compare(values, values)[0] == 0


@pytest.mark.parametrize(
    ("values", "numeric"),
    [
        ([1, 2.5, np.int8(3), Decimal("4.5"), np.float64(5)], True),
        ([1, None], True),
        ([True, False], False),
        (["1", "2"], False),
        ([1, "2"], False),
        ([b"1"], False),
    ],
)
def test_features_are_numeric_if_all_values_are_numbers(values, numeric):
    assert summarize(values).numeric is numeric


def test_numbers_can_be_categories():
    reference, values = [0, 1, 2, 3] * 25, [0, 3] * 100
    assert summarize(reference, categorical=True).categories == ("0", "1", "2", "3")
    assert compare(reference, np.array(values, float), categorical=True)[0] > 1
    assert compare(reference, reference, categorical=True)[0] == 0


def test_large_integers_are_different_categories():
    ids = [2**53, 2**53 + 1, np.uint64(2**64 - 1)] * 20
    assert len(summarize(ids, categorical=True).categories) == 3
    assert compare(ids, [2**53] * 60, categorical=True)[0] > 1


def test_a_text_in_a_numeric_feature_counts_as_missing():
    assert count(summarize(range(60)), ["7", True])[0] == 2


Point = namedtuple("Point", ["a", "b"])


@dataclass
class Pair:
    a: int
    b: int


@pytest.mark.parametrize(
    "example",
    [{"a": 1, "b": 2}, Point(1, 2), beam.Row(a=1, b=2), Pair(1, 2), pd.Series({"a": 1, "b": 2})],
    ids=lambda example: type(example).__name__,
)
def test_features_are_the_columns_of_rows(example):
    for result in (PredictionResult(example, 3), ("key", PredictionResult(example, 3))):
        assert list(ReferenceSummary.from_sample([result] * 50).features) == [
            "a",
            "b",
            "prediction",
        ]
        found = ReferenceSummary.from_sample(
            [result] * 50, features=["b"], prediction=lambda p: {"p": p, "half": p / 2}
        )
        assert list(found.features) == ["b", "p", "half"]


@pytest.mark.parametrize("convert", [np.array, list, tuple])
def test_features_are_the_numbers_of_vectors(convert):
    sample = [PredictionResult(convert([1.0, n, 3.0]), 1) for n in range(50)]
    assert list(ReferenceSummary.from_sample(sample).features) == [
        *("feature_0", "feature_1", "feature_2"),
        "prediction",
    ]
    found = ReferenceSummary.from_sample(sample, features=[1], prediction=lambda p: {})
    assert list(found.features) == ["feature_1"]
    assert found.features["feature_1"].counts[::2] == (0, *[1] * 50)


def test_features_can_be_computed():
    sample = [PredictionResult("text " * n, "ok") for n in range(50)]
    found = ReferenceSummary.from_sample(sample, features=lambda text: {"length": len(text)})
    assert found.features["length"].numeric
    assert found.features["prediction"].categories == ("ok",)


def test_predictions_in_a_row_count_as_features():
    rows = [beam.Row(x=n, label="a") for n in range(50)]
    assert list(ReferenceSummary.from_sample(rows).features) == ["x", "label"]


def test_json_contains_the_whole_summary():
    sample = [
        PredictionResult({"x": n / 7, "c": "ä", "constant": 1 / 3, "none": None}, n > 2)
        for n in range(300)
    ]
    summary = ReferenceSummary.from_sample(sample)
    assert ReferenceSummary.from_json(summary.to_json()) == summary
    json.loads(summary.to_json(), parse_constant=pytest.fail)


@pytest.mark.parametrize("change", ["{", "[]", '{"features": {}}', None])
def test_text_that_is_not_a_summary_raises_an_error(change):
    with pytest.raises(OptionError, match="isn't the JSON of a ReferenceSummary"):
        ReferenceSummary.from_json(change)


def test_damaged_and_later_summaries_raise_an_error():
    text = ReferenceSummary.from_sample([PredictionResult([n], n) for n in range(50)]).to_json()
    with pytest.raises(OptionError, match="has version 2, but this version of the library reads"):
        ReferenceSummary.from_json(text.replace('"version": 1', '"version": 2'))
    with pytest.raises(OptionError, match="don't fit together"):
        ReferenceSummary.from_json(text.replace('"counts": [0, ', '"counts": ['))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"sample": []}, OptionError, "has 0 results, but at least 50"),
        ({"n_bins": 11}, OptionError, "has 50 results, but at least 55 are needed for 11 bins"),
        ({"n_bins": 1}, OptionError, "n_bins must be at least 2"),
        ({"sample": "text"}, OptionError, "must be a list of results, but is of type str"),
        ({"features": "a"}, OptionError, "features must be a list of names or positions"),
        ({"features": [], "prediction": lambda p: {}}, OptionError, "no values to monitor"),
        ({"prediction": "label"}, OptionError, "prediction must be a function"),
        ({"categorical": ["predictoin"]}, OptionError, "names 'predictoin', but .* prediction"),
        ({"sample": [PredictionResult("text", 1)] * 50}, ElementError, "neither a row nor a vec"),
        ({"sample": [PredictionResult(np.ones(101), 1)] * 50}, ElementError, "up to 100 numbers"),
        ({"sample": [PredictionResult([1], [0.1, 0.9])] * 50}, ElementError, "not a single value"),
        (
            {"features": lambda x: {"prediction": x[0]}},
            ElementError,
            "'prediction' is the name of a feature and of a prediction",
        ),
        ({"features": lambda x: {"x": [1]}}, ElementError, r"'x' has the value \[1\] of type list"),
    ],
)
def test_samples_without_values_raise_an_error(options, error, message):
    arguments = {"sample": [PredictionResult([n], n) for n in range(50)], **options}
    with pytest.raises(error, match=message):
        ReferenceSummary.from_sample(**arguments)


def test_an_empty_sample_has_no_ks_statistic():
    assert kolmogorov_smirnov([1, 2], [0, 0]) is None
