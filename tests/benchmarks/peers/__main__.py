"""Compare this library with Ray Data, Spark, and Daft, print a table, and save the numbers as JSON."""

import os

# Set before NumPy and PyTorch are imported, here and in the processes of the engines.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["OPENBLAS_NUM_THREADS"] = "1"
os.environ["MKL_NUM_THREADS"] = "1"
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"

import functools
import time

import numpy as np
from rich.table import Table

from benchmarks.command_line import make_console, make_parser, write_numbers
from benchmarks.harness import Case
from benchmarks.peers.engines import ENGINES
from benchmarks.peers.jobs import image_job, row_job, sequence_job
from benchmarks.report import as_json, describe_machine, find_version, measure_case

JOBS = {"W1": row_job, "W2": image_job, "W3": sequence_job}


def main(argv=None):
    parser = make_parser(
        "benchmarks.peers", __doc__, JOBS, rounds=3, path=".cache/bench-peers.json"
    )
    parser.add_argument("--scale", type=float, default=1.0, help="fraction of the elements to use")
    args = parser.parse_args(argv)
    console = make_console()

    table = Table("workload", "contender", title="\nShare of the throughput of the loop")
    for heading in ("median", "smallest", "largest", "seconds"):
        table.add_column(heading, justify="right")
    absent = {each.name: missing for each in ENGINES if (missing := each.find_missing())}
    engines = [engine() for engine in ENGINES if engine.name not in absent]
    cases = []
    try:
        for name in args.only or JOBS:
            measured, unsupported = measure_job(JOBS[name](args.scale), engines, args, console)
            cases.append({**as_json(measured), "unsupported": unsupported})
            add_rows(table, name, measured, unsupported, absent)
    finally:
        for engine in engines:
            engine.stop()
    console.print(table)
    packages = {each.package: find_version(each.package) for each in ENGINES}
    numbers = {**describe_machine(), "engines": packages, "absent": absent, "cases": cases}
    write_numbers(args.json, numbers)
    console.print(f"Numbers: {args.json}", soft_wrap=True)


def measure_job(job, engines, args, console):
    """Measure all contenders of a job. Return the measurement, and why engines can't run the job."""
    problems = {engine.name: engine.find_problem(job) for engine in engines}
    unsupported = {name: problem for name, problem in problems.items() if problem}
    runs = {
        engine.name: functools.partial(engine.run, job)
        for engine in engines
        if engine.name not in unsupported
    }
    case = Case(job.workload, "other engines", job.n, {**job.runs, **runs}, job.check, {})
    return measure_case(case, args.rounds, time.perf_counter, console), unsupported


def add_rows(table, name, measured, unsupported, absent):
    """Add a row per contender. Without a floor, the ideal is the time of the loop."""
    figures = measured.figures()
    for contender, seconds in measured.seconds.items():
        if contender != "limit":
            share = figures[f"{contender} of the ideal"]
            values = (share.median, share.smallest, share.largest, float(np.median(seconds)))
            table.add_row(name, contender, *(f"{value:.3g}" for value in values))
    for contender, reason in unsupported.items():
        table.add_row(name, f"{contender}, not supported: {reason}")
    for contender, missing in absent.items():
        table.add_row(name, f"{contender}, absent: {missing} is not installed")
    table.add_section()


if __name__ == "__main__":
    main()
