"""The transform that compares windows of results with a reference."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import apache_beam as beam
import numpy as np
from apache_beam.metrics import Metrics
from apache_beam.transforms import trigger
from apache_beam.transforms.window import GlobalWindow, GlobalWindows, WindowFn

from runinference.checks import check_int, check_number, check_seconds, check_text
from runinference.errors import ElementError, OptionError, describe
from runinference.handlers.options import KeywordsChecked
from runinference.monitoring.reference import BinCounter, ReferenceSummary
from runinference.monitoring.values import FeaturesOption, PredictionOption, ValueReader
from runinference.transforms.row_types import make_row_type

_LOGGER = logging.getLogger(__name__)

_COLUMNS = {
    "feature": str,
    "window_start": str | None,
    "window_end": str | None,
    "n": int,
    "missing": int,
    "psi": float | None,
    "ks": float | None,
    "p_value": float | None,
    "enough_data": bool,
    "drifted": bool,
}


class DriftMonitor(KeywordsChecked, beam.PTransform):  # type: ignore[misc]
    """Compare the inputs and predictions of each window with a reference, and emit a row for each feature.

    Use it as the ``monitoring_transform`` of ``RunInference``, or apply it to the results. The columns of a row:

    * ``feature``: The name of the feature, or ``"prediction"``.
    * ``window_start``, ``window_end``: Strings such as ``"2026-11-28T12:00:00Z"``. None in the global window.
    * ``n``, ``missing``: The number of results in the window, and the number of missing values among them.
    * ``psi``: The population stability index. Missing values are one bin, and all categories that the reference
      doesn't contain are one bin. Bins that are empty in both samples are left out, and 0.5 is added to each
      other count.
    * ``ks``, ``p_value``: For numbers, the two-sample Kolmogorov-Smirnov statistic without missing values, and its
      asymptotic p-value. The distributions are compared at 256 quantiles of the reference, so the statistic is
      at most 1/256 too small. It is exact if the reference has up to 256 distinct values. Infinite values are in
      the outermost bins.
    * ``enough_data``: Whether the window has at least ``min_count`` results. If not, the statistics are None.
    * ``drifted``: Whether ``psi`` is above, or ``p_value`` is below its threshold.

    Only counts are shuffled, so the memory for a window doesn't depend on the number of its results.

    >>> from runinference import PredictionResult
    >>> reference = [PredictionResult([n % 100], n % 2) for n in range(1000)]
    >>> results = [PredictionResult([50 + n % 100], n % 2) for n in range(1000)]
    >>> with beam.Pipeline() as pipeline:
    ...     rows = pipeline | beam.Create(results) | DriftMonitor(reference)
    ...     _ = rows | beam.Map(lambda row: print(row.feature, row.ks, row.drifted))
    feature_0 0.5 True
    prediction 0.0 False
    """

    def __init__(
        self,
        reference: ReferenceSummary | Iterable[Any],
        *,
        features: FeaturesOption | None = None,
        prediction: PredictionOption | None = None,
        categorical: Sequence[str] = (),
        window: WindowFn | None = None,
        allowed_lateness: float = 0,
        n_bins: int = 10,
        psi_threshold: float = 0.2,
        p_value_threshold: float | None = None,
        min_count: int = 200,
        sink: beam.PTransform | None = None,
        metrics_namespace: str = "drift",
    ) -> None:
        """Create the transform.

        Args:
            reference: A sample of results, such as ``handler.predict(training_data)``, or a
                [ReferenceSummary][runinference.monitoring.ReferenceSummary] of one, with the same ``features``
                and ``prediction``.
            features: The features to monitor, see ``ReferenceSummary.from_sample``.
            prediction: A function of the prediction, see ``ReferenceSummary.from_sample``.
            categorical: The names of features whose numbers are categories. Only for a sample as the reference.
            window: The windows to compare, such as ``FixedWindows(3600)``. By default, those of the pipeline.
            allowed_lateness: Time in seconds after the end of a window in which late results are accepted. Each
                one emits the rows of the window again, for all results so far.
            n_bins: The number of bins of the population stability index for numbers. Only for a sample as the
                reference.
            psi_threshold: The index above which a feature has drifted, greater than 0. Common thresholds are 0.1
                for a moderate change, and 0.2 or 0.25 for a significant one.
            p_value_threshold: The p-value below which a numeric feature has drifted, between 0 and 1. By default,
                the p-value isn't used, because in large windows it is small even for differences that don't
                matter.
            min_count: The minimum number of results of a window. Windows with fewer results aren't compared.
            sink: A transform for the rows, such as ``beam.io.WriteToBigQuery(...)``. The monitor still returns
                the rows.
            metrics_namespace: The namespace of the metrics.

        Raises:
            OptionError: A value is out of range, or the reference is too small.
            ElementError: The reference has a value that isn't a number, a text or a bool.
        """
        super().__init__()
        check_number("psi_threshold", psi_threshold)
        if psi_threshold == 0:
            raise OptionError("psi_threshold must be greater than 0, but is 0.")
        if p_value_threshold is not None:
            check_number("p_value_threshold", p_value_threshold)
            if p_value_threshold > 1:
                raise OptionError(
                    f"p_value_threshold must be from 0 to 1, but is {p_value_threshold!r}."
                )
        check_int("min_count", min_count)
        check_seconds("allowed_lateness", allowed_lateness, may_be_0=True)
        check_text("metrics_namespace", metrics_namespace)
        if window is not None and not isinstance(window, WindowFn):
            raise OptionError(
                f"window must be a WindowFn, such as FixedWindows(3600), but is {window!r}."
            )
        if allowed_lateness and window is None:
            raise OptionError(
                "allowed_lateness needs window. To fix this, pass window=FixedWindows(seconds)."
            )
        if sink is not None and not isinstance(sink, beam.PTransform):
            raise OptionError(f"sink must be a PTransform, but is {sink!r}.")
        reader = ValueReader(features, prediction)
        if not isinstance(reference, ReferenceSummary):
            reference = ReferenceSummary.from_sample(
                reference,
                features=features,
                prediction=prediction,
                categorical=categorical,
                n_bins=n_bins,
            )
        elif categorical or n_bins != 10:
            raise OptionError(
                "categorical and n_bins are for a sample, but the reference is a ReferenceSummary. To fix this, "
                "pass them to ReferenceSummary.from_sample."
            )
        self._reference = reference
        self._count = CountBins(reference, reader, metrics_namespace)
        self._thresholds = psi_threshold, p_value_threshold, min_count
        self._window = window
        self._allowed_lateness = allowed_lateness
        self._sink = sink
        self._namespace = metrics_namespace

    def expand(self, results: beam.PCollection) -> beam.PCollection:
        if self._window is not None:
            late = trigger.AfterCount(1) if self._allowed_lateness else None
            results = results | "Window" >> beam.WindowInto(
                self._window,
                trigger=trigger.AfterWatermark(late=late),
                accumulation_mode=trigger.AccumulationMode.ACCUMULATING,
                allowed_lateness=self._allowed_lateness,
            )
        windowing = results.windowing
        if (
            not results.is_bounded
            and isinstance(windowing.windowfn, GlobalWindows)
            and isinstance(windowing.triggerfn, trigger.DefaultTrigger)
        ):
            raise OptionError(
                "The results are a stream in the global window, which never ends. To fix this, pass "
                "window=FixedWindows(seconds) to DriftMonitor."
            )
        compare = CompareBins(self._reference, self._thresholds, self._namespace)
        rows = (
            results
            | "Count" >> beam.CombineGlobally(self._count).without_defaults()
            | "Compare" >> beam.ParDo(compare).with_output_types(make_row_type(_COLUMNS))
        )
        if self._sink is not None:
            _ = rows | "Sink" >> self._sink
        return rows


class CountBins(beam.CombineFn):  # type: ignore[misc]
    """Count the values of each feature in the bins of the reference.

    An accumulator is one array with the counts of all features, so accumulators are merged by addition.

    Args:
        reference: The reference.
        reader: Reads the values of a result.
        namespace: The namespace of the metrics.
    """

    def __init__(self, reference: ReferenceSummary, reader: ValueReader, namespace: str) -> None:
        self._reader = reader
        self._counters = []
        self._size = 0
        for name, feature in reference.features.items():
            self._counters.append((name, self._size, BinCounter(name, feature)))
            self._size += len(feature.counts)
        self._failed = Metrics.counter(namespace, "drift_failed_results")
        self._is_logged = False

    def create_accumulator(self) -> np.ndarray[Any, Any]:
        return np.zeros(self._size, np.int64)

    def add_input(self, accumulator: Any, result: Any) -> Any:
        try:
            values = self._reader.read(result)
            if values.keys().isdisjoint(name for name, _, _ in self._counters):
                raise ElementError(
                    f"The result has the values {', '.join(values)}, and none of the features of the reference. "
                    "To fix this, pass the same features and prediction as for the reference."
                )
            bins = [
                start + counter.find_bin(values.get(name))
                for name, start, counter in self._counters
            ]
        except Exception as error:  # monitoring doesn't fail the pipeline
            self._failed.inc()
            if not self._is_logged:
                self._is_logged = True
                _LOGGER.warning("A result can't be monitored: %s", describe(error, 1_000))
            return accumulator
        for each in bins:
            accumulator[each] += 1
        return accumulator

    def merge_accumulators(self, accumulators: Iterable[Any]) -> Any:
        return sum(accumulators, self.create_accumulator())

    def extract_output(self, accumulator: Any) -> Any:
        return accumulator


class CompareBins(beam.DoFn):  # type: ignore[misc]
    """Compare the counts of a window with the reference, and emit a row for each feature.

    Args:
        reference: The reference.
        thresholds: Of the index, of the p-value, and of the number of results.
        namespace: The namespace of the metrics.
    """

    def __init__(
        self,
        reference: ReferenceSummary,
        thresholds: tuple[float, float | None, int],
        namespace: str,
    ) -> None:
        self._reference = reference
        self._thresholds = thresholds
        self._checks = Metrics.counter(namespace, "drift_checks")
        self._drifted = Metrics.counter(namespace, "drift_detected")
        self._too_few = Metrics.counter(namespace, "drift_not_enough_data")
        self._psi = {
            name: Metrics.gauge(namespace, f"{name}_psi_permille") for name in reference.features
        }

    def process(self, counts: Any, window: Any = beam.DoFn.WindowParam) -> Iterator[Any]:
        psi_threshold, p_value_threshold, min_count = self._thresholds
        is_global = isinstance(window, GlobalWindow)
        start, end = (None, None) if is_global else map(_to_text, (window.start, window.end))
        offset = 0
        for name, feature in self._reference.features.items():
            found = counts[offset : offset + len(feature.counts)].tolist()
            offset += len(found)
            n = sum(found)
            psi = ks = p_value = None
            drifted = False
            if n >= min_count:
                psi, test = feature.compare(found)
                ks, p_value = test or (None, None)
                is_significant = p_value is not None and p_value < (p_value_threshold or 0)
                drifted = psi > psi_threshold or is_significant
                self._checks.inc()
                self._psi[name].set(round(1000 * psi))
            else:
                self._too_few.inc()
            if drifted:
                self._drifted.inc()
                _LOGGER.warning(
                    "The feature %r has drifted in the window from %s to %s: psi=%.3g, ks=%s, n=%d",
                    *(name, start, end, psi, "None" if ks is None else f"{ks:.3g}", n),
                )
            yield beam.Row(
                feature=name,
                window_start=start,
                window_end=end,
                n=n,
                missing=found[0],
                psi=psi,
                ks=ks,
                p_value=p_value,
                enough_data=n >= min_count,
                drifted=drifted,
            )


def _to_text(timestamp: Any) -> str | None:
    try:
        return str(timestamp.to_rfc3339())
    except (OverflowError, ValueError):  # the earliest and the latest timestamp of Beam
        return None
