"""Growth: the time with more elements, more keys of one model, and more models."""

from dataclasses import replace

from benchmarks.w1_rows import cases as row_cases
from benchmarks.w5_models_per_key import KeyedJob, make_case

ELEMENTS = (10_000, 100_000, 1_000_000)
COUNTS = (1, 10, 1_000)
ROUNDS = 3
MAX_MODELS_OF_BEAM = 10
THREADS_OF_BEAM = "each of its models starts two threads that never end"


def cases(scale):
    for n in ELEMENTS:
        _, fixed = row_cases(scale * n / 200_000)
        yield replace(
            fixed, workload="growth", variant=f"{n:,} elements", goals={}, max_rounds=ROUNDS
        )
    n = max(2_000, int(10_000 * scale))
    for count in COUNTS:
        job = KeyedJob(n, n_keys=count, n_models=1)
        yield make_case("growth", f"{count:,} keys", job, {}, ROUNDS)
    for count in COUNTS:
        job = KeyedJob(n, n_keys=count, n_models=count)
        case = make_case("growth", f"{count:,} models", job, {}, ROUNDS)
        if count > MAX_MODELS_OF_BEAM:
            runs = {name: run for name, run in case.runs.items() if not name.startswith("Beam")}
            case = replace(case, runs=runs, not_measured={"Beam": THREADS_OF_BEAM})
        yield case
