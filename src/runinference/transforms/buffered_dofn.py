"""Inference on batches that span bundles, for streams with small bundles."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator
from typing import Any

import apache_beam as beam
from apache_beam.coders import FastPrimitivesCoder
from apache_beam.transforms import userstate
from apache_beam.transforms.timeutil import TimeDomain
from apache_beam.transforms.window import WindowedValue
from apache_beam.utils.timestamp import Timestamp

from runinference.batching.element_size import size_in_bytes
from runinference.batching.policy import resolve_policy
from runinference.handlers.error_policy import Failure
from runinference.handlers.keyed import per_key_mappings
from runinference.serving.routing import ModelVersion, make_router
from runinference.transforms.batch_sources import BundleBatches
from runinference.transforms.config import InferenceConfig
from runinference.transforms.engine import InferenceEngine

_PROCESS = uuid.uuid4().hex


class AssignShardKey(beam.DoFn):  # type: ignore[misc]
    """Add the same key to elements that may share a batch: those of a process, a model and a length bucket."""

    def __init__(self, handler: Any) -> None:
        self._handler = handler

    def setup(self) -> None:
        self._router = make_router(self._handler)

    def process(self, element: Any) -> Iterable[tuple[str, Any]]:
        try:
            version = self._router.route(element)
            key = f"{version.name}/{version.policy.bucket(element)}"
        except Exception:  # raised again by BufferedInferDoFn, which handles it
            key = ""
        return [(f"{_PROCESS}/{key}", element)]


class BufferedInferDoFn(beam.DoFn):  # type: ignore[misc]
    """Buffer elements in state until a batch is full, its oldest has waited long enough, or the window ends."""

    BUFFER = userstate.BagStateSpec("buffer", FastPrimitivesCoder())
    ARGUMENTS = userstate.ReadModifyWriteStateSpec("arguments", FastPrimitivesCoder())
    TOTALS = userstate.ReadModifyWriteStateSpec("totals", FastPrimitivesCoder())
    MAX_WAIT = userstate.TimerSpec("max_wait", TimeDomain.REAL_TIME)
    WINDOW_END = userstate.TimerSpec("window_end", TimeDomain.WATERMARK)

    def __init__(self, config: InferenceConfig, max_wait_secs: float) -> None:
        self._config = config
        self._max_wait_secs = max_wait_secs

    def setup(self) -> None:
        self._engine = InferenceEngine(self._config)

    def start_bundle(self) -> None:
        self._engine.start_bundle()

    def finish_bundle(self) -> None:
        self._engine.finish_bundle()

    def process(
        self,
        keyed: Any,
        origin: Any = beam.DoFn.WindowedValueParam,
        window: Any = beam.DoFn.WindowParam,
        buffer: Any = beam.DoFn.StateParam(BUFFER),
        totals: Any = beam.DoFn.StateParam(TOTALS),
        buffered_arguments: Any = beam.DoFn.StateParam(ARGUMENTS),
        max_wait: Any = beam.DoFn.TimerParam(MAX_WAIT),
        window_end: Any = beam.DoFn.TimerParam(WINDOW_END),
        update: Any = None,
        arguments: Any = None,
    ) -> Iterator[Any]:
        _, element = keyed
        engine = self._engine
        try:
            engine.refresh(update)
            version = engine.router.route(element)
            sizes = _measure(version, element)
        except self._config.errors.caught as error:
            yield engine.make_dead_letter(origin.with_value(element), Failure(error))
            return
        before = totals.read()
        after = tuple(a + b for a, b in zip(before or (0, 0, 0, 0), sizes, strict=True))
        if before and _exceeds_limit(version, after):
            yield from self.flush(window, buffer, totals, buffered_arguments)
            before, after = None, sizes
        if not before:
            if arguments is not None:
                buffered_arguments.write(arguments)
            max_wait.set(Timestamp.now() + self._max_wait_secs)
            window_end.set(window.max_timestamp())
        buffer.add((element, origin.timestamp.micros))
        totals.write(after)
        if self._is_full(version, after):
            max_wait.clear()
            yield from self.flush(window, buffer, totals, buffered_arguments)

    @userstate.on_timer(MAX_WAIT)  # type: ignore[untyped-decorator]
    @userstate.on_timer(WINDOW_END)  # type: ignore[untyped-decorator]
    def flush(
        self,
        window: Any = beam.DoFn.WindowParam,
        buffer: Any = beam.DoFn.StateParam(BUFFER),
        totals: Any = beam.DoFn.StateParam(TOTALS),
        buffered_arguments: Any = beam.DoFn.StateParam(ARGUMENTS),
    ) -> Iterator[Any]:
        """Run all buffered elements, in batches under the policy of their model."""
        engine = self._engine
        elements = list(buffer.read())
        engine.arguments = buffered_arguments.read()
        buffer.clear()
        totals.clear()
        batches = BundleBatches(engine)
        for element, micros in elements:
            origin = WindowedValue(element, Timestamp(micros=micros), (window,))
            try:
                outputs = batches.add(element, origin)
            except self._config.errors.caught as error:
                outputs = [engine.make_dead_letter(origin, Failure(error))]
            yield from outputs or ()
        yield from batches.flush()

    def _is_full(self, version: ModelVersion, totals: tuple[Any, ...]) -> bool:
        n_elements, n_bytes, weight, length = totals
        policy = version.policy
        return (
            n_elements >= self._engine.session.size_for(version).current
            or n_bytes >= policy.max_batch_bytes
            or (policy.max_batch_weight is not None and weight >= policy.max_batch_weight)
            or (policy.max_padded_size is not None and length >= policy.max_padded_size)
        )


def get_max_wait_secs(handler: Any) -> float | None:
    """Return the shortest ``max_batch_duration_secs`` of a handler and its inner handlers, or None."""
    handlers = [handler, *(mapping.mh for mapping in per_key_mappings(handler))]
    waits = [resolve_policy(each).max_batch_duration_secs for each in handlers]
    return min((secs for secs in waits if secs is not None), default=None)


def _exceeds_limit(version: ModelVersion, totals: tuple[Any, ...]) -> bool:
    """Return whether the last element does not fit into the batch."""
    _, n_bytes, weight, _ = totals
    policy = version.policy
    return n_bytes > policy.max_batch_bytes or (
        policy.max_batch_weight is not None and weight > policy.max_batch_weight
    )


def _measure(version: ModelVersion, element: Any) -> tuple[int, int, float, int]:
    """Return the terms of an element in the totals of a batch: 1, its bytes, its weight and its length."""
    policy = version.policy
    weight = policy.element_size_fn(element) if policy.element_size_fn is not None else 1
    return 1, size_in_bytes(element), weight, policy.length(element)
