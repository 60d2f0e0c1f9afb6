"""Helpers that many tests share: running a pipeline, collecting its elements, and small handlers and models."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np

from runinference import ModelHandler, PredictionResult
from runinference.batching.measured_switch import MeasuredSwitch
from runinference.serving import session

#: Beam's embedded runner, which needs no network.
RUNNER = "FnApiRunner"


def run(elements: Any, transform: beam.PTransform, **options: Any) -> list[Any]:
    """Apply a transform to elements in a pipeline and return its output elements."""
    collected: list[Any] = []
    with beam.Pipeline(runner=RUNNER, **options) as pipeline:
        results = pipeline | beam.Create(elements, reshuffle=False) | transform
        results | "collect" >> beam.ParDo(CollectElements(collected))
    return CollectElements.take(collected)


def no_updates() -> beam.PCollection:
    """Return an empty PCollection, for tests that call the DoFn themselves with updates."""
    return beam.Pipeline(runner=RUNNER) | beam.Create([])


class CollectElements(beam.DoFn):
    """Append each element, with its timestamp and window, to a list of the test."""

    lists: dict[int, list[Any]] = {}

    def __init__(self, into: list[Any]) -> None:
        self.name = id(into)
        self.lists[self.name] = into

    def process(
        self,
        element: Any,
        timestamp: Any = beam.DoFn.TimestampParam,
        window: Any = beam.DoFn.WindowParam,
    ) -> None:
        self.lists[self.name].append((element, timestamp, window))

    @classmethod
    def take(cls, into: list[Any]) -> list[Any]:
        """Return the collected elements and stop collecting."""
        cls.lists.pop(id(into), None)
        return [element for element, _, _ in into]


class Doubler(ModelHandler[float, PredictionResult, Any]):
    """Double numbers and record the batches and loads of all copies of the handler in this process."""

    batches: dict[str, list[list[Any]]] = {}
    loads: dict[str, int] = {}
    _lock = threading.Lock()

    def __init__(self, name: str = "doubler", **options: Any) -> None:
        super().__init__(**options)
        self.name = name
        self.batches[name] = []
        self.loads[name] = 0

    def load_model(self) -> Callable[[float], float]:
        with self._lock:
            self.loads[self.name] += 1
        return lambda number: 2 * number

    def run_inference(self, batch: Any, model: Any, inference_args: Any = None) -> Any:
        with self._lock:
            self.batches[self.name].append(list(batch))
        return [PredictionResult(number, model(number), self.name) for number in batch]

    @property
    def sizes(self) -> list[int]:
        return [len(batch) for batch in self.batches[self.name]]


class FunctionHandler(ModelHandler[Any, Any, Any]):
    """Use a function of the batch as the model."""

    def __init__(self, function: Callable[[list[Any]], Any], **options: Any) -> None:
        super().__init__(**options)
        self.function = function

    def load_model(self) -> Any:
        return self.function

    def run_inference(self, batch: Any, model: Any, inference_args: Any = None) -> Any:
        return model(batch)


def linear_regression(path: Path, slope: float = 2.0) -> str:
    """Pickle a linear regression that multiplies its one feature by `slope`, and return the path."""
    from sklearn.linear_model import LinearRegression  # subprocesses import this module without it

    model = LinearRegression().fit(np.arange(4.0).reshape(-1, 1), slope * np.arange(4.0))
    path.write_bytes(pickle.dumps(model))
    return str(path)


@contextmanager
def overlapping(overlaps: bool = True) -> Iterator[None]:
    """Let the calls of batches of a fixed size overlap, or never overlap, without measuring."""

    class Decided(MeasuredSwitch):
        def record(self, n_elements: int, seconds: float) -> None:
            """Keep the decision."""

        def __init__(self, **_: float) -> None:
            super().__init__()
            self.is_on = overlaps

    original, session.MeasuredSwitch = session.MeasuredSwitch, Decided
    try:
        yield
    finally:
        session.MeasuredSwitch = original
