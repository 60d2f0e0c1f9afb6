"""Runs workloads in rounds, prints the table, and writes the numbers as JSON."""

import os

# Before NumPy and PyTorch are imported: one thread each, which does not spin while it waits.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["OPENBLAS_NUM_THREADS"] = "1"
os.environ["MKL_NUM_THREADS"] = "1"
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"

import argparse
import json
from pathlib import Path

from rich.console import Console

from benchmarks import w1_rows, w4_shuffled_results
from benchmarks.harness import CLOCKS, measure
from benchmarks.report import as_json, tables

WORKLOADS = {"W1": w1_rows, "W4": w4_shuffled_results}


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--workload", choices=WORKLOADS, action="append", help="by default, all")
    parser.add_argument("--rounds", type=int, default=5, help="after one that warms up")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the elements to use")
    parser.add_argument(
        "--json", type=Path, default=Path(".cache/bench.json"), help="file to write"
    )
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: for busy machines")
    args = parser.parse_args(argv)

    console = Console(highlight=False)
    measured = []
    for name in args.workload or WORKLOADS:
        for case in WORKLOADS[name].cases(args.scale):
            with console.status(f"{case.workload}, {case.variant}"):
                measured.append(measure(case, args.rounds, CLOCKS[args.clock]))
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(as_json(measured, args.scale, args.clock), indent=1) + "\n")
    for table in tables(measured):
        console.print(table)
    console.print(f"Numbers: {args.json}", soft_wrap=True)


if __name__ == "__main__":
    main()
