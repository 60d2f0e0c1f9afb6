"""Models that behave badly, under many threads: each element gets its own result or its own dead letter.

`make fuzz` makes many more calls (`HYPOTHESIS_PROFILE=thorough`), and also ends processes of models.
"""

from __future__ import annotations

import os
import random
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from apache_beam.pvalue import TaggedOutput
from apache_beam.transforms.window import GlobalWindow, WindowedValue

from runinference import ModelHandler, RunInference
from serving import workers

THOROUGH = os.environ.get("HYPOTHESIS_PROFILE") == "thorough"
N_BUNDLES = 300 if THOROUGH else 12
N_THREADS = 4

SHARED_ERROR = ValueError("one object for all batches")


class UnpicklableError(Exception):
    def __init__(self, code, text) -> None:
        super().__init__(text, threading.Lock())
        self.code = code


class UnprintableError(Exception):
    def __str__(self) -> str:
        raise AttributeError("row")

    __repr__ = __str__


GOOD, SHARED, UNPICKLABLE, UNPRINTABLE, DEADLY = range(5)
ERRORS = {
    SHARED: "ValueError",
    UNPICKLABLE: "UnpicklableError",
    UNPRINTABLE: "UnprintableError",
    DEADLY: "ChildDiedError",
}


class Hostile(ModelHandler):
    """Doubles the first number of each array in place, then fails for the second, at random, or slowly."""

    def __init__(self, joins: bool, **options) -> None:
        super().__init__(min_batch_size=4, max_batch_size=16, **options)
        self.joins = joins

    def load_model(self):
        return random.Random(0)

    def may_join_threads(self):
        return self.joins

    def run_inference(self, batch, model, inference_args=None):
        time.sleep(model.choice([0, 0, 1e-4]))
        for x in batch:
            x[0] *= 2
        kinds = {int(x[1]) for x in batch}
        if DEADLY in kinds:
            os._exit(9)
        if SHARED in kinds:
            raise SHARED_ERROR
        if UNPICKLABLE in kinds:
            raise UnpicklableError(7, "unpicklable")
        if UNPRINTABLE in kinds:
            raise UnprintableError
        if len(batch) > 1 and model.random() < 0.3:
            raise MemoryError if model.random() < 0.5 else RuntimeError("at random")
        return [float(x[0]) for x in batch]


class Worker(workers.Worker):
    def outcomes(self, elements):
        """Return how often each outcome occurs: a result, or an element with the name of its error."""
        self.do_fn.start_bundle()
        outputs = []
        for element in elements:
            origin = WindowedValue(np.array(element, float), 0, (GlobalWindow(),))
            outputs += self.do_fn.process(origin.value, origin) or ()
        outputs += self.do_fn.finish_bundle()
        return Counter(map(self._describe, outputs))

    @staticmethod
    def _describe(output):
        if not isinstance(output, TaggedOutput):
            return output.value
        element, (kind, _, _) = output.value.value
        return tuple(map(int, element)), kind.__name__


def expected(elements):
    return Counter(
        float(2 * x) if kind == GOOD else ((x, kind), ERRORS[kind]) for x, kind in elements
    )


CASES = {
    "own": (Hostile(False), {}),
    "dynamic batching": (Hostile(True), {}),
    "timeout": (Hostile(False), {"timeout": 60}),
    "shared": (Hostile(False, large_model=True), {}),
    "subprocess": (Hostile(False), {"use_subprocess": True}),
}


@pytest.mark.parametrize("case", [name for name in CASES if THOROUGH or name != "subprocess"])
def test_each_element_gets_its_own_result_or_error(case):
    handler, handling = CASES[case]
    step = RunInference(handler).with_exception_handling(**handling)._config()
    kinds = [SHARED, UNPICKLABLE, UNPRINTABLE]

    def work(number):
        dice, worker = random.Random(number), Worker(step)
        for _ in range(N_BUNDLES):
            bad = [*kinds, DEADLY] if case == "subprocess" and dice.random() < 0.02 else kinds
            elements = [
                (dice.randrange(1000), dice.choice(bad) if dice.random() < 0.1 else GOOD)
                for _ in range(dice.randrange(1, 20))
            ]
            assert worker.outcomes(elements) == expected(elements)
        worker.do_fn.teardown()

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(N_THREADS) as threads:
            list(threads.map(work, range(N_THREADS)))
    finally:
        sys.setswitchinterval(interval)
    assert vars(SHARED_ERROR) == {}
