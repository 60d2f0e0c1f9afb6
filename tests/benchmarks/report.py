"""Format measurements as tables and as JSON."""

import os
import platform
from importlib.metadata import version
from operator import ge, le

import numpy as np
from rich.table import Table

from benchmarks.harness import Measurement

PACKAGES = ("apache-beam", "numpy", "scikit-learn", "torch", "transformers", "xgboost")


def make_tables(measured: list[Measurement]) -> list[Table]:
    """Return a table of the figures with their goals, and a table of the seconds."""
    ratios = Table("workload", "figure", title="\nMedian, smallest and largest of the rounds")
    seconds = Table("workload", title="\nSeconds, median of the rounds")
    for heading in ("median", "smallest", "largest", "goal", ""):
        ratios.add_column(heading, justify="right")
    for heading in ("elements", "contenders"):
        seconds.add_column(heading, justify="right" if heading == "elements" else "left")
    for one in measured:
        case = one.case
        label = f"{case.workload} {case.variant}"
        for name, figure in one.figures().items():
            goal = case.goals.get(name)
            values = (figure.median, figure.smallest, figure.largest)
            ratios.add_row(
                label,
                name,
                *(f"{value:,.3g}" if value < 1000 else f"{value:,.0f}" for value in values),
                f"{goal[0]} {goal[1]:,}" if goal else "",
                "" if not goal else "✓" if meets_goal(figure.median, goal) else "✗",
            )
        ratios.add_section()
        medians = (f"{name} {np.median(rounds):.3f}" for name, rounds in one.seconds.items())
        seconds.add_row(label, f"{case.n:,}", "  ".join(medians))
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
        "packages": {name: version(name) for name in PACKAGES},
    }


def as_json(one: Measurement) -> dict:
    """Return the seconds of all rounds and the figures of a case."""
    case = one.case
    return {
        "workload": case.workload,
        "variant": case.variant,
        "elements": case.n,
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
    }
