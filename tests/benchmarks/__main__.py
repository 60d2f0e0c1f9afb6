"""Run workloads, print tables of the results, and save the numbers as JSON."""

import os

# Set before NumPy and PyTorch are imported: one thread each, without busy waiting.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["OPENBLAS_NUM_THREADS"] = "1"
os.environ["MKL_NUM_THREADS"] = "1"
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"

import functools
import json
import sys
import time
from collections import defaultdict

from benchmarks.command_line import make_console, make_parser, write_numbers
from benchmarks.harness import CLOCKS
from benchmarks.isolation import Settings, WorkloadError, measure_cases, preload
from benchmarks.registry import MODULES, cases, missing_packages
from benchmarks.report import describe_machine, make_tables

#: Shorter cases run more rounds than requested.
CASE_SECS = 6
#: The estimate for a workload that was not measured before.
WORKLOAD_SECS = 40


def main(argv=None):
    parser = make_parser("benchmarks", __doc__, MODULES, rounds=5, path=".cache/bench.json")
    parser.add_argument("--scale", type=float, default=1.0, help="fraction of the elements to use")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="use cpu on busy machines")
    parser.add_argument(
        "--time-limit", type=float, default=90, help="seconds for a run of a contender"
    )
    args = parser.parse_args(argv)

    console = make_console()
    workloads = args.only or MODULES
    absent = {name: packages for name in workloads if (packages := missing_packages(name))}
    preload(f"benchmarks.{MODULES[name]}" for name in workloads if name not in absent)
    schedule = Schedule(workloads, read_numbers(args.json)["cases"])
    settings = Settings(args.rounds, args.clock, CASE_SECS * args.scale, args.time_limit)
    measured, failed = [], []
    for name in workloads:
        of_workload = []
        schedule.start(name)
        if name in absent:
            packages = ", ".join(absent[name])
            console.print(f"{name}: absent, because {packages} is not installed")
        else:
            try:
                for case in measure_workload(name, args.scale, settings, schedule, console):
                    of_workload.append({**case, "clock": args.clock, "scale": args.scale})
            except WorkloadError as error:
                console.print(f"{name}: {error}")
                failed.append(name)
        save_numbers(args.json, name, of_workload, absent.get(name, []))
        measured += of_workload
        failed += [name for case in of_workload if "ours" in case["not_measured"]]
    for table in make_tables(measured, absent):
        console.print(table)
    console.print(f"Numbers: {args.json}", soft_wrap=True)
    if failed:
        console.print(f"Failed: {', '.join(dict.fromkeys(failed))}. The errors are above.")
    return 1 if failed else 0


def measure_workload(name, scale, settings, schedule, console):
    """Yield the numbers of each case, and show progress with an estimate of the time left."""
    with console.status(name) as status:
        make_cases = functools.partial(cases, name, scale)
        show = lambda progress: status.update(f"{progress} ({schedule.time_left()})")  # noqa: E731
        for case in measure_cases(make_cases, settings, show):
            console.print(f"{name}, {case['variant']}: {case['took']:.0f} s")
            yield case


class Schedule:
    """Estimates the time left from how long workloads took in an earlier run."""

    def __init__(self, workloads, earlier_cases):
        took = defaultdict(float)
        for case in earlier_cases:
            took[case["workload"]] += case.get("took", 0)
        self._left = {name: took[name] or WORKLOAD_SECS for name in workloads}
        self._current = self._done = 0
        self._start = self._start_of_current = time.monotonic()

    def start(self, name):
        """Start a workload."""
        self._start_of_current = time.monotonic()
        self._done += self._current
        self._current = self._left.pop(name)

    def time_left(self):
        """Return a description, such as "about 3 min left"."""
        now = time.monotonic()
        # The first workload runs at an unknown speed.
        speed = (self._start_of_current - self._start) / self._done if self._done else 1
        current = max(0, self._current * speed - (now - self._start_of_current))
        minutes = (current + sum(self._left.values()) * speed) / 60
        return f"about {minutes:.0f} min left" if minutes >= 1 else "less than 1 min left"


def read_numbers(path):
    """Return the numbers of earlier runs."""
    return json.loads(path.read_text()) if path.exists() else {"cases": []}


def save_numbers(path, workload, measured, packages):
    """Replace the cases of a workload in the JSON file and keep those of other workloads."""
    previous = read_numbers(path)
    kept = [case for case in previous["cases"] if case["workload"] != workload]
    absent = {**previous.get("absent", {}), workload: packages}
    order = list(MODULES)
    numbers = {
        **describe_machine(),
        "absent": {name: packages for name, packages in absent.items() if packages},
        "cases": sorted([*kept, *measured], key=lambda case: order.index(case["workload"])),
    }
    write_numbers(path, numbers)


if __name__ == "__main__":
    sys.exit(main())
