"""The batches of a bundle whose calls have started, and whose results are not emitted yet."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any, NamedTuple

from apache_beam.transforms.window import WindowedValue

from runinference.batching.batcher import Batch
from runinference.batching.overlap import OverlapDecision
from runinference.serving.overlapping_calls import MAX_CALLS
from runinference.serving.routing import ModelVersion
from runinference.transforms.engine import InferenceEngine


class _Started(NamedTuple):
    """A batch whose call has started.

    Attributes:
        version: The model.
        batch: The elements with their windows and timestamps.
        get_outcomes: Waits for the call, and returns a result or a ``Failure`` for each element.
    """

    version: ModelVersion
    batch: Batch[WindowedValue]
    get_outcomes: Callable[[], list[Any]]


class _Measured(NamedTuple):
    """A batch whose time is measured until the next one."""

    version: ModelVersion
    n_elements: int
    start: int


class InFlightBatches:
    """Runs batches in order, and emits their results in order.

    If measuring shows that it is faster, a batch runs in another thread, while the next batch is collected and the
    results of earlier ones are emitted. The first batch of a bundle, which may be the only one, never does. All
    batches in flight are of one model. None outlives its bundle.
    """

    def __init__(self, engine: InferenceEngine) -> None:
        self._engine = engine
        self._started: deque[_Started] = deque()
        self._measured: _Measured | None = None
        self._is_first = True

    def run(self, version: ModelVersion, batch: Batch[WindowedValue]) -> Iterator[Any]:
        """Run a batch of elements with their windows and timestamps, and yield the outputs that are available."""
        # A chain runs no Python code per output.
        return chain.from_iterable(self._run(version, batch))

    def _run(self, version: ModelVersion, batch: Batch[WindowedValue]) -> Iterator[Iterator[Any]]:
        if self._started and self._started[0].version is not version:
            yield self.drain()
        if self._overlaps(version, len(batch)):
            get_outcomes = self._engine.start(version, batch.elements)
            if get_outcomes is not None:
                self._started.append(_Started(version, batch, get_outcomes))
                while len(self._started) > MAX_CALLS:
                    yield self._finish_first()
                return
        yield self.drain()
        outcomes = self._engine.infer(version, batch.elements)
        yield self._engine.make_outputs(version, batch, outcomes)

    def drain(self) -> Iterator[Any]:
        """Yield the outputs of all batches in flight."""
        while self._started:
            self._measured = None
            yield from self._finish_first()

    def _finish_first(self) -> Iterator[Any]:
        version, batch, get_outcomes = self._started.popleft()
        return self._engine.make_outputs(version, batch, get_outcomes())

    def _overlaps(self, version: ModelVersion, n_elements: int) -> bool:
        """Return whether a batch runs in another thread."""
        if self._is_first:
            self._is_first = False
            return False
        session = self._engine.session
        if not session.size_for(version).converged:
            self._measured = None
            return False
        decision = session.overlap_for(version)
        self._measure(version, n_elements, decision)
        return decision.overlaps and session.can_start(version)

    def _measure(self, version: ModelVersion, n_elements: int, decision: OverlapDecision) -> None:
        """Record the time since the batch before, and begin to measure this one."""
        measured, now = self._measured, self._engine.clock.time_ns()
        if measured is not None and measured.version is version:
            decision.record(measured.n_elements, (now - measured.start) / 1e9)
        # The time isn't representative while the number of batches in flight changes.
        is_steady = len(self._started) == (MAX_CALLS if decision.overlaps else 0)
        self._measured = _Measured(version, n_elements, now) if is_steady else None
