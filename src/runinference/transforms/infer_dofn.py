"""The DoFn: elements gather, a model is leased, it predicts, its output is split, and what fails is set aside."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import apache_beam as beam
from apache_beam.pvalue import TaggedOutput
from apache_beam.transforms.window import WindowedValue

from runinference.batching.adaptive_size import AdaptiveSize
from runinference.batching.batcher import Batcher
from runinference.errors import PartialBatchError
from runinference.handlers.error_policy import Failure, halved_on_out_of_memory
from runinference.serving.routing import ModelVersion, Router, make_router
from runinference.serving.session import ModelSession
from runinference.transforms.config import InferenceConfig
from runinference.transforms.metrics import InferenceMetrics
from runinference.transforms.side_inputs import are_equal, checked

FAILED = "failed_inferences"
_MOST_KNOWN = 16


class InferDoFn(beam.DoFn):  # type: ignore[misc]
    """Gathers elements into batches, and emits each result with its element's own window and timestamp.

    What gathers is the origin of each element: the WindowedValue that it came in, which knows both. Beam gives
    it at half the price of a timestamp and a window. It must have one window; see InferEachWindow.
    """

    def __init__(self, step: InferenceConfig) -> None:
        self._config = step

    def setup(self) -> None:
        step, handler = self._config, self._config.handler
        namespace = step.namespace or handler.get_metrics_namespace()
        self._namespace = None if handler.override_metrics(namespace) else namespace
        self._metrics: dict[str, InferenceMetrics] = {}
        self._base = self._router = make_router(handler)
        self._update: Any = None
        self._arguments: Any = None  # those that come from the pipeline
        self._known: dict[str, Router] = {}
        self._session = ModelSession(step.session)
        self._watcher = None if step.watch is None else self._session.models.watcher_for(step.watch)
        if step.load_in_setup:
            self._session.preload(self._base.route(None))

    def start_bundle(self) -> None:
        self._session.end_bundle()  # of one that failed
        self._batchers: dict[str, Batcher[WindowedValue]] = {}
        self._versions: dict[str, ModelVersion] = {}
        self._since: dict[str, int] = {}

    def process(
        self,
        element: Any,
        origin: Any = beam.DoFn.WindowedValueParam,
        update: Any = None,
        arguments: Any = None,
    ) -> Iterable[Any] | None:
        if arguments is not self._arguments:
            return self._process_with_others(element, origin, update, arguments)
        try:
            if update is not self._update or self._watcher is not None:
                self._refresh(update)
            version = self._router.route(element)
            batcher = self._batchers.get(version.name) or self._new_batcher(version)
            full = batcher.add(element, origin)
        except self._config.errors.caught as error:
            return [self._aside(origin, Failure(error), self._base_metrics())]
        return self._outputs(version, full) if full else None

    def finish_bundle(self) -> Iterator[Any]:
        yield from self._rest()
        self._session.end_bundle()
        self._report_models()

    def _rest(self) -> Iterator[Any]:
        for name, batcher in self._batchers.items():
            yield from self._outputs(self._versions[name], batcher.flush())

    def _process_with_others(
        self, element: Any, origin: WindowedValue, update: Any, arguments: Any
    ) -> Iterator[Any]:
        """Runs what gathered with the arguments so far, then takes an element that came with others."""
        if not are_equal(arguments, self._arguments):
            yield from self._rest()
        self._arguments = arguments
        yield from self.process(element, origin, update=update, arguments=arguments) or ()

    def _refresh(self, update: Any) -> None:
        """Takes the routes after the refresh that an element came with, or that a watcher has seen.

        An element that comes with none, because its window has none, goes where those before it went.
        """
        if self._watcher is not None:
            update = self._watcher.poll_latest()
        if update is not None and update is not self._update:
            self._router = self._updated(update)
            self._update = update

    def _updated(self, update: Any) -> Router:
        """The routes after a refresh; the same for the same refresh, so that it costs nothing."""
        key = repr(update)
        if key not in self._known:
            if len(self._known) >= _MOST_KNOWN:
                del self._known[next(iter(self._known))]
            self._known[key] = self._base.with_update(update)
        return self._known[key]

    def _new_batcher(self, version: ModelVersion) -> Batcher[WindowedValue]:
        name = version.name
        self._since[name] = self._config.session.clock.time_ns()
        self._versions[name] = version
        size = self._size_for(version)
        self._batchers[name] = Batcher(version.policy, size)
        return self._batchers[name]

    def _outputs(
        self, version: ModelVersion, batches: Iterable[list[WindowedValue]]
    ) -> Iterator[Any]:
        for origins in batches:
            now = self._config.session.clock.time_ns()
            waited = now - self._since.get(version.name, now)
            self._since[version.name] = now
            for metrics in self._metrics_of(version):
                metrics.queued(waited)
            outcomes = self._outcomes(version, [origin.value for origin in origins])
            for origin, outcome in zip(origins, outcomes, strict=True):
                if type(outcome) is Failure:
                    yield self._aside(origin, outcome, self._metrics_of(version))
                else:
                    yield origin.with_value(outcome)

    def _aside(
        self, origin: WindowedValue, failure: Failure, metrics: Iterable[InferenceMetrics]
    ) -> Any:
        for each in metrics:
            each.count("failed_elements")
        return TaggedOutput(FAILED, origin.with_value((origin.value, failure.report())))

    def _outcomes(self, version: ModelVersion, batch: Any) -> list[Any]:
        """A result or a Failure for each element of a batch."""
        calls = _Counting(partial(self._call, version))
        outcomes = self._config.errors.attempt(calls, batch)
        n_failed = sum(type(outcome) is Failure for outcome in outcomes)
        for metrics in self._metrics_of(version):
            metrics.inferred(len(outcomes) - n_failed)
            if calls.n > 1:
                metrics.count("batch_splits", calls.n - 1)
        return outcomes

    def _call(self, version: ModelVersion, batch: Any) -> list[Any]:
        """The results of a batch, in as many calls of the model as memory needs."""
        size = self._size_for(version)
        once = partial(self._call_once, version)

        def too_large(batch: Any) -> None:
            size.record_out_of_memory(len(batch), version.policy.padded_size(batch))

        return list(halved_on_out_of_memory(once, batch, too_large))

    def _call_once(
        self, version: ModelVersion, batch: Any, n_elements: int | None = None
    ) -> list[Any]:
        """The results of one call; as many as elements, unless one result is for all of them."""
        try:
            results, calls = self._session.call(version, batch, self._given())
        except BaseException as error:
            for metrics in self._metrics_of(version):
                metrics.batch_failed()
            kept = error.succeeded(batch) if isinstance(error, PartialBatchError) else []
            if kept:
                self._sized(version, kept, len(kept))
            raise
        for its, n_results, took in calls:
            n = n_results if n_elements is None else n_elements
            self._size_for(version).record(n, took)
            self._sized(version, its, n)
            for metrics in self._metrics_of(version):
                metrics.batch_timed(took)
        return results

    def _sized(self, version: ModelVersion, batch: Any, n_results: int) -> None:
        if every := self._metrics_of(version):
            n_bytes = version.handler.get_num_bytes(batch)
            for metrics in every:
                metrics.batch_sized(n_results, n_bytes)

    def _size_for(self, version: ModelVersion) -> AdaptiveSize:
        return self._session.size_for(version)

    def _given(self) -> dict[str, Any] | None:
        """The arguments for a call."""
        given = self._config.inference_args
        return given if self._arguments is None else checked(self._config.handler, self._arguments)

    def _metrics_of(self, version: ModelVersion) -> list[InferenceMetrics]:
        """Those of the model, and where there are several, those of all together."""
        if self._namespace is None:
            return []
        names = (
            [version.prefix, ""] if version.keys != (None,) and version.prefix else [version.prefix]
        )
        return [self._named_metrics(name) for name in names]

    def _named_metrics(self, prefix: str) -> InferenceMetrics:
        if prefix not in self._metrics:
            self._metrics[prefix] = InferenceMetrics(str(self._namespace), prefix)
        return self._metrics[prefix]

    def _base_metrics(self) -> list[InferenceMetrics]:
        return [] if self._namespace is None else [self._named_metrics("")]

    def _report_models(self) -> None:
        """What was loaded, refreshed and put away since the last bundle ended."""
        loads, events = self._session.drain_events()
        for version, took, n_bytes in loads:
            for metrics in self._metrics_of(version):
                metrics.model_loaded(took, n_bytes)
        for metrics in self._base_metrics():
            for event, n in events.items():
                metrics.count(event, n)


class EachWindow:
    """Before an InferDoFn, for elements that may be in several windows: each is taken once in each of them.

    Asking for the window is what makes Beam do so, and costs: those that are in one window do without.
    """

    def process(
        self,
        element: Any,
        origin: Any = beam.DoFn.WindowedValueParam,
        window: Any = beam.DoFn.WindowParam,
        update: Any = None,
        arguments: Any = None,
    ) -> Iterable[Any] | None:
        return super().process(element, origin, update, arguments)  # type: ignore[misc,no-any-return]


class InferEachWindow(EachWindow, InferDoFn):  # type: ignore[misc]
    """Gathers each element once in each of its windows."""


class _Counting:
    """Counts how often a function is called."""

    def __init__(self, function: Any) -> None:
        self._function = function
        self.n = 0

    def __call__(self, *arguments: Any) -> Any:
        self.n += 1
        return self._function(*arguments)
