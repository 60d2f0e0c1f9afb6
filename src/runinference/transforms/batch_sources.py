"""Form batches from the elements of a bundle."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, repeat
from typing import Any

from apache_beam.transforms.window import WindowedValue

from runinference.batching.batcher import Batch, Batcher
from runinference.collate.unbatch import batch_length, is_divisible
from runinference.handlers.error_policy import Failure
from runinference.handlers.repeatable_batch import SingleBatch
from runinference.serving.routing import ModelVersion
from runinference.transforms.engine import InferenceEngine
from runinference.transforms.in_flight import Work
from runinference.transforms.model_groups import ModelGroups


class BatchSource(ABC):
    """The batches of one bundle. A source chooses which batches the engine runs."""

    def __init__(self, engine: InferenceEngine) -> None:
        self._engine = engine
        self._groups = ModelGroups(engine)

    @abstractmethod
    def add(self, element: Any, origin: WindowedValue) -> Iterable[Any] | None:
        """Add an element with its window and timestamp, and return the outputs of full batches, if any."""

    def flush(self) -> Iterable[Any]:
        """Return the outputs of all remaining elements."""
        return self._groups.flush()


class BundleBatches(BatchSource):
    """Batches of the elements of a bundle, separate for each model version."""

    def __init__(
        self,
        engine: InferenceEngine,
        now: Callable[[], int] | None = None,
        groups: ModelGroups | None = None,
    ) -> None:
        """Create a source without elements.

        Args:
            engine: Runs the batches.
            now: Returns the time when the current element came, in nanoseconds. By default, the current time.
            groups: Runs or holds batches of models that aren't loaded. The caller flushes it.
        """
        super().__init__(engine)
        self._owns_groups = groups is None
        self._groups = groups or self._groups
        self._now = now or engine.clock.time_ns
        self._batchers: dict[ModelVersion, Batcher[WindowedValue]] = {}
        self._last_version: ModelVersion | None = None
        self._windows: Any = None

    def add(self, element: Any, origin: WindowedValue) -> Iterable[Any] | None:
        # Most elements go to one model: this saves a call and a lookup per element.
        version = self._engine.only_version or self._engine.router.route(element)
        if version is not self._last_version:
            self._last_batcher = self._batchers.get(version) or self._new_batcher(version)
            self._last_version = version
        if (
            origin.windows is not self._windows
            or origin.timestamp_micros != self._timestamp
            or origin.pane_info is not self._pane
        ):
            self._share(origin)
        full = self._last_batcher.add(element, self._origin)
        return self._run(version, full) if full else None

    def _share(self, origin: WindowedValue) -> None:
        """Share one origin among the next elements: the garbage collector visits each object that is kept."""
        self._origin = origin.with_value(None)
        self._windows, self._timestamp = origin.windows, origin.timestamp_micros
        self._pane = origin.pane_info

    def flush(self) -> Iterator[Any]:
        for version, batcher in self._batchers.items():
            yield from self._run(version, batcher.flush())
        if self._owns_groups:
            yield from self._groups.flush()
        else:
            yield from self._groups.in_flight.drain()

    def _new_batcher(self, version: ModelVersion) -> Batcher[WindowedValue]:
        size = self._engine.session.size_for(version)
        self._batchers[version] = Batcher(version.policy, size, self._now)
        return self._batchers[version]

    def _run(self, version: ModelVersion, batches: Iterable[Batch[WindowedValue]]) -> Iterator[Any]:
        # A chain runs no Python code per output.
        return chain.from_iterable(self._groups.run(self._work(version, each)) for each in batches)

    def _work(self, version: ModelVersion, batch: Batch[WindowedValue]) -> Work:
        engine = self._engine
        queued = max(0, engine.clock.time_ns() - batch.opened)
        for metrics in engine.metrics.for_version(version):
            metrics.queued(queued)
        return Work(
            version,
            batch.elements,
            len(batch),
            batch,
            engine.infer,
            has_final_size=engine.session.size_for(version).converged,
        )


class UnsplitBatches(BatchSource):
    """Elements that are batches, with one result for all of their rows."""

    def add(self, element: Any, origin: WindowedValue) -> Iterable[Any]:
        engine = self._engine
        version = engine.router.route(element)
        return self._groups.run(
            Work(version, element, 1, [origin], engine.infer_unsplit, SingleBatch)
        )


class PrebatchedBatches(BatchSource):
    """Elements that are batches, with one result per row."""

    def add(self, element: Any, origin: WindowedValue) -> Iterable[Any]:
        version = self._engine.only_version
        if version is None:
            return self._run_per_model(list(element), origin)
        return self._run(version, element, origin)

    def _run_per_model(self, examples: list[Any], origin: WindowedValue) -> Iterator[Any]:
        engine = self._engine
        parts: dict[ModelVersion, list[Any]] = {}
        for example in examples:
            try:
                version = engine.router.route(example)
            except engine.errors.caught as error:
                yield engine.make_dead_letter(origin.with_value(example), Failure(error))
            else:
                parts.setdefault(version, []).append(example)
        for version, part in parts.items():
            yield from self._run(version, part, origin)

    def _run(self, version: ModelVersion, batch: Any, origin: WindowedValue) -> Iterable[Any]:
        engine = self._engine
        if is_divisible(batch):
            n_elements = batch_length(batch) or 1
            work = Work(version, batch, n_elements, repeat(origin), engine.infer)
        else:
            work = Work(version, batch, 1, repeat(origin), engine.infer_undivided, SingleBatch)
        return self._groups.run(work)
