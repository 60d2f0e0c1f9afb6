"""Run a model call in a separate thread, so that it can be abandoned after a timeout."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, NamedTuple

from apache_beam.runners.worker.statesampler import get_current_tracker, set_current_tracker

from runinference.errors import InferenceTimeoutError
from runinference.serving.placement import Model
from runinference.serving.routing import ModelVersion


class ModelCall(NamedTuple):
    """A successful model call, with its duration."""

    batch: Any
    n_results: int
    nanoseconds: int


CallOutcome = tuple[list[Any], list[ModelCall]]


@dataclass
class CallProgress:
    """What a call is doing, and whether it timed out and was abandoned.

    Attributes:
        version: The model version that it loads or uses.
        model: The model that it uses, once it is loaded.
        loading: A model that it loads, if that can be terminated.
        refreshing: Whether it loads a new model to replace another one.
        timed_out: Whether it was abandoned.
    """

    version: ModelVersion
    model: Model | None = None
    loading: Model | None = None
    refreshing: bool = False
    timed_out: bool = False

    def start_loading(self, model: Model) -> None:
        """Record a model that is loaded now, so that it can be terminated."""
        self.loading = model
        if self.timed_out:
            model.terminate()

    def check(self) -> None:
        """Raise an error, which nobody sees, in the thread of a call that was abandoned."""
        if self.timed_out:
            raise InferenceTimeoutError("The call was abandoned.")


class _StepOfCaller:
    """A tracker of metrics for Beam that stays at one step while the bundle's thread goes on to other steps."""

    def __init__(self, state: Any) -> None:
        self._state = state

    def current_state(self) -> Any:
        return self._state

    def update_metric(self, name: Any, value: Any) -> None:
        if (container := self._state.metrics_container) is not None:
            container.get_metric_cell(name).update(value)


class CallThread(threading.Thread):
    """A thread that makes one call, which can be abandoned. Metrics of the handler count for the caller's step."""

    def __init__(self, call: Callable[[], CallOutcome]) -> None:
        super().__init__(daemon=True, name="runinference-call")
        tracker = get_current_tracker()
        self._call, self._tracker = call, tracker and _StepOfCaller(tracker.current_state())
        self.outcome: Future[CallOutcome] = Future()

    def run(self) -> None:
        set_current_tracker(self._tracker)
        try:
            self.outcome.set_result(self._call())
        except BaseException as error:
            self.outcome.set_exception(error)
