"""What the rows have in common: a pipeline that is run and looked at, and handlers that take notes."""

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

_NOTES: dict[str, list[Any]] = {}
_LOCK = threading.Lock()


def note(name: str, value: Any) -> None:
    """Notes something; copies of a handler in this process all note it in one place."""
    with _LOCK:
        _NOTES.setdefault(name, []).append(value)


def notes(name: str) -> list[Any]:
    """What was noted under a name; it is forgotten now."""
    return _NOTES.pop(name, [])


class Doubling:
    """Doubles numbers, and notes its batches and loads."""

    size: int | None = None

    def load_model(self) -> Callable[[float], float]:
        note("loads", 1)
        return _double

    def run_inference(self, batch: Any, model: Any, inference_args: Any = None) -> Any:
        note("batches", list(batch))
        return [model(number) for number in batch]

    def batch_elements_kwargs(self) -> Any:
        if self.size is None:
            return super().batch_elements_kwargs()  # type: ignore[misc]
        return {"min_batch_size": self.size, "max_batch_size": self.size}


def _double(number: float) -> float:
    return 2 * number


class InTens(Doubling):
    """The same, ten at a time."""

    size = 10


class Picky(Doubling):
    """Cannot take negative numbers."""

    def run_inference(self, batch: Any, model: Any, inference_args: Any = None) -> Any:
        if any(number < 0 for number in batch):
            raise ValueError("negative")
        return super().run_inference(batch, model, inference_args)


class Run:
    """A pipeline of one step, run to its end, and what came of it.

    Attributes:
        good: The results.
        bad: The dead letters, if errors are set aside.
        times: The seconds of the results' timestamps.
        error: What stopped the pipeline, or None.
    """

    def __init__(
        self,
        package: Package,
        elements: Any,
        handler: Any,
        *,
        timed: bool = False,
        aside: dict[str, Any] | None = None,
        make: Callable[[], Any] | None = None,
        threads: int = 1,
        **options: Any,
    ) -> None:
        good: list[Any] = []
        bad: list[Any] = []
        notes("batches"), notes("loads")
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
            step = package.base.RunInference(handler, **options)
            if aside is not None:
                results, letters = examples | step.with_exception_handling(**aside)
                letters.failed_inferences | "bad" >> beam.ParDo(CollectElements(bad))
            else:
                results = examples | step
            self.coder = beam.coders.registry.get_coder(results.element_type)
            results | "good" >> beam.ParDo(CollectElements(good))
            running = pipeline.run()
            running.wait_until_finish()
            self._metrics = running.metrics()
        except Exception as error:
            self.error = error
        self.times = sorted(float(time) for _, time, _ in good)
        self.good, self.bad = CollectElements.take(good), CollectElements.take(bad)
        self.batches, self.loads = notes("batches"), len(notes("loads"))

    def counter(self, name: str) -> int:
        found = self._metrics.query(MetricsFilter().with_name(name))["counters"]
        return sum(metric.committed for metric in found)

    def said(self, tell: Callable[[Run], str]) -> str:
        """What is to be told of a run that ended well, or the error."""
        return tell(self) if self.error is None else said(self.error)


def said(error: BaseException) -> str:
    """An error as a short text: its kind, and the nearest right name if its message has one."""
    near = re.search(r"Did you mean '\w+'\?", str(error))
    return f"`{type(error).__name__}`" + (f": {near[0]}" if near else "")


def raised(function: Callable[[], Any]) -> str:
    """What a function raises, as a short text."""
    try:
        function()
    except Exception as error:
        return said(error)
    return "accepted"


def count(number: int, word: str) -> str:
    """``3 results``, ``1 result``."""
    plural = f"{word}es" if word.endswith("ch") else f"{word}s"
    return f"{number:,} {word if number == 1 else plural}"
