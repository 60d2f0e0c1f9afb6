"""Measure how long contenders take for the same work, in alternating rounds, and check every outcome."""

import functools
import gc
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.worker.statesampler import StateSampler

#: Wall-clock time, or the CPU time of this process, which varies less on busy machines.
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}

#: The progress of a case while it measures figures that are measured once.
ONCE = "metrics that are measured once"

#: One of this many results of a bundle is compared with the expected result. Checksums cover the others.
SAMPLED = 53

# Jobs wait for Beam's state sampler, which sleeps for 200 ms by default.
StateSampler.__init__.__defaults__ = (1,)


@dataclass
class Outcome:
    """The number of results of one run, two checksums, and a sample of the results.

    Keeping all results would measure Python's garbage collector, which visits each of them repeatedly.

    Attributes:
        n: The number of results.
        numbers: The sum of the numbers that identify the examples.
        products: The sum of number times value, where the value is a number from the inference. It changes if
            results are swapped.
        sample: Some of the results, as pairs of an example and its inference.
        metrics: Further figures of the run, by name.
    """

    n: int = 0
    numbers: float = 0.0
    products: float = 0.0
    sample: list[tuple[Any, Any]] = field(default_factory=list)
    metrics: Mapping[str, float] = field(default_factory=dict)

    def add(self, number: float, value: float) -> None:
        """Add one result."""
        self.n += 1
        self.numbers += number
        self.products += number * value

    def add_batch(self, numbers: Any, values: Any) -> None:
        """Add a batch of results, given as arrays or tensors of one number and one value per result."""
        numbers = np.asarray(numbers, np.float64)
        self.n += len(numbers)
        self.numbers += float(numbers.sum())
        self.products += float(numbers @ np.asarray(values, np.float64))

    def add_outcome(self, other: "Outcome") -> None:
        """Add the results of another part of the same run."""
        self.n += other.n
        self.numbers += other.numbers
        self.products += other.products
        self.sample += other.sample

    def check(self, numbers: Any, values: Any = 0.0, tolerance: float = 1e-9) -> None:
        """Raise `AssertionError` unless the results are those of these numbers and values, in any order.

        Args:
            numbers: One number per example.
            values: One value per inference. The floor has no inferences, so its values are 0.
            tolerance: Relative tolerance of the values.
        """
        assert self.n == len(numbers), f"{self.n} of {len(numbers)} results came out"
        numbers = np.asarray(numbers, np.float64)
        for name, terms, total, relative in (
            ("numbers", numbers, self.numbers, 1e-10),
            ("products", numbers * np.asarray(values, np.float64), self.products, tolerance),
        ):
            allowed = relative * max(1.0, float(np.abs(terms).sum()))
            assert abs(total - terms.sum()) <= allowed, (
                f"The sum of the {name} is {total}, but {terms.sum()} is correct."
            )


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
        max_rounds: The number of rounds of a slow case, if more are requested.
        compared: Names of metrics, lower is better, of which Beam's is divided by ours.
        elements: The number of elements of slow contenders that process only a share of `n`. Figures compare the
            time per element.
        not_measured: The reasons why contenders are missing, by name.
        warm_up: Whether to run a warm-up round. Not needed if an earlier case did.
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
    max_rounds: int | None = None
    compared: Sequence[str] = ()
    elements: Mapping[str, int] = field(default_factory=dict)
    not_measured: Mapping[str, str] = field(default_factory=dict)
    warm_up: bool = True


@dataclass(frozen=True)
class Figure:
    """One number per round, with the median, smallest and largest value."""

    rounds: list[float]

    median = property(lambda self: float(np.median(self.rounds)))
    smallest = property(lambda self: float(min(self.rounds)))
    largest = property(lambda self: float(max(self.rounds)))


@dataclass
class Measurement:
    """A case with the seconds and metrics of each contender and round, and the seconds of everything."""

    case: Case
    seconds: dict[str, list[float]]
    metrics: dict[str, list[float]] = field(default_factory=dict)
    took: float = 0

    def figures(self) -> dict[str, Figure]:
        """Return ratios of time and metrics. The ideal is floor + limit, the minimum for any transform."""
        measured = {name: Figure(rounds) for name, rounds in self.metrics.items()}
        if not {"limit", "ours"} <= self.seconds.keys():
            return measured
        n, elements = self.case.n, self.case.elements
        seconds = {
            name: np.array(rounds) * n / elements.get(name, n)
            for name, rounds in self.seconds.items()
        }
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
        for metric in self.case.compared if "Beam" in seconds else ():
            ours, beams = (np.array(self.metrics[f"{metric}, {who}"]) for who in ("ours", "Beam"))
            ratios[f"{metric}, Beam ÷ ours"] = beams / ours
        return {**{name: Figure(ratio.tolist()) for name, ratio in ratios.items()}, **measured}


def measure(
    case: Case,
    rounds: int,
    clock: Callable[[], float],
    show: Callable[[str, str], None] = lambda contender, progress: None,
    seconds: float = 0,
) -> Measurement:
    """Run all contenders of a case in alternating order. The warm-up round, number 0, is not counted.

    Args:
        case: The case.
        rounds: The number of rounds after the warm-up.
        clock: Returns the time in seconds.
        show: Called with the contender, or `ONCE`, and the progress before each run.
        seconds: Cases that take less time than this run more rounds, at most three times as many.
    """
    rounds = min(rounds, case.max_rounds or rounds)
    max_rounds = min(3 * rounds, case.max_rounds or 3 * rounds)
    contenders = list(case.runs)
    measured = Measurement(case, {name: [] for name in contenders})
    start = time.perf_counter()
    for number in range(0 if case.warm_up else 1, max_rounds + 1):
        if number > rounds and (time.perf_counter() - start) * (number + 1) / number > seconds:
            break
        # Once per round, because it takes as long as a short run, and the order of contenders alternates.
        gc.collect()
        # Rotate the order, so that no contender always follows the same one.
        first = number % len(contenders)
        for name in contenders[first:] + contenders[:first]:
            show(name, f"{f'round {number}' if number else 'warm-up'}, {name}")
            before = clock()
            outcome = case.runs[name]()
            taken = clock() - before
            case.check(name, outcome)
            if number > 0:
                measured.seconds[name].append(taken)
                for metric, value in case.metrics(name, outcome).items():
                    measured.metrics.setdefault(f"{metric}, {name}", []).append(float(value))
    show(ONCE, ONCE)
    measured.metrics.update({name: [float(value)] for name, value in case.measure_once().items()})
    measured.took = time.perf_counter() - start
    return measured


class Sink(beam.DoFn):
    """Count results, add up their checksums, and keep a sample, in this process, which the runner shares.

    Args:
        number: Returns the number that identifies an example.
        value: Returns a number from an inference.
    """

    _total = Outcome()
    _lock = threading.Lock()

    def __init__(self, number: Callable[[Any], float], value: Callable[[Any], float] = float):
        self._number = number
        self._value = value

    def start_bundle(self):
        self._bundle = Outcome()

    def process(self, result):
        self._add(result.example, result.inference)

    def _add(self, example, inference):
        bundle = self._bundle
        if bundle.n % SAMPLED == 0:
            bundle.sample.append((example, inference))
        bundle.add(self._number(example), self._value(inference))

    def finish_bundle(self):
        with self._lock:
            self._total.add_outcome(self._bundle)

    @classmethod
    def take_total(cls) -> Outcome:
        """Return what all sinks of the process counted, and start again."""
        with cls._lock:
            total, Sink._total = cls._total, Outcome()
        return total


class KeyedSink(Sink):
    """Count keyed results. The example is a pair of the key and the example."""

    def process(self, keyed):
        key, result = keyed
        self._add((key, result.example), result.inference)


class ExampleSink(Sink):
    """Count examples, for the floor. It works as much as a sink of results."""

    def __init__(self, number: Callable[[Any], float]):
        super().__init__(number)

    def process(self, example):
        self._add(example, 0)


def check_share(
    check: Callable[[int, str, Outcome], None], n: int, elements: Mapping[str, int]
) -> Callable[[str, Outcome], None]:
    """Return the check of a case in which some contenders process only a share of the elements.

    Args:
        check: A function of the number of elements, the contender, and the outcome.
        n: The number of elements of the other contenders.
        elements: The numbers of elements of these contenders.
    """
    return lambda contender, outcome: check(elements.get(contender, n), contender, outcome)


def identity(element: Any) -> Any:
    """Return the element. The floor applies this function instead of `RunInference`."""
    return element


def run_pipeline(
    make_elements: Callable[[], Iterable[Any]], *steps: Any, options: Sequence[str] = ()
) -> Outcome:
    """Apply steps to elements on Beam's embedded runner. The last step must be a sink.

    `make_elements` runs inside the pipeline, so the source adds almost no cost.
    """
    Sink.take_total()
    with beam.Pipeline("FnApiRunner", PipelineOptions([*options])) as pipeline:
        elements = pipeline | beam.Impulse() | beam.FlatMap(lambda _: make_elements())
        for number, step in enumerate(steps):
            if isinstance(step, beam.DoFn):
                step = beam.ParDo(step)
            elements = elements | f"Step {number}" >> step
    return Sink.take_total()


def run_with_threads(
    make_elements: Callable[[], Sequence[Any]], n_threads: int, *steps: Any
) -> Outcome:
    """Apply steps to elements that are distributed among worker threads. Only their positions are encoded."""
    return run_pipeline(
        functools.partial(range, len(make_elements())),
        beam.Reshuffle(),
        beam.Map(functools.partial(_get_element, make_elements)),
        *steps,
        options=[f"--direct_num_workers={n_threads}", "--direct_running_mode=multi_threading"],
    )


def _get_element(make_elements: Callable[[], Sequence[Any]], position: int) -> Any:
    return make_elements()[position]


def run_program(program: str) -> list[int]:
    """Run Python code in a new process. Return the numbers that it prints, and its peak memory in bytes."""
    paths = filter(None, [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")])
    done = subprocess.run(
        [sys.executable, "-c", program + _PRINT_PEAK],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        encoding="utf-8",
        check=True,
    )
    *numbers, kilobytes = map(int, done.stdout.split())
    return [*numbers, 1_024 * kilobytes]


_PRINT_PEAK = """
[line] = [line for line in open("/proc/self/status") if line.startswith("VmHWM")]
print(line.split()[1])
"""


def batches(rows: Sequence[Any], size: int) -> list[Sequence[Any]]:
    """Split rows into batches of `size`. The last batch may be smaller."""
    return [rows[start : start + size] for start in range(0, len(rows), size)]
