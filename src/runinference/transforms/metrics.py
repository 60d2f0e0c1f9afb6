"""What is counted and timed while a pipeline runs, under Beam's names."""

from __future__ import annotations

from apache_beam.metrics import Metrics

#: What happens now and then, and is counted; Beam has no names for it.
EVENTS = (
    "failed_elements",
    "batch_splits",
    "model_refreshes",
    "failed_model_refreshes",
    "model_evictions",
    "inference_timeouts",
)


class InferenceMetrics:
    """The metrics of one model in one step.

    ============================================= ==================================================
    name                                          meaning
    ============================================= ==================================================
    ``num_inferences``                            elements that got a result
    ``inference_request_batch_size``              elements in a call of the model
    ``inference_request_batch_byte_size``         bytes in a call of the model
    ``inference_batch_latency_micro_secs``        microseconds a call took
    ``load_model_latency_milli_secs``             milliseconds the model took to load
    ``model_byte_size``                           bytes by which loading grew the process
    ``failed_batches_counter``                    calls that raised
    ``failed_elements``                           elements set aside as dead letters
    ``batch_splits``                              calls that were made because another had failed
    ``model_refreshes``                           new models that took over
    ``failed_model_refreshes``                    new models that could not be loaded
    ``model_evictions``                           models put away to make room for others
    ``inference_timeouts``                        calls that took longer than the timeout
    ``queue_time_micro_secs``                     microseconds the first element of a batch waited
    ============================================= ==================================================
    """

    def __init__(self, namespace: str, prefix: str = "") -> None:
        def name(metric: str) -> str:
            return f"{prefix}_{metric}" if prefix else metric

        counter, distribution = Metrics.counter, Metrics.distribution
        self._inferences = counter(namespace, name("num_inferences"))
        self._failed_batches = counter(namespace, name("failed_batches_counter"))
        self._batch_size = distribution(namespace, name("inference_request_batch_size"))
        self._batch_bytes = distribution(namespace, name("inference_request_batch_byte_size"))
        self._latency = distribution(namespace, name("inference_batch_latency_micro_secs"))
        self._load_latency = distribution(namespace, name("load_model_latency_milli_secs"))
        self._model_bytes = distribution(namespace, name("model_byte_size"))
        self._queue_time = distribution(namespace, name("queue_time_micro_secs"))
        self._ours = {event: counter(namespace, name(event)) for event in EVENTS}

    def batch_sized(self, n_elements: int, n_bytes: int) -> None:
        self._batch_size.update(n_elements)
        self._batch_bytes.update(n_bytes)

    def batch_timed(self, nanoseconds: int) -> None:
        self._latency.update(nanoseconds // 1000)

    def inferred(self, n_elements: int) -> None:
        self._inferences.inc(n_elements)

    def queued(self, nanoseconds: int) -> None:
        self._queue_time.update(nanoseconds // 1000)

    def count(self, event: str, n: int = 1) -> None:
        """Counts one of the [EVENTS][runinference.transforms.metrics.EVENTS]."""
        self._ours[event].inc(n)

    def batch_failed(self) -> None:
        self._failed_batches.inc()

    def model_loaded(self, nanoseconds: int, n_bytes: int) -> None:
        self._load_latency.update(nanoseconds // 1_000_000)
        self._model_bytes.update(n_bytes)
