"""Run a model call in a separate thread, so that it can be abandoned after a timeout."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, NamedTuple

from apache_beam.runners.worker.statesampler import get_current_tracker, set_current_tracker

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
    """The model that a call uses, and whether the call timed out."""

    version: ModelVersion
    model: Model | None = None
    timed_out: bool = False


class CallThread(threading.Thread):
    """A thread that makes one call, which can be abandoned."""

    def __init__(self, call: Callable[[], CallOutcome]) -> None:
        super().__init__(daemon=True, name="runinference-call")
        self._call, self._tracker = call, get_current_tracker()
        self.outcome: Future[CallOutcome] = Future()

    def run(self) -> None:
        set_current_tracker(self._tracker)  # so that metrics of the handler count for the step
        try:
            self.outcome.set_result(self._call())
        except BaseException as error:
            self.outcome.set_exception(error)
