"""Memory: a model of 100 MB in one process with several threads, and in several processes."""

import functools
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import apache_beam as beam
import numpy as np

from benchmarks.harness import Case, Outcome, run_pipeline, run_program
from runinference import ModelHandler, PredictionResult, RunInference

COUNTS = (1, 2, 4)
MODEL_BYTES = 100_000_000
ELEMENTS = 64
MEMORY = "MB of memory"
SHARED = "ours with large_model"


def cases(scale):
    for n in COUNTS:
        runs = {"limit": functools.partial(run_loops, 1), "ours": functools.partial(run_threads, n)}
        yield make_case(f"{n} threads", runs)
    for n in COUNTS:
        in_processes = functools.partial(run_workers, n, "multi_processing")
        runs = {
            "limit": functools.partial(run_loops, n),
            "ours": in_processes,
            SHARED: functools.partial(in_processes, large_model=True),
        }
        yield make_case(f"{n} processes", runs)


def make_case(variant, runs):
    """Return a case of one round, because the memory hardly varies."""
    return Case("memory", variant, ELEMENTS, runs, check, goals={}, max_rounds=1, warm_up=False)


class LargeModelHandler(ModelHandler[int, PredictionResult, np.ndarray]):
    """A model that adds one to each element."""

    def load_model(self):
        return np.ones(MODEL_BYTES, np.int8)

    def run_inference(self, batch, model, inference_args=None):
        return [PredictionResult(element, element + int(model[element])) for element in batch]


class WriteMemory(beam.DoFn):
    """Count correct results, and write the memory of this process to a file."""

    def __init__(self, folder):
        self._folder = folder

    def setup(self):
        self._n = 0

    def process(self, result):
        self._n += result.inference == result.example + 1

    def finish_bundle(self):
        path = Path(self._folder, f"{os.getpid()} {id(self)}")
        path.write_text(f"{self._n} {proportional_bytes('self')}")


def run_workers(n, mode, **options):
    """Run a pipeline with `n` worker threads or processes."""
    with tempfile.TemporaryDirectory() as folder:
        run_pipeline(
            functools.partial(range, ELEMENTS),
            beam.Reshuffle(),
            RunInference(LargeModelHandler(**options)),
            WriteMemory(folder),
            options=[f"--direct_num_workers={n}", f"--direct_running_mode={mode}"],
        )
        files = [
            (path.name.split()[0], path.read_text().split()) for path in Path(folder).iterdir()
        ]
    memory = {}
    for process, (_, size) in files:
        memory[process] = max(memory.get(process, 0), int(size))
    assert len(memory) == (n if mode == "multi_processing" else 1)
    return make_outcome(sum(int(count) for _, (count, _) in files), memory.values())


def run_threads(n):
    """Run a pipeline with `n` worker threads in a new process, without the imports of this one."""
    program = (
        "from benchmarks import memory\n"
        f"outcome = memory.run_workers({n}, 'multi_threading')\n"
        "print(outcome.n, round(1e6 * outcome.metrics[memory.MEMORY]))"
    )
    n_results, size, _ = run_program(program)
    return make_outcome(n_results, [size])


LOOP = f"""
import numpy as np
model = np.ones({MODEL_BYTES}, np.int8)
print(sum(element + int(model[element]) == element + 1 for element in range({ELEMENTS})), flush=True)
input()
"""


def run_loops(n):
    """Call the model in a loop in `n` processes without Beam."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", LOOP], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(n)
    ]
    counts = [int(process.stdout.readline()) for process in processes]
    memory = [proportional_bytes(process.pid) for process in processes]
    for process in processes:
        process.communicate("\n")
    return make_outcome(min(counts), memory)


def make_outcome(n, memory):
    return Outcome(n, metrics={MEMORY: sum(memory) / 1e6})


def check(contender, outcome):
    assert outcome.n == ELEMENTS


def proportional_bytes(process):
    """Return the memory of a process on Linux. Of memory that several processes share, each one counts a part."""
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    [line] = [line for line in lines if line.startswith("Pss:")]
    return 1_024 * int(line.split()[1])
