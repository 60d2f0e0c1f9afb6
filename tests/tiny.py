"""Small real handlers and models that the tests share."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
from sklearn.linear_model import LinearRegression

from runinference import ModelHandler, PredictionResult

#: A runner that needs no network.
RUNNER = "FnApiRunner"


def run(elements: Any, transform: beam.PTransform, **options: Any) -> list[Any]:
    """What a transform makes of elements, in a pipeline on the embedded runner."""
    caught: list[Any] = []
    with beam.Pipeline(runner=RUNNER, **options) as pipeline:
        results = pipeline | beam.Create(elements, reshuffle=False) | transform
        results | "catch" >> beam.ParDo(Catch(caught))
    return Catch.take(caught)


class Catch(beam.DoFn):
    """Keeps what passes, with its window and timestamp, for the test to look at."""

    kept: dict[int, list[Any]] = {}

    def __init__(self, into: list[Any]) -> None:
        self.name = id(into)
        self.kept[self.name] = into

    def process(
        self,
        element: Any,
        timestamp: Any = beam.DoFn.TimestampParam,
        window: Any = beam.DoFn.WindowParam,
    ) -> None:
        self.kept[self.name].append((element, timestamp, window))

    @classmethod
    def take(cls, into: list[Any]) -> list[Any]:
        cls.kept.pop(id(into), None)
        return [element for element, _, _ in into]


class Doubler(ModelHandler[float, PredictionResult, Any]):
    """Doubles numbers; remembers the batches of all its copies in this process."""

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


class Saying(ModelHandler[Any, Any, Any]):
    """Answers a batch with whatever a function makes of it."""

    def __init__(self, say: Callable[[list[Any]], Any], **options: Any) -> None:
        super().__init__(**options)
        self.say = say

    def load_model(self) -> Any:
        return self.say

    def run_inference(self, batch: Any, model: Any, inference_args: Any = None) -> Any:
        return model(batch)


def linear_regression(path: Path, slope: float = 2.0) -> str:
    """The path of a pickled estimator that multiplies one feature by ``slope``."""
    model = LinearRegression().fit(np.arange(4.0).reshape(-1, 1), slope * np.arange(4.0))
    path.write_bytes(pickle.dumps(model))
    return str(path)
