"""Reset what the handlers of these tests record."""

from __future__ import annotations

import gc
import itertools

import pytest

from serving.workers import RecordingHandler, Weights

_NUMBERS = itertools.count()


@pytest.fixture(autouse=True)
def _reset_records():
    gc.collect()
    Weights.alive.clear()
    RecordingHandler.loads.clear()
    RecordingHandler.max_alive = 0
    RecordingHandler.budget = {"wait_timeout_seconds": 60 + next(_NUMBERS)}
