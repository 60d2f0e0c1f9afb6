"""Growth: the time with more elements, more keys of one model, and more models."""

from dataclasses import replace

from benchmarks.w1_rows import cases as row_cases
from benchmarks.w1_rows import rows
from benchmarks.w5_models_per_key import KeyedJob, elements, make_case

ELEMENTS = (10_000, 100_000, 1_000_000)
COUNTS = (1, 10, 1_000)
ROUNDS = 3
MAX_MODELS_OF_BEAM = 10
THREADS_OF_BEAM = "each of its models starts two threads that never end"


def cases(scale):
    """Yield cases of growing size. Only the first of each kind runs a warm-up round."""
    for n in ELEMENTS:
        _, fixed = row_cases(scale * n / 200_000)
        rows(fixed.n)  # before the first round
        yield replace(
            fixed,
            workload="growth",
            variant=f"{n:,} elements",
            goals={},
            max_rounds=ROUNDS,
            warm_up=n == ELEMENTS[0],
        )
    n = max(2_000, int(10_000 * scale))
    for noun in ("keys", "models"):
        for count in COUNTS:
            job = KeyedJob(n, n_keys=count, n_models=count if noun == "models" else 1)
            elements(job)
            case = make_case("growth", f"{count:,} {noun}", job, {}, ROUNDS)
            if job.n_models > MAX_MODELS_OF_BEAM:
                runs = {name: run for name, run in case.runs.items() if name != "Beam"}
                case = replace(case, runs=runs, not_measured={"Beam": THREADS_OF_BEAM})
            yield replace(case, warm_up=count == COUNTS[0])
