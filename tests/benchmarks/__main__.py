"""Run workloads, print tables of the results, and save the numbers as JSON."""

import os

# Set before NumPy and PyTorch are imported: one thread each, without busy waiting.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["OPENBLAS_NUM_THREADS"] = "1"
os.environ["MKL_NUM_THREADS"] = "1"
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"

import argparse
import json
import sys
from pathlib import Path

from rich.console import Console

from benchmarks.harness import CLOCKS, measure
from benchmarks.registry import MODULES, cases
from benchmarks.report import as_json, describe_machine, make_tables


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--workload", choices=MODULES, action="append", help="default: all")
    parser.add_argument("--rounds", type=int, default=5, help="rounds after a warm-up round")
    parser.add_argument("--scale", type=float, default=1.0, help="fraction of the elements to use")
    parser.add_argument(
        "--json",
        type=Path,
        default=Path(".cache/bench.json"),
        help="file to update with the numbers",
    )
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="use cpu on busy machines")
    args = parser.parse_args(argv)

    console = Console(highlight=False, width=None if sys.stdout.isatty() else 140)
    measured = []
    for name in args.workload or MODULES:
        for case in cases(name, args.scale):
            with console.status(f"{case.workload}, {case.variant}"):
                measured.append(measure(case, args.rounds, CLOCKS[args.clock]))
        save_numbers(args.json, [one for one in measured if one.case.workload == name], args)
    for table in make_tables(measured):
        console.print(table)
    console.print(f"Numbers: {args.json}", soft_wrap=True)


def save_numbers(path, measured, args):
    """Replace the cases of a workload in the JSON file and keep those of other workloads."""
    path.parent.mkdir(parents=True, exist_ok=True)
    previous = json.loads(path.read_text())["cases"] if path.exists() else []
    new = [{**as_json(one), "clock": args.clock, "scale": args.scale} for one in measured]
    names = {case["workload"] for case in new}
    kept = [case for case in previous if case["workload"] not in names]
    order = list(MODULES)
    ordered = sorted([*kept, *new], key=lambda case: order.index(case["workload"]))
    numbers = {**describe_machine(), "cases": ordered}
    path.write_text(json.dumps(numbers, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
