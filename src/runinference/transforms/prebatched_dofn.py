"""Elements that are batches already: each is handed to the model as it is, for a result a row or one for all."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import apache_beam as beam
from apache_beam.transforms.window import WindowedValue

from runinference.collate.rows import get_row
from runinference.collate.unbatch import batch_length
from runinference.collate.unsplit import count_rows, returns_unsplit_results
from runinference.handlers.error_policy import Failure
from runinference.handlers.keyed import per_key_mappings
from runinference.serving.routing import ModelVersion
from runinference.transforms.config import InferenceConfig
from runinference.transforms.infer_dofn import EachWindow, InferDoFn


def infer_prebatched(step: InferenceConfig, one_window: bool) -> InferDoFn:
    """The DoFn for a handler whose elements are batches, each of which may be in several windows or not."""
    if returns_unsplit_results(step.handler):
        return InferWhole(step) if one_window else InferWholeEachWindow(step)
    return InferPrebatched(step) if one_window else InferPrebatchedEachWindow(step)


class InferPrebatched(InferDoFn):
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
        except self._config.errors.caught as error:
            return [self._aside(origin, Failure(error), self._base_metrics())]

    def _results(self, element: Any, origin: WindowedValue) -> Iterable[Any]:
        if per_key_mappings(self._config.handler):
            return self._each_model(element, origin)
        return self._whole(self._router.route(None), element, origin)

    def _each_model(self, batch: Any, origin: WindowedValue) -> Iterator[Any]:
        """A batch for several models: to each its part."""
        parts: dict[str, tuple[ModelVersion, list[Any]]] = {}
        try:
            examples = list(batch)
        except self._config.errors.caught as error:
            yield self._aside(origin, Failure(error), self._base_metrics())
            return
        for example in examples:
            try:
                version = self._router.route(example)
            except self._config.errors.caught as error:
                yield self._aside(origin.with_value(example), Failure(error), self._base_metrics())
            else:
                parts.setdefault(version.name, (version, []))[1].append(example)
        for version, part in parts.values():
            yield from self._whole(version, part, origin)

    def _whole(self, version: ModelVersion, batch: Any, origin: WindowedValue) -> Iterator[Any]:
        divisible = isinstance(batch, (list, tuple)) or hasattr(batch, "shape")
        divisible = divisible and batch_length(batch) is not None
        outcomes = (self._outcomes if divisible else self._undivided)(version, batch)
        for index, outcome in enumerate(outcomes):
            if type(outcome) is Failure:
                its = origin.with_value(get_row(batch, index) if divisible else batch)
                yield self._aside(its, outcome, self._metrics_of(version))
            else:
                yield origin.with_value(outcome)

    def _undivided(self, version: ModelVersion, batch: Any) -> list[Any]:
        """The results of a batch that cannot be sliced: all of them, or one Failure."""
        errors = self._config.errors
        [outcome] = errors.attempt(lambda one: [self._call_once(version, one[0])], [batch])
        if type(outcome) is Failure:
            return [outcome]
        for metrics in self._metrics_of(version):
            metrics.inferred(len(outcome))
        return list(outcome)


class InferWhole(InferPrebatched):
    """Elements are arrays of rows: each is handed to the model as it is, and gets one result for all of them."""

    def _results(self, element: Any, origin: WindowedValue) -> Iterable[Any]:
        version = self._router.route(element)
        [outcome] = self._config.errors.attempt(partial(self._call_whole, version), [element])
        if type(outcome) is Failure:
            return [self._aside(origin, outcome, self._metrics_of(version))]
        return [origin.with_value(outcome)]

    def _call_whole(self, version: ModelVersion, one: list[Any]) -> list[Any]:
        [element] = one
        n_rows = count_rows(element)
        n_rows = 1 if n_rows is None else n_rows
        results = self._call_once(version, element, n_rows)
        for metrics in self._metrics_of(version):
            metrics.inferred(n_rows)
        return results


class InferPrebatchedEachWindow(EachWindow, InferPrebatched):  # type: ignore[misc]
    """For batches that may be in several windows."""


class InferWholeEachWindow(EachWindow, InferWhole):  # type: ignore[misc]
    """For arrays of rows that may be in several windows."""
