"""Call models on batches, and turn results and failures into outputs."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import count
from typing import Any

from apache_beam.pvalue import TaggedOutput
from apache_beam.transforms.window import WindowedValue

from runinference.collate.unsplit import count_rows
from runinference.errors import PartialBatchError
from runinference.handlers.error_policy import Failure, halved_on_out_of_memory
from runinference.serving.routing import ModelVersion, Router, SingleModelRouter, make_router
from runinference.serving.session import ModelSession
from runinference.transforms.config import InferenceConfig
from runinference.transforms.metrics import StepMetrics
from runinference.transforms.side_inputs import to_inference_args

FAILED = "failed_inferences"
_MAX_ROUTERS = 16


class InferenceEngine:
    """The inference of one thread: it routes elements to model versions, calls models and counts.

    Attributes:
        router: Finds the model version of an element, after the latest model update.
        only_version: The model version of all elements; None if there is a model per key.
        update: The latest model update that an element came with, or that the watcher found.
        watcher: Polls for new model files; None if the step does not watch for any.
        arguments: The inference arguments from a side input; None if there is none.
    """

    def __init__(self, config: InferenceConfig) -> None:
        self.errors = config.errors
        self.clock = config.session.clock
        self.metrics = StepMetrics(config.handler, config.namespace)
        self.session = ModelSession(config.session)
        self.watcher = self.session.models.watcher_for(config.watch) if config.watch else None
        self.update: Any = None
        self.arguments: Any = None
        self._config = config
        self._first_router = make_router(config.handler)
        self._routers: deque[tuple[Any, Router]] = deque(maxlen=_MAX_ROUTERS)
        self._use_router(self._first_router)
        if config.load_in_setup:
            self.session.preload(self.router.route(None))

    def start_bundle(self) -> None:
        self.session.end_bundle()  # a bundle that failed was not finished

    def finish_bundle(self) -> None:
        self.session.end_bundle()
        loads, events = self.session.drain_events()
        for version, nanoseconds, n_bytes in loads:
            for metrics in self.metrics.for_version(version):
                metrics.model_loaded(nanoseconds, n_bytes)
        for metrics in self.metrics.for_step():
            for event, n in events.items():
                metrics.count(event, n)

    def close(self) -> None:
        """End the session of this thread, and the subprocess of the model with the last one."""
        self.session.close()

    def refresh(self, update: Any) -> None:
        """Route elements by the model update in their window, if there is one, or by what the watcher found."""
        if self.watcher is not None:
            update = self.watcher.poll_latest()
        if update is not None and update is not self.update:
            self._use_router(self._get_router(update))
            self.update = update

    def _use_router(self, router: Router) -> None:
        self.router = router
        self.only_version = router.route(None) if isinstance(router, SingleModelRouter) else None

    def _get_router(self, update: Any) -> Router:
        """Return the same router for equal updates, so that they load nothing."""
        for known, router in self._routers:
            if known == update:
                return router
        router = self._first_router.with_update(update)
        self._routers.append((update, router))
        return router

    def infer(self, version: ModelVersion, batch: Any) -> list[Any]:
        """Return a result or a ``Failure`` for each element of a batch that can be sliced."""
        calls = count()

        def call(batch: Any) -> list[Any]:
            next(calls)
            return self._call_within_memory(version, batch)

        outcomes = self.errors.attempt(call, batch)
        n_failed = sum(type(outcome) is Failure for outcome in outcomes)
        n_splits = next(calls) - 1
        for metrics in self.metrics.for_version(version):
            metrics.count("num_inferences", len(outcomes) - n_failed)
            if n_splits > 0:
                metrics.count("batch_splits", n_splits)
        return outcomes

    def infer_undivided(self, version: ModelVersion, batch: Any) -> list[Any]:
        """Return the results of a batch that cannot be sliced, or one ``Failure``."""
        [outcome] = self.errors.attempt(lambda one: [self._call(version, one[0])], [batch])
        if type(outcome) is Failure:
            return [outcome]
        for metrics in self.metrics.for_version(version):
            metrics.count("num_inferences", len(outcome))
        return list(outcome)

    def infer_unsplit(self, version: ModelVersion, element: Any) -> list[Any]:
        """Return one result, or one ``Failure``, for all rows of an element."""
        return self.errors.attempt(partial(self._call_unsplit, version), [element])

    def make_outputs(
        self, version: ModelVersion, origins: Iterable[WindowedValue], outcomes: Iterable[Any]
    ) -> Iterator[Any]:
        """Give each result or dead letter the window and timestamp of its element."""
        for origin, outcome in zip(origins, outcomes, strict=True):
            if type(outcome) is Failure:
                yield self.make_dead_letter(origin, outcome, version)
            else:
                yield origin.with_value(outcome)

    def make_dead_letter(
        self, origin: WindowedValue, failure: Failure, version: ModelVersion | None = None
    ) -> TaggedOutput:
        """Count an element that failed, and return its dead letter."""
        counted = self.metrics.for_step() if version is None else self.metrics.for_version(version)
        for metrics in counted:
            metrics.count("failed_elements")
        return TaggedOutput(FAILED, origin.with_value((origin.value, failure.report())))

    def _call_within_memory(self, version: ModelVersion, batch: Any) -> list[Any]:
        """Call the model, with halves of the batch where it runs out of memory."""
        size = self.session.size_for(version)

        def record_out_of_memory(batch: Any) -> None:
            size.record_out_of_memory(len(batch), version.policy.padded_size(batch))

        call = partial(self._call, version)
        return halved_on_out_of_memory(call, batch, record_out_of_memory)

    def _call_unsplit(self, version: ModelVersion, elements: list[Any]) -> list[Any]:
        [element] = elements
        n_rows = count_rows(element)
        n_rows = 1 if n_rows is None else n_rows
        results = self._call(version, element, n_rows)
        for metrics in self.metrics.for_version(version):
            metrics.count("num_inferences", n_rows)
        return results

    def _call(self, version: ModelVersion, batch: Any, n_elements: int | None = None) -> list[Any]:
        """Call the model once, and record the call with ``n_elements``, by default the number of results."""
        try:
            results, calls = self.session.call(version, batch, self._inference_args())
        except BaseException as error:
            for metrics in self.metrics.for_version(version):
                metrics.count("failed_batches_counter")
            kept = error.succeeded(batch) if isinstance(error, PartialBatchError) else []
            if kept:
                self._record_size(version, kept, len(kept))
            raise
        for called, n_results, nanoseconds in calls:
            n = n_results if n_elements is None else n_elements
            self.session.size_for(version).record(n, nanoseconds)
            self._record_size(version, called, n)
            for metrics in self.metrics.for_version(version):
                metrics.batch_timed(nanoseconds)
        return results

    def _record_size(self, version: ModelVersion, batch: Any, n_elements: int) -> None:
        if all_metrics := self.metrics.for_version(version):
            n_bytes = version.handler.get_num_bytes(batch)
            for metrics in all_metrics:
                metrics.batch_sized(n_elements, n_bytes)

    def _inference_args(self) -> dict[str, Any] | None:
        if self.arguments is None:
            return self._config.inference_args
        return to_inference_args(self._config.handler, self.arguments)
