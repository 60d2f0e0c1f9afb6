"""Group the calls of a bundle by model, if not all models fit into memory together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from runinference.batching.element_size import batch_size_in_bytes
from runinference.batching.policy import DEFAULT_MAX_BATCH_BYTES, DEFAULT_MAX_BATCH_SIZE
from runinference.serving.routing import ModelVersion
from runinference.transforms.engine import InferenceEngine
from runinference.transforms.in_flight import InFlightBatches, Work

#: The most elements and bytes that are held, of all models together.
_MAX_ELEMENTS = DEFAULT_MAX_BATCH_SIZE
_MAX_BYTES = DEFAULT_MAX_BATCH_BYTES


@dataclass
class _Held:
    work: list[tuple[Any, Work]] = field(default_factory=list)
    n_elements: int = 0
    n_bytes: int = 0


class ModelGroups:
    """Calls of many models, in an order in which models that don't fit into memory together are loaded once.

    A batch of a model that is loaded, or that fits in addition to those, runs at once. Others are held until the
    bundle ends or too much is held, and then all batches of one model run in succession.

    Attributes:
        in_flight: Runs batches, and holds those whose results are not emitted yet.
    """

    def __init__(self, engine: InferenceEngine) -> None:
        self._engine = engine
        self._held: dict[ModelVersion, _Held] = {}
        self.in_flight = InFlightBatches(engine)

    def run(self, work: Work) -> Iterable[Any]:
        """Run or hold a batch, and return the outputs that are available."""
        if self._engine.session.models.has_room_for(work.version):
            return self.in_flight.run(work)
        held = self._held.setdefault(work.version, _Held())
        held.work.append((self._engine.arguments, work))
        held.n_elements += work.n_elements
        held.n_bytes += batch_size_in_bytes(work.batch)
        groups = self._held.values()
        if (
            sum(group.n_elements for group in groups) < _MAX_ELEMENTS
            and sum(group.n_bytes for group in groups) < _MAX_BYTES
        ):
            return ()
        return self._release(max(self._held, key=lambda each: self._held[each].n_elements))

    def flush(self) -> Iterator[Any]:
        """Run all calls that are held, those of loaded models first, and wait for those in flight."""
        has_room_for = self._engine.session.models.has_room_for
        for version in sorted(self._held, key=lambda each: not has_room_for(each)):
            yield from self._release(version)
        yield from self.in_flight.drain()

    def _release(self, version: ModelVersion) -> Iterator[Any]:
        engine = self._engine
        yield from self.in_flight.drain()  # with the arguments that they started with
        for arguments, work in self._held.pop(version).work:
            current, engine.arguments = engine.arguments, arguments
            try:
                outputs = [*self.in_flight.run(work), *self.in_flight.drain()]
            finally:
                engine.arguments = current
            yield from outputs
