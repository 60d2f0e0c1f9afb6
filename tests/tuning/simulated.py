"""A model that takes simulated time, so that measurements are the same on every machine."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

from runinference import ModelHandler, RemoteModelHandler


class Clock:
    """Returns the simulated time. The tests use it instead of the functions of ``time``."""

    def __init__(self) -> None:
        self.now = 0.0
        self._lock = threading.Lock()

    def advance(self, seconds: float) -> None:
        with self._lock:
            self.now += seconds

    def __call__(self) -> float:
        return self.now


class SimulatedModel(ModelHandler[Any, Any, Any]):
    """Returns the numbers of its examples.

    Args:
        clock: The clock, which each call advances.
        seconds: Returns the seconds of a call on a batch. It may raise an error.
        options: The options of every handler.
    """

    def __init__(self, clock: Clock, seconds: Callable[[Sequence[Any]], float], **options: Any):
        super().__init__(**options)
        self.clock = clock
        self.seconds = seconds
        self.batches: list[list[Any]] = []

    def load_model(self) -> Any:
        return "a model"

    def may_modify_examples(self) -> bool:
        return False

    def run_inference(self, batch: Sequence[Any], model: Any, inference_args: Any = None) -> Any:
        self.batches.append(list(batch))
        self.clock.advance(self.seconds(batch))
        return list(range(len(batch)))


def fixed_cost(batch: Sequence[Any]) -> float:
    """10 ms for each call, and 1 ms for each example."""
    return 0.01 + 0.001 * len(batch)


class SimulatedEndpoint(RemoteModelHandler[Any, Any, Any]):
    """Responds to one request at a time, with the numbers of its examples; see `SimulatedModel`."""

    def __init__(self, clock: Clock, seconds: Callable[[Sequence[Any]], float], **options: Any):
        super().__init__(**options)
        self.clock = clock
        self.seconds = seconds

    def create_client(self) -> Any:
        return "a client"

    def may_modify_examples(self) -> bool:
        return False

    def request(self, batch: Sequence[Any], model: Any, inference_args: Any = None) -> Any:
        self.clock.advance(self.seconds(batch))
        return list(range(len(batch)))
