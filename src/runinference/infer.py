"""The DoFn: elements gather, the model is leased, predicts, and its output is split."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import apache_beam as beam
from apache_beam.transforms.window import WindowedValue

from runinference.batching import Gatherer, policy_of
from runinference.metrics import InferenceMetrics, resident_bytes
from runinference.sharing import ShelfOfProcess
from runinference.splitting import run_batch

# One element with what it came with: (element, timestamp, window).
_Item = tuple[Any, Any, Any]


class Infer(beam.DoFn):  # type: ignore[misc]
    """Gathers elements into batches, and emits each result with its element's own window and timestamp."""

    def __init__(
        self, handler: Any, inference_args: dict[str, Any] | None, namespace: str | None, clock: Any
    ) -> None:
        self._handler = handler
        self._inference_args = inference_args
        self._namespace = namespace
        self._clock = clock
        self._shelf_of_process = ShelfOfProcess()

    def setup(self) -> None:
        handler = self._handler
        namespace = self._namespace or handler.get_metrics_namespace()
        self._metrics = None if handler.override_metrics(namespace) else InferenceMetrics(namespace)
        self._policy = policy_of(handler)
        self._shelf = self._shelf_of_process.open(self._policy)
        handler.set_environment_vars()
        self._load_to_report: tuple[int, int] | None = None
        with self._shelf.lease(self._load):
            pass

    def start_bundle(self) -> None:
        self._gatherer: Gatherer[_Item] = Gatherer(self._policy, self._shelf.batch_size)

    def process(
        self,
        element: Any,
        timestamp: Any = beam.DoFn.TimestampParam,
        window: Any = beam.DoFn.WindowParam,
    ) -> Iterable[WindowedValue] | None:
        full = self._gatherer.add(element, (element, timestamp, window))
        return self._results(full) if full else None

    def finish_bundle(self) -> Iterator[WindowedValue]:
        yield from self._results(self._gatherer.flush())
        if self._metrics and self._load_to_report:
            self._metrics.model_loaded(*self._load_to_report)
            self._load_to_report = None

    def _results(self, batches: Iterable[list[_Item]]) -> Iterator[WindowedValue]:
        for items in batches:
            results = self._infer([element for element, _, _ in items])
            for (_, timestamp, window), result in zip(items, results, strict=True):
                yield WindowedValue(result, timestamp, (window,))

    def _infer(self, batch: Any) -> list[Any]:
        """The results of one batch: one call of the model, counted and timed."""
        try:
            with self._shelf.lease(self._load) as model:
                start = self._clock.time_ns()
                results = run_batch(self._handler, batch, model, self._inference_args)
                took = self._clock.time_ns() - start
        except BaseException:
            if self._metrics:
                self._metrics.batch_failed()
            raise
        self._shelf.batch_size.record(len(results), took)
        if self._metrics:
            self._metrics.batch_done(len(results), self._handler.get_num_bytes(batch), took)
        return results

    def _load(self) -> Any:
        before, start = resident_bytes(), self._clock.time_ns()
        model = self._handler.load_model()
        took = self._clock.time_ns() - start
        self._load_to_report = (took, max(0, resident_bytes() - before))
        return model


class InferPrebatched(Infer):
    """Elements are batches already: each is handed to the model as it is."""

    def process(
        self,
        element: Any,
        timestamp: Any = beam.DoFn.TimestampParam,
        window: Any = beam.DoFn.WindowParam,
    ) -> Iterable[WindowedValue]:
        return [WindowedValue(result, timestamp, (window,)) for result in self._infer(element)]
