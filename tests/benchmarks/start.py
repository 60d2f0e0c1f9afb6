"""Startup: time and memory until the library is imported, and until the first result of a new process."""

import functools

from benchmarks.harness import Case, Outcome, run_program
from benchmarks.w1_rows import train_model

IMPORTS = {
    "limit": "import apache_beam",
    "ours": "import apache_beam, runinference.sklearn_inference",
    "Beam": "import apache_beam, apache_beam.ml.inference.sklearn_inference",
}

PROGRAM = """
import apache_beam as beam, numpy as np
from apache_beam.runners.worker.statesampler import StateSampler
StateSampler.__init__.__defaults__ = (1,)
{imports}
with beam.Pipeline("FnApiRunner") as pipeline:
    _ = pipeline | beam.Create([np.zeros(32, np.float32)]) | {step} | beam.Map(lambda _: print("1"))
"""
PEAK = "MB of peak memory"
IMPORT_HANDLER = (
    "from {package}{base} import RunInference\n"
    "from {package}.sklearn_inference import SklearnModelHandlerNumpy"
)
STEP = "RunInference(SklearnModelHandlerNumpy(model_uri={path!r}))"


def cases(scale):
    yield Case(
        workload="start",
        variant="import",
        n=1,
        runs={name: functools.partial(run, f"{text}\nprint(1)") for name, text in IMPORTS.items()},
        check=check,
        goals={},
        max_rounds=3,
    )
    _, path = train_model()
    step = STEP.format(path=path)
    ours = IMPORT_HANDLER.format(package="runinference", base="")
    beam = IMPORT_HANDLER.format(package="apache_beam.ml.inference", base=".base")
    programs = {
        "limit": "import pickle, sklearn.linear_model, numpy as np\n"
        f"model = pickle.load(open({path!r}, 'rb'))\n"
        "print(len(model.predict(np.zeros((1, 32), np.float32))))",
        "ours": PROGRAM.format(imports=ours, step=step),
        "Beam": PROGRAM.format(imports=beam, step=step),
    }
    yield Case(
        workload="start",
        variant="first result",
        n=1,
        runs={name: functools.partial(run, program) for name, program in programs.items()},
        check=check,
        goals={},
        max_rounds=3,
        warm_up=False,
    )


def run(program):
    """Run a program in a new process. The program prints its number of results."""
    *counts, peak = run_program(program)
    return Outcome(sum(counts), metrics={PEAK: peak / 1e6})


def check(contender, outcome):
    assert outcome.n == 1
