"""The distributions of a reference sample, in bounded size."""

from __future__ import annotations

import json
import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from runinference.checks import check_int, check_names, has_elements
from runinference.errors import OptionError, describe, describe_value
from runinference.monitoring.drift_statistics import kolmogorov_smirnov, population_stability_index
from runinference.monitoring.values import (
    FeaturesOption,
    PredictionOption,
    ValueReader,
    to_float,
    to_label,
    to_plain,
)

_VERSION = 1
#: Number of quantiles of the cumulative distribution of a numeric feature.
_QUANTILES = 256
_MAX_CATEGORIES = 100
#: Minimum number of values in the reference for each bin of the population stability index.
_VALUES_PER_BIN = 5


@dataclass(frozen=True)
class FeatureSummary:
    """The distribution of a feature in the reference sample.

    Attributes:
        numeric: Whether the values are numbers. If not, they are categories.
        edges: For numbers, the right edges of all bins except the last one. A bin includes its right edge, and
            not its left edge.
        psi_edges: For numbers, the edges that separate the bins of the population stability index.
        categories: For categories, the most frequent ones, up to 100.
        counts: The number of missing values, followed by the number of values in each bin. For categories, the
            bins are all other categories, and each of the categories.
    """

    numeric: bool
    edges: tuple[float, ...]
    psi_edges: tuple[float, ...]
    categories: tuple[str, ...]
    counts: tuple[int, ...]

    @classmethod
    def from_values(
        cls, name: str, values: Iterable[Any], n_bins: int, categorical: bool
    ) -> FeatureSummary:
        """Return the summary of values. They are numbers if all that aren't missing are, except for bools."""
        plain = [to_plain(name, value) for value in values]
        present = [value for value in plain if value is not None]
        numbers = [
            value
            for value in present
            if isinstance(value, (int, float)) and not isinstance(value, bool)
        ]
        if present and not categorical and len(numbers) == len(present):
            edges, psi_edges = _find_edges(np.array([*map(to_float, numbers)]), n_bins)
            empty = cls(True, edges, psi_edges, (), (0,) * (len(edges) + 2))
        else:
            frequent = Counter(map(to_label, present)).most_common(_MAX_CATEGORIES)
            categories = tuple(sorted(label for label, _ in frequent))
            empty = cls(False, (), (), categories, (0,) * (len(categories) + 2))
        counter = BinCounter(name, empty)
        counts = [0] * len(empty.counts)
        for value in plain:
            counts[counter.find_bin(value)] += 1
        return cls(**{**vars(empty), "counts": tuple(counts)})

    def compare(self, counts: Sequence[int]) -> tuple[float, tuple[float, float] | None]:
        """Return the population stability index of counts, and for numbers the KS statistic and its p-value.

        Missing values are a bin of the index, and aren't part of the KS statistic.

        Args:
            counts: The number of values in the bins of ``counts`` of this summary.
        """
        if not self.numeric:
            return population_stability_index(self.counts, counts), None
        splits = [1 + self.edges.index(edge) for edge in self.psi_edges]
        starts = [0, 1, *(1 + split for split in splits)]
        psi = population_stability_index(
            np.add.reduceat(self.counts, starts).tolist(),
            np.add.reduceat(counts, starts).tolist(),
        )
        return psi, kolmogorov_smirnov(self.counts[1:], counts[1:])


class BinCounter:
    """The bin of each value of a feature.

    Args:
        name: The name of the feature, for errors.
        summary: The summary of the feature.
    """

    def __init__(self, name: str, summary: FeatureSummary) -> None:
        self._name = name
        self._edges = list(summary.edges) if summary.numeric else None
        self._categories = {label: index for index, label in enumerate(summary.categories, 2)}

    def find_bin(self, value: Any) -> int:
        """Return the index of the bin. A value that isn't a number counts as missing if the feature is numeric."""
        plain = to_plain(self._name, value)
        if plain is None:
            return 0
        if self._edges is None:
            return self._categories.get(to_label(plain), 1)
        if isinstance(plain, (str, bool)):
            return 0
        return 1 + bisect_left(self._edges, plain)


@dataclass(frozen=True)
class ReferenceSummary:
    """The distributions of features and predictions in a reference sample, such as the training data.

    Its size doesn't depend on the size of the sample. With the default ``n_bins``, a numeric feature has at most
    540 bins, and a categorical feature has at most 102.

    >>> from runinference import PredictionResult
    >>> sample = [PredictionResult({"age": n % 50, "city": "Rome"}, n % 2) for n in range(100)]
    >>> reference = ReferenceSummary.from_sample(sample, categorical=["prediction"])
    >>> {name: feature.numeric for name, feature in reference.features.items()}
    {'age': True, 'city': False, 'prediction': False}
    >>> ReferenceSummary.from_json(reference.to_json()) == reference
    True

    Attributes:
        features: The summary of each feature and prediction by its name.
    """

    features: Mapping[str, FeatureSummary]

    @classmethod
    def from_sample(
        cls,
        sample: Iterable[Any],
        *,
        features: FeaturesOption | None = None,
        prediction: PredictionOption | None = None,
        categorical: Sequence[str] = (),
        n_bins: int = 10,
    ) -> ReferenceSummary:
        """Return the summary of results, such as those of ``handler.predict(training_data)``.

        Args:
            sample: Results as in the pipeline: ``PredictionResult`` objects, or rows with predictions, with or
                without keys.
            features: The names of the columns of the example, positions in a vector, or a function of the example
                that returns values by name. By default, all columns of a row, or all numbers of a vector.
            prediction: A function of the prediction that returns a value, which is named ``"prediction"``, or
                values by name. By default, the prediction itself.
            categorical: The names of features whose numbers are categories, such as the labels of classes.
            n_bins: The number of bins of the population stability index for numbers, at least 2. Each has the
                same share of the sample, if its values allow it.

        Raises:
            OptionError: A value is out of range, or the sample is too small for this many bins.
            ElementError: A value isn't a number, a text or a bool.
        """
        check_int("n_bins", n_bins, 2)
        check_names("categorical", categorical)
        if not has_elements(sample):
            raise OptionError(
                f"The reference must be a list of results, but is of type {type(sample).__name__}. To fix this, "
                "pass handler.predict(sample), or a ReferenceSummary."
            )
        reader = ValueReader(features, prediction)
        rows = [reader.read(result) for result in sample]
        if len(rows) < _VALUES_PER_BIN * n_bins:
            raise OptionError(
                f"The reference has {len(rows)} results, but at least {_VALUES_PER_BIN * n_bins} are needed for "
                f"{n_bins} bins. To fix this, pass a larger sample, or reduce n_bins."
            )
        names = list(dict.fromkeys(name for row in rows for name in row))
        if not names:
            raise OptionError(
                "The reference has no values to monitor. To fix this, name features, or return predictions."
            )
        for name in categorical:
            if name not in names:
                raise OptionError(
                    f"categorical names {name!r}, but the reference has only {', '.join(names)}."
                )
        return cls(
            {
                name: FeatureSummary.from_values(
                    name, (row.get(name) for row in rows), n_bins, name in categorical
                )
                for name in names
            }
        )

    def to_json(self) -> str:
        """Return the summary as JSON, for ``from_json``. It contains categories and quantiles of the sample."""
        features = {name: asdict(feature) for name, feature in self.features.items()}
        return json.dumps({"version": _VERSION, "features": features})

    @classmethod
    def from_json(cls, text: str) -> ReferenceSummary:
        """Return the summary that ``to_json`` wrote.

        Args:
            text: The JSON.

        Raises:
            OptionError: The text isn't the JSON of a summary, or has another version.
        """
        try:
            data = json.loads(text)
            version = data["version"]
            features = {name: _parse_summary(fields) for name, fields in data["features"].items()}
        except Exception as error:
            raise OptionError(
                f"The text {describe_value(text, 60)} isn't the JSON of a ReferenceSummary "
                f"({describe(error, 200)}). To fix this, pass what to_json() returned."
            ) from error
        if version != _VERSION:
            raise OptionError(
                f"The summary has version {version!r}, but this version of the library reads version {_VERSION}. "
                "To fix this, create it again with from_sample()."
            )
        return cls(features)


def _parse_summary(fields: Mapping[str, Any]) -> FeatureSummary:
    """Return the summary with these fields; raise an error unless they fit together."""
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()
    }
    feature = FeatureSummary(**values)
    n_bins = 1 + len(feature.edges if feature.numeric else feature.categories)
    is_valid = (
        isinstance(feature.numeric, bool)
        and len(feature.counts) == n_bins + 1
        and all(isinstance(count, int) and count >= 0 for count in feature.counts)
        and list(feature.edges) == sorted(set(feature.edges))
        and all(math.isfinite(edge) for edge in feature.edges)
        and set(feature.psi_edges) <= set(feature.edges)
    )
    if not is_valid:
        raise ValueError("the fields of a feature don't fit together")
    return feature


def _find_edges(
    numbers: np.ndarray[Any, Any], n_bins: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the edges of bins: values of the sample that are quantiles, and those of the index among them."""
    ranked = np.sort(numbers)

    def quantiles(n: int) -> set[float]:
        ranks = np.ceil(np.arange(1, n) * len(ranked) / n).astype(int) - 1
        return set(ranked[ranks].tolist())

    psi_edges = quantiles(n_bins) - {float(ranked[-1])}
    if not psi_edges:  # a constant has its own bin, between those of other values
        psi_edges = {math.nextafter(float(ranked[-1]), -math.inf), float(ranked[-1])}
    distinct = set(np.unique(ranked).tolist())
    edges = distinct if len(distinct) <= _QUANTILES else quantiles(_QUANTILES)
    edges |= psi_edges | {float(ranked[-1])}
    # Each value that is an edge has its own bin, so that it can be frequent.
    edges |= {math.nextafter(edge, -math.inf) for edge in edges}
    return tuple(sorted(edges - {-math.inf})), tuple(sorted(psi_edges - {-math.inf}))
