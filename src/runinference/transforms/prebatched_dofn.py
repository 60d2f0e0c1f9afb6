"""Elements that are batches already: each is handed to the model as it is, for a result a row or one for all."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import apache_beam as beam
from apache_beam.transforms.window import WindowedValue

from runinference.collate.rows import row_of
from runinference.collate.unbatch import length_of
from runinference.collate.unsplit import gives_whole_results, rows_in
from runinference.handlers.error_policy import Failure
from runinference.serving.routing import Edition
from runinference.transforms.config import Step
from runinference.transforms.infer_dofn import EachWindow, Infer


def infer_prebatched(step: Step, one_window: bool) -> Infer:
    """The DoFn for a handler whose elements are batches, each of which may be in several windows or not."""
    if gives_whole_results(step.handler):
        return InferWhole(step) if one_window else InferWholeEachWindow(step)
    return InferPrebatched(step) if one_window else InferPrebatchedEachWindow(step)


class InferPrebatched(Infer):
    """Elements are batches already: each is handed to the model as it is."""

    def process(
        self,
        element: Any,
        origin: Any = beam.DoFn.WindowedValueParam,
        update: Any = None,
        arguments: Any = None,
    ) -> Iterable[Any]:
        self._arguments = arguments
        try:
            self._refresh(update)
            return self._results(element, origin)
        except self._step.errors.caught as error:
            return [self._aside(origin, Failure(error), self._base_metrics())]

    def _results(self, element: Any, origin: WindowedValue) -> Iterable[Any]:
        if getattr(self._step.handler, "mappings", None):
            return self._each_model(element, origin)
        return self._whole(self._routes.of(None), element, origin)

    def _each_model(self, batch: Any, origin: WindowedValue) -> Iterator[Any]:
        """A batch for several models: to each its part."""
        parts: dict[str, tuple[Edition, list[Any]]] = {}
        try:
            examples = list(batch)
        except self._step.errors.caught as error:
            yield self._aside(origin, Failure(error), self._base_metrics())
            return
        for example in examples:
            try:
                edition = self._routes.of(example)
            except self._step.errors.caught as error:
                yield self._aside(origin.with_value(example), Failure(error), self._base_metrics())
            else:
                parts.setdefault(edition.name, (edition, []))[1].append(example)
        for edition, part in parts.values():
            yield from self._whole(edition, part, origin)

    def _whole(self, edition: Edition, batch: Any, origin: WindowedValue) -> Iterator[Any]:
        divisible = isinstance(batch, (list, tuple)) or hasattr(batch, "shape")
        divisible = divisible and length_of(batch) is not None
        outcomes = (self._outcomes if divisible else self._undivided)(edition, batch)
        for index, outcome in enumerate(outcomes):
            if type(outcome) is Failure:
                its = origin.with_value(row_of(batch, index) if divisible else batch)
                yield self._aside(its, outcome, self._metrics_of(edition))
            else:
                yield origin.with_value(outcome)

    def _undivided(self, edition: Edition, batch: Any) -> list[Any]:
        """The results of a batch that cannot be sliced: all of them, or one Failure."""
        errors = self._step.errors
        [outcome] = errors.attempt(lambda one: [self._call_once(edition, one[0])], [batch])
        if type(outcome) is Failure:
            return [outcome]
        for metrics in self._metrics_of(edition):
            metrics.inferred(len(outcome))
        return list(outcome)


class InferWhole(InferPrebatched):
    """Elements are arrays of rows: each is handed to the model as it is, and gets one result for all of them."""

    def _results(self, element: Any, origin: WindowedValue) -> Iterable[Any]:
        edition = self._routes.of(element)
        [outcome] = self._step.errors.attempt(partial(self._call_whole, edition), [element])
        if type(outcome) is Failure:
            return [self._aside(origin, outcome, self._metrics_of(edition))]
        return [origin.with_value(outcome)]

    def _call_whole(self, edition: Edition, one: list[Any]) -> list[Any]:
        [element] = one
        n_rows = rows_in(element)
        n_rows = 1 if n_rows is None else n_rows
        results = self._call_once(edition, element, n_rows)
        for metrics in self._metrics_of(edition):
            metrics.inferred(n_rows)
        return results


class InferPrebatchedEachWindow(EachWindow, InferPrebatched):  # type: ignore[misc]
    """For batches that may be in several windows."""


class InferWholeEachWindow(EachWindow, InferWhole):  # type: ignore[misc]
    """For arrays of rows that may be in several windows."""
