"""What was measured, as tables to read and as JSON to plot."""

import os
import platform
from importlib.metadata import version

import numpy as np
from rich.table import Table

from benchmarks.harness import CONTESTANTS, Measured

PACKAGES = ("apache-beam", "numpy", "scikit-learn", "torch")


def tables(measured: list[Measured]) -> list[Table]:
    """The ratios beside their goals, and the seconds they come from."""
    ratios = Table("workload", "figure", title="\nRatios of the rounds")
    seconds = Table("workload", title="\nSeconds, median of the rounds")
    for heading in ("median", "smallest", "largest", "goal"):
        ratios.add_column(heading, justify="right")
    for heading in (*CONTESTANTS, "elements"):
        seconds.add_column(heading, justify="right")
    for one in measured:
        case = one.case
        label = f"{case.workload} {case.variant}"
        for name, figure in one.figures().items():
            goal = f"≥ {case.goals[name]}" if name in case.goals else ""
            values = (figure.median, figure.smallest, figure.largest)
            ratios.add_row(label, name, *(f"{value:.2f}" for value in values), goal)
        for contestant, facts in one.facts.items():
            for name, fact in facts.items():
                ratios.add_row(label, f"{name}, {contestant}", f"{fact:,}")
        ratios.add_section()
        medians = (f"{np.median(one.seconds[name]):.3f}" for name in CONTESTANTS)
        seconds.add_row(label, *medians, f"{case.n:,}")
    return [ratios, seconds]


def as_json(measured: list[Measured], scale: float, clock: str) -> dict:
    """All rounds of all contestants, and what they ran on."""
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "processors": os.cpu_count(),
        "packages": {name: version(name) for name in PACKAGES},
        "scale": scale,
        "clock": clock,
        "cases": [
            {
                "workload": one.case.workload,
                "variant": one.case.variant,
                "elements": one.case.n,
                "goals": dict(one.case.goals),
                "seconds": one.seconds,
                "facts": one.facts,
                "figures": {
                    name: {
                        "median": figure.median,
                        "smallest": figure.smallest,
                        "largest": figure.largest,
                    }
                    for name, figure in one.figures().items()
                },
            }
            for one in measured
        ],
    }
