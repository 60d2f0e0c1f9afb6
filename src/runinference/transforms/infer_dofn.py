"""The DoFn: elements gather, a model is leased, it predicts, its output is split, and what fails is set aside."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import apache_beam as beam
from apache_beam.pvalue import TaggedOutput
from apache_beam.transforms.window import WindowedValue

from runinference.batching.adaptive_size import AdaptiveSize
from runinference.batching.batcher import Gatherer
from runinference.errors import kept_of, parts_of
from runinference.handlers.error_policy import Failure, halved_on_out_of_memory
from runinference.serving.routing import Edition, Routes, routes_of
from runinference.serving.session import Lender
from runinference.transforms.config import Step
from runinference.transforms.metrics import InferenceMetrics
from runinference.transforms.side_inputs import are_equal, checked

FAILED = "failed_inferences"
_MOST_KNOWN = 16


class Infer(beam.DoFn):  # type: ignore[misc]
    """Gathers elements into batches, and emits each result with its element's own window and timestamp.

    What gathers is the origin of each element: the WindowedValue that it came in, which knows both. Beam gives
    it at half the price of a timestamp and a window. It must have one window; see InferEachWindow.
    """

    def __init__(self, step: Step) -> None:
        self._step = step

    def setup(self) -> None:
        step, handler = self._step, self._step.handler
        namespace = step.namespace or handler.get_metrics_namespace()
        self._namespace = None if handler.override_metrics(namespace) else namespace
        self._metrics: dict[str, InferenceMetrics] = {}
        self._models = step.models.open()
        self._base = self._routes = routes_of(handler)
        self._update: Any = None
        self._arguments: Any = None  # those that come from the pipeline
        self._known: dict[str, Routes] = {}
        self._lender = Lender(self._models, step)
        self._watcher = None if step.watch is None else self._models.watcher_for(step.watch)
        if step.early:
            self._lender.load_now(self._base.of(None))

    def start_bundle(self) -> None:
        self._lender.end_bundle()  # of one that failed
        self._gatherers: dict[str, Gatherer[WindowedValue]] = {}
        self._editions: dict[str, Edition] = {}
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
            edition = self._routes.of(element)
            gatherer = self._gatherers.get(edition.name) or self._new_gatherer(edition)
            full = gatherer.add(element, origin)
        except self._step.errors.caught as error:
            return [self._aside(origin, Failure(error), self._base_metrics())]
        return self._outputs(edition, full) if full else None

    def finish_bundle(self) -> Iterator[Any]:
        yield from self._rest()
        self._lender.end_bundle()
        self._report_models()

    def _rest(self) -> Iterator[Any]:
        for name, gatherer in self._gatherers.items():
            yield from self._outputs(self._editions[name], gatherer.flush())

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
            update = self._watcher.latest()
        if update is not None and update is not self._update:
            self._routes = self._updated(update)
            self._update = update

    def _updated(self, update: Any) -> Routes:
        """The routes after a refresh; the same for the same refresh, so that it costs nothing."""
        key = repr(update)
        if key not in self._known:
            if len(self._known) >= _MOST_KNOWN:
                del self._known[next(iter(self._known))]
            self._known[key] = self._base.updated(update)
        return self._known[key]

    def _new_gatherer(self, edition: Edition) -> Gatherer[WindowedValue]:
        name = edition.name
        self._since[name] = self._step.clock.time_ns()
        self._editions[name] = edition
        size = self._size_for(edition)
        self._gatherers[name] = Gatherer(edition.policy, size)
        return self._gatherers[name]

    def _outputs(self, edition: Edition, batches: Iterable[list[WindowedValue]]) -> Iterator[Any]:
        for origins in batches:
            now = self._step.clock.time_ns()
            waited = now - self._since.get(edition.name, now)
            self._since[edition.name] = now
            for metrics in self._metrics_of(edition):
                metrics.queued(waited)
            outcomes = self._outcomes(edition, [origin.value for origin in origins])
            for origin, outcome in zip(origins, outcomes, strict=True):
                if type(outcome) is Failure:
                    yield self._aside(origin, outcome, self._metrics_of(edition))
                else:
                    yield origin.with_value(outcome)

    def _aside(
        self, origin: WindowedValue, failure: Failure, metrics: Iterable[InferenceMetrics]
    ) -> Any:
        for each in metrics:
            each.count("failed_elements")
        return TaggedOutput(FAILED, origin.with_value((origin.value, failure.report())))

    def _outcomes(self, edition: Edition, batch: Any) -> list[Any]:
        """A result or a Failure for each element of a batch."""
        calls = _Counting(partial(self._call, edition))
        outcomes = self._step.errors.attempt(calls, batch)
        n_failed = sum(type(outcome) is Failure for outcome in outcomes)
        for metrics in self._metrics_of(edition):
            metrics.inferred(len(outcomes) - n_failed)
            if calls.n > 1:
                metrics.count("batch_splits", calls.n - 1)
        return outcomes

    def _call(self, edition: Edition, batch: Any) -> list[Any]:
        """The results of a batch, in as many calls of the model as memory needs."""
        size = self._size_for(edition)
        once = partial(self._call_once, edition)

        def too_large(batch: Any) -> None:
            size.out_of_memory(len(batch), edition.policy.padded_size(batch))

        return list(halved_on_out_of_memory(once, batch, too_large))

    def _call_once(self, edition: Edition, batch: Any, n_elements: int | None = None) -> list[Any]:
        """The results of one call; as many as elements, unless one result is for all of them."""
        try:
            results, calls = self._lender.call(edition, batch, self._given())
        except BaseException as error:
            for metrics in self._metrics_of(edition):
                metrics.batch_failed()
            if kept := kept_of(batch, parts_of(error)):
                self._sized(edition, kept, len(kept))
            raise
        for its, n_results, took in calls:
            n = n_results if n_elements is None else n_elements
            self._size_for(edition).record(n, took)
            self._sized(edition, its, n)
            for metrics in self._metrics_of(edition):
                metrics.batch_timed(took)
        return results

    def _sized(self, edition: Edition, batch: Any, n_results: int) -> None:
        if every := self._metrics_of(edition):
            n_bytes = edition.handler.get_num_bytes(batch)
            for metrics in every:
                metrics.batch_sized(n_results, n_bytes)

    def _size_for(self, edition: Edition) -> AdaptiveSize:
        return self._models.size_for(self._step.models.name, edition)

    def _given(self) -> dict[str, Any] | None:
        """The arguments for a call."""
        given = self._step.inference_args
        return given if self._arguments is None else checked(self._step.handler, self._arguments)

    def _metrics_of(self, edition: Edition) -> list[InferenceMetrics]:
        """Those of the model, and where there are several, those of all together."""
        if self._namespace is None:
            return []
        names = (
            [edition.prefix, ""] if edition.keys != (None,) and edition.prefix else [edition.prefix]
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
        loads, events = self._lender.take_news()
        for edition, took, n_bytes in loads:
            for metrics in self._metrics_of(edition):
                metrics.model_loaded(took, n_bytes)
        for metrics in self._base_metrics():
            for event, n in events.items():
                metrics.count(event, n)


class EachWindow:
    """Before an Infer, for elements that may be in several windows: each is taken once in each of them.

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


class InferEachWindow(EachWindow, Infer):  # type: ignore[misc]
    """Gathers each element once in each of its windows."""


class _Counting:
    """Counts how often a function is called."""

    def __init__(self, function: Any) -> None:
        self._function = function
        self.n = 0

    def __call__(self, *arguments: Any) -> Any:
        self.n += 1
        return self._function(*arguments)
