"""Call models on batches, and turn results and failures into outputs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import count, repeat
from operator import is_
from typing import Any, SupportsInt

from apache_beam.pvalue import TaggedOutput
from apache_beam.transforms.window import WindowedValue

from runinference.collate.unsplit import count_rows
from runinference.errors import OptionError, PartialBatchError, describe
from runinference.handlers.error_policy import UNCHANGED, Failure, halved_on_out_of_memory
from runinference.handlers.repeatable_batch import RepeatableBatch
from runinference.serving.call_thread import CallOutcome
from runinference.serving.routing import ModelVersion, Router, SingleModelRouter, make_router
from runinference.serving.session import ModelSession
from runinference.transforms.config import InferenceConfig
from runinference.transforms.metrics import StepMetrics
from runinference.transforms.side_inputs import ConflictingUpdates, to_inference_args

_LOGGER = logging.getLogger(__name__)

FAILED = "failed_inferences"

#: Calls a model on a batch, with inference arguments.
CallModel = Callable[[ModelVersion, Any, "dict[str, Any] | None"], CallOutcome]
_MAX_ROUTERS = 16


class InferenceEngine:
    """The inference of one thread: it routes elements to model versions, calls models and counts.

    Attributes:
        router: Finds the model version of an element, after the latest model update.
        only_version: The model version of all elements; None if there is a model per key.
        update: The latest model update that an element came with, or that the watcher found.
        watcher: Polls for new model files; None if the step does not watch for any.
        arguments: The inference arguments from a side input; None if there is none. They only change while no
            batch is in flight.
    """

    def __init__(self, config: InferenceConfig) -> None:
        self.errors = config.errors
        self.clock = config.session.clock
        self.metrics = StepMetrics(config.handler, config.namespace)
        self.session = ModelSession(config.session)
        self.watcher = self.session.registry.watcher_for(config.watch) if config.watch else None
        self.update: Any = None
        self.arguments: Any = None
        self._config = config
        self._first_router = make_router(config.handler)
        self._routers: dict[Any, Router] = {}
        self._rejected = ""
        self._use_router(self._first_router)
        if config.load_in_setup:
            self.session.preload(self.router.route(None))

    def start_bundle(self) -> None:
        self.session.end_bundle()  # a bundle that failed was not finished

    def finish_bundle(self) -> None:
        self.session.end_bundle()
        loads, events = self.session.models.drain_events()
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
        if update is None or update is self.update:
            return
        self.update = update
        try:
            router = self._get_router(update)
        except Exception as error:  # an error of the control plane must not fail elements
            self._reject_update(error)
        else:
            self._use_router(router)

    def _reject_update(self, error: Exception) -> None:
        """Log and count a model refresh that is invalid. The models before it stay in use."""
        message = describe(error)
        if message != self._rejected:
            self._rejected = message
            _LOGGER.error(
                "A model refresh is ignored, and the previous models stay in use: %s", message
            )
            for metrics in self.metrics.for_step():
                metrics.count("failed_model_refreshes")

    def _use_router(self, router: Router) -> None:
        self.router = router
        self.only_version = router.route(None) if isinstance(router, SingleModelRouter) else None

    def _get_router(self, update: Any) -> Router:
        """Return the same router for equal updates, so that they load nothing."""
        if isinstance(update, ConflictingUpdates):
            raise update.error()
        key = self._first_router.identify(update)
        if key not in self._routers:
            if len(self._routers) >= _MAX_ROUTERS:
                del self._routers[next(iter(self._routers))]
            self._routers[key] = self._first_router.with_update(update)
        return self._routers[key]

    def start(self, version: ModelVersion, batch: RepeatableBatch) -> CallModel | None:
        """Start the call of a batch in another thread, and return a function whose first call waits for it.

        Return None if the call can't start, for any reason.
        """
        try:
            return self.session.start(version, batch, self._inference_args())
        except Exception:  # a call in this thread handles the error
            return None

    def infer(
        self, version: ModelVersion, batch: RepeatableBatch, call_model: CallModel
    ) -> list[Any]:
        """Return a result or a ``Failure`` for each element of a batch that can be sliced."""
        calls = count()

        def call(batch: RepeatableBatch) -> list[Any]:
            next(calls)
            return self._call_within_memory(version, batch, call_model)

        outcomes = self.errors.attempt(call, batch)
        if n_failed := _count_failures(outcomes):
            outcomes = _with_examples(outcomes, batch)
        n_splits = next(calls) - 1
        for metrics in self.metrics.for_version(version):
            metrics.count("num_inferences", len(outcomes) - n_failed)
            if n_splits > 0:
                metrics.count("batch_splits", n_splits)
        return outcomes

    def infer_undivided(
        self, version: ModelVersion, batch: RepeatableBatch, call_model: CallModel
    ) -> list[Any]:
        """Return the results of a batch that cannot be sliced, or one ``Failure``."""
        outcomes = self.errors.attempt(lambda one: [self._call(version, one, call_model)], batch)
        [outcome] = _with_examples(outcomes, batch)
        if type(outcome) is Failure:
            return [outcome]
        for metrics in self.metrics.for_version(version):
            metrics.count("num_inferences", len(outcome))
        return list(outcome)

    def infer_unsplit(
        self, version: ModelVersion, batch: RepeatableBatch, call_model: CallModel
    ) -> list[Any]:
        """Return one result, or one ``Failure``, for all rows of an element."""

        def call(element: RepeatableBatch) -> list[Any]:
            n_rows = count_rows(element.elements)
            n_rows = 1 if n_rows is None else n_rows
            results = self._call(version, element, call_model, n_rows)
            for metrics in self.metrics.for_version(version):
                metrics.count("num_inferences", n_rows)
            return results

        return _with_examples(self.errors.attempt(call, batch), batch)

    def make_outputs(
        self, version: ModelVersion, origins: Iterable[WindowedValue], outcomes: Sequence[Any]
    ) -> Iterator[Any]:
        """Give each result or dead letter the window and timestamp of its element."""
        if not _count_failures(outcomes):
            # A map runs no Python code per result.
            return map(WindowedValue.with_value, origins, outcomes)
        return self._make_outputs(version, origins, outcomes)

    def _make_outputs(
        self, version: ModelVersion, origins: Iterable[WindowedValue], outcomes: Sequence[Any]
    ) -> Iterator[Any]:
        for origin, outcome in zip(origins, outcomes, strict=False):  # origins may repeat forever
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
        example = origin.value if failure.example is UNCHANGED else failure.example
        return TaggedOutput(FAILED, origin.with_value((example, failure.report())))

    def needs_copies(self, n_elements: int) -> bool:
        """Return whether a call may be repeated, and needs its elements as they came."""
        return self.errors.repeats_calls or n_elements > 1 or self._config.session.dynamic_batching

    def _call_within_memory(
        self, version: ModelVersion, batch: RepeatableBatch, call_model: CallModel
    ) -> list[Any]:
        """Call the model, with halves of the batch where it runs out of memory."""
        size = self.session.size_for(version)

        def record_out_of_memory(batch: RepeatableBatch) -> None:
            size.record_out_of_memory(len(batch), version.policy.padded_size(batch.elements))

        def call(batch: RepeatableBatch) -> list[Any]:
            return self._call(version, batch, call_model)

        return halved_on_out_of_memory(call, batch, record_out_of_memory)

    def _call(
        self,
        version: ModelVersion,
        batch: RepeatableBatch,
        call_model: CallModel,
        n_elements: int | None = None,
    ) -> list[Any]:
        """Call the model once, and record the call with ``n_elements``, by default the number of results."""
        try:
            results, calls = call_model(version, batch, self._inference_args())
        except BaseException as error:
            for metrics in self.metrics.for_version(version):
                metrics.count("failed_batches_counter")
            kept = error.succeeded(batch.elements) if isinstance(error, PartialBatchError) else []
            if kept:
                self._record_size(version, kept, len(kept))
            raise
        for called, n_results, nanoseconds in calls:
            n = n_results if n_elements is None else n_elements
            seconds = nanoseconds / 1e9
            self.session.size_for(version).record(n, seconds)
            self.session.overlap_for(version).record_call(seconds)
            self._record_size(version, called, n)
            for metrics in self.metrics.for_version(version):
                metrics.batch_timed(nanoseconds)
        return results

    def _record_size(self, version: ModelVersion, batch: Any, n_elements: int) -> None:
        if all_metrics := self.metrics.for_version(version):
            n_bytes: Any = version.handler.get_num_bytes(batch)
            if not isinstance(n_bytes, (int, SupportsInt)):
                raise OptionError(
                    f"{type(version.handler).__name__}.get_num_bytes() returned {n_bytes!r}. To fix this, return "
                    "the number of bytes of a batch, or don't define the method."
                )
            for metrics in all_metrics:
                metrics.batch_sized(n_elements, int(n_bytes))

    def _inference_args(self) -> dict[str, Any] | None:
        if self.arguments is None:
            return self._config.inference_args
        return to_inference_args(self._config.handler, self.arguments)


def _count_failures(outcomes: Iterable[Any]) -> int:
    return sum(map(is_, map(type, outcomes), repeat(Failure)))


def _with_examples(outcomes: list[Any], batch: RepeatableBatch) -> list[Any]:
    """Add to each failure the element as it came, which a failed call may have modified."""
    return [
        Failure(outcome.error, batch.original(index)) if type(outcome) is Failure else outcome
        for index, outcome in enumerate(outcomes)
    ]
