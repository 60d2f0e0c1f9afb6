"""Measure how long contenders take for the same work, in alternating rounds, and check every outcome."""

import gc
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import apache_beam as beam
import numpy as np
from apache_beam.runners.worker.statesampler import StateSampler

#: Wall-clock time, or the CPU time of this process, which varies less on busy machines.
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}

# Jobs wait for Beam's state sampler, which sleeps for 200 ms by default.
StateSampler.__init__.__defaults__ = (1,)


@dataclass(frozen=True)
class Outcome:
    """The examples and inferences of one run, in any order. The floor has no inferences."""

    examples: Sequence[Any]
    inferences: Sequence[Any]
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Case:
    """One row of the table.

    Attributes:
        workload: The name of the workload, such as W1.
        variant: The parameters that distinguish this case from others of the workload.
        n: The number of elements per run.
        runs: For each contender, a function that does the work once. `limit` is the bare loop, `floor` is the
            pipeline without a model, `ours` is this library, and names that start with `Beam` use Beam's.
        check: Raises an error if the outcome of a contender is incomplete or wrong.
        goals: The goals of the project by figure name, such as `("≥", 0.8)` or `("≤", 1.1)`.
        metrics: A function that returns further figures of an outcome, such as bytes per result.
        measure_once: A function that returns figures that are measured once, such as peak memory.
    """

    workload: str
    variant: str
    n: int
    runs: Mapping[str, Callable[[], Outcome]]
    check: Callable[[str, Outcome], None]
    goals: Mapping[str, tuple[str, float]]
    metrics: Callable[[str, Outcome], Mapping[str, float]] = lambda contender, outcome: (
        outcome.metrics
    )
    measure_once: Callable[[], Mapping[str, float]] = dict


@dataclass(frozen=True)
class Figure:
    """One number per round, with the median, smallest and largest value."""

    rounds: list[float]

    median = property(lambda self: float(np.median(self.rounds)))
    smallest = property(lambda self: float(min(self.rounds)))
    largest = property(lambda self: float(max(self.rounds)))


@dataclass
class Measurement:
    """A case with the seconds and metrics of each contender and round."""

    case: Case
    seconds: dict[str, list[float]]
    metrics: dict[str, list[float]] = field(default_factory=dict)

    def figures(self) -> dict[str, Figure]:
        """Return ratios of time and metrics. The ideal is floor + limit, the minimum for any transform."""
        seconds = {name: np.array(rounds) for name, rounds in self.seconds.items()}
        ideal = seconds["limit"] + seconds.get("floor", 0)
        ours = seconds["ours"]
        ratios = {
            f"{name} of the ideal": ideal / taken
            for name, taken in seconds.items()
            if name not in ("limit", "floor")
        }
        for name, taken in seconds.items():
            if name not in ("limit", "floor", "ours"):
                ratios[f"ours ÷ {name}"] = taken / ours
        figures = {name: Figure(ratio.tolist()) for name, ratio in ratios.items()}
        return {**figures, **{name: Figure(rounds) for name, rounds in self.metrics.items()}}


def measure(case: Case, rounds: int, clock: Callable[[], float]) -> Measurement:
    """Run all contenders of a case in alternating order. The first round is a warm-up and not counted."""
    contenders = list(case.runs)
    measured = Measurement(case, {name: [] for name in contenders})
    for number in range(rounds + 1):
        # Rotate the order, so that no contender always follows the same one.
        first = number % len(contenders)
        for name in contenders[first:] + contenders[:first]:
            seconds, outcome = time_run(case.runs[name], clock)
            case.check(name, outcome)
            if number > 0:
                measured.seconds[name].append(seconds)
                for metric, value in case.metrics(name, outcome).items():
                    measured.metrics.setdefault(f"{metric}, {name}", []).append(float(value))
    measured.metrics.update({name: [float(value)] for name, value in case.measure_once().items()})
    return measured


def time_run(run: Callable[[], Outcome], clock: Callable[[], float]) -> tuple[float, Outcome]:
    """Return the seconds that a run takes, and its outcome. Collects garbage first."""
    gc.collect()
    start = clock()
    outcome = run()
    return clock() - start, outcome


class CollectExamples(beam.DoFn):
    """Collect elements in this process, which the embedded runner shares."""

    examples: list[Any] = []
    inferences: list[Any] = []

    def process(self, element):
        self.examples.append(element)


class CollectResults(CollectExamples):
    """Collect the example and inference of each result."""

    def process(self, result):
        self.examples.append(result.example)
        self.inferences.append(result.inference)


class CollectKeyedResults(CollectExamples):
    """Collect the key, example and inference of each keyed result."""

    def process(self, keyed):
        key, result = keyed
        self.examples.append((key, result.example))
        self.inferences.append(result.inference)


def run_pipeline(make_elements: Callable[[], Iterable[Any]], *steps: Any) -> Outcome:
    """Apply steps to elements on Beam's embedded runner. The last step must collect the elements.

    `make_elements` runs inside the pipeline, so the source adds almost no cost.
    """
    CollectExamples.examples.clear()
    CollectExamples.inferences.clear()
    with beam.Pipeline("FnApiRunner") as pipeline:
        elements = pipeline | beam.Impulse() | beam.FlatMap(lambda _: make_elements())
        for number, step in enumerate(steps):
            elements = elements | f"Step {number}" >> step
    return Outcome(list(CollectExamples.examples), list(CollectExamples.inferences))


def batches(rows: Sequence[Any], size: int) -> list[Sequence[Any]]:
    """Split rows into batches of `size`. The last batch may be smaller."""
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def sort_order(examples: Sequence[Any]) -> np.ndarray:
    """Return indices that sort examples by their first two numbers."""
    return np.lexsort(np.stack([np.asarray(example)[:2] for example in examples]).T[::-1])


def assert_same_rows(got: Sequence[Any], expected: Sequence[Any]) -> None:
    """Raise `AssertionError` unless both sequences have the same rows, in any order."""
    assert len(got) == len(expected), f"{len(got)} of {len(expected)} elements came out"
    got, expected = np.stack(got), np.stack(expected)
    np.testing.assert_array_equal(got[sort_order(got)], expected[sort_order(expected)])
