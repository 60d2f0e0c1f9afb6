"""Values and exceptions are serialized for another process."""

from __future__ import annotations

import numpy as np
import pytest

from runinference.serving.ipc import dumps, dumps_outcome, loads


def test_serializes_arrays_without_compression():
    array = np.random.default_rng(0).random(1000)
    assert array.tobytes() in dumps([array])


def test_a_result_that_cannot_be_pickled_raises():
    with pytest.raises(Exception, match="pickle"):
        loads(dumps_outcome(lambda: (number for number in range(3))))
