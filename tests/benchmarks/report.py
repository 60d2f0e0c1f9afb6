"""Measure cases with progress, and format the measurements as tables and as JSON."""

import os
import platform
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from operator import ge, le
from statistics import median

from rich.console import Console
from rich.table import Table

from benchmarks.harness import Case, Measurement, measure

PACKAGES = ("apache-beam", "numpy", "scikit-learn", "torch", "transformers", "xgboost")


def measure_case(
    case: Case, rounds: int, clock: Callable[[], float], console: Console
) -> Measurement:
    """Measure a case in this process, and show progress."""
    label = f"{case.workload}, {case.variant}"
    with console.status(label) as status:
        show = lambda contender, progress: status.update(f"{label}: {progress}")  # noqa: E731
        measured = measure(case, rounds, clock, show)
    console.print(f"{label}: {measured.took:.0f} s")
    return measured


def make_tables(cases: list[dict], absent: dict[str, list[str]]) -> list[Table]:
    """Return a table of the figures with their goals, and a table of the seconds.

    Args:
        cases: The numbers of the cases, from `as_json`.
        absent: The missing packages of workloads that could not be measured.
    """
    ratios = Table("workload", "figure", title="\nMedian, smallest and largest of the rounds")
    seconds = Table("workload", title="\nSeconds, median of the rounds")
    for heading in ("median", "smallest", "largest", "goal", ""):
        ratios.add_column(heading, justify="right")
    for heading in ("elements", "contenders"):
        seconds.add_column(heading, justify="right" if heading == "elements" else "left")
    for case in cases:
        label = f"{case['workload']} {case['variant']}"
        for name, figure in case["figures"].items():
            goal = case["goals"].get(name)
            values = (figure[each] for each in ("median", "smallest", "largest"))
            ratios.add_row(
                label,
                name,
                *(f"{value:,.3g}" if value < 1000 else f"{value:,.0f}" for value in values),
                f"{goal[0]} {goal[1]:,}" if goal else "",
                "" if not goal else "✓" if meets_goal(figure["median"], goal) else "✗",
            )
        ratios.add_section()
        contenders = [
            f"{name} {median(rounds):.3f}"
            + (f" ({case['elements_of'][name]:,} elements)" if name in case["elements_of"] else "")
            for name, rounds in case["seconds"].items()
        ]
        contenders += [f"{name} not measured: {why}" for name, why in case["not_measured"].items()]
        seconds.add_row(label, f"{case['elements']:,}", "  ".join(contenders))
    for workload, packages in absent.items():
        seconds.add_row(workload, "absent", f"not installed: {', '.join(packages)}")
    return [ratios, seconds]


def meets_goal(value: float, goal: tuple[str, float]) -> bool:
    """Return whether a figure meets its goal, rounded to three digits as shown."""
    compare = {"≥": ge, "≤": le}[goal[0]]
    return compare(float(f"{value:.3g}"), goal[1])


def describe_machine() -> dict:
    """Return the machine and package versions."""
    return {
        "python": platform.python_version(),
        "system": platform.system(),
        "machine": platform.machine(),
        "processors": os.cpu_count(),
        "packages": {name: found for name in PACKAGES if (found := find_version(name))},
    }


def find_version(package: str) -> str | None:
    """Return the version of a package, or None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def as_json(one: Measurement) -> dict:
    """Return the seconds of all rounds and the figures of a case."""
    case = one.case
    return {
        "workload": case.workload,
        "variant": case.variant,
        "elements": case.n,
        "elements_of": dict(case.elements),
        "not_measured": dict(case.not_measured),
        "goals": {name: list(goal) for name, goal in case.goals.items()},
        "seconds": {name: [round(s, 5) for s in rounds] for name, rounds in one.seconds.items()},
        "figures": {
            name: {
                "median": round(figure.median, 4),
                "smallest": round(figure.smallest, 4),
                "largest": round(figure.largest, 4),
                "rounds": len(figure.rounds),
            }
            for name, figure in one.figures().items()
        },
        "took": round(one.took, 1),
    }
