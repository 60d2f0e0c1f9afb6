"""A handler with certain options, and the calls that measure it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any

from runinference.handlers.call import may_modify_examples, run_batch
from runinference.handlers.repeatable_batch import duplicate
from runinference.tuning.memory import PeakMemory
from runinference.tuning.result import Measurement

#: A pass takes at least this long, so that the resolution of the clock doesn't matter.
_MIN_PASS_SECS = 0.02

NumberedBatch = Sequence[tuple[int, Any]]


class BatchFailedError(Exception):
    """A call failed; see ``__cause__``.

    Attributes:
        batch: The numbered elements of the call.
    """

    def __init__(self, batch: NumberedBatch) -> None:
        super().__init__(batch)
        self.batch = batch


@dataclass
class Candidate:
    """One value of an option, with its measurements.

    Attributes:
        option: The option that is varied.
        value: Its value.
        options: All options that differ from those of the handler.
        handler: A handler with these options.
        model: Its loaded model.
        inference_args: Arguments of each call.
        batches: The batches of one pass over the sample.
        n_requests: The number of requests in a pass to a remote model. None if each batch is one call.
        n_in_flight: The number of requests that run at the same time.
        costs: The measured seconds per element, one for each pass.
        peak_memory: The peak memory of the first pass in bytes.
    """

    option: str
    value: Any
    options: dict[str, Any]
    handler: Any
    model: Any
    inference_args: dict[str, Any] | None
    batches: Sequence[NumberedBatch]
    n_requests: int | None = None
    n_in_flight: int = 1
    costs: list[float] = field(default_factory=list)
    peak_memory: int | None = None

    @property
    def label(self) -> str:
        """The option and its value."""
        return f"{self.option}={self.value!r}"

    @property
    def n_elements(self) -> int:
        """The number of elements in a pass."""
        return sum(map(len, self.batches))

    @property
    def cost(self) -> float:
        """The median seconds per element."""
        return median(self.costs)

    def with_value(
        self, option: str, value: Any, options: Mapping[str, Any], **changes: Any
    ) -> Candidate:
        """Return a candidate for another value, without measurements.

        Args:
            option: The option that is varied.
            value: Its value.
            options: Options to add.
            **changes: Other attributes.
        """
        return replace(
            self,
            option=option,
            value=value,
            options={**self.options, **options},
            costs=[],
            peak_memory=None,
            **changes,
        )

    def run_first(self, n_warm_up: int = 1) -> None:
        """Call the model on the first batches, and then measure a pass and its peak memory."""
        memory = PeakMemory()
        for batch in self.batches[:n_warm_up]:
            self.call(batch)
        self.run()
        self.peak_memory = memory.read()

    def run(self) -> None:
        """Measure a pass over the sample, or several if one is too short to be measured."""
        seconds, n_passes = 0.0, 0
        while seconds < _MIN_PASS_SECS:
            seconds += sum(map(self.call, self.batches))
            n_passes += 1
        self.costs.append(seconds / n_passes / self.n_elements)

    def call(self, batch: NumberedBatch) -> float:
        """Return the seconds of a call; raise `BatchFailedError` if it fails."""
        try:
            elements = [element for _, element in batch]
            if may_modify_examples(self.handler, elements):
                elements = [*map(duplicate, elements)]
            start = time.perf_counter()
            run_batch(self.handler, elements, self.model, self.inference_args)
            return time.perf_counter() - start
        except Exception as error:
            raise BatchFailedError(batch) from error

    def measurement(self, *, is_recommended: bool) -> Measurement:
        """Return the measurement without the model."""
        n_calls = self.n_requests or len(self.batches)
        seconds = self.cost * self.n_elements * self.n_in_flight
        return Measurement(
            option=self.option,
            value=self.value,
            options=self.options,
            batch_size=self.n_elements / n_calls,
            elements_per_second=1 / self.cost,
            milliseconds_per_call=1_000 * seconds / n_calls,
            peak_memory_bytes=self.peak_memory,
            n_passes=len(self.costs),
            is_recommended=is_recommended,
        )
