"""Run workloads, print tables of the results, and save the numbers as JSON."""

import os

# Set before NumPy and PyTorch are imported: one thread each, without busy waiting.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["OPENBLAS_NUM_THREADS"] = "1"
os.environ["MKL_NUM_THREADS"] = "1"
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"

import json

from benchmarks.command_line import make_console, make_parser, write_numbers
from benchmarks.harness import CLOCKS
from benchmarks.registry import MODULES, cases, missing_packages
from benchmarks.report import as_json, describe_machine, make_tables, measure_case


def main(argv=None):
    parser = make_parser("benchmarks", __doc__, MODULES, rounds=5, path=".cache/bench.json")
    parser.add_argument("--scale", type=float, default=1.0, help="fraction of the elements to use")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="use cpu on busy machines")
    args = parser.parse_args(argv)

    console = make_console()
    measured, absent = [], {}
    for name in args.only or MODULES:
        if packages := missing_packages(name):
            absent[name] = packages
            console.print(f"{name}: absent, because {', '.join(packages)} is not installed")
        of_workload = [
            measure_case(case, args.rounds, CLOCKS[args.clock], console)
            for case in ([] if packages else cases(name, args.scale))
        ]
        save_numbers(args.json, name, of_workload, packages, args)
        measured += of_workload
    for table in make_tables(measured, absent):
        console.print(table)
    console.print(f"Numbers: {args.json}", soft_wrap=True)


def save_numbers(path, workload, measured, packages, args):
    """Replace the cases of a workload in the JSON file and keep those of other workloads."""
    previous = json.loads(path.read_text()) if path.exists() else {"cases": []}
    new = [{**as_json(one), "clock": args.clock, "scale": args.scale} for one in measured]
    kept = [case for case in previous["cases"] if case["workload"] != workload]
    absent = {**previous.get("absent", {}), workload: packages}
    order = list(MODULES)
    numbers = {
        **describe_machine(),
        "absent": {name: packages for name, packages in absent.items() if packages},
        "cases": sorted([*kept, *new], key=lambda case: order.index(case["workload"])),
    }
    write_numbers(path, numbers)


if __name__ == "__main__":
    main()
