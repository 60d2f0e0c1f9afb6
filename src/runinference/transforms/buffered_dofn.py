"""Inference on batches that span bundles, for streams with small bundles."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

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
from runinference.serving.routing import ModelVersion
from runinference.transforms.batch_sources import BundleBatches
from runinference.transforms.config import InferenceConfig
from runinference.transforms.engine import InferenceEngine
from runinference.transforms.model_groups import ModelGroups
from runinference.transforms.shard_key import ElementWithWindow
from runinference.transforms.side_inputs import SideInputEncoder, decode


class InferInWindows(beam.ParDo):  # type: ignore[misc]
    """A ParDo whose output has another windowing than its input."""

    def __init__(self, do_fn: beam.DoFn, windowing: Any) -> None:
        super().__init__(do_fn)
        self._windowing = windowing

    def get_windowing(self, inputs: Any) -> Any:
        return self._windowing


class Totals(NamedTuple):
    """What waits in the buffer.

    Attributes:
        n_elements: The number of elements.
        n_bytes: Their size in bytes.
        weight: Their weight, in the units of the policy.
        length: Their total length, in the units of the policy.
        earliest: The earliest timestamp of an element, in microseconds.
        window_end: The earliest end of the window of an element, in microseconds.
        deadline: When they are flushed, in microseconds of processing time.
        side_inputs: The hash of the side inputs that they came with; empty if there are none.
    """

    n_elements: int
    n_bytes: int
    weight: float
    length: int
    earliest: int
    window_end: int
    deadline: int
    side_inputs: bytes

    def add(self, other: Totals) -> Totals:
        return Totals(
            self.n_elements + other.n_elements,
            self.n_bytes + other.n_bytes,
            self.weight + other.weight,
            self.length + other.length,
            min(self.earliest, other.earliest),
            min(self.window_end, other.window_end),
            self.deadline,
            self.side_inputs,
        )


class BufferedInferDoFn(beam.DoFn):  # type: ignore[misc]
    """Buffer elements in state until a batch is full, its oldest has waited long enough, or a window ends.

    All elements in the buffer came with equal side inputs: a change ends the batch, as within a bundle.
    """

    BUFFER = userstate.BagStateSpec("buffer", FastPrimitivesCoder())
    SIDE_INPUTS = userstate.ReadModifyWriteStateSpec("side_inputs", FastPrimitivesCoder())
    TOTALS = userstate.ReadModifyWriteStateSpec("totals", FastPrimitivesCoder())
    MAX_WAIT = userstate.TimerSpec("max_wait", TimeDomain.REAL_TIME)
    WINDOW_END = userstate.TimerSpec("window_end", TimeDomain.WATERMARK)

    def __init__(self, config: InferenceConfig, max_wait_secs: float) -> None:
        self._config = config
        self._max_wait_secs = max_wait_secs

    def setup(self) -> None:
        self._engine = InferenceEngine(self._config)
        self._side_inputs = SideInputEncoder()
        self._used_side_inputs: bytes | None = None
        self._hashed: tuple[bytes | None, bytes] = (None, b"")

    def teardown(self) -> None:
        if engine := vars(self).get("_engine"):  # setup may have failed
            engine.close()

    def start_bundle(self) -> None:
        self._engine.start_bundle()
        self._groups = ModelGroups(self._engine)

    def finish_bundle(self) -> Iterator[Any]:
        yield from self._groups.flush()
        self._engine.finish_bundle()

    def process(
        self,
        keyed: Any,
        origin: Any = beam.DoFn.WindowedValueParam,
        window: Any = beam.DoFn.WindowParam,
        buffer: Any = beam.DoFn.StateParam(BUFFER),
        totals: Any = beam.DoFn.StateParam(TOTALS),
        buffered_side_inputs: Any = beam.DoFn.StateParam(SIDE_INPUTS),
        max_wait: Any = beam.DoFn.TimerParam(MAX_WAIT),
        window_end: Any = beam.DoFn.TimerParam(WINDOW_END),
        update: Any = None,
        arguments: Any = None,
    ) -> Iterator[Any]:
        _, element = keyed
        own_window = side_inputs = None
        if isinstance(element, ElementWithWindow):
            element, own_window, side_inputs = element
        origin = WindowedValue(element, origin.timestamp, (own_window or window,))
        flush = partial(self.flush_early, window, buffer, totals, buffered_side_inputs, max_wait)
        before = Totals(*read) if (read := totals.read()) else None
        try:
            if own_window is None:
                side_inputs = self._side_inputs.encode(update, arguments)
        except self._config.errors.caught as error:
            yield self._engine.make_dead_letter(origin, Failure(error))
            return
        if before and before.side_inputs != self._hash(side_inputs):
            yield from flush()
            before = None
        try:
            self._use_side_inputs(side_inputs)
            version = self._engine.router.route(element)
            added = self._measure(version, origin, side_inputs)
        except self._config.errors.caught as error:
            yield self._engine.make_dead_letter(origin, Failure(error))
            return
        after = before.add(added) if before else added
        if before and _exceeds_limit(version, after):
            yield from flush()
            before, after = None, added
        if not before and side_inputs is not None:
            buffered_side_inputs.write(side_inputs)
        if not before or after.window_end < before.window_end:
            window_end.set(Timestamp(micros=after.window_end))
        if not before or after.earliest < before.earliest:
            # The timer holds the watermark at the timestamp of the element that sets it.
            max_wait.set(Timestamp(micros=after.deadline))
        arrived = self._engine.clock.time_ns()
        buffer.add((element, origin.timestamp.micros, arrived, own_window))
        totals.write(tuple(after))
        if self._is_full(version, after):
            yield from flush()

    @userstate.on_timer(WINDOW_END)  # type: ignore[untyped-decorator]
    def flush_early(
        self,
        window: Any = beam.DoFn.WindowParam,
        buffer: Any = beam.DoFn.StateParam(BUFFER),
        totals: Any = beam.DoFn.StateParam(TOTALS),
        buffered_side_inputs: Any = beam.DoFn.StateParam(SIDE_INPUTS),
        max_wait: Any = beam.DoFn.TimerParam(MAX_WAIT),
    ) -> Iterator[Any]:
        """Run all buffered elements before they have waited as long as they may."""
        # Not in the callback of this timer: Beam's Prism would then fire it without end.
        max_wait.clear()
        yield from self.flush(window, buffer, totals, buffered_side_inputs)

    @userstate.on_timer(MAX_WAIT)  # type: ignore[untyped-decorator]
    def flush(
        self,
        window: Any = beam.DoFn.WindowParam,
        buffer: Any = beam.DoFn.StateParam(BUFFER),
        totals: Any = beam.DoFn.StateParam(TOTALS),
        buffered_side_inputs: Any = beam.DoFn.StateParam(SIDE_INPUTS),
    ) -> Iterator[Any]:
        """Run all buffered elements, in batches under the policy of their model."""
        engine, arrived = self._engine, 0
        elements = list(buffer.read())
        self._use_side_inputs(buffered_side_inputs.read())
        buffer.clear()
        totals.clear()
        buffered_side_inputs.clear()
        batches = BundleBatches(engine, lambda: arrived, self._groups)
        for element, micros, arrived, own_window in elements:  # noqa: B007 - read by the lambda
            origin = WindowedValue(element, Timestamp(micros=micros), (own_window or window,))
            try:
                outputs = batches.add(element, origin)
            except self._config.errors.caught as error:
                outputs = [engine.make_dead_letter(origin, Failure(error))]
            yield from outputs or ()
        yield from batches.flush()

    def _use_side_inputs(self, side_inputs: bytes | None) -> None:
        """Use the model and the arguments of encoded side inputs, and a model file that the watcher found."""
        engine = self._engine
        if side_inputs == self._used_side_inputs:
            if engine.watcher is not None:
                engine.refresh(None)
            return
        update, arguments = (None, None) if side_inputs is None else decode(side_inputs)
        engine.refresh(update)
        engine.arguments = arguments
        self._used_side_inputs = side_inputs

    def _measure(
        self, version: ModelVersion, origin: WindowedValue, side_inputs: bytes | None
    ) -> Totals:
        """Return what an element adds to the totals of a buffer, or the totals of a new one."""
        policy, element, [window] = version.policy, origin.value, origin.windows
        weight = policy.weight(element)
        deadline = Timestamp.now() + self._max_wait_secs
        return Totals(
            n_elements=1,
            n_bytes=size_in_bytes(element),
            weight=weight,
            length=policy.length(element),
            earliest=origin.timestamp.micros,
            window_end=window.max_timestamp().micros,
            deadline=deadline.micros,
            side_inputs=self._hash(side_inputs),
        )

    def _hash(self, side_inputs: bytes | None) -> bytes:
        if side_inputs is not self._hashed[0]:  # most elements come with the same object
            hashed = b"" if side_inputs is None else hashlib.sha256(side_inputs).digest()
            self._hashed = (side_inputs, hashed)
        return self._hashed[1]

    def _is_full(self, version: ModelVersion, totals: Totals) -> bool:
        policy, session = version.policy, self._engine.session
        # A model that would evict another one waits for as many elements as it may.
        has_room = session.models.has_room_for(version)
        max_size = session.size_for(version).current if has_room else policy.max_batch_size
        return (
            totals.n_elements >= max_size
            or totals.n_bytes >= policy.max_batch_bytes
            or (policy.max_batch_weight is not None and totals.weight >= policy.max_batch_weight)
            or (policy.max_padded_size is not None and totals.length >= policy.max_padded_size)
        )


def get_max_wait_secs(handler: Any) -> float | None:
    """Return the shortest ``max_batch_duration_secs`` of a handler and its inner handlers, or None."""
    handlers = [handler, *(mapping.mh for mapping in per_key_mappings(handler))]
    waits = [resolve_policy(each).max_batch_duration_secs for each in handlers]
    return min((secs for secs in waits if secs is not None), default=None)


def _exceeds_limit(version: ModelVersion, totals: Totals) -> bool:
    """Return whether the last element does not fit into the batch."""
    policy = version.policy
    return totals.n_bytes > policy.max_batch_bytes or (
        policy.max_batch_weight is not None and totals.weight > policy.max_batch_weight
    )
