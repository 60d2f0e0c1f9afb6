"""Elements wait for others across bundles: good batches for a stream that comes in small bundles."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator
from typing import Any

import apache_beam as beam
from apache_beam.coders import FastPrimitivesCoder
from apache_beam.transforms.timeutil import TimeDomain
from apache_beam.transforms.userstate import (
    BagStateSpec,
    ReadModifyWriteStateSpec,
    TimerSpec,
    on_timer,
)
from apache_beam.transforms.window import WindowedValue
from apache_beam.utils.timestamp import Timestamp

from runinference.batching.batcher import Batcher
from runinference.batching.policy import resolve_policy, size_in_bytes
from runinference.handlers.error_policy import Failure
from runinference.handlers.keyed import per_key_mappings
from runinference.serving.routing import ModelVersion, make_router
from runinference.transforms.config import InferenceConfig
from runinference.transforms.infer_dofn import InferDoFn

_PROCESS = uuid.uuid4().hex


class AssignShardKey(beam.DoFn):  # type: ignore[misc]
    """Gives elements that may share a batch one key: those of a process, a model and a bucket of lengths."""

    def __init__(self, handler: Any) -> None:
        self._handler = handler

    def setup(self) -> None:
        self._router = make_router(self._handler)

    def process(self, element: Any) -> Iterable[tuple[str, Any]]:
        try:
            version = self._router.route(element)
            key = f"{version.name}/{version.policy.bucket(element)}"
        except Exception:  # the step that infers meets it again, and sets the element aside
            key = ""
        return [(f"{_PROCESS}/{key}", element)]


class BufferedInferDoFn(InferDoFn):
    """Elements wait in the runner's state until a batch is full, or the first has waited long enough.

    Each result leaves with its element's own timestamp, in its own window. When a window ends, nobody waits
    longer.
    """

    WAITING = BagStateSpec("waiting", FastPrimitivesCoder())
    ARGUMENTS = ReadModifyWriteStateSpec("arguments", FastPrimitivesCoder())
    TOTALS = ReadModifyWriteStateSpec("totals", FastPrimitivesCoder())
    DUE = TimerSpec("due", TimeDomain.REAL_TIME)
    END = TimerSpec("end", TimeDomain.WATERMARK)

    def __init__(self, step: InferenceConfig, max_duration_secs: float) -> None:
        super().__init__(step)
        self._max_duration_secs = max_duration_secs

    def process(  # type: ignore[override]
        self,
        keyed: Any,
        origin: Any = beam.DoFn.WindowedValueParam,
        window: Any = beam.DoFn.WindowParam,
        waiting: Any = beam.DoFn.StateParam(WAITING),
        totals: Any = beam.DoFn.StateParam(TOTALS),
        given: Any = beam.DoFn.StateParam(ARGUMENTS),
        due: Any = beam.DoFn.TimerParam(DUE),
        end: Any = beam.DoFn.TimerParam(END),
        update: Any = None,
        arguments: Any = None,
    ) -> Iterator[Any]:
        _, element = keyed
        try:
            self._refresh(update)
            version = self._router.route(element)
            its = _measures(version, element)
        except self._config.errors.caught as error:
            yield self._aside(origin.with_value(element), Failure(error), self._base_metrics())
            return
        before = totals.read()
        now = tuple(a + b for a, b in zip(before or _NOTHING, its, strict=True))
        if before and _passes_a_limit(version, now):
            yield from self._release(waiting, totals, given, window)
            before, now = None, its
        if not before:
            if arguments is not None:
                given.write(arguments)
            due.set(Timestamp.now() + self._max_duration_secs)
            end.set(window.max_timestamp())
        waiting.add((element, origin.timestamp.micros))
        totals.write(now)
        if self._is_full(version, now):
            due.clear()
            yield from self._release(waiting, totals, given, window)

    @on_timer(DUE)  # type: ignore[untyped-decorator]
    def waited_long_enough(
        self,
        window: Any = beam.DoFn.WindowParam,
        waiting: Any = beam.DoFn.StateParam(WAITING),
        totals: Any = beam.DoFn.StateParam(TOTALS),
        given: Any = beam.DoFn.StateParam(ARGUMENTS),
    ) -> Iterator[Any]:
        yield from self._release(waiting, totals, given, window)

    @on_timer(END)  # type: ignore[untyped-decorator]
    def window_ends(
        self,
        window: Any = beam.DoFn.WindowParam,
        waiting: Any = beam.DoFn.StateParam(WAITING),
        totals: Any = beam.DoFn.StateParam(TOTALS),
        given: Any = beam.DoFn.StateParam(ARGUMENTS),
    ) -> Iterator[Any]:
        yield from self._release(waiting, totals, given, window)

    def _is_full(self, version: ModelVersion, totals: tuple[Any, ...]) -> bool:
        n_elements, n_bytes, weight, length = totals
        policy = version.policy
        return (
            n_elements >= self._size_for(version).current
            or n_bytes >= policy.max_batch_bytes
            or (policy.max_batch_weight is not None and weight >= policy.max_batch_weight)
            or (policy.max_padded_size is not None and length >= policy.max_padded_size)
        )

    def _release(self, waiting: Any, totals: Any, given: Any, window: Any) -> Iterator[Any]:
        """Runs what has waited, in batches under the policy of its model."""
        elements = list(waiting.read())
        self._arguments = given.read()
        waiting.clear()
        totals.clear()
        batchers: dict[str, tuple[ModelVersion, Batcher[Any]]] = {}
        for element, micros in elements:
            origin = WindowedValue(element, Timestamp(micros=micros), (window,))
            try:
                version = self._router.route(element)
                if version.name not in batchers:
                    size = self._size_for(version)
                    batchers[version.name] = version, Batcher(version.policy, size)
                full = batchers[version.name][1].add(element, origin)
            except self._config.errors.caught as error:
                yield self._aside(origin, Failure(error), self._base_metrics())
            else:
                yield from self._outputs(version, full)
        for version, batcher in batchers.values():
            yield from self._outputs(version, batcher.flush())


def longest_wait(handler: Any) -> float | None:
    """How many seconds an element may wait; None where it does not wait for other bundles.

    Where there is a model per key, it is the shortest wait of them all.
    """
    insides = [mapping.mh for mapping in per_key_mappings(handler)] or [handler]
    waits = [resolve_policy(inside).max_batch_duration_secs for inside in [handler, *insides]]
    return min((wait for wait in waits if wait is not None), default=None)


_NOTHING = (0, 0, 0, 0)


def _passes_a_limit(version: ModelVersion, totals: tuple[Any, ...]) -> bool:
    """Whether the last element needs a batch of its own."""
    _, n_bytes, weight, _ = totals
    policy = version.policy
    return n_bytes > policy.max_batch_bytes or (
        policy.max_batch_weight is not None and weight > policy.max_batch_weight
    )


def _measures(version: ModelVersion, element: Any) -> tuple[int, int, float, int]:
    """What an element adds to a batch: itself, its bytes, its weight, its length."""
    policy = version.policy
    weight = policy.element_size_fn(element) if policy.element_size_fn is not None else 1
    length = policy.length(element)
    return 1, size_in_bytes(element), weight, length
