"""Helpers for the cases: run a pipeline, record events in handlers, and describe the outcome."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from typing import Any

import apache_beam as beam
from apache_beam.metrics import MetricsFilter
from apache_beam.transforms import window

from common import RUNNER, CollectElements
from defects.packages import Package

_EVENTS: dict[str, list[Any]] = {}
_LOCK = threading.Lock()


def record_event(name: str, value: Any) -> None:
    """Record a value. All copies of a handler in this process share the record."""
    with _LOCK:
        _EVENTS.setdefault(name, []).append(value)


def take_events(name: str) -> list[Any]:
    """Return and clear the values recorded under a name."""
    return _EVENTS.pop(name, [])


class Doubling:
    """Double numbers and record batches and model loads."""

    size: int | None = None

    def load_model(self) -> Callable[[float], float]:
        record_event("loads", 1)
        return _double

    def run_inference(self, batch: Any, model: Any, inference_args: Any = None) -> Any:
        record_event("batches", list(batch))
        return [model(number) for number in batch]

    def batch_elements_kwargs(self) -> Any:
        if self.size is None:
            return super().batch_elements_kwargs()  # type: ignore[misc]
        return {"min_batch_size": self.size, "max_batch_size": self.size}


def _double(number: float) -> float:
    return 2 * number


class BatchesOfTen(Doubling):
    """Double numbers in batches of 10."""

    size = 10


class RejectsNegatives(Doubling):
    """Raise an error for batches that contain a negative number."""

    def run_inference(self, batch: Any, model: Any, inference_args: Any = None) -> Any:
        if any(number < 0 for number in batch):
            raise ValueError("negative")
        return super().run_inference(batch, model, inference_args)


class Run:
    """The outcome of a pipeline that consists of one `RunInference` transform.

    Attributes:
        good: The results.
        bad: The dead letters, if exception handling is on.
        times: The timestamps of the results, in seconds.
        error: The error that stopped the pipeline, or None.
    """

    def __init__(
        self,
        package: Package,
        elements: Any,
        handler: Any,
        *,
        timed: bool = False,
        exception_handling: dict[str, Any] | None = None,
        make: Callable[[], Any] | None = None,
        threads: int = 1,
        **options: Any,
    ) -> None:
        good: list[Any] = []
        bad: list[Any] = []
        take_events("batches"), take_events("loads")
        self.error: BaseException | None = None
        self._metrics = None
        try:
            pipeline = beam.Pipeline(runner=RUNNER)
            examples = pipeline | beam.Create(elements, reshuffle=False)
            if make:
                examples |= "make" >> beam.Map(make)
            if timed:
                examples |= beam.Map(lambda n: window.TimestampedValue(n, n)) | beam.WindowInto(
                    window.FixedWindows(10)
                )
            transform = package.base.RunInference(handler, **options)
            if exception_handling is not None:
                results, dead_letters = examples | transform.with_exception_handling(
                    **exception_handling
                )
                dead_letters.failed_inferences | "bad" >> beam.ParDo(CollectElements(bad))
            else:
                results = examples | transform
            self.coder = beam.coders.registry.get_coder(results.element_type)
            results | "good" >> beam.ParDo(CollectElements(good))
            result = pipeline.run()
            result.wait_until_finish()
            self._metrics = result.metrics()
        except Exception as error:
            self.error = error
        self.times = sorted(float(time) for _, time, _ in good)
        self.good, self.bad = CollectElements.take(good), CollectElements.take(bad)
        self.batches, self.loads = take_events("batches"), len(take_events("loads"))

    def counter(self, name: str) -> int:
        found = self._metrics.query(MetricsFilter().with_name(name))["counters"]
        return sum(metric.committed for metric in found)

    def describe(self, describe_success: Callable[[Run], str]) -> str:
        """Return a description of the run, or of the error that stopped it."""
        return describe_success(self) if self.error is None else describe_error(self.error)


def describe_error(error: BaseException) -> str:
    """Return the type of an error and the suggestion in its message, if there is one."""
    suggestion = re.search(r"Did you mean '\w+'\?", str(error))
    return f"`{type(error).__name__}`" + (f": {suggestion[0]}" if suggestion else "")


def describe_call(function: Callable[[], Any]) -> str:
    """Call a function and describe the error that it raises, or return "accepted"."""
    try:
        function()
    except Exception as error:
        return describe_error(error)
    return "accepted"


def count(number: int, word: str) -> str:
    """Return a number with its noun, such as "3 results" or "1 result"."""
    plural = f"{word}es" if word.endswith("ch") else f"{word}s"
    return f"{number:,} {word if number == 1 else plural}"
