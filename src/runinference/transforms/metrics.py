"""Metrics of an inference step, under Beam's names."""

from __future__ import annotations

from collections import OrderedDict
from functools import partial
from typing import Any

from apache_beam.metrics import Metrics

from runinference.serving.routing import ModelVersion

#: Beam's counters, and additional ones.
_COUNTERS = (
    "num_inferences",
    "failed_batches_counter",
    "failed_elements",
    "batch_splits",
    "model_refreshes",
    "failed_model_refreshes",
    "model_evictions",
    "inference_timeouts",
)


#: The number of models whose metrics are kept for the next batch. Each refresh can name another model.
_MAX_PREFIXES = 32


class InferenceMetrics:
    """The metrics of one model in one step, as described in docs/metrics-and-monitoring.md."""

    def __init__(self, namespace: str, prefix: str = "") -> None:
        start = f"{prefix}_" if prefix else ""
        distribution = partial(Metrics.distribution, namespace)
        self._batch_size = distribution(f"{start}inference_request_batch_size")
        self._batch_bytes = distribution(f"{start}inference_request_batch_byte_size")
        self._latency = distribution(f"{start}inference_batch_latency_micro_secs")
        self._load_latency = distribution(f"{start}load_model_latency_milli_secs")
        self._model_bytes = distribution(f"{start}model_byte_size")
        self._queue_time = distribution(f"{start}queue_time_micro_secs")
        self._counters = {name: Metrics.counter(namespace, start + name) for name in _COUNTERS}

    def batch_sized(self, n_elements: int, n_bytes: int) -> None:
        self._batch_size.update(n_elements)
        self._batch_bytes.update(n_bytes)

    def batch_timed(self, nanoseconds: int) -> None:
        self._latency.update(nanoseconds // 1000)

    def queued(self, nanoseconds: int) -> None:
        self._queue_time.update(nanoseconds // 1000)

    def count(self, metric: str, n: int = 1) -> None:
        self._counters[metric].inc(n)

    def model_loaded(self, nanoseconds: int, n_bytes: int) -> None:
        self._load_latency.update(nanoseconds // 1_000_000)
        self._model_bytes.update(n_bytes)


class StepMetrics:
    """The metrics of all models of a step; none if the handler reports metrics itself."""

    def __init__(self, handler: Any, namespace: str | None) -> None:
        namespace = namespace or handler.get_metrics_namespace()
        self._namespace = None if handler.override_metrics(namespace) else namespace
        self._by_prefix: OrderedDict[str, InferenceMetrics] = OrderedDict()
        self._last: tuple[ModelVersion | None, list[InferenceMetrics]] = (None, [])

    def for_step(self) -> list[InferenceMetrics]:
        return self._get("")

    def for_version(self, version: ModelVersion) -> list[InferenceMetrics]:
        """Return the metrics of a model and, with a model per key, those of all models together."""
        if version is not self._last[0]:  # each batch asks several times
            is_keyed = version.keys != (None,) and version.prefix
            prefixes = [version.prefix, ""] if is_keyed else [version.prefix]
            self._last = version, self._get(*prefixes)
        return self._last[1]

    def _get(self, *prefixes: str) -> list[InferenceMetrics]:
        if self._namespace is None:
            return []
        for prefix in prefixes:
            if prefix not in self._by_prefix:
                self._by_prefix[prefix] = InferenceMetrics(str(self._namespace), prefix)
            self._by_prefix.move_to_end(prefix)
        if len(self._by_prefix) > _MAX_PREFIXES:
            self._by_prefix.popitem(
                last=False
            )  # of a model that was replaced, or that is rarely used
        return [self._by_prefix[prefix] for prefix in prefixes]
