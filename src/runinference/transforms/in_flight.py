"""The batches of a bundle whose calls have started, and whose results are not emitted yet."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import chain
from typing import Any, NamedTuple

from apache_beam.transforms.window import WindowedValue

from runinference.batching.measured_switch import MeasuredSwitch
from runinference.handlers.compute_turn import CallOverlap, get_call_overlap
from runinference.handlers.repeatable_batch import RepeatableBatch
from runinference.serving.routing import ModelVersion
from runinference.transforms.engine import CallModel, InferenceEngine


class Work(NamedTuple):
    """A batch to run.

    Attributes:
        version: The model.
        batch: The elements.
        n_elements: The number of elements.
        origins: Their windows and timestamps.
        infer: A method of the engine that returns a result or a ``Failure`` for each element.
        batch_type: Passes the elements to the model.
        has_final_size: Whether the size of batches isn't being searched, so that their times can be compared.
    """

    version: ModelVersion
    batch: Any
    n_elements: int
    origins: Iterable[WindowedValue]
    infer: Callable[[ModelVersion, RepeatableBatch, CallModel], list[Any]]
    batch_type: type[RepeatableBatch] = RepeatableBatch
    has_final_size: bool = True


class _Measured(NamedTuple):
    """A batch whose time is measured until the next one."""

    version: ModelVersion
    n_elements: int
    start: int


class InFlightBatches:
    """Runs batches in order, and emits their results in order.

    A batch can run in another thread, while the next batch is collected and the results of earlier ones are
    emitted. Requests to remote models always do, once the client is created. Other batches do if measuring shows
    that it is faster, except for the first batch of a bundle, which may be the only one. All batches in flight are
    of one model. None outlives its bundle.
    """

    def __init__(self, engine: InferenceEngine) -> None:
        self._engine = engine
        self._started: deque[tuple[ModelVersion, Callable[[], Iterator[Any]]]] = deque()
        self._measured: _Measured | None = None
        self._is_first = True

    def run(self, work: Work) -> Iterator[Any]:
        """Run a batch, and yield the outputs that are available."""
        # A chain runs no Python code per output.
        return chain.from_iterable(self._run(work))

    def _run(self, work: Work) -> Iterator[Iterator[Any]]:
        engine, version = self._engine, work.version
        if self._started and self._started[0][0] is not version:
            yield self.drain()
        batch = work.batch_type(work.batch, engine.needs_copies(work.n_elements))
        overlap = get_call_overlap(version.handler)
        if self._overlaps(work, overlap):
            call_model = engine.start(version, batch)
            if call_model is not None:
                self._started.append((version, partial(self._finish, work, batch, call_model)))
                while len(self._started) > overlap.max_calls:
                    yield self._finish_first()
                return
        yield self.drain()
        yield self._finish(work, batch, engine.session.call)

    def drain(self) -> Iterator[Any]:
        """Yield the outputs of all batches in flight."""
        while self._started:
            self._measured = None
            yield from self._finish_first()

    def _finish_first(self) -> Iterator[Any]:
        _, finish = self._started.popleft()
        return finish()

    def _finish(self, work: Work, batch: RepeatableBatch, call_model: CallModel) -> Iterator[Any]:
        outcomes = work.infer(work.version, batch, call_model)
        return self._engine.make_outputs(work.version, work.origins, outcomes)

    def _overlaps(self, work: Work, overlap: CallOverlap) -> bool:
        """Return whether a batch runs in another thread."""
        is_first, self._is_first = self._is_first, False
        session, version = self._engine.session, work.version
        if overlap.max_calls == 1 or not work.has_final_size:
            self._measured = None
            return False
        if overlap.is_measured:
            if is_first:
                return False
            decision = session.overlap_for(version)
            self._measure(work, overlap.max_calls, decision)
            if not decision.is_on:
                return False
        return session.models.is_ready(version)

    def _measure(self, work: Work, max_calls: int, decision: MeasuredSwitch) -> None:
        """Record the time since the batch before, and begin to measure this one."""
        measured, now = self._measured, self._engine.clock.time_ns()
        if measured is not None and measured.version is work.version:
            decision.record(measured.n_elements, (now - measured.start) / 1e9)
        # The time isn't representative while the number of batches in flight changes.
        is_steady = len(self._started) == (max_calls if decision.is_on else 0)
        self._measured = _Measured(work.version, work.n_elements, now) if is_steady else None
