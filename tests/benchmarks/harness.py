"""How a figure is come by: contestants do the same work in turns, and every turn is checked."""

import gc
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import apache_beam as beam
import numpy as np
from apache_beam.runners.worker.statesampler import StateSampler

#: The time that passes, or the time that this process computes: on a busy machine, the steadier one.
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}

# A job waits for its state sampler, which sleeps 200 ms at a time unless told otherwise.
StateSampler.__init__.__defaults__ = (1,)


@dataclass(frozen=True)
class Outcome:
    """What came out of one run, in any order: the examples, and (but for the floor) the inferences."""

    examples: Sequence[Any]
    inferences: Sequence[Any]
    facts: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Case:
    """One row of the table.

    Attributes:
        workload: Its name, such as W1.
        variant: What distinguishes it from other cases of the workload.
        n: How many elements a run has.
        runs: For each contestant, a function that does all of the work once. ``limit`` is the bare loop,
            ``floor`` the pipeline with an identity step; beside ``ours`` there is ``Beam``, maybe in several ways.
        check: Raises if an outcome (with the name of its contestant) is not complete and right.
        goals: What the project wants to reach, by the name of the figure: ``("≥", 0.8)`` or ``("≤", 1.1)``.
        facts: Further figures of an outcome, by name, such as bytes a result.
        once: Further figures that are measured once, such as the memory of a process for each contestant.
    """

    workload: str
    variant: str
    n: int
    runs: Mapping[str, Callable[[], Outcome]]
    check: Callable[[str, Outcome], None]
    goals: Mapping[str, tuple[str, float]]
    facts: Callable[[str, Outcome], Mapping[str, float]] = lambda contestant, outcome: outcome.facts
    once: Callable[[], Mapping[str, float]] = dict


@dataclass(frozen=True)
class Figure:
    """One number a round: the median, with the smallest and the largest."""

    rounds: list[float]

    median = property(lambda self: float(np.median(self.rounds)))
    smallest = property(lambda self: float(min(self.rounds)))
    largest = property(lambda self: float(max(self.rounds)))


@dataclass
class Measured:
    """A case with the seconds and the facts of each contestant, round by round."""

    case: Case
    seconds: dict[str, list[float]]
    facts: dict[str, list[float]] = field(default_factory=dict)

    def figures(self) -> dict[str, Figure]:
        """Ratios and facts. The ideal is floor + limit, below which no transform can get."""
        seconds = {name: np.array(rounds) for name, rounds in self.seconds.items()}
        ideal = seconds["limit"] + seconds.get("floor", 0)
        ours = seconds["ours"]
        ratios = {
            f"{name} of the ideal": ideal / its
            for name, its in seconds.items()
            if name not in ("limit", "floor")
        }
        for name, its in seconds.items():
            if name not in ("limit", "floor", "ours"):
                ratios[f"ours ÷ {name}"] = its / ours
        figures = {name: Figure(ratio.tolist()) for name, ratio in ratios.items()}
        return {**figures, **{name: Figure(rounds) for name, rounds in self.facts.items()}}


def measure(case: Case, rounds: int, clock: Callable[[], float]) -> Measured:
    """Runs all contestants of a case in turns; a first round, which warms up, is not counted."""
    contestants = list(case.runs)
    measured = Measured(case, {name: [] for name in contestants})
    for number in range(rounds + 1):
        # Each round begins with another contestant, so that none always follows the same one.
        first = number % len(contestants)
        for name in contestants[first:] + contestants[:first]:
            seconds, outcome = timed(case.runs[name], clock)
            case.check(name, outcome)
            if number > 0:
                measured.seconds[name].append(seconds)
                for fact, value in case.facts(name, outcome).items():
                    measured.facts.setdefault(f"{fact}, {name}", []).append(float(value))
    measured.facts.update({name: [float(value)] for name, value in case.once().items()})
    return measured


def timed(run: Callable[[], Outcome], clock: Callable[[], float]) -> tuple[float, Outcome]:
    """The seconds that a run takes, with the garbage of earlier ones out of the way; and its outcome."""
    gc.collect()
    start = clock()
    outcome = run()
    return clock() - start, outcome


class Keep(beam.DoFn):
    """The end of every pipeline: keeps what arrives in this process, where the embedded runner works."""

    examples: list[Any] = []
    inferences: list[Any] = []

    def process(self, element):
        self.examples.append(element)


class KeepResult(Keep):
    """Keeps example and inference of a result."""

    def process(self, result):
        self.examples.append(result.example)
        self.inferences.append(result.inference)


class KeepKeyed(Keep):
    """Keeps key and example of a result, and its inference."""

    def process(self, keyed):
        key, result = keyed
        self.examples.append((key, result.example))
        self.inferences.append(result.inference)


def run_pipeline(make_elements: Callable[[], Iterable[Any]], *steps: Any) -> Outcome:
    """Sends elements through steps, of which the last keeps them, on Beam's embedded runner.

    The elements are made where they are used: a source that costs next to nothing. A step is a transform, or a
    function of a PCollection.
    """
    Keep.examples.clear()
    Keep.inferences.clear()
    with beam.Pipeline("FnApiRunner") as pipeline:
        elements = pipeline | beam.Impulse() | beam.FlatMap(lambda _: make_elements())
        for number, step in enumerate(steps):
            elements = elements | f"Step {number}" >> step
    return Outcome(list(Keep.examples), list(Keep.inferences))


def batches(rows: Sequence[Any], size: int) -> list[Sequence[Any]]:
    """Rows in batches of ``size``, the last of which may be smaller."""
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def in_order(examples: Sequence[Any]) -> np.ndarray:
    """The order that sorts examples by their first numbers, to compare runs that shuffle."""
    return np.lexsort(np.stack([np.asarray(example)[:2] for example in examples]).T[::-1])


def same_rows(got: Sequence[Any], wanted: Sequence[Any]) -> None:
    """Raises unless the same rows are there, each as often, in whatever order."""
    assert len(got) == len(wanted), f"{len(got)} of {len(wanted)} elements came out"
    got, wanted = np.stack(got), np.stack(wanted)
    np.testing.assert_array_equal(got[in_order(got)], wanted[in_order(wanted)])
