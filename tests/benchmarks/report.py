"""What was measured, as tables to read and as JSON to plot."""

import os
import platform
from importlib.metadata import version
from operator import ge, le

import numpy as np
from rich.table import Table

from benchmarks.harness import Measured

PACKAGES = ("apache-beam", "numpy", "scikit-learn", "torch", "transformers", "xgboost")


def tables(measured: list[Measured]) -> list[Table]:
    """The figures beside their goals, and the seconds they come from."""
    ratios = Table("workload", "figure", title="\nMedian, smallest and largest of the rounds")
    seconds = Table("workload", title="\nSeconds, median of the rounds")
    for heading in ("median", "smallest", "largest", "goal", ""):
        ratios.add_column(heading, justify="right")
    for heading in ("elements", "contestants"):
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
                "" if not goal else "✓" if reached(figure.median, goal) else "✗",
            )
        ratios.add_section()
        medians = (f"{name} {np.median(rounds):.3f}" for name, rounds in one.seconds.items())
        seconds.add_row(label, f"{case.n:,}", "  ".join(medians))
    return [ratios, seconds]


def reached(value: float, goal: tuple[str, float]) -> bool:
    """Whether a figure is what was wanted, to the two digits that are shown."""
    compare = {"≥": ge, "≤": le}[goal[0]]
    return compare(float(f"{value:.3g}"), goal[1])


def machine() -> dict:
    """What it was measured on."""
    return {
        "python": platform.python_version(),
        "system": platform.system(),
        "machine": platform.machine(),
        "processors": os.cpu_count(),
        "packages": {name: version(name) for name in PACKAGES},
    }


def as_json(one: Measured) -> dict:
    """All rounds of all contestants of a case, and the figures that they give."""
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
